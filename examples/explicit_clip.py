"""A hand-written update: `monitor.clip` in place of `tf.clip_by_global_norm`.

For train steps that no optimizer's `apply_gradients` ends. Run it with: python examples/explicit_clip.py
"""

import tensorflow as tf

import gradwatch

weights = tf.Variable(tf.random.normal([20, 1], seed=1), name="weights")
monitor = gradwatch.Monitor(name="by_hand", policy=gradwatch.policies.median(2.0))


@tf.function(jit_compile=True)
def train_step(x, y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(x @ weights - y))
    grads = tape.gradient(loss, [weights])
    grads, decision = monitor.clip(grads, [weights])  # was: grads, norm = tf.clip_by_global_norm(grads, 1.0)
    weights.assign_sub(0.05 * grads[0])
    return loss, decision.norm


for step in range(200):
    x = tf.random.stateless_normal([32, 20], seed=[0, step])
    y = tf.reduce_sum(x, axis=1, keepdims=True) + tf.random.stateless_normal([32, 1], seed=[1, step])
    loss, norm = train_step(x, y)

seen = monitor.snapshot()
print(f"loss {float(loss):.3f}, norm {float(norm):.3f}; {seen.clipped_steps} of {seen.steps} steps clipped")
