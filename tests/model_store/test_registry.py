"""What every registry does: the one in memory and the one in MLflow pass the same tests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from model_store.registry import (
    MAX_TAG_CHARACTERS,
    SERVABLE_FILES,
    InMemoryRegistry,
    Registry,
    ServableBroken,
)
from pipeline.classifier import SERVABLE_FILE, WEIGHTS_FILE
from pipeline.record import Partition
from pipeline.user_error import UserError
from tests.model_store.tiny_servable import request

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")


@pytest.fixture(params=["memory", "mlflow"])
def registry(request: pytest.FixtureRequest) -> Registry:
    if request.param == "memory":
        return InMemoryRegistry()
    from model_store.mlflow_registry import MlflowRegistry

    return MlflowRegistry(request.getfixturevalue("tracking_uri"))


def test_versions_carry_what_made_them(registry: Registry, tmp_path: Path) -> None:
    assert registry.versions("pets") == []
    assert registry.alias("pets", "challenger") is None
    first = registry.register(request(tmp_path / "servable", 1, tags={"palimpsest.note": "first"}))
    second = registry.register(request(tmp_path / "servable", 2, trigger="manual", average_forgetting=None))
    assert (first.version, second.version) == (1, 2)
    assert dict(first.tags) == {
        "palimpsest.snapshot_sha256": request(tmp_path / "servable", 1).snapshot_sha256,
        "palimpsest.state_id": "0123456789abcdef",
        "palimpsest.offsets": '{"pets.samples":{"0":7,"1":10}}',
        "palimpsest.classes": '["no", "köln"]',
        "palimpsest.class_count": "2",
        "palimpsest.trigger": "periodic",
        "palimpsest.average_forgetting": "0.125000",
        "palimpsest.worst_class": "köln",
        "palimpsest.records_trained": "100",
        "palimpsest.note": "first",
    }
    assert (first.parent_version, second.parent_version) == (None, 1)
    assert second.trigger == "manual"
    assert "palimpsest.average_forgetting" not in second.tags
    assert second.offsets == {Partition("pets.samples", 0): 7, Partition("pets.samples", 1): 20}
    assert [entry.version for entry in registry.versions("pets")] == [1, 2]
    assert registry.versions("pets")[1] == second
    assert registry.versions("others") == []


def test_a_snapshot_is_registered_once(registry: Registry, tmp_path: Path) -> None:
    first = registry.register(request(tmp_path / "servable", 1))
    again = registry.register(request(tmp_path / "servable", 1))
    assert again == first
    registry.register(request(tmp_path / "servable", 2))
    assert registry.register(request(tmp_path / "servable", 1)).version == 1
    assert [entry.version for entry in registry.versions("pets")] == [1, 2]
    other = registry.register(request(tmp_path / "servable", 1, stream="others"))
    assert (other.stream, other.version) == ("others", 1)


def test_aliases(registry: Registry, tmp_path: Path) -> None:
    first = registry.register(request(tmp_path / "servable", 1))
    assert first.aliases == {"challenger"}
    registry.register(request(tmp_path / "servable", 2))
    registry.register(request(tmp_path / "servable", 1))  # not the newest: it takes nothing back
    challenger = registry.alias("pets", "challenger")
    assert challenger is not None
    assert challenger.version == 2
    assert registry.alias("pets", "champion") is None
    assert registry.alias("nobody", "champion") is None
    registry.set_alias("pets", "champion", 2)
    registry.set_alias("pets", "previous", 1)
    assert [entry.aliases for entry in registry.versions("pets")] == [{"previous"}, {"champion", "challenger"}]
    registry.set_alias("pets", "previous", None)
    registry.set_alias("pets", "previous", None)
    assert registry.alias("pets", "previous") is None
    with pytest.raises(UserError, match=r"'pets' has no version 3; it has \[1, 2\]"):
        registry.set_alias("pets", "champion", 3)


def test_a_parent_may_be_given(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        registry.register(request(tmp_path / "servable", number))
    assert registry.register(request(tmp_path / "servable", 3, parent_version=1)).parent_version == 1


def test_a_broken_servable_is_no_version(registry: Registry, tmp_path: Path) -> None:
    whole = request(tmp_path / "servable")
    for name in SERVABLE_FILES:
        content = (whole.servable / name).read_bytes()
        (whole.servable / name).unlink()
        with pytest.raises(ServableBroken, match=name):
            registry.register(whole)
        (whole.servable / name).write_bytes(content)
    assert registry.versions("pets") == []
    assert set(SERVABLE_FILES) == {SERVABLE_FILE, WEIGHTS_FILE}


@pytest.mark.parametrize("stream", ["", "a/b", "a:b", "a'b", "..", "ä", "x" * 201])
def test_a_stream_that_cannot_name_a_model(tmp_path: Path, stream: str) -> None:
    with pytest.raises(UserError, match="cannot name a model"):
        request(tmp_path / "servable", stream=stream)


def test_tags_that_would_be_too_long(registry: Registry, tmp_path: Path) -> None:
    classes = tuple(f'class "{number}" of köln' for number in range(1000))
    offsets = {Partition("pets.samples", number): 10**15 for number in range(1000)}
    long = replace(request(tmp_path / "servable"), classes=classes, offsets=offsets, worst_class="x" * 9_000)
    tags = registry.register(long).tags
    assert max(len(value) for value in tags.values()) <= MAX_TAG_CHARACTERS
    names = json.loads(tags["palimpsest.classes"])
    assert 100 < len(names) < 1000
    assert names[:-1] == list(classes[: len(names) - 1])
    assert names[-1] == f"... and {1000 - len(names) + 1} more: provenance.json"
    assert tags["palimpsest.class_count"] == "1000"
    assert json.loads(tags["palimpsest.offsets"]) == {"see": "provenance.json"}
    assert registry.versions("pets")[0].offsets is None
    provenance = json.loads(long.provenance())
    assert provenance["classes"] == list(classes)
    assert provenance["offsets"][-1] == {"topic": "pets.samples", "partition": 999, "offset": 10**15}
