"""What `make docs` built: every page is there, every public name is in the reference, nothing comes from elsewhere.

    python tests/docs/site.py

Ends with status 1 and a list of what is wrong. It needs the standard library alone: the environment that builds the
site has neither pytest nor TensorFlow.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SITE = ROOT / "site"

#: Names that are documented by what stands in them.
MODULES = {"detectors", "errors", "grafana", "notify", "policies", "reading", "recovery", "sinks", "testing", "top"}


def public_names() -> set[str]:
    for node in ast.parse((ROOT / "gradwatch" / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(node.value))
    raise SystemExit("gradwatch/__init__.py has no __all__")


def faults() -> Iterator[str]:
    for page in (ROOT / "docs").rglob("*.md"):
        built = SITE / page.relative_to(ROOT / "docs").with_suffix(".html")
        if not built.exists():
            yield f"{page.relative_to(ROOT)} was not built"
    reference = "".join(page.read_text(encoding="utf-8") for page in (SITE / "reference").glob("*.html"))
    for name in sorted(public_names() - MODULES):
        if f'id="gradwatch.{name}"' not in reference:
            yield f"gradwatch.{name} is not in the reference: add it to docs/reference/api.md"
    for page in SITE.rglob("*.html"):
        for what in re.findall(
            r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="https?://[^"]+"', page.read_text("utf-8")
        ):
            yield f"{page.relative_to(SITE)} fetches {what}"
    if not (SITE / "search.json").exists():
        yield "there is no index for the search"


if __name__ == "__main__":
    found = list(faults())
    print("\n".join(found) or f"{sum(1 for _ in SITE.rglob('*.html'))} pages, complete")
    sys.exit(bool(found))
