"""Finding what a folder holds: a new file takes part without being listed anywhere."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import TypeVar

_Base = TypeVar("_Base")


def subclasses_in(package: str, base: type[_Base]) -> Iterator[tuple[str, type[_Base]]]:
    """(file's name without .py, class) of each concrete subclass of `base` that a file right in the package defines.

    Imports all of these files; in the order of the files' names, then of the classes'.
    """
    for module_info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{module_info.name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            if member is base or inspect.isabstract(member) or member.__module__ != module.__name__:
                continue
            if issubclass(member, base):
                yield module_info.name, member
