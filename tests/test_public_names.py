"""What a user may import stands in `__all__`, and in the table below: a name that comes or goes is a decision."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent

PUBLIC = {
    "gradwatch": """Alert BatchEvent Blame Cause Decision Diagnosis Event KerasCallback Monitor Run Server Snapshot
        TensorBoard blame detectors diagnose errors grafana notify open_event open_run policies push reading recovery
        serve sinks testing top watch""",
    "gradwatch.detectors": """DETECTORS Detector State default nonfinite parse parse_all saturated spike trend
        vanishing""",
    "gradwatch.errors": """ConfigError GradwatchError LayoutError MissingExtra NothingToWatch RecordError
        ServeError TrainingStopped UnsupportedError""",
    "gradwatch.exporters": "",
    "gradwatch.grafana": "Told export files",
    "gradwatch.notify": "Apprise Channel SendError Slack Webhook channel_for",
    "gradwatch.policies": """COMBINATORS GLOBAL NONE POLICIES Policy State VALUE VARIABLE after auto bounded fixed
        median observe parse per_variable per_variable_norm percentile smallest value zscore""",
    "gradwatch.recovery": "Ladder ladder latest_healthy lower rollback skip stop",
    "gradwatch.reading": "mark_active set_interval",
    "gradwatch.sinks": "Sink mlflow wandb",
    "gradwatch.testing": "check_detector check_policy replay streams",
    "gradwatch.top": "Endpoint Row as_json parse run table",
}


def module(name: str) -> ModuleType:
    """`gradwatch.policies` and the like are attributes of the front door, which stand elsewhere."""
    top, _, rest = name.partition(".")
    found = importlib.import_module(top)
    return getattr(found, rest) if rest else found


@pytest.mark.parametrize("name", PUBLIC)
def test_all_of_a_public_module_is_what_this_table_says(name):
    offered, listed = set(module(name).__all__), set(PUBLIC[name].split())
    assert offered == listed, (
        f"{name} offers {sorted(offered - listed)} more and {sorted(listed - offered)} less than the table PUBLIC in "
        f"tests/test_public_names.py says; if that is meant, edit {name!r} there, else __all__ of the module"
    )


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "gradwatch"])
def test_a_public_module_defines_nothing_with_a_public_name_that_it_does_not_offer(name):
    found = module(name)
    defined = {
        key
        for key, value in vars(found).items()
        if not key.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == found.__name__
    }
    # errors has a helper for its own messages, which other rooms use
    assert defined - {"install_hint"} <= set(found.__all__)
    assert all(hasattr(found, key) for key in found.__all__)


# -- what the documents call --------------------------------------------------------------------------------

#: add-a-cause is for who changes gradwatch itself: the table of causes is open to nobody else.
PAGES = [
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if path.name != "add-a-cause.md"
]


def private(dotted: str) -> bool:
    """Whether a name such as "gradwatch.policies.fixed" leads through something that is not offered."""
    name, *rest = dotted.split(".")
    for part in rest:
        if name not in PUBLIC:
            return False  # an attribute of a class or a function: what that has is its own business
        if part not in PUBLIC[name].split() and part != "__version__":
            return True
        name = f"{name}.{part}"
    return False


def called(code: str) -> set[str]:
    """Names that code reads from gradwatch, as attributes or by import."""
    found, tree = set(), ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("gradwatch."):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gradwatch"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("gradwatch.")}
    return {name for name in found if re.fullmatch(r"[\w.]+", name)}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_documents_call_public_names_only(path):
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert {name for block in blocks for name in called(block) if private(name)} == set()


def test_every_example_calls_public_names_only():
    for path in sorted((ROOT / "examples").glob("*.py")):
        assert {name for name in called(path.read_text(encoding="utf-8")) if private(name)} == set(), path.name


def test_a_private_name_is_told_from_a_public_one():
    assert private("gradwatch.tf.engine")
    assert private("gradwatch.exporters.prometheus")
    assert private("gradwatch.policies.base")
    assert not private("gradwatch.policies.percentile")
    assert not private("gradwatch.Monitor.snapshot")
    assert called("from gradwatch.core import norms\ngradwatch.watch(step).monitor") == {
        "gradwatch.core.norms",
        "gradwatch.watch",
    }
