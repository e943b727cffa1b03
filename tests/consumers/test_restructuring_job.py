"""A job of each kind from a world's snapshots and logs to an offer, and its learner that adopts it."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from consumers import topics
from consumers.job_kinds import ConsolidationKind, ExpansionKind, Given, JobKind, PipelineJob
from consumers.memory_record_source import InMemoryLog, InMemoryRecordSource
from consumers.record_source import LogTruncated
from consumers.restructuring_job import JobReport, RestructuringJob, SnapshotLost
from deploy.job_lines import job_lines
from deploy.restructuring import Chosen, choose
from pipeline.codec.cloud_event import CloudEvent
from pipeline.codec.image import encode_png
from pipeline.evaluation.hold_out import HoldOut
from pipeline.restructuring.acceptance import AcceptanceSettings
from pipeline.restructuring.consolidation_settings import ConsolidationSettings
from pipeline.restructuring.expansion_settings import ExpansionSettings
from pipeline.restructuring.refused import Refused
from pipeline.restructuring.trigger import Kind
from pipeline.state import StateTree, fingerprint
from tests.consumers.digit_records import digit_images, digit_stream
from tests.consumers.learner_world import STREAM, World

EVEN_THE_WORST = AcceptanceSettings(
    average_margin=1, growth_gain=-1, worst_class_margin=1, class_margin=1, min_class_samples=1
)
QUICK = ConsolidationSettings(epochs=4, batch_size=32, specialist_epochs=4, min_unlabelled=50)
QUICK_EXPANSION = ExpansionSettings(epochs=8, distillation_epochs=4, head_epochs=60)
KINDS: dict[Kind, JobKind] = {
    Kind.CONSOLIDATION: ConsolidationKind(QUICK),
    Kind.EXPANSION: ExpansionKind(QUICK_EXPANSION),
}


SUB_MODULES = {Kind.CONSOLIDATION: 1, Kind.EXPANSION: 2}  # of what is made of a network that is one


class Desk:
    """A world with unlabelled records, and jobs on it."""

    def __init__(self, folder: Path, kind: JobKind) -> None:
        self.kind = kind
        self.world = World(folder)
        self.world.write(digit_stream(90, clean=True))
        self.world.learn(snapshots={"every_records": 30, "keep": 100})
        self.unlabelled: InMemoryLog | None = InMemoryLog(topics.unlabelled(STREAM))
        self.send_unlabelled(300, 700)

    def send_unlabelled(self, first: int, last: int) -> None:
        """Of the images of the six digits. An id says what it shows, so that labelled or not they share a fate."""
        assert self.unlabelled is not None
        x, y = digit_images()
        for item in np.flatnonzero(y < 6)[first:last].tolist():
            event = CloudEvent(
                id=f"digit-{item}", source="tests", type="s", content_type="image/png", data=encode_png(x[item])
            )
            self.unlabelled.append(event.data, headers=tuple(event.headers()))

    def run(
        self,
        kind: JobKind | None = None,
        acceptance: AcceptanceSettings = EVEN_THE_WORST,
        stop_after: int | None = None,
        chosen: Chosen | None = None,
    ) -> JobReport | None:
        world, steps, stop = self.world, [0], threading.Event()

        def progress(*_: object) -> None:
            steps[0] += 1
            if stop_after is not None and steps[0] >= stop_after:
                stop.set()

        kind = kind or self.kind
        job = RestructuringJob(
            store=world.store,
            offers=world.offers,
            work=world.folder / "jobs",
            samples=InMemoryRecordSource(world.log),
            unlabelled=None if self.unlabelled is None else InMemoryRecordSource(self.unlabelled),
            kind=kind,
            acceptance=acceptance,
            cluster_id=world.cluster_id,
            topic_id=world.topic_id,
            device="cpu",
        )
        if stop_after == 0:
            stop.set()
        chosen = chosen or self.choose()
        return job.run(chosen.parent, chosen.base, progress=progress, stop=stop)

    def choose(self, base: int | None = None) -> Chosen:
        return choose(self.world.folder, self.kind.kind, stream=STREAM, base=base)


@pytest.fixture(params=KINDS)
def desk(tmp_path: Path, request: pytest.FixtureRequest) -> Desk:
    """What holds for every kind of job."""
    return Desk(tmp_path, KINDS[request.param])


@pytest.fixture
def consolidating(tmp_path: Path) -> Desk:
    return Desk(tmp_path, KINDS[Kind.CONSOLIDATION])


@pytest.fixture
def expanding(tmp_path: Path) -> Desk:
    return Desk(tmp_path, KINDS[Kind.EXPANSION])


def test_what_it_made_is_offered_and_adopted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.adoption._LOOK_EVERY_SECONDS", 0.0)
    report = desk.run()
    assert report is not None
    assert sorted(report.new_classes) == ["4", "5"]
    assert not report.from_reservoir
    (offer,) = desk.world.offers.waiting()
    assert offer.job == report.job == f"{desk.kind.kind}-{desk.world.newest().sequence}"
    desk.world.write(digit_stream(20, clean=True, seed=5))
    desk.world.learn()
    (told,) = desk.world.events("adopted")
    data = json.loads(told.value or b"")
    assert data["new_classes"] == list(report.new_classes)
    assert data["average_accuracy_after"] == report.judgement.average_after
    assert data["kind"] == desk.kind.kind
    before, after = report.before, report.after
    assert (data["sub_modules_before"], data["parameters_before"]) == (before.sub_modules, before.parameters)
    assert (data["sub_modules_after"], data["parameters_after"]) == (after.sub_modules, after.parameters)
    assert (before.sub_modules, after.sub_modules) == (1, SUB_MODULES[desk.kind.kind])
    learnt = cast(dict[str, Any], desk.world.newest().state["learner"])
    assert sorted(learnt["classes"]["names"]) == ["0", "1", "2", "3", "4", "5"]


def test_a_worse_one_is_not_offered(consolidating: Desk) -> None:
    lazy = {"epochs": 1, "specialist_epochs": 1, "learning_rate": 1e-9, "initialisation": "fresh"}
    kind = ConsolidationKind(QUICK.model_copy(update=lazy))
    report = consolidating.run(kind, AcceptanceSettings(min_class_samples=5))
    assert report is not None
    assert not report.judgement.accepted
    assert consolidating.world.offers.waiting() == []


@pytest.mark.parametrize("after", [1, 20, 60])
def test_stopped_and_begun_again_it_comes_to_the_same(desk: Desk, after: int) -> None:
    desk.run()
    (offer,) = desk.world.offers.waiting()
    undisturbed = fingerprint(desk.world.offers.load(offer).state)
    desk.world.offers.remove(offer.job)
    assert desk.run(stop_after=after) is None
    desk.send_unlabelled(700, 760)  # what comes meanwhile is not of this job
    assert desk.run(stop_after=3) is None
    assert desk.run() is not None
    (offer,) = desk.world.offers.waiting()
    assert fingerprint(desk.world.offers.load(offer).state) == undisturbed
    assert not list((desk.world.folder / "jobs").glob("*")), "nothing is left of it"


def test_it_reads_nothing_held_out_and_only_new_classes(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Given] = []
    begin = type(desk.kind).begin

    def spy(kind: JobKind, given: Given) -> PipelineJob:
        assert given.records is not None
        read.append(replace(given, records=list(given.records), unlabelled=list(given.unlabelled)))
        return begin(kind, read[-1])

    monkeypatch.setattr(type(desk.kind), "begin", spy)
    desk.run()
    records, unlabelled = [*(read[0].records or ())], [*read[0].unlabelled]
    assert {label for _, label in records} == set(read[0].new_classes) == {"4", "5"}
    hold_out = HoldOut(desk.world.settings.hold_out)
    hold_out.load_state(cast(StateTree, desk.world.newest().state["hold_out"]))
    held_out = {row.tobytes() for label in hold_out.classes for row in hold_out.samples(label)}
    assert len(held_out) > 10
    assert not held_out & {row.tobytes() for row in (*(x for x, _ in records), *unlabelled)}
    assert 300 < len(unlabelled) < 400, "some of the unlabelled are held out too"


def test_where_the_log_was_cut_the_reservoir_teaches(desk: Desk) -> None:
    desk.world.log.truncate_before(0, 200)
    report = desk.run()
    assert report is not None
    assert report.from_reservoir


def test_too_few_unlabelled_are_refused(consolidating: Desk) -> None:
    with pytest.raises(Refused, match="unlabelled rows are too few"):
        consolidating.run(ConsolidationKind(QUICK.model_copy(update={"min_unlabelled": 5_000})))


def test_an_expansion_goes_on_without_unlabelled_records(expanding: Desk) -> None:
    expanding.unlabelled = None
    report = expanding.run()
    assert report is not None
    assert report.unlabelled_rows == 0
    assert "without unlabelled records: there are none, or the settings hear none" in job_lines(report)
    assert [offer.job for offer in expanding.world.offers.waiting()] == [report.job]


def test_settings_that_hear_no_unlabelled_records_are_told_as_such(expanding: Desk) -> None:
    deaf = QUICK_EXPANSION.model_copy(update={"mixmatch_weight": 0.0, "pseudo_weight": 0.0, "prune": None})
    report = expanding.run(ExpansionKind(deaf))
    assert report is not None
    assert report.unlabelled_rows == 0


def test_unlabelled_records_that_a_pruned_network_is_distilled_on_are_told_of() -> None:
    deaf = QUICK_EXPANSION.model_copy(update={"mixmatch_weight": 0.0, "pseudo_weight": 0.0})
    assert ExpansionKind(deaf).taken(400) == 400


def test_only_an_old_teacher_must_be_whole(desk: Desk) -> None:
    base = desk.choose().base
    (base.path / base.manifest.files[0].name).write_bytes(b"decayed")
    if desk.kind.needs_old_teacher:
        with pytest.raises(SnapshotLost, match=f"snapshot {base.sequence}, which the job begins with, is not whole"):
            desk.run()
    else:
        assert desk.run() is not None


def test_what_was_begun_of_one_kind_is_not_gone_on_with_as_the_other(desk: Desk) -> None:
    assert desk.run(stop_after=3) is None
    begun = desk.choose()
    desk.world.write(digit_stream(60, clean=True, seed=7))
    desk.world.learn()
    (other,) = set(Kind) - {desk.kind.kind}
    assert choose(desk.world.folder, other, stream=STREAM).parent == desk.world.newest_entry()
    assert desk.choose() == begun


def test_a_network_that_has_grown_becomes_compact_again(expanding: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """One job after the other: each begins with what the one before has made."""
    monkeypatch.setattr("consumers.adoption._LOOK_EVERY_SECONDS", 0.0)
    expanding.run()
    expanding.world.learn()
    expanding.world.write(digit_stream(20, clean=True, seed=5))
    expanding.world.learn()
    expanding.kind = KINDS[Kind.CONSOLIDATION]
    report = expanding.run()
    assert report is not None
    assert (report.before.sub_modules, report.after.sub_modules) == (2, 1)
    assert report.after.parameters < report.before.parameters
    expanding.world.write(digit_stream(20, clean=True, seed=6))
    expanding.world.learn()
    assert [json.loads(told.value or b"")["kind"] for told in expanding.world.events("adopted")] == [*KINDS][::-1]


def test_a_job_that_is_done_twice_offers_once(desk: Desk) -> None:
    desk.run()
    (first,) = desk.world.offers.waiting()
    desk.run()
    assert [offer.entry.sha256 for offer in desk.world.offers.waiting()] == [first.entry.sha256]


def test_an_interrupted_job_keeps_its_snapshots_and_is_chosen_again(desk: Desk) -> None:
    """The learner goes on meanwhile, and would have pruned both."""
    before = desk.choose()
    assert desk.run(stop_after=3) is None
    desk.world.write(digit_stream(60, clean=True, seed=7))
    desk.world.learn(snapshots={"every_records": 30, "keep": 2, "keep_bases": 0})
    assert desk.world.newest_entry().number > before.parent.number
    again = desk.choose()
    assert (again.parent.number, again.base.number) == (before.parent.number, before.base.number)
    assert len(desk.world.store.entries()) == 4, "the two newest and these"
    assert desk.run(chosen=again) is not None
    assert desk.choose(before.base.sequence).parent == desk.world.newest_entry()


def test_a_log_that_is_not_the_snapshots_is_named(desk: Desk) -> None:
    desk.world.topic_id = "made anew"
    with pytest.raises(LogTruncated, match="was made anew since this state was written"):
        desk.run()


def test_a_stop_is_heard_while_the_log_is_read(desk: Desk) -> None:
    assert desk.run(stop_after=0) is None
    assert not (desk.world.folder / "jobs").exists(), "nothing was begun"
