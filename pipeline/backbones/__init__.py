"""Every file here is one network body; a new one is found without being listed anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import ValidationError

from pipeline.backbones.backbone import Backbone
from pipeline.discovery import subclasses_in
from pipeline.sample import InputSpec
from pipeline.settings_section import Section
from pipeline.user_error import UserError


@cache
def backbones() -> dict[str, type[Backbone]]:
    """{name: class} of every backbone in this folder."""
    found: dict[str, type[Backbone]] = {}
    for file, backbone in subclasses_in(__name__, Backbone):  # type: ignore[type-abstract]
        assert backbone.name == file, f"{__name__}.{file} must hold a backbone named {file!r}"
        found[file] = backbone
    return found


def chosen_backbone(name: str, options: Mapping[str, Any], spec: InputSpec) -> tuple[type[Backbone], Section]:
    """The backbone of this name, its options. UserError where there is none, or it takes no such input or options."""
    known = backbones()
    if name not in known:
        raise UserError(f"unknown backbone {name!r}: use auto or one of {', '.join(sorted(known))}")
    backbone = known[name]
    if spec.kind not in backbone.kinds:
        takes = ", ".join(sorted(backbone.kinds))
        raise UserError(f"backbone {name!r} takes {takes}, this stream holds {spec.kind}: set network.backbone to auto")
    try:
        return backbone, backbone.Config.model_validate(dict(options))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise UserError(
            f"network.options.{place} of backbone {backbone.name!r}: {problem['msg']} (got "
            f"{str(problem['input'])[:80]}); there are {', '.join(sorted(backbone.Config.model_fields))}"
        ) from error
