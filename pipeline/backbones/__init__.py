"""Every file here is one network body; a new one is found without being listed anywhere."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from pipeline.backbones.backbone import Backbone


@cache
def backbones() -> dict[str, type[Backbone]]:
    """{name: class} of every backbone in this folder."""
    found: dict[str, type[Backbone]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            if issubclass(member, Backbone) and member.__module__ == module.__name__ and member is not Backbone:
                name = module_info.name
                assert member.name == name, f"{module.__name__} must hold a backbone named {name!r}"
                found[member.name] = member
    return found
