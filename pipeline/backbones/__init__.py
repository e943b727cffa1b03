"""Every file here is one network body; a new one is found without being listed anywhere."""

from __future__ import annotations

from functools import cache

from pipeline.backbones.backbone import Backbone
from pipeline.discovery import subclasses_in


@cache
def backbones() -> dict[str, type[Backbone]]:
    """{name: class} of every backbone in this folder."""
    found: dict[str, type[Backbone]] = {}
    for file, backbone in subclasses_in(__name__, Backbone):  # type: ignore[type-abstract]
        assert backbone.name == file, f"{__name__}.{file} must hold a backbone named {file!r}"
        found[file] = backbone
    return found
