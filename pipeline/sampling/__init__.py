"""Every file here is one way to choose what a bounded memory keeps; a new one is found without being listed."""

from __future__ import annotations

from functools import cache

from pipeline.discovery import subclasses_in
from pipeline.sampling.sampling import Sampling


@cache
def samplings() -> dict[str, type[Sampling]]:
    """{name: class} of every way in this folder."""
    found: dict[str, type[Sampling]] = {}
    for file, sampling in subclasses_in(__name__, Sampling):  # type: ignore[type-abstract]
        assert sampling.name == file, f"{__name__}.{file} must hold a sampling named {file!r}"
        found[file] = sampling
    return found
