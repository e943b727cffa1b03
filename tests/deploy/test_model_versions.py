"""What is said of versions, whatever their tags hold."""

from __future__ import annotations

from collections.abc import Mapping

from deploy.model_versions import version_facts, version_rows
from model_store.promotion_history import PROMOTIONS_TAG, new_promotion, promotions_tag
from model_store.registry import RegisteredVersion


def version(tags: Mapping[str, str], *aliases: str) -> RegisteredVersion:
    return RegisteredVersion(
        stream="pets", version=7, tags=tags, aliases=frozenset(aliases), created_at_ms=5, run_id="run"
    )


def test_all_of_it() -> None:
    forced = new_promotion(by="ada", from_version=3, to_version=7, forced=True)
    given_up = new_promotion(by="bob", from_version=3, to_version=7)
    tags = {
        "palimpsest.class_count": "4",
        "palimpsest.trigger": "expansion",
        "palimpsest.parent_version": "5",
        "palimpsest.records_trained": "12000",
        "palimpsest.average_accuracy": "0.875000",
        "palimpsest.average_forgetting": "0.031000",
        "palimpsest.worst_class": "köln",
        "palimpsest.superseded_by": "9",
        PROMOTIONS_TAG: promotions_tag([forced, given_up]).replace("begun", "told", 1),
    }
    one = version(tags, "previous", "champion")
    assert version_facts(one) == {
        "version": 7,
        "aliases": ["champion", "previous"],
        "trigger": "expansion",
        "parent": 5,
        "classes": 4,
        "records_trained": 12000,
        "average_accuracy": 0.875,
        "average_forgetting": 0.031,
        "worst_class": "köln",
        "promotions": [forced.as_json],
        "superseded_by": 9,
        "created_at_ms": 5,
        "run_id": "run",
    }
    columns, (row,) = version_rows([one])
    shown = dict(zip(columns, row, strict=True))
    at = forced.at[:16].replace("T", " ")
    assert shown == {
        "version": "7",
        "aliases": "champion, previous",
        "trigger": "expansion",
        "parent": "5",
        "classes": "4",
        "records": "12,000",
        "accuracy": "87.5%",
        "forgetting": "3.1%",
        "worst class": "köln",
        "promoted": f"{at} by ada (forced)",
        "superseded by": "9",
    }


def test_what_another_program_made_says_little() -> None:
    odd = version({"palimpsest.average_accuracy": "good", "palimpsest.class_count": "²", PROMOTIONS_TAG: "yes"})
    facts = version_facts(odd)
    assert (facts["average_accuracy"], facts["classes"], facts["promotions"]) == (None, None, [])
    assert version_rows([odd])[1] == [("7", *[""] * 10)]
    assert version_facts(version({"palimpsest.average_accuracy": "nan"}))["average_accuracy"] is None
