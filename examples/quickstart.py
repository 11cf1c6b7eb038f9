"""The smallest honest use: a usual train step, and one line more.

Run it with: python examples/quickstart.py
"""

import numpy as np
import tensorflow as tf

import gradwatch

x = np.random.normal(size=(1000, 20)).astype("float32")
y = np.random.normal(size=(1000, 1)).astype("float32")
dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(32).repeat(4)

model = tf.keras.Sequential([tf.keras.layers.Dense(10, activation="relu"), tf.keras.layers.Dense(1)])
loss_fn = tf.keras.losses.MeanSquaredError()
optimizer = tf.keras.optimizers.Adam(1e-2)


@gradwatch.watch
@tf.function
def train_step(x, y):
    with tf.GradientTape() as tape:
        loss = loss_fn(y, model(x, training=True))
    grads = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(grads, model.trainable_variables))
    return loss


for batch, target in dataset:
    loss = train_step(batch, target)

seen = train_step.monitor.snapshot()
print(f"loss {float(loss):.3f} after {seen.steps} steps; median norm {seen.median:.3f}, clip_norm {seen.clip_norm:.3f}")
print(f"{seen.clipped_steps} steps clipped, {seen.explosions} explosions, {seen.nonfinite_steps} steps with NaN or Inf")
