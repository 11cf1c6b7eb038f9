"""What a storm of scrapes costs a training step: python benchmarks/scrape.py [--clients 100].

Three conditions take turns in one training process, round by round:

- quiet: nobody scrapes;
- elsewhere: the clients scrape a copy of the endpoint in another process, so they take their share of the
  machine but not of the training process;
- here: the clients scrape the training's own endpoint, each again as soon as it has its answer.

here / elsewhere is what gradwatch can do something about; elsewhere / quiet is what such clients cost on a
machine of this size wherever they scrape. Medians over the rounds of each round's mean step time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CLIENTS = """
import socket, sys, threading, time
done, target = 0, None

def scrape():
    global done
    while True:
        address = target
        if address is None:
            time.sleep(0.01)
            continue
        try:
            with socket.create_connection(address, timeout=30) as s:
                s.sendall(b"GET /metrics HTTP/1.0\\r\\n\\r\\n")
                size = 0
                while part := s.recv(65536):
                    size += len(part)
            done += size > 1000
        except OSError:
            time.sleep(0.05)

for _ in range(int(sys.argv[1])):
    threading.Thread(target=scrape, daemon=True).start()
for line in sys.stdin:
    port = int(line)
    target = ("127.0.0.1", port) if port else None
    print(done, flush=True)
"""

COPY = """
import sys
sys.path.insert(0, sys.argv[1])
from gradwatch.telemetry.httpd import Httpd
body = sys.stdin.buffer.read(int(sys.argv[2]))
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]
server = Httpd(app, "127.0.0.1", 0)
print(server.port, flush=True)
sys.stdin.read()
"""


def training(width: int):
    """A watched step of an MLP with about 3 * width^2 weights."""
    import keras
    import tensorflow as tf

    import gradwatch

    layers = [keras.layers.Dense(width, activation="relu") for _ in range(3)]
    model = keras.Sequential([keras.layers.Input((width,)), *layers, keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(1e-4)
    x, y = tf.random.normal((32, width)), tf.random.normal((32, 1))

    @gradwatch.watch(name="bench")
    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))
        return loss

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one round")
    parser.add_argument("--width", type=int, default=800, help="of the MLP's three layers; 800: 2 M weights")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()

    import urllib.request

    from gradwatch.telemetry import prometheus

    step = training(options.width)
    for _ in range(20):
        step().numpy()
    server = prometheus.serve(0)
    body = urllib.request.urlopen(server.metrics_url).read()
    root = str(Path(__file__).resolve().parents[1])
    copy = subprocess.Popen(
        [sys.executable, "-c", COPY, root, str(len(body))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    copy.stdin.write(body)
    copy.stdin.flush()
    ports = {"quiet": 0, "elsewhere": int(copy.stdout.readline()), "here": server.port}
    command = [sys.executable, "-c", CLIENTS, str(options.clients)]
    clients = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def aim(port: int) -> int:
        """Points the clients at a port (0: at none); how many answers they have had so far."""
        clients.stdin.write(f"{port}\n")
        clients.stdin.flush()
        return int(clients.stdout.readline())

    def drain() -> int:
        """Waits until the clients that still stand in the queue have had their answers."""
        aim(0)
        count = -1
        while (now := aim(0)) != count:
            count = now
            time.sleep(0.5)
        return count

    means: dict[str, list[float]] = {name: [] for name in ports}
    answers = dict.fromkeys(ports, 0)
    try:
        for _ in range(options.rounds):
            for name, port in ports.items():
                before = drain()
                aim(port)
                time.sleep(0.3)  # until all of them have come
                steps, began = 0, time.perf_counter()
                while time.perf_counter() - began < options.seconds:
                    step().numpy()
                    steps += 1
                means[name].append((time.perf_counter() - began) / steps)
                answers[name] += aim(port) - before
    finally:
        for process in (clients, copy):
            process.kill()
            process.wait()
        server.close()

    figures = {name: statistics.median(rounds) for name, rounds in means.items()}
    seconds = options.rounds * (options.seconds + 0.3)
    print(f"{options.clients} clients, {options.rounds} rounds of {options.seconds:g} s, exposition {len(body)} bytes")
    print(f"{'condition':<12}{'step, ms':>10}{'spread':>10}{'answers/s':>11}")
    for name, value in figures.items():
        spread = (max(means[name]) - min(means[name])) / value
        print(f"{name:<12}{value * 1e3:>10.3f}{spread:>10.1%}{answers[name] / seconds:>11.1f}")
    ratio = statistics.median(h / e for h, e in zip(means["here"], means["elsewhere"]))
    print(f"here / elsewhere: {ratio - 1:+.2%}   elsewhere / quiet: {figures['elsewhere'] / figures['quiet'] - 1:+.2%}")
    if options.json:
        options.json.write_text(
            json.dumps({"seconds": figures, "rounds": means, "here_over_elsewhere": ratio}, indent=2)
        )


if __name__ == "__main__":
    main()
