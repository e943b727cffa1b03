"""The watch loads what the fetcher put down, swaps, and refuses what is broken while the version before goes on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from consumers.model_slot import ModelSlot, ServingModel
from consumers.model_watch import ModelWatch
from model_store.registry import InMemoryRegistry
from model_store.served_versions import RoleFile, ServedVersion, ServedVersions
from model_store.version_fetcher import VersionFetcher
from pipeline.classifier import Classifier
from pipeline.network import build_network
from pipeline.sample import InputSpec
from pipeline.settings import InputSettings, NetworkSettings
from tests.model_store.tiny_servable import CLASSES, payload, request, tiny_classifier

DEADLINE_SECONDS = 30.0


class Heard:
    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def serving(self, model: ServingModel, before: int | None, seconds: float) -> None:
        assert seconds >= 0
        self.lines.append(("serving", model.version, before))

    def version_refused(self, version: int, why: str) -> None:
        self.lines.append(("refused", version, why))

    def waits(self, why: str) -> None:
        self.lines.append(("waits", why))

    def well(self) -> None:
        self.lines.append(("well",))


class World:
    """A registry, the fetcher without its process, and the watch; `look` is a look of both."""

    def __init__(self, folder: Path) -> None:
        self.registry = InMemoryRegistry()
        self.folder = folder
        self.versions = ServedVersions(folder / "models", "pets")
        self.versions.prepare()
        self.heard, self.slot = Heard(), ModelSlot()
        self.nudges = self.starts = 0
        self.fetcher = VersionFetcher(self.versions, self.registry, "champion", tell=lambda _: None)
        self.watch = self.another_watch()

    def another_watch(self) -> ModelWatch:
        return ModelWatch(
            self.versions, "champion", self.slot, self, device=torch.device("cpu"), observers=[self.heard]
        )

    def start(self) -> bool:
        self.starts += 1
        return True

    def nudge(self) -> None:
        self.nudges += 1

    def register(self, number: int, classifier: Classifier | None = None) -> None:
        servable = self.folder / f"servable-{number}"
        (classifier or tiny_classifier()).save(servable)
        self.registry.register(request(servable, number))

    def champion(self, number: int) -> None:
        self.registry.set_alias("pets", "champion", number)
        self.fetcher.look()

    @property
    def serves(self) -> int | None:
        return None if self.slot.model is None else self.slot.model.version


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    for number in (1, 2, 3):
        world.register(number)
    return world


def spoil(world: World, number: int, how: Callable[[Path], None]) -> None:
    """What lies here of that version."""
    (folder,) = (world.versions.folder / "versions").glob(f"{number}-*")
    how(folder)


def with_nan() -> Classifier:
    classifier = tiny_classifier()
    with torch.no_grad():
        next(classifier.network.parameters()).fill_(float("nan"))
    return classifier


def test_it_serves_what_lies_there_and_swaps(world: World) -> None:
    world.watch.look(0.0)
    assert (world.serves, world.slot.wait(0.0), world.heard.lines) == (None, None, [])
    world.champion(1)
    world.watch.look(0.1)
    model = world.slot.wait(0.0)
    assert model is not None
    assert (model.version, model.run_id) == (1, "pets/0123456789abcdef")
    world.champion(2)
    world.watch.look(0.2)
    world.watch.look(0.3)
    assert world.serves == 2
    (answer,) = model.classifier.predict([(payload(0.0, 1.0), "application/x-npy")])
    assert getattr(answer, "label", None) == CLASSES[1], "what was taken before the swap stays good"
    assert world.heard.lines == [("serving", 1, None), ("serving", 2, 1)]


def test_without_a_fetcher_what_lies_there_is_served(world: World) -> None:
    """As after a start without MLflow."""
    world.champion(3)
    world.registry.available = False
    world.another_watch().look(0.0)
    assert world.serves == 3


def test_a_problem_is_heard_once(world: World) -> None:
    world.fetcher.look()
    for now in range(3):
        world.watch.look(float(now))
    ((kind, why),) = world.heard.lines
    assert kind == "waits"
    assert "has no alias 'champion'" in why
    world.champion(1)
    world.watch.look(4.0)
    world.registry.available = False
    world.fetcher.look()
    world.watch.look(5.0)
    away = ("waits", "the registry in memory was told to be away")
    assert world.heard.lines[1:] == [("well",), ("serving", 1, None), away]
    world.registry.available = True
    world.fetcher.look()
    for later in (6.0, 7.0):
        world.watch.look(later)
    assert world.heard.lines[4:] == [("well",)]


def without_weights(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()


def of_another_sum(folder: Path) -> None:
    with (folder / "weights.safetensors").open("r+b") as file:
        file.write(b"\0\0")


def changed(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        servable = json.loads((folder / "servable.json").read_bytes())
        (folder / "servable.json").write_text(json.dumps({**servable, **changes}))

    return change


@pytest.mark.parametrize(
    "how",
    [
        without_weights,
        of_another_sum,
        changed(format_version=2),
        changed(class_names=[]),
        changed(input_shape=[3]),
        changed(architecture={"backbone": "mlp"}),
        changed(architecture=[]),
    ],
)
def test_a_broken_servable_is_refused_and_fetched_again(world: World, how: Callable[[Path], None]) -> None:
    world.champion(1)
    world.watch.look(0.0)
    world.champion(2)
    spoil(world, 2, how)
    world.watch.look(1.0)
    assert world.serves == 1
    assert [line[:2] for line in world.heard.lines] == [("serving", 1), ("refused", 2)]
    assert world.nudges == 1, "the fetcher is to look at once"
    world.fetcher.look()
    world.watch.look(2.0)
    assert world.serves == 1, "it is not tried again and again"
    world.watch.look(40.0)
    assert world.serves == 2
    assert world.heard.lines[-1] == ("serving", 2, 1)


def test_weights_that_are_not_finite_are_refused_each_time(world: World) -> None:
    world.register(4, with_nan())
    world.champion(1)
    world.watch.look(0.0)
    world.champion(4)
    for now in (1.0, 2.0, 35.0, 36.0):
        world.watch.look(now)
        world.fetcher.look()
    assert world.serves == 1
    why = "its answers are not finite: its weights are broken"
    assert world.heard.lines[1:] == [("refused", 4, why), ("refused", 4, why)]
    world.champion(3)
    world.watch.look(37.0)
    assert world.serves == 3, "another version need not wait"


def test_an_error_that_nobody_thought_of_is_a_refusal_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread would be gone, and with it every later version."""

    def load(*_: object, **__: object) -> Classifier:
        raise RuntimeError("CUDA out of memory")

    world.champion(1)
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "load", load)
        world.watch.look(0.0)
    assert world.heard.lines == [("refused", 1, "RuntimeError('CUDA out of memory')")]
    assert len(list((world.versions.folder / "versions").glob("1-*"))) == 1, "a good copy stays"
    world.watch.look(31.0)
    assert world.serves == 1


def test_a_start_begins_with_the_last_good_version_where_the_newest_is_broken(world: World) -> None:
    world.champion(1)
    world.watch.look(0.0)
    world.register(4, with_nan())
    world.champion(4)
    world.watch.look(1.0)
    world.slot = ModelSlot()
    world.heard.lines.clear()
    world.another_watch().look(2.0)
    assert world.serves == 1
    assert [line[:2] for line in world.heard.lines] == [("refused", 4), ("serving", 1)]
    for number in (2, 3):  # whatever else comes and goes, the good one is kept
        world.champion(number)
    world.champion(4)
    assert len(list((world.versions.folder / "versions").glob("1-*"))) == 1


def test_one_that_takes_another_input_is_refused(world: World) -> None:
    world.champion(1)
    world.watch.look(0.0)
    spec = InputSpec(kind="vector", shape=(3,))
    network = build_network(NetworkSettings(backbone="mlp", initial_columns=4), spec, 0)
    world.register(4, Classifier(network, CLASSES, spec, InputSettings()))
    world.champion(4)
    world.watch.look(1.0)
    assert world.serves == 1
    assert "it takes vector of shape (3,), and the version that answers takes vector of shape (2,)" in str(
        world.heard.lines[-1]
    )


def test_a_folder_that_may_not_be_written_to_is_refused_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    world.champion(1)
    spoil(world, 1, without_weights)
    monkeypatch.setattr("model_store.served_versions.remove_folder", denied)
    world.watch.look(0.0)
    assert [line[:2] for line in world.heard.lines] == [("refused", 1)]


def test_after_a_refusal_that_is_over_nothing_is_read_where_nothing_changed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.champion(1)
    world.watch.look(0.0)
    world.champion(2)
    spoil(world, 2, without_weights)
    world.watch.look(1.0)
    world.champion(1)
    world.watch.look(2.0)
    read: list[object] = []
    monkeypatch.setattr(world.versions, "role", read.append)
    for now in range(3, 100):
        world.watch.look(float(now))
    assert read == []


def test_a_role_that_names_what_is_not_here_is_fetched(world: World) -> None:
    """Another fetcher of the folder let go of it in that moment."""
    gone = ServedVersion(version=9, run_id=None, name="9-gone")
    world.versions.note("champion", RoleFile(stream="pets", served=gone))
    world.watch.look(0.0)
    assert [line[:2] for line in world.heard.lines] == [("refused", 9)]
    assert world.nudges == 1


def test_its_thread_starts_the_fetcher_follows_and_ends(world: World) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=world.watch.run, args=(stop,))
    thread.start()
    try:
        for number in (1, 2):
            world.champion(number)
            deadline = time.monotonic() + DEADLINE_SECONDS
            while world.serves != number:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    finally:
        stop.set()
        thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    assert world.starts >= 2
