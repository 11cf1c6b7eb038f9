"""What the pages say is what the code does."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from gradwatch import reading
from gradwatch.exporters import exposition, httpd, notify, ports, prometheus, push
from gradwatch.reading import alerts, losses, text

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["prometheus.md", "notifications.md"]
CALLABLES = {
    "gradwatch.serve": prometheus.serve,
    "gradwatch.push": push.push,
    "gradwatch.notify.Slack": notify.Slack,
    "gradwatch.notify.Webhook": notify.Webhook,
    "gradwatch.notify.Apprise": notify.Apprise,
    "gradwatch.notify.channel_for": notify.channel_for,
}


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def calls(name: str) -> list[ast.Call]:
    text = page(name)
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code += re.findall(r"`(gradwatch\.[^`\n]*\))`", text)
    return [node for block in code for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("name", PAGES)
def test_every_call_on_the_page_fits_its_function(name):
    seen = 0
    for call in calls(name):
        function = CALLABLES.get(ast.unparse(call.func))
        if function is None:
            continue
        seen += 1
        inspect.signature(function).bind(*call.args, **{k.arg: None for k in call.keywords})
    assert seen > 0


@pytest.mark.parametrize("name", PAGES)
def test_every_metric_on_the_page_exists(name):
    from gradwatch.exporters.metrics import BY_NAME

    assert set(re.findall(r"\bgradwatch_[a-z_]+", page(name))) <= set(BY_NAME)


def test_the_limits_on_the_page_of_the_endpoint_are_those_of_the_code():
    said = " ".join(page("prometheus.md").split())
    for words in (
        f"port {ports.DEFAULT_PORT}",
        f"TLS handshake included | {httpd.REQUEST_SECONDS:g} seconds |",
        f"made and taken | {httpd.RESPONSE_SECONDS:g} seconds |",
        f"size of a request | {httpd.REQUEST_BYTES // 1024} KiB |",
        f"a whole request | {httpd.MOST_IDLE};",
        f"wait for their answer | {httpd.MOST_CONNECTIONS};",
        f"threads that make answers | {httpd.MOST_THREADS},",
        f"requests a second | {httpd.BURST} at once, {httpd.REQUESTS_PER_SECOND:g} in the long run |",
        f"connections a second | {httpd.CONNECTION_BURST:,} at once, {httpd.CONNECTIONS_PER_SECOND:g} in the long",
        f"at most {exposition.MOST_LAYERS}",
        f"longer than {text.LABEL_LIMIT} characters",
        ", ".join(f"`{name}`" for name in ports.WORKER_VARIABLES),
    ):
        assert words in said


def test_the_defaults_on_the_page_of_the_channels_are_those_of_the_code():
    table = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page("notifications.md"), re.MULTILINE))
    parameters = inspect.signature(notify.Channel.__init__).parameters
    limits = {n: p.default for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert {name: ast.literal_eval(table[name].strip(" `")) for name in limits} == limits


def test_the_severities_on_the_page_are_those_of_the_code():
    said = " ".join(page("notifications.md").split())
    assert f"lasted {losses.LOST_SECONDS:g} seconds" in said
    assert f"from {losses.STREAK_STEPS} non-finite steps in a row, {losses.SCALING_STREAK_STEPS} under" in said
    assert f"away for {losses.BACK_STEPS} steps, or far above the first loss for {losses.WILD_STEPS} |" in said
    assert f"away for {losses.LOST_STEPS} steps and {losses.LOST_SECONDS:g} seconds" in said
    assert f"after {losses.PROGRESS_STEPS:,} losses" in said
    assert f"the new normal after {losses.SETTLED_STEPS:,} steps" in said


def test_the_fields_on_the_page_are_those_of_an_alert():
    table = page("notifications.md").split("| field | |")[1].split("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    alert = alerts.Alert("explosion", "run", 1, 1.0, 1.0, "", "warning", 0.0)
    assert named == set(alert.as_json()) - {"version"}


def test_the_functions_of_the_reader_on_the_page_exist():
    for name in re.findall(r"gradwatch\.reading\.(\w+)", page("prometheus.md")):
        assert callable(getattr(reading, name))
