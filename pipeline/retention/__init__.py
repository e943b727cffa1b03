"""Every file here is one algorithm against forgetting; a new one is found without being listed anywhere."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from pipeline.retention.term import RetentionTerm


@cache
def retention_terms() -> dict[str, type[RetentionTerm]]:
    """{name: class} of every term in this folder."""
    terms: dict[str, type[RetentionTerm]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            if (
                issubclass(member, RetentionTerm)
                and member.__module__ == module.__name__
                and member is not RetentionTerm
            ):
                assert member.name == module_info.name, f"{module.__name__} must hold a term named {module_info.name!r}"
                terms[member.name] = member
    return terms
