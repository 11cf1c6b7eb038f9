"""What does a storm of scrapes cost a training step?

    python benchmarks/scrape.py [--clients 100] [--rounds 20]

Three conditions take turns in one training process, round by round:

  quiet      nobody scrapes
  elsewhere  the clients scrape a copy of the endpoint in another process: they take their share of the machine,
             but nothing of the training process
  here       the clients scrape the training's own endpoint

Every client scrapes again as soon as it has its answer; a Prometheus would wait 15 seconds. here / elsewhere is
what gradwatch can do something about; elsewhere / quiet is what such clients cost on a machine of this size
wherever they scrape. First, with nothing trained, the processor time of one answer: it tells more on a machine
that is not quiet. Reported is the median over the rounds of the ratio within a round, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import setting
import tensorflow as tf

import gradwatch
from gradwatch.exporters import prometheus

SETTLE_SECONDS = 1.5  # until the burst that the endpoint grants is used up

CLIENTS = """
import socket, sys, threading, time
done, target = 0, None

def scrape():
    global done
    while True:
        address = target
        if address is None:
            time.sleep(0.05)
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
from gradwatch.exporters.httpd import Httpd
body = open(sys.argv[1], "rb").read()
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]
for _ in sys.stdin:
    server = Httpd(app, "127.0.0.1", 0)
    print(server.port, flush=True)
    sys.stdin.readline()
    server.stop()
    print("stopped", flush=True)
"""


class Helper:
    """A Python program of ours that answers each line it is sent with a number or a word."""

    def __init__(self, program: str, *arguments: str) -> None:
        command = [sys.executable, "-c", program, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line: object) -> str:
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def training(width: int) -> Callable[[], tf.Tensor]:
    """A watched step of an MLP with about 3 * width^2 weights."""
    hidden = [keras.layers.Dense(width, activation="relu") for _ in range(3)]
    model = keras.Sequential([keras.layers.Input((width,)), *hidden, keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(1e-4)
    x, y = tf.random.normal((32, width)), tf.random.normal((32, 1))

    @gradwatch.watch(name="bench")
    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))
        return loss

    return step


def step_seconds(step: Callable[[], tf.Tensor], seconds: float) -> float:
    """Mean time of a step over about `seconds`."""
    steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        step().numpy()
        steps += 1
    return (time.perf_counter() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="5 rounds")
    parser.add_argument("--rounds", type=int, help="20; quick: 5")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one condition in one round")
    parser.add_argument("--width", type=int, default=800, help="of the MLP's three layers; 800: 2 M weights")
    parser.add_argument(
        "--output", type=Path, help="file of the results (results/scrape.json, quick: scrape-quick.json)"
    )
    options = parser.parse_args()
    count = options.rounds or (5 if options.quick else 20)
    output = options.output or setting.results_file("scrape", options.quick)

    facts = setting.machine()
    print(setting.one_line(facts), flush=True)
    step = training(options.width)
    for _ in range(20):
        step().numpy()
    with prometheus.serve(0) as server:
        body = urllib.request.urlopen(server.metrics_url).read()
    file = output.with_suffix(".exposition")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(body)
    clients, copy = Helper(CLIENTS, str(options.clients)), Helper(COPY, str(file))

    def under_load(port: int) -> tuple[float, float]:
        """(time of a step, answers a second) while the clients scrape `port`."""
        clients.ask(port)
        time.sleep(SETTLE_SECONDS)
        before, began = int(clients.ask(port)), time.perf_counter()
        mean = step_seconds(step, options.seconds)
        answers = int(clients.ask(port)) - before
        rate = answers / (time.perf_counter() - began)
        clients.ask(0)
        return mean, rate

    def answer_cpu(seconds: float) -> tuple[float, float]:
        """(CPU seconds of this process for one answer, their share of one core) while nothing is trained."""
        with prometheus.serve(0) as server:
            clients.ask(server.port)
            time.sleep(SETTLE_SECONDS)
            before, cpu, began = int(clients.ask(server.port)), time.process_time(), time.perf_counter()
            time.sleep(seconds)
            used = time.process_time() - cpu
            answers = int(clients.ask(server.port)) - before
            share = used / (time.perf_counter() - began)
            clients.ask(0)
        return used / max(answers, 1), share

    def quiet() -> tuple[float, float]:
        time.sleep(SETTLE_SECONDS)
        return step_seconds(step, options.seconds), 0.0

    def elsewhere() -> tuple[float, float]:
        port = int(copy.ask("start"))
        try:
            return under_load(port)
        finally:
            copy.ask("stop")

    def here() -> tuple[float, float]:
        with prometheus.serve(0) as server:
            return under_load(server.port)

    rounds: list[dict[str, tuple[float, float]]] = []
    try:
        cost, share = answer_cpu(5 * options.seconds)
        for _ in range(count):
            # in random order: what else the machine does must not meet one condition more than another
            conditions = random.sample((quiet, elsewhere, here), 3)
            rounds.append({condition.__name__: condition() for condition in conditions})
    finally:
        clients.end()
        copy.end()
        file.unlink()

    print(f"{options.clients} clients, {count} rounds, exposition of {len(body)} bytes\n")
    print(f"CPU of the training process for one answer: {cost * 1e3:.2f} ms; while all ask: {share:.2%} of one core\n")
    rows = []
    for name in ("quiet", "elsewhere", "here"):
        median, low, high = setting.median_interval([r[name][0] * 1e3 for r in rounds])
        rate = setting.median_interval([r[name][1] for r in rounds])[0]
        rows.append([name, f"{median:.3f}", f"{low:.3f} - {high:.3f}", f"{rate:.1f}"])
    print(setting.table(["condition", "step, ms", "95 %", "answers/s"], rows) + "\n")
    ratios: dict[str, Any] = {}
    for above, below in (("here", "elsewhere"), ("elsewhere", "quiet"), ("here", "quiet")):
        median, low, high = setting.median_interval([r[above][0] / r[below][0] for r in rounds])
        ratios[f"{above} / {below}"] = {"median": median, "low": low, "high": high}
        print(f"{above} / {below}: {median - 1:+.2%}  ({low - 1:+.2%} to {high - 1:+.2%})")
    setting.write(
        output,
        {"machine": facts, "clients": options.clients, "answer_cpu": cost, "ratios": ratios, "rounds": rounds},
    )


if __name__ == "__main__":
    main()
