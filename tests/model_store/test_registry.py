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
    RegisteredVersion,
    Registry,
    ServableBroken,
)
from pipeline.classifier import SERVABLE_FILE, WEIGHTS_FILE, Classifier
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
    assert [entry.version for entry in registry.newest("pets", 5)] == [1, 2]
    assert registry.newest("pets", 1) == [second]
    assert registry.newest("others", 1) == []


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


def test_a_tag_is_set_and_set_anew(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        registry.register(request(tmp_path / "servable", number, average_accuracy=0.75))
    before = registry.versions("pets")
    registry.set_tag("pets", 1, "palimpsest.note", "köln")
    registry.set_tag("pets", 1, "palimpsest.note", "x" * MAX_TAG_CHARACTERS)
    first, second = registry.versions("pets")
    assert first == replace(before[0], tags={**before[0].tags, "palimpsest.note": "x" * MAX_TAG_CHARACTERS})
    assert second == before[1]
    assert second.tags["palimpsest.average_accuracy"] == "0.750000"
    with pytest.raises(UserError, match=r"'pets' has no version 3; it has \[1, 2\]"):
        registry.set_tag("pets", 3, "palimpsest.note", "")
    with pytest.raises(UserError, match=r"'nobody' has no version 1; it has \[\]"):
        registry.set_tag("nobody", 1, "palimpsest.note", "")


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


# -- finding and fetching ----------------------------------------------------------------------------------------------


def test_a_version_is_found_by_number_and_by_any_alias(registry: Registry, tmp_path: Path) -> None:
    first = registry.register(request(tmp_path / "servable", 1))
    second = registry.register(request(tmp_path / "servable", 2))
    registry.set_alias("pets", "champion", 1)
    for at, number in ((1, 1), (2, 2), ("champion", 1), ("challenger", 2)):
        found = registry.find("pets", at)
        assert found is not None
        assert found.version == number
    assert registry.find("pets", 1) == replace(first, aliases=frozenset({"champion"}))
    assert registry.find("pets", 2) == second
    assert registry.find("pets", 3) is None
    assert registry.find("pets", "previous") is None
    assert registry.find("nobody", 1) is None
    assert second.is_ours


def test_a_servable_is_fetched_as_it_was_registered(registry: Registry, tmp_path: Path) -> None:
    whole = request(tmp_path / "servable")
    (whole.servable / "tokenizer").mkdir()
    (whole.servable / "tokenizer" / "vocab.txt").write_bytes(b"a\nb\n")
    registry.fetch_servable(registry.register(whole), tmp_path / "fetched")
    files = sorted(path for path in whole.servable.rglob("*") if path.is_file())
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "fetched" / file.relative_to(whole.servable)).read_bytes() == file.read_bytes()
    assert Classifier.load(tmp_path / "fetched").class_names == ("no", "köln")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


# -- lineage -----------------------------------------------------------------------------------------------------------


def registered(registry: Registry, folder: Path, number: int, trained: int, **changes: object) -> RegisteredVersion:
    offsets = {Partition("pets.samples", 0): trained}
    return registry.register(request(folder / "servable", number, records_trained=trained, offsets=offsets, **changes))


def superseded(registry: Registry) -> dict[int, int | None]:
    return {entry.version: entry.superseded_by for entry in registry.versions("pets")}


def test_a_state_that_went_back_supersedes_what_came_since(registry: Registry, tmp_path: Path) -> None:
    for number, trained in ((1, 100), (2, 200), (3, 300)):
        registered(registry, tmp_path, number, trained)
    registered(registry, tmp_path, 4, 900, state_id="another")
    back = registered(registry, tmp_path, 5, 100, goes_back=True)
    assert (back.version, back.parent_version) == (5, 1)
    assert superseded(registry) == {1: None, 2: 5, 3: 5, 4: None, 5: None}
    later = registered(registry, tmp_path, 6, 250)
    assert later.parent_version == 5, "what is superseded is nobody's parent"
    again = registered(registry, tmp_path, 5, 100, goes_back=True)
    assert (again.version, again.parent_version) == (5, 1)
    assert superseded(registry) == {1: None, 2: 5, 3: 5, 4: None, 5: None, 6: None}, "a replay tells nobody anew"
    second = registered(registry, tmp_path, 7, 100, goes_back=True)
    assert second.parent_version == 5
    assert superseded(registry) == {1: None, 2: 5, 3: 5, 4: None, 5: None, 6: 7, 7: None}


def test_the_first_of_a_line_has_no_parent(registry: Registry, tmp_path: Path) -> None:
    registered(registry, tmp_path, 1, 200)
    assert registered(registry, tmp_path, 2, 100, goes_back=True).parent_version is None
    assert superseded(registry) == {1: 2, 2: None}
    assert registered(registry, tmp_path, 3, 50, state_id="another").parent_version is None


def test_of_as_many_records_the_offsets_tell_who_is_past(registry: Registry, tmp_path: Path) -> None:
    partition = Partition("pets.samples", 0)
    servable = tmp_path / "servable"
    registry.register(request(servable, 1, records_trained=100, offsets={partition: 100}))
    registry.register(request(servable, 2, records_trained=100, offsets={partition: 103}))
    back = registry.register(
        request(servable, 3, records_trained=100, offsets={partition: 100}, goes_back=True),
    )
    assert back.parent_version == 1
    assert superseded(registry) == {1: None, 2: 3, 3: None}
