"""Two workers on this machine with one command: MultiWorkerMirroredStrategy, each worker with its own /metrics.

Run it with: python examples/two_workers.py

Each worker watches the same global norm and comes to the same decisions; each exports it under its own `instance`.
"""

import argparse
import json
import os
import socket
import subprocess
import sys

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--port", type=int, default=0, help="worker i serves /metrics at PORT + i; 0 takes free ports")
parser.add_argument("--json", metavar="FILE", help="worker i writes what it saw to FILE.i")
arguments = parser.parse_args()


def start_workers(count=2):
    """This file again, `count` times, each told by TF_CONFIG who and where all of them are."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    workers = []
    for index in range(count):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
        workers.append(subprocess.Popen([sys.executable, *sys.argv], env=environment))
    try:
        return max(worker.wait(300) for worker in workers)
    finally:
        for worker in workers:
            worker.kill()


def train():
    import tensorflow as tf

    import gradwatch

    # before anything else: the workers find each other here
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    index = strategy.cluster_resolver.task_id
    workers = strategy.num_replicas_in_sync
    tf.keras.utils.set_random_seed(0)  # every worker starts from the same weights
    with strategy.scope():
        model = tf.keras.Sequential(
            [tf.keras.Input([8]), tf.keras.layers.Dense(16, activation="tanh"), tf.keras.layers.Dense(1)]
        )
        optimizer = tf.keras.optimizers.SGD(0.05, momentum=0.9)

    @gradwatch.watch(name="two-workers", policy=gradwatch.policies.percentile(75))
    def replica_step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y)) / workers
        optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))

    @tf.function
    def train_step(x, y):
        strategy.run(replica_step, args=(x, y))

    server = gradwatch.serve(port=arguments.port, worker="auto" if arguments.port else None)
    print(f"worker {index}: metrics at {server.metrics_url}", flush=True)
    for step in range(arguments.steps):
        x = tf.random.stateless_normal([32, 8], seed=[0, step]) * (100.0 if step == 30 else 1.0)
        y = tf.reduce_sum(x, axis=1, keepdims=True)
        train_step(x[index::workers], y[index::workers])  # its part of the batch

    seen, history = replica_step.monitor.snapshot(), replica_step.monitor.history()
    print(f"worker {index}: {seen.steps} steps, {seen.clipped_steps} clipped, norm {seen.norm:.6g}", flush=True)
    if arguments.json:
        saw = {name: history[name].tolist() for name in ("norm", "clip_norm", "verdict")}
        saw |= {
            "explosion": seen.last_explosion and seen.last_explosion.step,
            "weights": [w.tolist() for w in model.get_weights()],
        }
        with open(f"{arguments.json}.{index}", "w") as file:
            json.dump(saw, file)


if __name__ == "__main__":
    if "TF_CONFIG" in os.environ:
        train()
    else:
        sys.exit(start_workers())
