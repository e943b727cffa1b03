"""Faults by the hundred, and a table of what came of them.

    python -m tests.faults.soak --kills 200 --seed 1 [--minutes 30] [--json FILE]

Each row is a trial of its own: a log with bad records and repeats, a learner that is killed, stopped or refused disk
space again and again, and an undisturbed one to compare it with. Exit code 1 if anything was lost, doubled or differs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from consumers.kafka_settings import KafkaSettings
from deploy.embedded_kafka import EmbeddedKafka
from tests.faults.disk_damage import DAMAGES, spoil
from tests.faults.fault_plan import ALL_POINTS, START_POINTS, Fault
from tests.faults.fault_stream import mixed
from tests.faults.harness import MLP, RESNET18, WIDE_MLP, Trial, Verdict
from tests.faults.learner_runs import ForkServer

_FENCED = 4
_DISK_REFUSED = 7
_GRACE_SECONDS = 5.0
# A process that is killed gets this many records on, in the mean; a log is as long as all its kills need, and longer.
_RECORDS_A_KILL = {MLP: 400, WIDE_MLP: 400, RESNET18: 120}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    fault: str
    tried: int
    lost: int
    doubled: int
    differing: int
    seconds: float
    why: tuple[str, ...]
    aborted: bool = False  # something was not as it must be, and the trial could not go on: see `why`

    @property
    def passed(self) -> bool:
        return not (self.lost or self.doubled or self.differing or self.aborted)


@dataclass(slots=True)
class Soak:
    """What all trials share."""

    server: ForkServer
    broker: EmbeddedKafka
    folder: Path
    seed: int
    deadline: float
    trials: int = 0

    def trial(self, faults: int, *, network: str = MLP, partitions: int = 1, heartbeat_seconds: float = 50.0) -> Trial:
        """A new stream with a log for so many faults."""
        self.trials += 1
        trial = Trial(
            self.server,
            KafkaSettings(bootstrap_servers=self.broker.bootstrap_servers),
            f"soak-{self.seed}-{self.trials}",
            self.folder / f"{self.trials}",
            network=network,
            partitions=partitions,
            heartbeat_seconds=heartbeat_seconds,
        )
        trial.write(mixed(1_000 + faults * _RECORDS_A_KILL[network], seed=self.seed * 1_000 + self.trials))
        return trial

    def draws(self) -> random.Random:
        return random.Random(f"{self.seed}/{self.trials}")

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.deadline

    def repeat(self, trial: Trial, faults: int, once: Callable[[], object]) -> None:
        """Until so many faults were met; a process that was quicker than its fault does not count."""
        for _ in range(3 * faults):
            if trial.met.total() >= faults or self.is_over:
                return
            once()


def kills_at_random_moments(soak: Soak, faults: int, *, network: str = MLP, partitions: int = 1) -> Trial:
    trial, draws = soak.trial(faults, network=network, partitions=partitions), soak.draws()
    soak.repeat(trial, faults, lambda: trial.kill_at_random(draws, 1.5, step_seconds=0.005 if network == MLP else 0.0))
    return trial


def kills_at_each_step(soak: Soak, faults: int, *, network: str = MLP) -> Trial:
    trial, draws = soak.trial(faults, network=network), soak.draws()

    def once() -> None:
        point = ALL_POINTS[trial.met.total() % len(ALL_POINTS)]
        if point in START_POINTS[1:]:  # so that every step of a start has work to do
            trial.kill_at("commit.written")
        trial.kill_at(point, nth=1 if point in START_POINTS else draws.randint(1, 3))

    soak.repeat(trial, faults, once)
    return trial


def crash_loops(soak: Soak, faults: int) -> Trial:
    """Over and over: killed when the snapshot is written and not told, then once or more right after the claim."""
    trial, draws = soak.trial(faults), soak.draws()

    def once() -> None:
        trial.kill_at("commit.written", nth=draws.randint(1, 3))
        for _ in range(draws.randint(1, 2)):
            trial.kill_at(draws.choice(("start.fenced", "start.claimed", "start.loaded")))

    soak.repeat(trial, faults, once)
    return trial


def terminations(soak: Soak, faults: int) -> Trial:
    trial, draws = soak.trial(faults), soak.draws()

    def once() -> None:
        run = trial.start(until_idle_seconds=None, step_seconds=0.005)
        run.wait_for_event("started")
        run.ends_within(draws.uniform(0.0, 0.6))
        run.send(signal.SIGTERM)
        assert run.wait(_GRACE_SECONDS) == 0, run.text
        trial.met["SIGTERM"] += 1

    soak.repeat(trial, faults, once)
    return trial


def replaced_learners(soak: Soak, faults: int) -> Trial:
    """Hung at a step, replaced, and woken while its successor is at work."""
    trial, draws = soak.trial(faults, heartbeat_seconds=1.0), soak.draws()

    def once() -> None:
        # Before its own claim a learner replaces its successor, and not the other way round.
        point = draws.choice(ALL_POINTS[ALL_POINTS.index("start.fenced") :])
        if point in START_POINTS:
            trial.kill_at("commit.written")
        hung = trial.start(
            Fault(point=point, nth=1 if point in START_POINTS else draws.randint(1, 3), deed="SIGSTOP"),
            until_idle_seconds=None,
        )
        hung.wait_until_stopped()
        successor = trial.start(Fault(point="commit.told", nth=draws.randint(1, 2)), until_idle_seconds=None)
        successor.wait_until(lambda: successor.reached("start.claimed"), "claimed")
        hung.send(signal.SIGCONT)
        assert hung.wait() == _FENCED, hung.text
        successor.kill()
        trial.met["replaced"] += 1

    soak.repeat(trial, faults, once)
    return trial


def broker_outages(soak: Soak, faults: int) -> Trial:
    """The broker is killed while a learner is at work, or asked to end, and comes back on the same port; every third
    time the learner is killed meanwhile."""
    trial, draws = soak.trial(3 * faults), soak.draws()

    def once() -> None:
        run = trial.start(until_idle_seconds=None, step_seconds=0.005)
        begun_at = run.wait_for_event("started")["records_consumed"]
        run.ends_within(draws.uniform(0.0, 0.6))
        away_seconds = draws.choice((0.0, 2.0, 15.0, 60.0))
        if draws.random() < 0.7:
            soak.broker.kill()
        else:
            soak.broker.stop()
        run.ends_within(away_seconds)
        if trial.met.total() % 3 == 2:
            run.kill()
        soak.broker.start()
        if run.code is None:
            assert trial.log is not None
            before, last = max(run.records_consumed(), begun_at), trial.log.records
            run.wait_until(lambda: before == last or run.records_consumed() > before, "learning again")
            run.send(signal.SIGTERM)
            assert run.wait() == 0, run.text
        trial.met["broker away"] += 1

    soak.repeat(trial, faults, once)
    return trial


def full_disks(soak: Soak, faults: int) -> Trial:
    trial, draws = soak.trial(faults, network=WIDE_MLP), soak.draws()

    def once() -> None:
        run = trial.start(
            Fault(point="commit.begun", nth=draws.randint(2, 4), deed="limit_files"),
            file_bytes=300_000,
            until_idle_seconds=None,
        )
        run.wait_for_event("snapshot_failed")
        run.send(signal.SIGTERM)
        assert run.wait() == _DISK_REFUSED, run.text
        trial.met["full disk"] += 1

    soak.repeat(trial, faults, once)
    return trial


def damaged_snapshots(soak: Soak, faults: int) -> Trial:
    trial, draws = soak.trial(faults), soak.draws()

    def once() -> None:
        # After one commit, and so before it is past where it fell from, or after more.
        trial.kill_at("commit.pruned", nth=draws.randint(1, 4))
        damage = draws.choice(DAMAGES)
        if len(trial.whole_snapshots()) > 1:  # nobody can go on from none
            spoil(trial.store().entries()[-1].path, damage, draws.randrange(1_000))
            trial.met[damage] += 1

    soak.repeat(trial, faults, once)
    return trial


def run(soak: Soak, kills: int) -> list[Row]:
    """The trials in turn; their shares of the kills add up to one."""
    plans: list[tuple[str, float, Callable[[int], Trial], bool]] = [
        ("kill -9, random moment, MLP", 0.15, lambda n: kills_at_random_moments(soak, n), True),
        ("kill -9, random moment, ResNet-18", 0.15, lambda n: kills_at_random_moments(soak, n, network=RESNET18), True),
        ("kill -9, random moment, 8 partitions", 0.1, lambda n: kills_at_random_moments(soak, n, partitions=8), False),
        ("kill -9 at each step, MLP", 0.2, lambda n: kills_at_each_step(soak, n), True),
        ("kill -9 at each step, ResNet-18", 0.1, lambda n: kills_at_each_step(soak, n, network=RESNET18), True),
        ("kill -9 in a loop of commit and start", 0.04, lambda n: crash_loops(soak, n), True),
        ("SIGTERM, random moment", 0.08, lambda n: terminations(soak, n), True),
        ("replaced while it hung", 0.05, lambda n: replaced_learners(soak, n), True),
        ("broker away, up to 60 s", 0.03, lambda n: broker_outages(soak, n), True),
        ("full disk", 0.05, lambda n: full_disks(soak, n), True),
        ("newest snapshot damaged", 0.05, lambda n: damaged_snapshots(soak, n), True),
    ]
    rows: list[Row] = []
    for name, share, attempt, same in plans:
        if soak.is_over:
            print(f"no time is left for: {name}", file=sys.stderr, flush=True)
            continue
        started = time.monotonic()
        aborted = False
        try:
            trial = attempt(max(1, round(kills * share)))
            trial.learn_to_the_end()
            verdict = trial.verdict(same_fingerprint=same)
        except AssertionError as error:
            aborted = True
            verdict = Verdict(tried=0, lost=0, doubled=0, differing=0, why=(str(error),))
        rows.append(
            Row(
                fault=name,
                tried=verdict.tried,
                lost=verdict.lost,
                doubled=verdict.doubled,
                differing=verdict.differing,
                seconds=round(time.monotonic() - started, 1),
                why=verdict.why,
                aborted=aborted,
            )
        )
        print(rows[-1], file=sys.stderr, flush=True)
        soak.server.end_all()
    return rows


def machine() -> str:
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {len(os.sched_getaffinity(0))} cores ({platform.machine()}), "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown. Of several partitions no fingerprint is compared, since their order is the brokers' to choose."""
    lines = ["| fault | tried | lost | doubled | differing fingerprints |", "|---|---:|---:|---:|---:|"]
    for entry in rows:
        differing = "-" if "partitions" in entry.fault else str(entry.differing)
        numbers = (
            "aborted | | |" if entry.aborted else f"{entry.tried} | {entry.lost} | {entry.doubled} | {differing} |"
        )
        lines.append(f"| {entry.fault} | {numbers}")
    total = (sum(entry.tried for entry in rows), sum(e.lost for e in rows), sum(e.doubled for e in rows))
    lines.append(f"| all | {total[0]} | {total[1]} | {total[2]} | {sum(entry.differing for entry in rows)} |")
    return "\n".join([*lines, "", machine()])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description="Faults by the hundred.")
    parser.add_argument("--kills", type=int, default=200, help="faults in all (default: 200)")
    parser.add_argument("--seed", type=int, default=1, help="draws what is killed when (default: 1)")
    parser.add_argument("--minutes", type=float, help="stop after so long (default: when all were tried)")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes if arguments.minutes is not None else float("inf")
    with (
        tempfile.TemporaryDirectory(prefix="palimpsest-soak-") as folder,
        EmbeddedKafka(Path(folder) / "kafka") as broker,
        ForkServer() as server,
    ):
        soak = Soak(server, broker, Path(folder), arguments.seed, deadline)
        rows = run(soak, arguments.kills)
    print(table(rows))
    if arguments.json is not None:
        facts = {"seed": arguments.seed, "machine": machine(), "rows": [asdict(entry) for entry in rows]}
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n")
    return int(not rows or not all(entry.passed for entry in rows))


if __name__ == "__main__":
    sys.exit(main())
