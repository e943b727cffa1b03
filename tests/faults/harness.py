"""A trial: one log, one learner on branch `main` that is killed as often as a test likes, and one left in peace.

At the end of a trial there must be no difference: `verdict` says what was lost, what was doubled, and whether the two
fingerprints are the same.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from click.testing import CliRunner

from consumers import dead_letters, topics
from consumers.events import event_id
from consumers.kafka_settings import KafkaSettings
from deploy.commands.fingerprint import command as fingerprint_command
from model_store.manifest import NotWhole
from model_store.snapshot_store import SnapshotEntry, SnapshotStore
from tests.faults import fault_stream
from tests.faults.fault_plan import COMMIT_POINTS, START_POINTS, STEP_POINT, Fault, FaultPlan
from tests.faults.fault_stream import FaultLog, Written
from tests.faults.journal import Fates, fates
from tests.faults.learner_runs import ForkServer, LearnerRun

# Small networks, small buffers, many commits: little to compute, and every part of the loop is in use.
_SETTINGS = """
learner:
  threads: 1
  device: cpu
  batch_size: 10
  input: {input}
  replay: {{capacity: 80, draw_size: 16}}
  evaluation: {{every_records: 150, min_class_samples: 2, burst_records: 50, prequential_window: 100}}
  hold_out: {{per_class: 20}}
  restructuring: {restructuring}
{network}
kafka: {{bootstrap_servers: '{servers}'}}
stream:
  poll_seconds: 0.05
  idle_flush_seconds: {idle_flush}
  decode_ahead_records: 200
  heartbeat_seconds: {heartbeat}
snapshots: {{every_seconds: 3600, every_records: {every_records}, keep: 3}}
metrics: {{enabled: {metrics}, port: 0}}
registry: {{enabled: {registry}, every_records: 400, drain_seconds: 60}}
consolidation: {{epochs: 3, batch_size: 32, specialist_epochs: 3, min_unlabelled: 50}}
expansion: {{epochs: 3, distillation_epochs: 3, head_epochs: 20}}
acceptance: {{average_margin: 1, growth_gain: -1, worst_class_margin: 1, class_margin: 1, min_class_samples: 1}}
worker: {{nice: 0, look_seconds: 0.05, retry_seconds: 0.5}}
"""
MLP = "  network: {backbone: mlp, options: {hidden: [32, 32]}, initial_columns: 2}"
WIDE_MLP = "  network: {backbone: mlp, options: {hidden: [400, 400]}, initial_columns: 16}"
# Batch norm, and crops and mirrors that are drawn anew for each update.
RESNET18 = """  network: {backbone: resnet18, options: {width: 4}, initial_columns: 2}
  augmentation: {crop_padding: 1, horizontal_flip: true}"""
# How long a learner must have found nothing more before it ends.
UNTIL_IDLE_SECONDS = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a trial has shown: three times 0 is a pass. `why` says in words what is wrong."""

    tried: int  # kills, stops and faults that were really met
    lost: int  # records without a trace, dead letters and events that are missing
    doubled: int  # learnt, held out or told more than once
    differing: int  # fingerprints that are not the undisturbed one's
    why: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not (self.lost or self.doubled or self.differing)


@dataclass(slots=True)
class Trial:
    """A stream of its own on the broker, and a folder for the states, settings, journals and output."""

    server: ForkServer
    kafka: KafkaSettings
    stream: str
    folder: Path
    network: str = MLP
    input: str = "{max_payload_bytes: 65536}"
    idle_flush_seconds: float = 60.0
    every_records: int = 60
    heartbeat_seconds: float = 50.0
    restructuring: str = "{new_classes: null}"
    metrics: bool = False
    registry: bool = False
    partitions: int = 1
    log: FaultLog | None = None
    met: Counter[str] = field(default_factory=Counter)  # faults that were met, by their name
    _runs: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def write(self, records: Iterable[Written]) -> FaultLog:
        """Add to the log, which is made where it is not there yet."""
        if self.log is None:
            self.log = fault_stream.make(self.kafka, self.stream, partitions=self.partitions)
        fault_stream.write(self.kafka, self.log, records)
        return self.log

    def keep_ahead(self, records: int = 1_000) -> None:
        """So many records at least lie past the newest snapshot.

        A learner goes on learning while it commits. One that is to be met by a fault in its second commit must not come
        to the log's end within a first one that takes long.
        """
        assert self.log is not None, "nothing was written"
        entry = self.store().newest_whole().entry
        learnt = 0 if entry is None else cast(int, entry.facts["records_consumed"])
        missing = records - (self.log.records - learnt)
        if missing > 0:
            self.write(fault_stream.mixed(missing, seed=self.log.records))

    def state(self, branch: str = "main") -> Path:
        return self.folder / branch

    def store(self, branch: str = "main") -> SnapshotStore:
        return SnapshotStore(self.state(branch) / "snapshots")

    def settings_file(self) -> Path:
        file = self.folder / "settings.yaml"
        self.folder.mkdir(parents=True, exist_ok=True)
        file.write_text(
            _SETTINGS.format(
                network=self.network,
                restructuring=self.restructuring,
                input=self.input,
                idle_flush=self.idle_flush_seconds,
                servers=self.kafka.bootstrap_servers,
                every_records=self.every_records,
                heartbeat=self.heartbeat_seconds,
                metrics=str(self.metrics).lower(),
                registry=str(self.registry).lower(),
            )
        )
        return file

    def write_unlabelled(self, records: int) -> None:
        """Digits without labels, to the stream's own topic of these."""
        fault_stream.write_unlabelled(self.kafka, self.stream, records)

    # -- runs ------------------------------------------------------------------------------------------------------

    def start(
        self,
        *faults: Fault,
        branch: str = "main",
        until_idle_seconds: float | None = UNTIL_IDLE_SECONDS,
        file_bytes: int = 0,
        step_seconds: float = 0.0,
        options: Sequence[object] = (),
        variables: Mapping[str, str] | None = None,
    ) -> LearnerRun:
        """One process of the learner, with these faults before it."""
        settings = self.settings_file()
        number = next(self._runs)
        plan = FaultPlan(
            journal=self.folder / f"{branch}.{number:04d}.journal",
            faults=faults,
            file_bytes=file_bytes,
            step_seconds=step_seconds,
        )
        arguments: list[object] = ["learn", "--stream", self.stream, "--state", self.state(branch)]
        arguments += ["--branch", branch, "--settings", settings, *options]
        if until_idle_seconds is not None:
            arguments += ["--until-idle", until_idle_seconds]
        return self.server.start(arguments, plan, self.folder / f"{branch}.{number:04d}.out", variables)

    def start_worker(self, *faults: Fault, until_idle_seconds: float = UNTIL_IDLE_SECONDS) -> LearnerRun:
        """One process of the worker beside branch `main`, with these faults before it."""
        number = next(self._runs)
        plan = FaultPlan(journal=self.folder / f"worker.{number:04d}.journal", faults=faults)
        arguments: list[object] = ["restructure", "--stream", self.stream, "--state", self.state()]
        arguments += ["--settings", self.settings_file(), "--until-idle", until_idle_seconds]
        return self.server.start(arguments, plan, self.folder / f"worker.{number:04d}.out")

    def work(self, *faults: Fault, code: int = 0) -> LearnerRun:
        """One process of the worker until it ends, with this code."""
        run = self.start_worker(*faults)
        assert run.wait() == code, f"it ended with {run.code}, not {code}:\n{run.text}"
        return run

    def learn(self, *faults: Fault, code: int = 0, **options: Any) -> LearnerRun:
        """One process until it ends, with this code."""
        run = self.start(*faults, **options)
        assert run.wait() == code, f"it ended with {run.code}, not {code}:\n{run.text}"
        return run

    def learn_to_the_end(self) -> LearnerRun:
        """The last process of a trial: nothing befalls it."""
        return self.learn()

    def kill_at(self, point: str, nth: int = 1) -> bool:
        """One process, killed by itself with -9 there; False where it ended before it came to that point."""
        run = self.start(Fault(point=point, nth=nth))
        code = run.wait()
        if code == -signal.SIGKILL:
            self.met[f"kill at {point}"] += 1
            return True
        assert code == 0, f"it ended with {code}:\n{run.text}"
        return False

    def kill_at_random(self, draws: random.Random, longest_seconds: float, *, step_seconds: float = 0.0) -> bool:
        """One process, killed from outside with -9 within so many seconds; False where it was quicker."""
        run = self.start(step_seconds=step_seconds)
        if run.ends_within(draws.uniform(0.0, longest_seconds)):
            assert run.code == 0, f"it ended with {run.code}:\n{run.text}"
            return False
        run.send(signal.SIGKILL)
        killed = run.wait() == -signal.SIGKILL
        if killed:
            self.met["kill at a random moment"] += 1
        return killed

    def kill_somewhere(self, draws: random.Random, *, longest_seconds: float = 1.5, step_seconds: float = 0.0) -> bool:
        """Half of the kills from outside at a random moment, half at a point drawn from all."""
        if draws.random() < 0.5:
            return self.kill_at_random(draws, longest_seconds, step_seconds=step_seconds)
        kind = draws.choice((START_POINTS, (STEP_POINT,), COMMIT_POINTS, COMMIT_POINTS))
        point = draws.choice(kind)
        nth = 1 if kind is START_POINTS else draws.randint(1, 20 if point == STEP_POINT else 3)
        return self.kill_at(point, nth)

    # -- what is left ----------------------------------------------------------------------------------------------

    def fingerprint(self, branch: str = "main") -> str:
        """As `palimpsest fingerprint` prints it."""
        result = CliRunner().invoke(fingerprint_command, ["--state", str(self.state(branch))])
        assert result.exit_code == 0, result.output
        return result.stdout.strip()

    def whole_snapshots(self, branch: str = "main") -> list[SnapshotEntry]:
        """Those of which every sum holds."""
        store, whole = self.store(branch), []
        for entry in store.entries():
            with contextlib.suppress(NotWhole):
                store.load(entry)
                whole.append(entry)
        return whole

    def undisturbed(self) -> str:
        """The fingerprint of a learner on a branch and with a state of its own, which nothing befell."""
        if not self.state("undisturbed").exists():
            self.learn(branch="undisturbed")
        return self.fingerprint("undisturbed")

    def fates(self, branch: str = "main") -> Fates:
        """What became of each record, in the history of the newest snapshot."""
        entry = self.store(branch).newest_whole().entry
        assert entry is not None
        return fates(sorted(self.folder.glob(f"{branch}.*.journal")), entry.number)

    def events(self) -> list[str | None]:
        """The ids of all events."""
        read = fault_stream.read_committed(self.kafka, topics.events(self.stream))
        return [event_id(list(headers.items())) for headers, _ in read]

    def dead_letters(self) -> list[tuple[tuple[int, int], str]]:
        """Where each dead letter stood, and why it is one."""
        read = fault_stream.read_committed(self.kafka, topics.dead_letters(self.stream))
        letters = []
        for headers, _ in read:
            origin = dead_letters.origin(list(headers.items()))
            assert origin is not None, headers
            letters.append((origin[1:], headers[dead_letters.REASON].decode()))
        return letters

    def verdict(self, *, same_fingerprint: bool = True) -> Verdict:
        """Compare with the log, and with the undisturbed learner.

        1. Every record has one fate: trained on or held out (good ones), dropped (repeats), dead (bad ones).
        2. Each bad record stands in dead letters once, with its reason.
        3. Each new class and each drift was told, and no event twice.
        4. The fingerprint, the order of learning and the losses of every update are the undisturbed learner's: one that
           strayed and came back would be seen by its losses.

        Of several partitions the order is the brokers' to choose: `same_fingerprint=False`.
        """
        lost: list[str] = []
        doubled: list[str] = []
        differing: list[str] = []

        def compare(what: str, found: Iterable[object], wanted: Iterable[object]) -> None:
            have, want = Counter(list(found)), Counter(list(wanted))
            lost.extend(f"{what} {entry} is missing" for entry in (want - have).elements())
            doubled.extend(f"{what} {entry} once more than it should" for entry in (have - want).elements())

        # 1.
        log, found = self.log, self.fates()
        assert log is not None, "nothing was written"
        compare("good record", [*found.trained, *found.held_out], log.good)
        compare("bad record", found.dead, log.bad)
        if self.partitions == 1:
            compare("repeat", found.repeats, log.repeats)
        else:  # which of two equal ones comes first is the brokers' to choose
            compare("one of the repeats", ["repeat" for _ in found.repeats], ["repeat" for _ in log.repeats])
        # 2.
        compare("dead letter", self.dead_letters(), log.bad.items())
        # 3.
        told = [(name or "").removeprefix(f"{self.stream}/main/") for name in self.events()]
        of_steps = ("new_class/", "drift/")
        compare("event", [name for name in told if name.startswith(of_steps)], found.events)
        others = [name for name in told if not name.startswith(of_steps)]
        compare("event", others, set(others))
        # 4.
        if same_fingerprint:
            if self.fingerprint() != self.undisturbed():
                differing.append(f"fingerprint {self.fingerprint()} instead of {self.undisturbed()}")
            calm = self.fates("undisturbed")
            if (calm.trained, calm.held_out, calm.events) != (found.trained, found.held_out, found.events):
                differing.append("another order of learning")
            strayed = [mine for mine, its in zip(found.losses, calm.losses, strict=False) if mine != its]
            if strayed or len(found.losses) != len(calm.losses):
                differing.append(f"other losses, from this on: {strayed[:1]}")
        return Verdict(
            tried=self.met.total(),
            lost=len(lost),
            doubled=len(doubled),
            differing=len(differing),
            why=tuple([*differing, *lost, *doubled][:20]),
        )
