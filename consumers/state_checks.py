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
    for path in sorted(fixed):
        if path in stored and stored[path] != fixed[path]:
            raise UserError(
                f"setting learner.{path} is {fixed[path]!r}, but this state was made with {stored[path]!r} and it is "
                "fixed for a state; set it back, or give another --state"
            )
