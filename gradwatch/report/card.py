"""What a notebook shows of a run: a card without scripts, which keeps its picture in a saved notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from gradwatch.report.facts import number
from gradwatch.report.figures import COLOURS
from gradwatch.report.material import Material
from gradwatch.report.page import tiles

_WIDTH, _HEIGHT = 640.0, 120.0
_POINTS = 320


def card(material: Material) -> str:
    """HTML: name, verdict, a few numbers, and the norm as a small picture; for a light and a dark notebook."""
    diagnosis = material.diagnosis
    lines = ""
    if diagnosis is not None and material.steps:
        colour = "#0c7d58" if diagnosis.healthy else "#d0454c"  # readable on white and on black
        lines = (
            f'<div style="color:{colour};font-weight:600">{html.escape(diagnosis.verdict)}</div>'
            f"<div><b>Why</b> {html.escape(diagnosis.why)}</div><div><b>Next</b> {html.escape(diagnosis.next)}</div>"
        )
    told = "".join(
        f'<span style="margin-right:1.4em;display:inline-block"><span style="opacity:.65">{html.escape(label)}</span> '
        f"<b>{html.escape(value)}</b></span>"
        for label, value, _ in tiles(material)
    )
    return (
        '<div class="gradwatch" style="border:1px solid rgba(128,128,128,.4);border-radius:8px;padding:10px 14px;'
        'max-width:680px;font-family:system-ui,sans-serif;font-size:14px;line-height:1.5;text-align:left">'
        f'<div style="font-size:16px;font-weight:600">{html.escape(material.name)}</div>{lines}'
        f'<div style="margin:6px 0">{told}</div>{_picture(material)}</div>'
    )


def _picture(material: Material) -> str:
    """The norm on a log axis, and where anomalies began, as SVG."""
    curve = material.curves.get("norm")
    if curve is None or material.last <= material.first:
        return ""
    low, high = (np.where(x > 0, x, np.nan) for x in (curve.low, curve.high))
    if np.isnan(high).all():
        return ""
    bottom, top = float(np.nanmin(low)), float(np.nanmax(high))
    span = np.log(top / bottom) or 1.0
    x = (curve.step - material.first) / (material.last - material.first) * _WIDTH

    def height(values: np.ndarray) -> np.ndarray:
        return np.asarray((_HEIGHT - 8) * (1 - np.log(values / bottom) / span) + 4)

    events = "".join(_mark(material, event) for event in material.events[:100])
    span_text = f"{number(bottom)} to {number(top)}"
    return (
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" style="width:100%;display:block" role="img" '
        f'aria-label="The gradient norm over the steps, from {span_text}">{events}'
        f'<path d="{_path(x, height(low), height(high))}" fill="none" stroke="#3f86f0" stroke-width="1.2"/></svg>'
        f'<div style="opacity:.65;font-size:12px">Gradient norm, {span_text} on a log axis, steps '
        f"{material.first:,} to {material.last:,}</div>"
    )


def _mark(material: Material, event: Mapping[str, Any]) -> str:
    at = (event["step"] - material.first) / (material.last - material.first) * _WIDTH
    colour = COLOURS.get(event["kind"], ("#888888",))[0]
    return (
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{_HEIGHT:.0f}" stroke="{colour}" opacity=".7">'
        f"<title>{html.escape(str(event['kind']))} at step {event['step']:,}</title></line>"
    )


def _path(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    """Through the lowest and the highest point of each of a few hundred places; it breaks where nothing is known."""
    out: list[str] = []
    pen = "M"
    bounds = np.unique(np.linspace(0, len(x), min(len(x), _POINTS) + 1).astype(int))
    for begin, end in pairwise(bounds):
        part = np.concatenate([low[begin:end], high[begin:end]])
        part = part[~np.isnan(part)]
        if not len(part):
            pen = "M"
            continue
        for y in dict.fromkeys((round(float(part.max()), 1), round(float(part.min()), 1))):
            out.append(f"{pen}{x[(begin + end) // 2 if end - begin > 1 else begin]:.1f},{y}")
            pen = "L"
    return "".join(out)
