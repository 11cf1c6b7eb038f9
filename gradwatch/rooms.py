"""The modules of a package as its attributes, imported at first use: `import gradwatch` is enough to reach them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


def modules_of(package: str) -> Callable[[str], ModuleType]:
    """The `__getattr__` of a package that imports its modules when somebody asks for them.

        __getattr__ = modules_of(__name__)

    Args:
      package: dotted name of the package.

    Returns:
      a function of an attribute's name that gives the module of this name. It raises AttributeError if there is none;
      an error while a module is imported, such as a library that is not installed, is raised as it is.
    """

    def module(name: str) -> ModuleType:
        dotted = f"{package}.{name}"
        if name.startswith("_") or find_spec(dotted) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return import_module(dotted)

    return module
