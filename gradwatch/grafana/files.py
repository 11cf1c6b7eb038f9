"""Data -> text of a JSON or YAML file, the same on every machine."""

from __future__ import annotations

import json
from typing import Any

from gradwatch.errors import MissingExtra


def as_json(data: Any) -> str:
    """Indented JSON, keys in the order they were written."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_yaml(data: Any, head: str) -> str:
    """YAML below `head` as comment lines; a text of several lines becomes a block.

    Raises:
      MissingExtra: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise MissingExtra("pyyaml", "grafana", "writing the Grafana files") from error

    def increase_indent(dumper: Any, flow: bool = False, indentless: bool = False) -> Any:
        return yaml.SafeDumper.increase_indent(dumper, flow, False)  # list items stand deeper than their key

    def ignore_aliases(dumper: Any, data: Any) -> bool:
        return True  # a repeated list is written out: readers need not know anchors

    def text(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    methods = {"increase_indent": increase_indent, "ignore_aliases": ignore_aliases}
    dumper: Any = type("Dumper", (yaml.SafeDumper,), methods)
    dumper.add_representer(str, text)
    comment = "".join(f"# {line}".rstrip() + "\n" for line in head.strip().splitlines())
    return f"{comment}\n{yaml.dump(data, Dumper=dumper, sort_keys=False, allow_unicode=True, width=110)}"
