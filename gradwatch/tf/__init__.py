"""Everything that touches TensorFlow."""
