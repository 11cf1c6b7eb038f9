"""The report, a comparison and a notebook's card in Chromium: in light and dark, on a desktop and a phone.

GRADWATCH_PICTURES=FOLDER keeps the pictures.
"""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from browser import chromium

sys.path.insert(0, str(Path(__file__).parents[1]))

from report.synthetic import event, norms, record

from gradwatch.record.run import open_run
from gradwatch.report import compare

for module in ("bokeh", "websocket", "PIL"):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed", allow_module_level=True)

pytestmark = pytest.mark.timeout(600)

KEPT = os.environ.get("GRADWATCH_PICTURES")
SIZES = ((1280, 900), (390, 844))

#: Bounds of what sticks out of the window to the right, but for tables that can be scrolled.
TOO_WIDE = """
    [...document.querySelectorAll('body *')].filter((one) => !one.closest('.scroll, svg, .bk-Figure')
        && one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.tagName + ' ' + one.className)
"""
#: For each figure, how many pixels of its canvas are not transparent.
DRAWN = """
    Bokeh.documents.flatMap((one) => one.roots()).map((plot) => Bokeh.index.get_by_id(plot.id)).map((view) => {
        const canvas = view.canvas_view.primary.canvas;
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        let count = 0;
        for (let i = 3; i < data.length; i += 4) count += data[i] > 0;
        return count;
    })
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    norm = norms(1200)
    norm[800:830] *= np.geomspace(1, 500, 30)
    norm[1000] = np.nan
    names = [f"encoder/block_{i}/attention/{part}/kernel" for i in range(6) for part in ("query", "value")]
    words = [*event(820, "explosion", 60.0), *event(1001, "nonfinite", np.nan, detail="NaN")]
    variables = dict.fromkeys(names, (64, 64))
    rate = np.minimum(np.arange(1200) / 300, 1.0) * 0.1
    record(folder / "wild.sqlite", norm, words=words, rate=rate, variables=variables, ended="SIGTERM")
    record(folder / "calm.sqlite", norms(900, seed=1))
    return folder


def complaints(browser):
    """Of the page, not of the pixels that the test itself reads."""
    return [text for text in browser.complaints if "willReadFrequently" not in text]


def brightness(browser, tmp_path):
    from PIL import Image

    picture = Image.open(io.BytesIO(browser.picture(tmp_path / "page.png").read_bytes())).convert("L")
    return np.asarray(picture, float).mean()


def look(browser, path, tmp_path, name):
    """Opens a page at both widths in light and dark, and says what is wrong with it."""
    for width, height in SIZES:
        for scheme in ("light", "dark"):
            browser.size(width, height)
            browser.scheme(scheme)
            browser.open(path.as_uri(), 90)
            browser.wait_for("document.documentElement.dataset.drawn === 'yes'", 90)
            browser.wait_for(f"({DRAWN}).every((count) => count > 1000)", 60)
            assert browser.run(TOO_WIDE) == []
            assert browser.run("document.documentElement.scrollWidth <= innerWidth")
            light = brightness(browser, tmp_path)
            assert light > 200 if scheme == "light" else light < 90
            if KEPT:
                browser.size(width, min(browser.run("document.documentElement.scrollHeight"), 5000))
                browser.wait_for(f"({DRAWN}).every((count) => count > 1000)", 60)
                browser.picture(Path(KEPT) / f"{name}-{scheme}-{width}.png")


def test_a_report_is_drawn_in_light_and_dark_on_a_desktop_and_on_a_phone_and_asks_for_nothing(browser, runs, tmp_path):
    path = open_run(runs / "wild.sqlite").write_report(tmp_path / "report.html")
    look(browser, path, tmp_path, "report")
    assert complaints(browser) == []
    assert {request.split(":")[0] for request in browser.requests} <= {"file", "data"}
    headings = browser.run("[...document.querySelectorAll('h2')].map((one) => one.textContent)")
    curves = ["Loss", "Learning rate", "Gradient norm", "Update ratio", "Layers"]
    assert headings == ["Verdict", *curves, "Events", "Settings"]
    assert browser.run("document.querySelector('.verdict').textContent.length") > 10
    # one axis of steps: what moves one figure moves all
    browser.run("Bokeh.documents[0].roots()[0].x_range.start = 500")
    assert browser.run("Bokeh.documents[0].roots().map((plot) => plot.x_range.start)") == [500] * 5
    # drawn in the colours of the page
    colours = (
        "Bokeh.documents[0].roots().map((plot) => plot.renderers.find((one) => one.name === 'norm')?.glyph.line_color"
        ".value).filter(Boolean)"
    )
    for scheme, colour in (("light", "#2f6fde"), ("dark", "#6ea8ff")):  # --norm of page.css
        browser.scheme(scheme)
        browser.wait_for(f"{colours}[0] === '{colour}'")


def test_a_comparison_is_drawn_alike(browser, runs, tmp_path):
    found = compare.of([(name, open_run(runs / f"{name}.sqlite").material()) for name in ("wild", "calm")])
    path = tmp_path / "compare.html"
    path.write_text(compare.page_of(found), encoding="utf-8")
    look(browser, path, tmp_path, "compare")
    assert complaints(browser) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_card_of_a_notebook_is_legible_on_white_and_on_black(browser, runs, tmp_path, scheme):
    card = open_run(runs / "wild.sqlite")._repr_html_()
    ink, paper = ("#111", "#fff") if scheme == "light" else ("#eee", "#111")
    (tmp_path / "notebook.html").write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><body style="background:{paper};color:{ink}">{card}', encoding="utf-8"
    )
    for width, height in SIZES:
        browser.size(width, height)
        browser.open((tmp_path / "notebook.html").as_uri())
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        assert browser.run("document.querySelector('svg').getBoundingClientRect().height") > 40
        assert browser.run("document.querySelector('path').getTotalLength()") > 300
        if KEPT:
            browser.picture(Path(KEPT) / f"card-{scheme}-{width}.png")
    assert complaints(browser) == []
