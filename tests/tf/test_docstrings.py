"""Every example in a docstring of the package runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

import gradwatch

PACKAGE = Path(gradwatch.__file__).parent
#: What a user meets first: each must have an example.
FACES = ["Monitor", "watch", "KerasCallback", "serve", "TensorBoard"]


def modules_with_examples():
    for path in sorted(PACKAGE.rglob("*.py")):
        if re.search(r"^\s*>>> ", path.read_text(), re.M):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_print_what_they_say(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("name", FACES)
def test_what_a_user_meets_first_has_an_example(name):
    assert ">>> " in getattr(gradwatch, name).__doc__
