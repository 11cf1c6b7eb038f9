"""Measured numbers go between their marks and nowhere else."""

from __future__ import annotations

import document
import pytest

PAGE = """# Title
prose
<!-- measured: one -->
old
<!-- end -->
more prose
<!-- measured: two -->
<!-- end -->
"""


def test_a_section_is_replaced_and_the_prose_stays():
    text = document.fill(PAGE, "one", "| new |")
    assert "old" not in text
    assert "<!-- measured: one -->\n\n| new |\n\n<!-- end -->\nmore prose" in text
    assert document.fill(text, "one", "| new |") == text


def test_a_page_without_the_section_is_an_error():
    with pytest.raises(SystemExit, match="measured: three"):
        document.fill(PAGE, "three", "x")


def test_every_section_has_its_place_in_the_page():
    for name in document.SECTIONS:
        page = document.PAGES.get(name, document.PAGE).read_text()
        assert document.fill(page, name, "x") != page
