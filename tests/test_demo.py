"""The demo: its text, its sentences, its picture, and short runs of the real thing."""

from __future__ import annotations

import io
import itertools
import math
import os
import re
import signal
import socket
import threading
import urllib.request

import numpy as np
import pytest

from gradwatch.core.snapshot import KINDS, Event, Snapshot
from gradwatch.demo import diagnosis
from gradwatch.demo.text import encode, english, pages
from gradwatch.demo.training import Run

UNIFORM = math.log(100)

# -- the text -------------------------------------------------------------------------------------------------


def test_the_text_is_real_english_of_a_useful_size():
    text = english()
    assert len(text.codes) > 300_000
    assert 60 < len(text.vocabulary) < 300
    assert text.uniform_loss == pytest.approx(math.log(len(text.vocabulary)))
    shown = "".join(text.vocabulary[i] for i in text.codes)
    for word in (" the ", " statement", "expression", "exception"):
        assert shown.count(word) > 50


def test_encoding_loses_nothing():
    text = encode("a snake 🐍, a naïve one\n")
    assert "".join(text.vocabulary[i] for i in text.codes) == "a snake 🐍, a naïve one\n"
    assert list(text.vocabulary) == sorted(set("a snake 🐍, a naïve one\n"))


def test_targets_are_the_inputs_one_character_later():
    text = encode("".join(map(chr, range(32, 500))))
    x, y = next(pages(text, seed=3, batch=4, length=10))
    assert x.shape == y.shape == (4, 10)
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    np.testing.assert_array_equal(x + 1, y)


def test_a_batch_is_a_page_and_every_page_comes_once_before_any_comes_again():
    text = encode("".join(map(chr, range(1000, 1000 + 10 * 40 + 1))))
    stream = pages(text, seed=0, batch=4, length=10)
    first, second = ([next(stream)[0].ravel() for _ in range(10)] for _ in range(2))
    for page in first:
        np.testing.assert_array_equal(page, np.arange(page[0], page[0] + 40))
    assert sorted(page[0] for page in first) == list(range(0, 400, 40))
    assert [page[0] for page in first] != [page[0] for page in second]


def test_equal_seeds_give_equal_batches_and_others_do_not():
    text = encode("".join(map(chr, range(32, 500))))
    one, same, other = (list(itertools.islice(pages(text, seed=s, batch=8, length=5), 6)) for s in (1, 1, 2))
    assert all((a[0] == b[0]).all() for a, b in zip(one, same))
    assert any((a[0] != b[0]).any() for a, b in zip(one, other))


# -- the sentences --------------------------------------------------------------------------------------------


def snapshot(**changes):
    numbers = ("norm", "applied_norm", "clip_norm", "clip_scale", "median", "max_norm", "norm_sum", "time", "score")
    counts = ("steps", "clipped_steps", "nonfinite_steps", "nonfinite_streak", "skipped_updates", "explosions")
    base = {
        **dict.fromkeys(numbers, 1.0),
        **dict.fromkeys(counts, 0),
        "name": "protected",
        "policy": "percentile(90, window=1000)",
        "verdict": "pass",
        "warmup": False,
        "explosion_threshold": 2.0,
        "vanishing_threshold": 0.0,
        "norm_bounds": (),
        "norm_counts": (1,),
        "quantiles": {},
        "skipped_by_reason": {},
        "layer_norms": {},
        "last_events": dict.fromkeys(KINDS),
        "anomalies": dict.fromkeys(KINDS, 0),
        "anomalous_steps": dict.fromkeys(KINDS, 0),
        "active": dict.fromkeys(KINDS, False),
    }
    return Snapshot(**{**base, **changes})


def a_run(name, loss, norm=None, clip_norm=1.0, events=(), ended="finished", **changes):
    loss = np.asarray(loss, float)
    norm = np.ones(len(loss)) if norm is None else np.asarray(norm, float)
    series = {
        "step": np.arange(1, len(loss) + 1),
        "norm": norm,
        "applied_norm": np.minimum(norm, clip_norm),
        "clip_norm": np.full(len(loss), clip_norm),
        "threshold": np.full(len(loss), 2.0),
        "score": np.zeros(len(loss)),
        "verdict": np.zeros(len(loss), int),
    }
    return Run(name, snapshot(name=name, **changes), loss, series, list(events), 1.0, ended)


def falling(steps, to=1.7):
    return np.linspace(UNIFORM, to, steps)


@pytest.mark.parametrize(
    ("loss", "step"),
    [
        (falling(300), None),
        (np.r_[falling(300), np.full(20, np.nan)], 301),
        (np.r_[falling(300), np.nan, falling(10, 2.0)], None),  # one NaN loss that was survived
        (np.full(20, np.nan), 1),
        (np.r_[falling(300), np.full(200, 30.0)], 301),
        (np.r_[falling(300), np.full(20, 30.0)], None),  # too short to say
        ([], None),
        (np.full(300, 2 * UNIFORM), 1),
    ],
)
def test_the_step_of_divergence(loss, step):
    assert diagnosis.diverged_at(np.asarray(loss, float), UNIFORM) == step


def test_a_spike_that_was_survived_is_no_divergence():
    loss = falling(600)
    loss[300:305] = 1e15
    assert diagnosis.diverged_at(loss, UNIFORM) is None


def test_the_right_clip_norm_is_the_median_of_what_the_second_half_used():
    run = a_run("protected", falling(400))
    run.series["clip_norm"] = np.r_[np.full(200, 50.0), np.linspace(0.4, 0.6, 200)]
    middle, low, high = diagnosis.right_clip_norm(run)
    assert middle == pytest.approx(0.5)
    assert 0.4 < low < 0.42
    assert 0.58 < high < 0.6


@pytest.mark.parametrize("bound", [np.inf, 1e36])
def test_a_policy_without_a_clip_norm_gives_no_advice_about_one(bound):
    assert diagnosis.right_clip_norm(a_run("protected", falling(400), clip_norm=bound)) is None


def explosion(step, norm=40.0):
    return Event("explosion", step, norm, 2.0, {"model/recurrent/kernel": 0.93, "model/dense/kernel": 0.05, "b": 0.0})


def lost_and_survived():
    norm = np.ones(320)
    norm[297] = 40.0
    norm[300:] = np.nan
    unprotected = a_run(
        "unprotected", np.r_[falling(300), np.full(20, np.nan)], norm, np.inf, [explosion(298)], "lost",
        policy="observe()",
    )  # fmt: skip
    spiky = np.ones(500)
    spiky[400] = 1e9
    protected = a_run(
        "protected", falling(500), spiky, 0.5, [explosion(401, 1e9)], clipped_steps=7, explosions=1
    )  # fmt: skip
    return unprotected, protected


def test_the_diagnosis_tells_step_variable_deed_and_the_clip_norm_to_choose():
    told = dict(diagnosis.diagnose(*lost_and_survived(), UNIFORM))
    lost = " ".join(told["unprotected"])
    assert "became NaN or Inf at step 301" in lost
    assert "explosion at step 298, 3 steps before: norm 40, alarm from 2 on" in lost
    assert "model/recurrent/kernel (93%), model/dense/kernel (5%)" in lost
    kept = " ".join(told["protected"])
    assert "survived 500 steps" in kept
    assert "clipped 7 of 500 steps (1.4%); hardest at step 401, from norm 1e+09 to 0.5" in kept
    assert "At step 301" in kept
    assert "clip_norm of about 0.5" in kept


def test_the_diagnosis_does_not_claim_what_did_not_happen():
    calm = a_run("unprotected", falling(300), policy="observe()")
    dead = a_run("protected", np.r_[falling(300), np.full(20, np.nan)], ended="lost")
    told = dict(diagnosis.diagnose(calm, dead, UNIFORM))
    assert "nothing was lost" in told["unprotected"][0]
    assert "diverged as well" in told["protected"][0]
    assert not any("much the same" in line for line in told["protected"])
    assert "No explosion began." in told["protected"]


def test_an_interrupted_run_is_told_without_the_word_survived():
    stopped = a_run("protected", falling(120), ended="interrupted")
    (_, lines) = diagnosis.diagnose(None, stopped, UNIFORM)[0]
    assert "was alive when it was interrupted after 120 steps" in lines[0]


def test_no_step_at_all_is_nothing_to_tell():
    assert diagnosis.diagnose(a_run("unprotected", [], ended="interrupted"), None, UNIFORM) == []


@pytest.mark.parametrize(
    ("x", "text"), [(0.43210, "0.432"), (3.1e9, "3.1e+09"), (math.nan, "NaN"), (math.inf, "none"), (1e36, "none")]
)
def test_numbers_are_short(x, text):
    assert diagnosis.number(x) == text


# -- the picture ----------------------------------------------------------------------------------------------


def is_a_picture(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return len(data) > 20_000


def test_the_picture_shows_both_runs(tmp_path):
    from gradwatch.demo.picture import draw

    draw(*lost_and_survived(), UNIFORM, tmp_path / "new" / "demo.png", subtitle="about")
    assert is_a_picture(tmp_path / "new" / "demo.png")


@pytest.mark.parametrize(
    "runs",
    [
        (None, a_run("protected", falling(120))),
        (a_run("unprotected", falling(3), ended="interrupted"), None),
        (a_run("unprotected", [], ended="interrupted"), None),
        (a_run("unprotected", np.full(20, np.nan), np.full(20, np.nan), np.inf), a_run("protected", [4.6])),
    ],
)
def test_the_picture_is_drawn_of_whatever_there_is(runs, tmp_path, recwarn):
    from gradwatch.demo.picture import draw

    draw(*runs, UNIFORM, tmp_path / "demo.png")
    assert is_a_picture(tmp_path / "demo.png")
    assert not [str(w.message) for w in recwarn]


# -- the real thing, short ------------------------------------------------------------------------------------

pytest.importorskip("rich")


@pytest.fixture
def demo(tmp_path):
    """Run the demo for a few steps; returns (outcome, what it printed)."""
    from rich.console import Console

    from gradwatch.core import policies
    from gradwatch.demo import session

    def run(**changes):
        out = io.StringIO()
        options = {"policy": policies.percentile(90), "steps": 30, "port": 0, "output": tmp_path, "learning_rate": 0.01}
        outcome = session.run(
            session.Options(**{**options, **changes}), Console(file=out, width=100, force_terminal=False)
        )
        return outcome, out.getvalue()

    return run


@pytest.mark.timeout(300)
def test_a_short_demo_trains_twice_from_one_seed_and_tells_and_draws(demo, tmp_path):
    outcome, printed = demo()
    assert [len(outcome.unprotected.loss), len(outcome.protected.loss)] == [30, 30]
    # equal weights and batches: the first loss is the same to the bit
    assert outcome.unprotected.loss[0] == outcome.protected.loss[0]
    assert outcome.unprotected.loss[0] == pytest.approx(english().uniform_loss, rel=0.1)
    np.testing.assert_array_equal(outcome.protected.series["step"], np.arange(1, 31))
    # observe() lets through what came
    unprotected = outcome.unprotected.series
    np.testing.assert_array_equal(unprotected["applied_norm"], unprotected["norm"])
    assert not outcome.interrupted
    assert is_a_picture(tmp_path / "demo.png")
    for line in outcome.diagnosis[0][1]:
        assert line in (tmp_path / "diagnosis.txt").read_text()
    for name in ("unprotected", "protected"):
        assert str(tmp_path / f"{name}.html") in printed
        assert "Verdict" in (tmp_path / f"{name}.html").read_text()
    assert outcome.as_json()["reports"] == [str(tmp_path / f"{name}.html") for name in ("unprotected", "protected")]
    assert re.search(r"curl http://127\.0\.0\.1:\d+/metrics", printed)
    assert "protected   30/30  loss" in printed


@pytest.mark.timeout(300)
def test_ctrl_c_ends_the_demo_with_what_was_learned_so_far_and_metrics_are_served_meanwhile(
    demo, tmp_path, monkeypatch, request
):
    from gradwatch.demo import session

    # a test run that was started in the background ignores Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    served = []
    true_serve = session._serve

    def serve(port, console):
        server = true_serve(port, console)

        # from another thread, as a scrape and a person are
        def person():
            for _ in range(600):
                with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
                    found = re.search(
                        r'^gradwatch_steps_total\{monitor="unprotected"\} (\S+)', answer.read().decode(), re.M
                    )
                if found and float(found[1]) > 50:  # more than any earlier run of this name
                    served.append(float(found[1]))
                    os.kill(os.getpid(), signal.SIGINT)
                    return
                threading.Event().wait(0.1)

        threading.Thread(target=person, daemon=True).start()
        return server

    monkeypatch.setattr(session, "_serve", serve)
    outcome, printed = demo(steps=5000)
    assert served
    assert outcome.interrupted
    assert outcome.unprotected.ended == "interrupted"
    assert outcome.protected is None
    assert 0 < len(outcome.unprotected.loss) < 5000
    assert len(outcome.unprotected.loss) == len(outcome.unprotected.series["norm"])
    assert "Unprotected" in printed
    assert is_a_picture(tmp_path / "demo.png")


def test_a_taken_usual_port_is_no_reason_to_stop_but_an_asked_one_is():
    from rich.console import Console

    from gradwatch.demo import session
    from gradwatch.errors import ServeError
    from gradwatch.exporters import ports

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=str(port)):
            session._serve(port, Console(file=io.StringIO()))
    with socket.socket() as usual:
        try:
            usual.bind(("127.0.0.1", ports.DEFAULT_PORT))
            usual.listen()
        except OSError:
            pass  # somebody has it already: that is the case under test
        server = session._serve(None, Console(file=io.StringIO()))
    try:
        assert server.port != ports.DEFAULT_PORT
    finally:
        server.close()
