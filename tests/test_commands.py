"""`gradwatch grafana export` and `gradwatch notify test`, as a person types them."""

from __future__ import annotations

import http.server
import json
import re
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from gradwatch.cli import COMMANDS, commands

COMMITTED = Path(__file__).parent.parent / "grafana"


@pytest.fixture
def hook():
    """A webhook on loopback: (its address, the messages it got, the status it answers with)."""
    got, status = [], [200]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook?token=secret", got, status
    server.shutdown()
    thread.join()
    server.server_close()


def test_grafana_export_writes_what_the_repository_holds(tmp_path):
    result = CliRunner().invoke(commands.grafana, ["export", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert "dashboards/gradient-health.json" in written
    for name in written:
        assert (tmp_path / "out" / name).read_bytes() == (COMMITTED / name).read_bytes(), name


def test_grafana_export_says_what_is_still_to_be_given(tmp_path, monkeypatch):
    monkeypatch.delenv("GRADWATCH_REPOSITORY", raising=False)
    monkeypatch.setattr("gradwatch.grafana.links._published", str)

    def told(*arguments: str) -> str:
        return CliRunner().invoke(commands.grafana, ["export", str(tmp_path / "out"), *arguments]).output

    assert "--runbooks URL" in told()
    assert "--runbooks URL" not in told("--runbooks", "https://wiki.example/runbooks")
    assert "0.26" not in told()
    assert "Alertmanager reads the webhook's address from a file" in told("--webhook", "https://example.org/x")


def test_grafana_export_and_notify_test_print_json(tmp_path, hook):
    result = CliRunner().invoke(commands.grafana, ["export", str(tmp_path / "out"), "--json"])
    assert all(Path(path).is_file() for path in json.loads(result.output))
    url, _, status = hook
    result = CliRunner().invoke(commands.notify, ["test", url, "--json"])
    assert json.loads(result.output)["sent"] is True
    status[0] = 403
    result = CliRunner().invoke(commands.notify, ["test", url, "--json"])
    told = json.loads(result.output)
    assert result.exit_code == 1
    assert told["sent"] is False
    assert "403" in told["error"]
    assert "secret" not in result.output


def test_grafana_export_says_where_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(commands.grafana, ["export", str(tmp_path / "file" / "below")])
    assert result.exit_code == 1
    assert "cannot write into" in result.output


def test_notify_test_sends_one_message_and_shows_no_secret(hook):
    url, got, _ = hook
    result = CliRunner().invoke(commands.notify, ["test", url])
    assert result.exit_code == 0, result.output
    assert len(got) == 1
    assert "secret" not in result.output


def test_notify_test_fails_when_the_message_is_not_taken(hook):
    url, _, status = hook
    status[0] = 403
    result = CliRunner().invoke(commands.notify, ["test", url])
    assert result.exit_code == 1
    assert "403" in result.output
    assert "secret" not in result.output


def test_the_page_has_one_row_for_each_command():
    page = (Path(__file__).parents[1] / "docs/reference/commands.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `gradwatch (\w+)", page, re.MULTILINE)
    assert sorted(named) == sorted(COMMANDS)
