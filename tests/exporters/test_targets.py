"""The target file goes when a process ends on purpose, and stays where it failed, until its run serves again."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
from telemetry.processes import run_script

from gradwatch.exporters.prometheus import serve

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="dead processes are asked for as POSIX does")


def after(folder, ending: str) -> int:
    """How many target files stand in the folder after a process that served ended like this."""
    done = run_script(
        f"import os, signal, sys, threading\nfrom gradwatch.exporters.prometheus import serve\n"
        f"server = serve(0, file_sd={str(folder)!r}, labels={{'run': 'lm-7'}})\n"
        f"assert len(os.listdir({str(folder)!r})) == 1\n{ending}\n"
    )
    assert "AssertionError" not in done.stderr
    return len(list(folder.iterdir()))


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "sys.exit()",
        "sys.exit(0)",
        "sys.exit(143)",  # a handler of SIGTERM that ends as the shell says
        "raise KeyboardInterrupt",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "os.kill(os.getpid(), signal.SIGHUP)",
        "server.close()\nsys.exit(3)",
        "try: sys.exit(3)\nexcept SystemExit: pass",
        "def main():\n    try: sys.exit(3)\n    except SystemExit: return 1\nmain()",
        "try: 1 / 0\nexcept ZeroDivisionError: pass",
        "try:\n    with server: 1 / 0\nexcept ZeroDivisionError: pass",
        "t = threading.Thread(target=sys.exit, args=(3,)); t.start(); t.join()",
    ],
)
def test_a_process_that_ends_on_purpose_takes_its_file_away(tmp_path, ending):
    assert after(tmp_path, ending) == 0


@pytest.mark.parametrize(
    "ending",
    [
        "raise RuntimeError('out of memory')",
        "sys.exit(3)",
        "sys.exit('no data')",
        "def main():\n    with threading.Lock(): sys.exit(3)\nmain()",
        "try: sys.exit(3)\nfinally: print('over')",
        "with server: raise RuntimeError",
        "os._exit(1)",
        "os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_a_process_that_fails_leaves_its_file_so_that_it_is_missed(tmp_path, ending):
    assert after(tmp_path, ending) == 1


def test_a_run_that_failed_does_not_say_at_its_end_that_it_was_over(tmp_path):
    """GradwatchTargetDown does not miss what said that it was over: a scrape at the end must not hear it."""

    def told(ending: str) -> str:
        return run_script(
            "import sys\nfrom gradwatch.exporters.prometheus import serve\nfrom gradwatch.reading import reader\n"
            "from telemetry.fake import FakeMonitor\n"
            f"serve(0, file_sd={str(tmp_path)!r})\n"
            "monitor = FakeMonitor('lm'); reader.register(monitor); monitor.step(1.0); reader.poll_now()\n"
            "readings = lambda: print([r.active for r in reader.reader.readings(departed=True)], flush=True)\n"
            "reader.reader.at_exit(readings)\n"
            f"{ending}\n"
        ).stdout.strip()

    assert told("") == "[False]"
    assert told("raise RuntimeError") == "[True]"
    assert told("sys.exit(3)") == "[True]"


def leftover(folder, run: str, *, pid: int, host: str | None = None) -> None:
    labels = {
        "run": run,
        "__meta_gradwatch_host": socket.gethostname() if host is None else host,
        "__meta_gradwatch_pid": str(pid),
    }
    (folder / "gradwatch-127.0.0.1-1.json").write_text(json.dumps([{"targets": ["127.0.0.1:1"], "labels": labels}]))


@pytest.fixture
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(30)
    return process.pid


def files_while_serving(folder, run: str) -> int:
    with serve(0, file_sd=folder, labels={"run": run}):
        return len(list(folder.iterdir()))


def test_a_run_that_starts_again_removes_what_its_dead_process_left(reader, tmp_path):
    assert after(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)") == 1
    assert files_while_serving(tmp_path, "another") == 2
    assert files_while_serving(tmp_path, "lm-7") == 1
    assert not list(tmp_path.iterdir())


def test_what_another_host_or_a_process_that_lives_wrote_stays(reader, tmp_path, dead):
    leftover(tmp_path, "lm-7", pid=dead, host="another-host")
    assert files_while_serving(tmp_path, "lm-7") == 2
    leftover(tmp_path, "lm-7", pid=os.getppid())
    assert files_while_serving(tmp_path, "lm-7") == 2
    leftover(tmp_path, "lm-7", pid=dead)
    assert files_while_serving(tmp_path, "lm-7") == 1


def test_a_container_that_is_started_again_has_the_process_id_that_it_had(reader, tmp_path):
    leftover(tmp_path, "lm-7", pid=os.getpid())
    assert files_while_serving(tmp_path, "lm-7") == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "[1]", '[{"labels": 3}]', '[{"labels": {"run": "lm-7"}}]', "[" * 9999]
)
def test_a_file_that_is_none_of_ours_stays_and_harms_nobody(reader, tmp_path, text):
    (tmp_path / "gradwatch-x-1.json").write_text(text)
    assert files_while_serving(tmp_path, "lm-7") == 2
    assert (tmp_path / "gradwatch-x-1.json").read_text() == text


def test_two_servers_of_one_run_leave_each_others_files(reader, tmp_path):
    with serve(0, file_sd=tmp_path, labels={"run": "lm-7"}):
        assert files_while_serving(tmp_path, "lm-7") == 2
