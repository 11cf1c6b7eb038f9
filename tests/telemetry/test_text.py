"""Names from a user's model are made safe before they are shown."""

from __future__ import annotations

import pytest

from gradwatch.reading.text import LABEL_LIMIT, clean, redact

HOSTILE = [
    "line\nbreak",
    "carriage\rreturn",
    "\x1b[31mred",
    "nul\x00",
    "\u202eright to left",
    "\u2028separator",
    "lone \ud800 surrogate",
    "x" * 10_000,
]


@pytest.mark.parametrize(
    "name", ["dense/kernel", 'quo"ted', "<script>alert(1)</script>", "Größe", "層", "x" * LABEL_LIMIT]
)
def test_a_harmless_name_is_left_alone(name):
    assert clean(name) == name


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_hostile_name_becomes_one_short_printable_line(name):
    safe = clean(name)
    assert safe.isprintable()
    assert len(safe) <= LABEL_LIMIT
    safe.encode("utf-8")


def test_two_names_never_become_one():
    names = ["x" * 10_000 + "a", "x" * 10_000 + "b", "a\nb", "a\tb", "a\ufffdb"]
    assert len({clean(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://hooks.slack.com/services/T0/B0/secret", "https://hooks.slack.com"),
        ("https://user:password@example.org:8443/path?token=secret#secret", "https://example.org"),
        ("http://[::1", "(a URL that cannot be read)"),
        ("secret", "(a URL without a scheme)"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(url, shown):
    assert redact(url) == shown
