"""The report: one HTML file with everything in it, BokehJS included, so that it opens anywhere and offline."""

from __future__ import annotations

import html
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from gradwatch.diagnosis.verdict import Diagnosis
from gradwatch.errors import MissingExtra
from gradwatch.exporters.metrics import version_of
from gradwatch.reading.text import clean, short_names
from gradwatch.report import figures
from gradwatch.report.facts import duration, number, settings
from gradwatch.report.material import MOST_EVENTS, Material

#: Nothing from elsewhere: what is in the file is all there is.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
_NAMED = 3  # variables that carried an event
_OUTCOMES = {
    "survived": "the loss stayed where it was",
    "healed": "the loss left, and is back",
    "harmed": "the loss is above what it was",
    "lost": "the loss is no better than at the start",
}
_LEAST_CAUSE = 0.05  # confidence of a cause that is worth a line


def write(path: Path, text: str) -> None:
    """Writes a page as a whole or not at all.

    Raises:
      OSError: the file cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def report(material: Material) -> str:
    """The page about one run.

    Raises:
      MissingExtra: Bokeh is not installed.
    """
    drawn = figures.of(material)
    sections = [
        _verdict(material.diagnosis),
        _tiles(material),
        _plots(material, drawn),
        _events(material),
        _notes(material.notes),
        _settings(material.facts),
    ]
    about = f"{material.name}, {_span(material)}"
    return document(f"{material.name}: report", about, sections, [figure for _, figure in drawn])


def document(title: str, about: str, sections: Iterable[str], drawn: Sequence[Any]) -> str:
    """A whole page: the sections of HTML, in which `{{plot N}}` is the place of figure N."""
    from bokeh.document import Document
    from bokeh.embed.util import OutputDocumentFor, standalone_docs_json_and_render_items

    body = "\n".join(sections)
    docs: Any = {}
    roots: dict[str, str] = {}
    if drawn:
        with OutputDocumentFor(drawn, always_new=True) as document_:
            assert isinstance(document_, Document)
            docs, [item] = standalone_docs_json_and_render_items(drawn, suppress_callback_warning=True)
            roots = {str(model.id): str(element) for model, element in item.roots._roots.items()}
            items = [item.to_json()]
        for i, figure in enumerate(drawn):
            body = body.replace(f"{{{{plot {i}}}}}", f'<div class="plot" id="{roots[figure.id]}"></div>')
    data = {"docs": docs, "items": items if drawn else []}
    place = files(__package__) / "static"
    style = (files("gradwatch.exporters.live") / "static" / "page.css").read_text(encoding="utf-8")
    parts = {
        "title": html.escape(clean(title)),
        "about": html.escape(about),
        "policy": _POLICY,
        "style": style + (place / "report.css").read_text(encoding="utf-8"),
        "bokeh": _script(_bokehjs()),
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "script": (place / "report.js").read_text(encoding="utf-8"),
        "written": html.escape(time.strftime("%Y-%m-%d %H:%M")),
        "version": html.escape(version_of("gradwatch")),
        "body": body,
    }
    page = (place / "report.html").read_text(encoding="utf-8")
    for name in parts:  # the longest texts last, so that nothing in them is taken for a place
        before, _, after = page.partition(f"{{{{{name}}}}}")
        page = before + parts[name] + after
    return page


def _script(text: str) -> str:
    return text.replace("</script", "<\\/script")


def _bokehjs() -> str:
    try:
        import bokeh
    except ImportError:
        raise MissingExtra("bokeh", "live", "a report") from None

    path = Path(bokeh.__file__).parent / "server" / "static" / "js" / "bokeh.min.js"
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        raise MissingExtra("bokeh", "live", "a report") from None


# -- sections -------------------------------------------------------------------------------------------------


def section(heading: str, content: str, note: str = "") -> str:
    """A card of the page; `content` is HTML."""
    said = f'<p class="quiet">{html.escape(note)}</p>' if note else ""
    return f'<section class="card"><h2>{html.escape(heading)}</h2>{said}{content}</section>'


def table(head: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts; `head` has (name, class of the column)."""
    names = "".join(f'<th scope="col" class="{kind}">{html.escape(name)}</th>' for name, kind in head)
    lines = "".join(
        "<tr>"
        + "".join(
            f'<td class="{kind}" data-label="{html.escape(name)}">{html.escape(text)}</td>'
            for text, (name, kind) in zip(row, head)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table></div>'


def verdict_lines(diagnosis: Diagnosis) -> str:
    """Verdict, Why, Next as HTML."""
    tone = "ok" if diagnosis.healthy else "critical"
    first = f' <span class="quiet">First at step {diagnosis.first_step:,}.</span>' if diagnosis.first_step else ""
    return (
        f'<p class="verdict {tone}">{html.escape(diagnosis.verdict)}{first}</p>'
        f"<p><b>Why</b> {html.escape(diagnosis.why)}</p><p><b>Next</b> {html.escape(diagnosis.next)}</p>"
    )


def _verdict(diagnosis: Diagnosis | None) -> str:
    if diagnosis is None:
        return section("Verdict", "<p>It could not be given; the log says why.</p>")
    others = [
        f"<li><b>{html.escape(cause.kind.replace('_', ' '))}</b> "
        f'<span class="quiet">{cause.confidence:.0%}</span> {html.escape(" ".join(cause.evidence))}</li>'
        for cause in diagnosis.causes
        if cause.confidence >= _LEAST_CAUSE
    ]
    more = f'<details><summary>All causes that were weighed</summary><ul class="plain">{"".join(others)}</ul></details>'
    return section("Verdict", verdict_lines(diagnosis) + (more if others else ""))


def tiles(material: Material) -> list[tuple[str, str, str]]:
    """(label, value, a word beside it) of what one wants to know first."""
    facts, counts = material.facts, material.counts
    seen = sum(counts.get(word, 0) for word in ("pass", "clip", "zero", "skip"))
    out = [("Steps", f"{material.steps:,}", f"{counts['missed']:,} more were not seen" if counts.get("missed") else "")]
    if facts.get("start"):
        end = facts.get("end") or facts.get("seen") or facts["start"]
        out.append(("Took", duration(end - facts["start"]), str(facts.get("ended") or "")))
    if material.diagnosis is not None and material.diagnosis.outcome:
        out.append(("Outcome", material.diagnosis.outcome, outcome_text(material.diagnosis)))
    out.append(("Clipped", f"{counts.get('clip', 0) / seen:.1%}" if seen else "-", f"{counts.get('clip', 0):,} steps"))
    lost = counts.get("zero", 0) + counts.get("skip", 0)
    out.append(("Zeroed or skipped", f"{lost:,}", "steps"))
    kinds: dict[str, int] = {}
    for event in material.events:
        kinds[str(event["kind"])] = kinds.get(str(event["kind"]), 0) + int(event.get("episodes", 1))
    told = ", ".join(f"{count:,} {figures.COLOURS.get(kind, ('', kind))[1]}" for kind, count in kinds.items())
    out.append(("Anomalies", f"{sum(kinds.values()):,}", told))
    for name, label in (("loss", "Loss at the end"), ("norm", "Norm at the end")):
        if name in material.curves:
            high = material.curves[name].high
            known = high[~np.isnan(high)]
            began = f"{number(known[0])} at the start"
            if name in material.nonfinite:
                since, word = material.nonfinite[name]
                out.append((label, word, f"since step {since:,}; {began}"))
            else:
                out.append((label, number(known[-1]), began))
    if "learning_rate" in material.seldom:
        values = material.seldom["learning_rate"][1]
        known = values[~np.isnan(values)]
        out.append(
            ("Learning rate", number(known[-1]), f"largest {number(known.max())}" if known.max() > known[-1] else "")
        )
    return out


def outcome_text(diagnosis: Diagnosis) -> str:
    """What the word `Diagnosis.outcome` says of the loss; "" for no word."""
    if diagnosis.nonfinite_since is not None:
        return f"nothing finite since step {diagnosis.nonfinite_since:,}"
    return _OUTCOMES.get(diagnosis.outcome, "")


def _tiles(material: Material) -> str:
    told = "".join(
        f"<div><dt>{html.escape(label)}</dt><dd>{html.escape(value)}</dd>"
        f'<dd class="quiet">{html.escape(word)}</dd></div>'
        for label, value, word in tiles(material)
    )
    return f'<dl id="tiles">{told}</dl>'


def _plots(material: Material, drawn: Sequence[tuple[str, Any]]) -> str:
    legend = figures.legend(material)
    notes = {
        "Gradient norm": "Of all gradients together, before and after clipping. Vertical lines: where anomalies began.",
        "Update ratio": "The share of their length by which a step moves the weights, measured every 50 steps.",
    }
    if material.heat is not None and material.heat.layers > len(material.heat.names):
        notes["Layers"] = f"The {len(material.heat.names)} largest of {material.heat.layers} variables."
    parts = []
    for i, (heading, figure) in enumerate(drawn):
        shown = (
            {renderer.name for renderer in figure.renderers} & legend.keys() if heading == "Gradient norm" else set()
        )
        key = "".join(
            f'<li><i class="{name}" style="border-color: var(--{name})"></i>{html.escape(label)}</li>'
            for name, label in legend.items()
            if name in shown
        )
        listed = f'<ul class="key" aria-hidden="true">{key}</ul>' if key else ""
        parts.append(section(heading, f"{listed}{{{{plot {i}}}}}", notes.get(heading, "")))
    if not parts:
        return section("Curves", "<p>No step was recorded.</p>")
    return "\n".join(parts)


def _events(material: Material) -> str:
    if not material.events:
        return section("Events", "<p>None: nothing stood out.</p>")
    names = sorted({name for event in material.events for name in event.get("shares", {})})
    short = short_names(names, 32)
    messages = {
        (alert["step"], alert["kind"]): str(alert["message"]) for alert in material.alerts if alert["phase"] == "fired"
    }
    rows = []
    for event in material.events[:MOST_EVENTS]:
        shares = sorted(event.get("shares", {}).items(), key=lambda item: -item[1])[:_NAMED]
        kind = figures.COLOURS.get(event["kind"], ("", str(event["kind"])))[1]
        rows.append(
            (
                f"{event['step']:,}",
                f"{kind} ({event['detail']})" if event.get("detail") else kind,
                "NaN" if event.get("detail") == "NaN" else number(event["norm"]),
                number(event["threshold"]),
                ", ".join(f"{short[name]} {share:.0%}" for name, share in shares),
                messages.get((event["step"], event["kind"]), ""),
            )
        )
    head = (
        ("Step", "number"),
        ("What", "name"),
        ("Norm", "number"),
        ("Threshold", "number"),
        ("Carried by", "name wide"),
        ("Told then", "name wide"),
    )
    more = f"The first {MOST_EVENTS:,} of {len(material.events):,}." if len(material.events) > MOST_EVENTS else ""
    return section("Events", table(head, rows), more)


def _notes(notes: Sequence[Mapping[str, Any]]) -> str:
    if not notes:
        return ""
    rows = [(f"{note['step']:,}", clean(note["text"], 1000)) for note in notes]
    return section("Notes", table((("Step", "number"), ("Note", "name")), rows))


def _settings(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td class="name">{html.escape(text)}</td></tr>'
        for name, text in settings(facts).items()
    )
    variables = facts.get("variables") or {}
    listed = "".join(
        f'<tr><th scope="row">{html.escape(clean(path))}</th><td class="name">'
        f"{html.escape('' if shape is None else ' x '.join(map(str, shape)) or 'scalar')}</td></tr>"
        for path, shape in list(variables.items())[:2000]
    )
    more = f"<details><summary>Variables</summary><table><tbody>{listed}</tbody></table></details>" if listed else ""
    return section("Settings", f'<table class="settings"><tbody>{rows}</tbody></table>{more}')


def _span(material: Material) -> str:
    if not material.last:
        return "no step yet"
    what = f"steps {material.first:,} to {material.last:,}"
    if not material.whole:
        what += " (the last ones of this monitor; a record holds all)"
    if material.facts.get("start"):
        what += f", begun {time.strftime('%Y-%m-%d %H:%M', time.localtime(material.facts['start']))}"
    ended = material.facts.get("ended")
    return f"{what}, {clean(ended, 200)}" if ended else what
