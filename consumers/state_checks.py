"""Does this state belong to this stream and these settings? Asked before a learner goes on with it. (And to this log:
log_gap.py.)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pipeline.settings import LearnerSettings
from pipeline.settings_section import former_values
from pipeline.state import Json
from pipeline.user_error import UserError


def check_belongs(facts: Mapping[str, Json], *, stream: str, branch: str, folder: object) -> None:
    """A state of another stream or branch is refused."""
    for name, value in (("stream", stream), ("branch", branch)):
        if facts.get(name) != value:
            raise UserError(
                f"{folder} holds the state of {name} {facts.get(name)!r}, not {value!r}; give another --state"
            )


def check_settings(facts: Mapping[str, Json], fixed: Mapping[str, Any]) -> None:
    """A setting that shapes the model cannot change under an existing state.

    Only names that both know are compared, so that the state of a release with fewer settings still loads; of those
    that came later it is known how it was before.
    """
    stored = cast("dict[str, Any]", facts.get("fixed_settings") or {})
    if stored:
        stored = {**former_values(LearnerSettings), **stored}
    differing = [path for path in sorted(fixed) if path in stored and stored[path] != fixed[path]]
    if not differing:
        return
    described = [f"learner.{path} is {fixed[path]!r}, was {stored[path]!r}" for path in differing[1:]]
    first = differing[0]
    raise UserError(
        f"setting learner.{first} is {fixed[first]!r}, but this state was made with {stored[first]!r} and it is "
        f"fixed for a state; set it back, or give another --state{''.join(f'; also {text}' for text in described)}"
    )
