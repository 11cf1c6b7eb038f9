"""Names from a user's model are made safe before they are shown."""

from __future__ import annotations

import pytest

from gradwatch.reading.text import LABEL_LIMIT, clean, redact, short_names

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


LONG = [f"my_transformer/encoder/block_{i}/attention/query_projection/kernel:0" for i in range(12)]


def test_long_names_are_shown_by_what_tells_them_apart():
    assert list(short_names(LONG).values()) == [f"…/block_{i}/…" for i in range(12)]


def test_names_that_fit_are_left_alone():
    names = ["dense/kernel:0", "dense/bias:0"]
    assert short_names(names) == dict(zip(names, names))


@pytest.mark.parametrize(
    "names",
    [
        LONG,
        [*LONG, "my_transformer/encoder/block_1/attention/query_projection/bias:0"],
        [f"{'x' * 50}{i}{'y' * 50}" for i in range(30)],
        [f"{'x' * 50}{i}/{'y' * 50}" for i in range(30)],
        ["a" * 200],
        ["a/b", "a/b/c", "a" * 100],
        ["", "/", "//", "a" * 100],
        ["line\nbreak" * 20, "line\tbreak" * 20],
        [],
    ],
    ids=str,
)
@pytest.mark.parametrize("limit", [16, 28, 40])
def test_shortened_names_are_short_printable_and_still_different(names, limit):
    short = short_names(names, limit)
    assert list(short) == names
    assert len(set(short.values())) == len(names)
    assert all(len(text) <= limit and text.isprintable() for text in short.values())
