"""Metrics for Prometheus, a callable for alerts, and a checkpoint that keeps what the monitor learned.

Run it with: python examples/serve_and_resume.py
"""

import tempfile
import time
import urllib.request

import tensorflow as tf

import gradwatch

model = tf.keras.Sequential(
    [tf.keras.Input([8]), tf.keras.layers.Dense(16, activation="tanh"), tf.keras.layers.Dense(1)]
)
optimizer = tf.keras.optimizers.SGD(0.05)


def on_alert(alert):
    print(f"{alert.severity}: {alert.message}")


@gradwatch.watch(name="regression", policy=gradwatch.policies.percentile(90, window=500), on_alert=on_alert)
@tf.function
def train_step(x, y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
    optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))
    return loss


def batch(step):
    x = tf.random.stateless_normal([32, 8], seed=[0, step])
    return x, tf.reduce_sum(x, axis=1, keepdims=True)


server = gradwatch.serve(port=0)
for step in range(100):
    train_step(*batch(step))

checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, gradwatch=train_step.monitor)
with tempfile.TemporaryDirectory() as folder:
    path = checkpoint.save(f"{folder}/model")
    for step in range(100, 150):
        train_step(*batch(step))
    ahead = train_step.monitor.snapshot()

    checkpoint.restore(path).assert_consumed()
    for step in range(100, 150):
        train_step(*batch(step))
    again = train_step.monitor.snapshot()

print(f"step {again.steps}: clip_norm {ahead.clip_norm!r} before the restore, {again.clip_norm!r} after it")
assert (again.steps, again.clip_norm) == (ahead.steps, ahead.clip_norm)

time.sleep(1.5)  # the endpoint shows what was read off the device within the last second
with urllib.request.urlopen(server.metrics_url) as response:
    shown = [line for line in response.read().decode().splitlines() if line.startswith("gradwatch_steps_total")]
print("\n".join(shown))
server.close()
