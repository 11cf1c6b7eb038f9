"""What was set for a run, as lines for people: one name and one text each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradwatch.reading.text import clean

#: In this order; what is not here is not a setting.
_NAMES = {
    "policy": "Policy",
    "detectors": "Detectors",
    "on_nonfinite": "On NaN or Inf",
    "on_explosion": "On an explosion",
    "optimizer": "Optimizer",
    "strategy": "Strategy",
    "replicas": "Replicas",
    "precision": "Precision",
    "git_commit": "Git commit",
    "script": "Script",
    "host": "Host",
    "platform": "Platform",
}
_MOST = 300  # characters of a value
_NO_SETTING = ("name",)  # of an optimizer


def settings(facts: Mapping[str, Any]) -> dict[str, str]:
    """Name -> value of everything that was set or given for a run, in one order for all runs."""
    out: dict[str, str] = {}
    for key in ("policy", "detectors", "on_nonfinite", "on_explosion", "optimizer"):
        _put(out, _NAMES[key], facts.get(key))
    for key, value in (facts.get("optimizer_settings") or {}).items():
        if key not in _NO_SETTING and value is not None:
            _put(out, f"Optimizer: {str(key).replace('_', ' ')}", value)
    variables = facts.get("variables") or {}
    if variables:
        out["Variables"] = f"{len(variables):,}"
        known = [shape for shape in variables.values() if shape is not None and None not in shape]
        sizes = [math.prod(int(n) for n in shape) for shape in known]
        if len(sizes) == len(variables):
            out["Parameters"] = f"{sum(sizes):,}"
    for key in ("strategy", "replicas", "precision"):
        _put(out, _NAMES[key], facts.get(key))
    for key, value in (facts.get("versions") or {}).items():
        _put(out, f"Version of {key}", value)
    for key in ("git_commit", "script", "host", "platform"):
        _put(out, _NAMES[key], facts.get(key))
    return out


def _put(out: dict[str, str], name: str, value: Any) -> None:
    if value is None or value == "" or value == []:
        return
    if isinstance(value, float):
        text = f"{value:.6g}"  # 0.009999999776482582 was 0.01
    elif isinstance(value, (list, tuple)):
        text = ", ".join(map(str, value))
    elif isinstance(value, Mapping):
        text = ", ".join(f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in value.items())
    else:
        text = str(value)
    out[clean(name)] = clean(text, _MOST)


def number(value: Any) -> str:
    """A number for people: four digits; "-" where it is not known."""
    if value is None:
        return "-"
    x = float(value)
    if math.isnan(x):
        return "-"
    if math.isinf(x):
        return "Inf" if x > 0 else "-Inf"
    if x == 0:
        return "0"
    return f"{x:.3e}" if not 1e-3 <= abs(x) < 1e6 else f"{x:,.4g}" if abs(x) < 1e4 else f"{x:,.0f}"


def duration(seconds: float) -> str:
    """12 s, 5 min, 3 h 04."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d}"
