"""`model.fit`: one callback.

Run it with: python examples/keras_fit.py
"""

import numpy as np
import tensorflow as tf

import gradwatch

random = np.random.default_rng(0)
x = random.normal(size=(2000, 20)).astype("float32")
y = (x.sum(axis=1, keepdims=True) > 0).astype("float32")

model = tf.keras.Sequential([tf.keras.layers.Dense(32, activation="relu"), tf.keras.layers.Dense(1)])
model.compile("adam", tf.keras.losses.BinaryCrossentropy(from_logits=True))

monitor = gradwatch.Monitor(name="classifier", policy=gradwatch.policies.zscore())
model.fit(x, y, epochs=3, verbose=2, callbacks=[gradwatch.KerasCallback(monitor)])

seen = monitor.snapshot()
print(f"{seen.steps} steps watched, {seen.clipped_steps} clipped; the layers' norms at the last one:")
for path, norm in seen.layer_norms.items():
    print(f"  {path}: {norm:.4f}")
