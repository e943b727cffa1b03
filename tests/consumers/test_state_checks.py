"""Whether a state belongs to this stream and these settings. (How a start asks: test_learner_process.py.)"""

from __future__ import annotations

from typing import Any

import pytest

from consumers.state_checks import check_belongs, check_settings
from pipeline.settings import LearnerSettings
from pipeline.settings_section import fixed_values
from pipeline.state import Json
from pipeline.user_error import UserError


@pytest.mark.parametrize("name", ["stream", "branch"])
def test_a_state_of_another_stream_or_branch_is_named(name: str) -> None:
    facts: dict[str, Json] = {"stream": "a", "branch": "main"}
    check_belongs(facts, stream="a", branch="main", folder="runs/a")
    with pytest.raises(UserError, match=rf"runs/a holds the state of {name} '.*', not 'b'; give another --state"):
        check_belongs(facts, folder="runs/a", **({"stream": "a", "branch": "main"} | {name: "b"}))


def test_settings_that_only_one_release_knows_are_not_compared() -> None:
    ours: dict[str, Any] = fixed_values(LearnerSettings())
    older: dict[str, Any] = {path: value for path, value in ours.items() if path != "drift.delta"}
    check_settings({"fixed_settings": older}, ours)
    check_settings({"fixed_settings": ours | {"from.the.future": 1}}, ours)
    check_settings({}, ours)
    with pytest.raises(UserError, match=r"setting learner.drift.delta is 0.002, but this state was made with 0.5"):
        check_settings({"fixed_settings": ours | {"drift.delta": 0.5}}, ours)


def test_a_state_from_before_a_setting_has_what_there_was_then() -> None:
    ours: dict[str, Any] = fixed_values(LearnerSettings())
    older: dict[str, Any] = {path: value for path, value in ours.items() if path != "replay.sampling"}
    with pytest.raises(UserError, match=r"replay.sampling is 'class_balanced', but this state was made with 'uniform'"):
        check_settings({"fixed_settings": older}, ours)
    check_settings({"fixed_settings": older}, ours | {"replay.sampling": "uniform"})
    older = {path: value for path, value in ours.items() if path != "incoming_loss"}
    with pytest.raises(UserError, match=r"incoming_loss is 'auto', but this state was made with 'cross_entropy'"):
        check_settings({"fixed_settings": older}, ours)


def test_all_settings_that_differ_are_named_at_once() -> None:
    ours: dict[str, Any] = fixed_values(LearnerSettings())
    with pytest.raises(UserError) as refused:
        check_settings({"fixed_settings": ours | {"drift.delta": 0.5, "batch_size": 7}}, ours)
    assert "learner.batch_size is 10, but this state was made with 7" in str(refused.value)
    assert str(refused.value).endswith("; also learner.drift.delta is 0.002, was 0.5")
