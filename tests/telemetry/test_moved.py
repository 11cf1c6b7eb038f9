"""Names that moved go on working, and say where they went."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gradwatch import telemetry


@pytest.mark.parametrize("name", telemetry.MOVED)
@pytest.mark.parametrize("form", ["import gradwatch.telemetry.{}", "from gradwatch.telemetry import {}"])
def test_an_old_module_is_the_new_one_and_says_so(name, form):
    new = telemetry.MOVED[name]
    code = (
        "import sys, warnings, importlib\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        f"    {form.format(name)}\n"
        "import gradwatch\n"
        f"assert gradwatch.telemetry.{name} is importlib.import_module({new!r})\n"
        "said = [str(w.message) for w in said if 'gradwatch' in str(w.message)]\n"
        f"assert said == ['gradwatch.telemetry.{name} is now {new}; the old name will go away'], said"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_name_that_never_was_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such"):
        telemetry.no_such  # noqa: B018
    with pytest.raises(ModuleNotFoundError):
        __import__("gradwatch.telemetry.no_such")
