"""The mathematics: pure functions over explicit state. Knows neither TensorFlow nor I/O."""
