"""The worker's own promotions: each challenger is judged once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from consumers.commit_log import BrokerUnavailable
from consumers.kafka_connection import heard_stop
from consumers.record_source import ReadingStopped, SourceUnavailable
from consumers.worker_metrics import WorkerMetrics
from deploy.automatic_promotion import REFUSED_TAG, AutomaticPromotion
from deploy.judging_versions import PairScores, no_shadow
from deploy.promoting import roll_back
from deploy.restructuring_worker import RestructuringWorker
from deploy.worker_console import WorkerConsole
from model_store.promotion_history import promotions_of
from model_store.registry import InMemoryRegistry, RegisteredVersion
from model_store.snapshot import OutboxMessage
from pipeline.evaluation.version_pair import PairScore
from tests.consumers.learner_world import STREAM
from tests.deploy.promotion_world import good, learnt_state, settings_with, untrained, versions_of


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learnt_state(tmp_path_factory.mktemp("state"))


class Topic:
    """The stream's events."""

    def __init__(self) -> None:
        self.messages: list[OutboxMessage] = []
        self.is_away = False

    def tell(self, _settings: object, message: OutboxMessage) -> None:
        if self.is_away:
            raise BrokerUnavailable("away")
        self.messages.append(message)

    @property
    def kinds(self) -> list[str]:
        return [(message.key or b"").decode() for message in self.messages]


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch) -> Topic:
    topic = Topic()
    monkeypatch.setattr("deploy.promoting.tell", topic.tell)
    return topic


class Bench:
    def __init__(self, folder: Path, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.state = folder, state
        self.metrics = WorkerMetrics(stream=STREAM, stale_after_seconds=60.0)
        self.registry = InMemoryRegistry()
        self._capsys = capsys

    def automatic(self, shadow: PairScores = no_shadow, **promotion: Any) -> AutomaticPromotion:
        return AutomaticPromotion(
            stream=STREAM,
            state=self.state,
            settings=settings_with(look_seconds=1e-9, automatic=True, **promotion),
            console=WorkerConsole(as_json=True),
            observer=self.metrics,
            registry=self.registry,
            shadow=shadow,
        )

    def said(self) -> list[str]:
        return [json.loads(line)["event"] for line in self._capsys.readouterr().err.splitlines()]

    def counted(self, outcome: str) -> float | None:
        return self.metrics.registry.get_sample_value("palimpsest_promotions_total", {"outcome": outcome})

    def champion(self) -> int | None:
        champion = self.registry.alias(STREAM, "champion")
        return None if champion is None else champion.version


@pytest.fixture
def bench(tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, state, capsys)


def test_a_challenger_that_passes_is_promoted(bench: Bench, topic: Topic) -> None:
    automatic = bench.automatic()
    automatic.look()
    assert bench.said() == [], "there is no version yet"
    versions_of(bench.registry, bench.folder, untrained())
    automatic.look()
    versions_of(bench.registry, bench.folder, good())
    automatic.look()
    automatic.look()
    assert bench.champion() == 2
    assert bench.said() == ["promoted", "promoted"]
    assert (bench.counted("promoted"), bench.counted("refused"), bench.counted("failed")) == (2, 0, 0)
    assert topic.kinds == ["promoted", "promoted"]
    (promotion,) = promotions_of(bench.registry.versions(STREAM)[1])
    assert (promotion.by, promotion.from_version, promotion.forced) == ("automatic", 1, False)


def test_one_that_is_refused_is_judged_once_also_by_the_next_process(bench: Bench, topic: Topic) -> None:
    versions_of(bench.registry, bench.folder, good())
    bench.automatic().look()
    versions_of(bench.registry, bench.folder, untrained())
    bench.automatic().look()
    bench.automatic().look()
    assert bench.champion() == 1
    assert bench.said() == ["promoted", "promotion_refused"]
    assert (bench.counted("promoted"), bench.counted("refused")) == (1, 1)
    assert topic.kinds == ["promoted", "promotion_refused"]
    told = json.loads(topic.messages[-1].value or b"")
    assert (told["by"], told["from"], told["to"]) == ("automatic", 1, 2)
    assert told["reasons"][0].startswith("the average accuracy goes from ")
    assert told["figures"]["average_accuracy"][0] > 0.8
    tag = json.loads(bench.registry.versions(STREAM)[1].tags[REFUSED_TAG])
    assert tag["champion"] == 1
    assert tag["reasons"] == told["reasons"]


def test_what_a_person_rolled_back_is_not_promoted_again(bench: Bench, topic: Topic) -> None:
    versions_of(bench.registry, bench.folder, untrained())
    automatic = bench.automatic()
    automatic.look()
    versions_of(bench.registry, bench.folder, good())
    topic.is_away = True
    automatic.look()
    assert bench.champion() == 2
    roll_back(bench.registry, STREAM, by="ada", settings=settings_with())
    topic.is_away = False
    automatic.look()
    assert bench.champion() == 1


def test_an_event_that_is_missing_is_told_at_a_later_look(bench: Bench, topic: Topic) -> None:
    versions_of(bench.registry, bench.folder, good())
    automatic = bench.automatic()
    topic.is_away = True
    for _ in range(3):
        automatic.look()
    assert bench.champion() == 1
    assert bench.said() == ["promoted", "waiting"]
    topic.is_away = False
    automatic.look()
    automatic.look()
    assert topic.kinds == ["promoted"]


def test_a_record_that_is_too_short_yet_is_waited_for(bench: Bench, topic: Topic) -> None:
    versions_of(bench.registry, bench.folder, good())
    labelled = 3

    def record(champion: int, challenger: int) -> PairScore:
        return PairScore(
            champion_version=champion,
            challenger_version=challenger,
            labelled=labelled,
            champion_accuracy=0.9,
            challenger_accuracy=0.9,
            agreement=1.0,
            answered=500,
        )

    automatic = bench.automatic(record, needs_shadow=True)
    automatic.look()
    versions_of(bench.registry, bench.folder, good())
    automatic.look()
    automatic.look()
    assert (bench.champion(), bench.said()) == (1, ["promoted", "promotion_waits"])
    assert topic.kinds == ["promoted"]
    labelled = 100
    automatic.look()
    assert (bench.champion(), bench.said()) == (2, ["promoted"])


def test_a_record_that_is_needed_is_asked_first_and_once_a_look(
    bench: Bench, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions_of(bench.registry, bench.folder, good(), good())
    bench.registry.set_alias(STREAM, "champion", 1)
    fetched, asked, labelled = [], [], 3
    fetch_servable = bench.registry.fetch_servable

    def fetch(version: RegisteredVersion, folder: Path) -> None:
        fetched.append(version.version)
        fetch_servable(version, folder)

    monkeypatch.setattr(bench.registry, "fetch_servable", fetch)

    def record(champion: int, challenger: int) -> PairScore:
        asked.append((champion, challenger))
        return PairScore(
            champion_version=champion,
            challenger_version=challenger,
            labelled=labelled,
            champion_accuracy=0.9,
            challenger_accuracy=0.9,
            agreement=1.0,
            answered=500,
        )

    automatic = bench.automatic(record, needs_shadow=True)
    automatic.look()
    automatic.look()
    assert (asked, fetched, bench.said()) == ([(1, 2)] * 2, [], ["promotion_waits"])
    labelled = 100
    automatic.look()
    assert (bench.champion(), len(asked), sorted(fetched)) == (2, 3, [1, 2]), "what was read is judged by"
    assert topic.kinds == ["promoted"]


def test_a_stop_ends_the_reading_of_the_shadow_without_a_word(bench: Bench, topic: Topic) -> None:
    versions_of(bench.registry, bench.folder, good(), good())
    bench.registry.set_alias(STREAM, "champion", 1)
    stop = threading.Event()

    def stopped(_champion: int, _challenger: int) -> None:
        assert heard_stop() is stop
        stop.set()
        raise ReadingStopped("stopped")

    bench.automatic(stopped).look(stop)
    assert (bench.said(), bench.champion(), topic.kinds) == ([], 1, [])


def test_a_registry_that_is_away_and_a_state_that_is_not_there_are_waited_for(
    bench: Bench, topic: Topic, state: Path, tmp_path: Path
) -> None:
    versions_of(bench.registry, bench.folder, good())
    bench.state = tmp_path / "later"
    automatic = bench.automatic()
    automatic.look()
    bench.registry.available = False
    automatic.look()
    automatic.look()
    assert bench.said() == ["waiting", "waiting"]
    assert bench.counted("failed") == 3, "at each look, though it is said once"
    bench.registry.available, bench.state = True, state
    bench.automatic().look()
    versions_of(bench.registry, bench.folder, good())

    def away(_champion: int, _challenger: int) -> None:
        raise SourceUnavailable("the shadow's topic is away")

    bench.automatic(away).look()
    assert (bench.said(), bench.champion()) == (["promoted", "waiting"], 1)
    topic.messages.clear()
    assert topic.kinds == []


def test_it_looks_between_jobs_at_its_own_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_with(f"sqlite:///{tmp_path / 'none.db'}", automatic=True, look_seconds=1000)
    worker = RestructuringWorker(
        stream=STREAM, state=tmp_path / "state", settings=settings, console=WorkerConsole(as_json=True)
    )
    looks, stop = [], threading.Event()
    monkeypatch.setattr(AutomaticPromotion, "_look", lambda _self: looks.append(heard_stop()))
    worker.run(stop, until_idle_seconds=0.0)
    worker.run(stop, until_idle_seconds=0.0)
    assert looks == [stop], "once, and it hears the worker's stop"


def test_without_the_setting_the_worker_knows_no_mlflow() -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from deploy.restructuring_worker import RestructuringWorker\n"
        "from deploy.settings import Settings; from deploy.worker_console import WorkerConsole\n"
        "console = WorkerConsole(as_json=True)\n"
        "RestructuringWorker(stream='s', state=Path('none'), settings=Settings(), console=console)\n"
        "print([name for name in ('mlflow', 'deploy.automatic_promotion') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
