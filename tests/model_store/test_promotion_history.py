"""Promotions in a version's tag: read back, cut, and what others write there is passed over."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from model_store.promotion_history import PROMOTIONS_TAG, Promotion, new_promotion, promotions_of, promotions_tag
from model_store.registry import MAX_TAG_CHARACTERS, RegisteredVersion

NOW = datetime(2026, 7, 1, 9, 30, tzinfo=UTC)


def version(tag: str | None) -> RegisteredVersion:
    tags = {} if tag is None else {PROMOTIONS_TAG: tag}
    return RegisteredVersion(stream="pets", version=7, tags=tags, aliases=frozenset(), created_at_ms=0, run_id=None)


def promotion(number: int = 0, by: str = "ada") -> Promotion:
    return new_promotion(
        by=by,
        from_version=3,
        to_version=7,
        figures={"average_accuracy": [0.91, 0.93]},
        now=NOW + timedelta(days=number),
    )


def test_the_tag_and_back() -> None:
    first, second = promotion(), replace(promotion(1), forced=True, stage="told")
    tag = promotions_tag([first, second])
    assert json.loads(tag)[0] == {
        "at": "2026-07-01T09:30:00.000000Z",
        "by": "ada",
        "from": 3,
        "to": 7,
        "forced": False,
        "rollback": False,
        "figures": {"average_accuracy": [0.91, 0.93]},
        "stage": "begun",
    }
    assert promotions_of(version(tag)) == [first, second]
    assert promotions_of(version(None)) == []


def test_an_id_is_of_one_promotion_whatever_its_stage() -> None:
    assert promotion().id == replace(promotion(), stage="told").id
    others = [promotion(1), replace(promotion(), from_version=None), replace(promotion(), rollback=True)]
    assert len({promotion().id, *(other.id for other in others)}) == 4


def test_the_newest_that_fit_stay() -> None:
    promotions = [promotion(number, by="ä" * 500) for number in range(60)]
    assert {len(entry.by) for entry in promotions} == {200}
    tag = promotions_tag(promotions)
    assert len(tag) <= MAX_TAG_CHARACTERS
    kept = promotions_of(version(tag))
    assert 5 < len(kept) < 60
    assert kept == promotions[-len(kept) :]
    huge = replace(promotion(), figures={str(number): [0.5, 0.5] for number in range(1000)})
    (cut,) = promotions_of(version(promotions_tag([huge])))
    assert cut == replace(huge, figures={})


@pytest.mark.parametrize(
    "tag",
    [
        *("", "null", "7", "[7]", "[[]]", "{}", "[" * 100_000, "[{}]"),
        '[{"at": 1, "by": "a", "from": 1, "to": 7, "stage": "told"}]',
        '[{"at": "", "by": "a", "from": true, "to": 7, "stage": "told"}]',
        '[{"at": "", "by": "a", "from": 1, "to": 8, "stage": "told"}]',
        '[{"at": "", "by": "a", "from": 1, "to": 7, "stage": "over"}]',
        '[{"at": "", "by": "a", "from": 1, "to": 7, "stage": []}]',
    ],
)
def test_what_others_write_there_is_passed_over(tag: str) -> None:
    assert promotions_of(version(tag)) == []
