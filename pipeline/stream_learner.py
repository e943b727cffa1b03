"""Snapshot + records -> later snapshot: everything of a snapshot's state but what is Kafka's.

    learner.add(record) ... until it says that a batch is complete, then report = learner.step(assembler.take())

On one partition the state after each step is a function of settings and log alone: steps count records, never seconds.
"""

from __future__ import annotations

import copy
import time
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pipeline.deduplication import RecentIds
from pipeline.erasure import Erasures
from pipeline.evaluation.drift import DriftDetector
from pipeline.evaluation.forgetting import EvaluationReport, ForgettingHistory
from pipeline.evaluation.hold_out import HoldOut, evaluate_hold_out
from pipeline.evaluation.prequential import Prequential
from pipeline.evaluation.turns import classes_in_turn, periodic_budget
from pipeline.finiteness import NotFinite
from pipeline.learner import Learner, UpdateReport
from pipeline.micro_batch import BatchAssembler, MicroBatch
from pipeline.poison import CulpritWindow, find_culprits, weights_diverged
from pipeline.record import Partition
from pipeline.restructuring.new_class_accuracy import ClassSeen
from pipeline.restructuring.trigger import Request, RestructuringTrigger, Seen
from pipeline.sample import BadRecord, DeadLetterReason, Decoded, InputKind, InputSpec
from pipeline.settings import LearnerSettings
from pipeline.state import Json, StateTree
from pipeline.user_error import UserError

# The prequential bits of this many updates stay on the device before they are read: reading each at once would make
# the CPU wait for the GPU in every update. A constant, since the drift detector hears of them only then.
_UPDATES_PER_READ = 16

# Only a replay from before a decision needs it, and replays begin at most one restructuring job back; without a bound a
# stream of one record a minute would grow its state by half a million decisions a year.
_DECISIONS_KEPT = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one step did."""

    batch: MicroBatch  # as it was learnt: what no update can bear is among its dead, and it may have become shorter
    update: UpdateReport | None  # None: nothing in the span was trainable
    evaluation: EvaluationReport | None  # where this step was followed by one
    drift: bool  # the detector fired after this step; the next update hears of it
    records_consumed: int  # since the stream's beginning
    request: Request | None  # a restructuring that is asked for from here
    wants_snapshot: bool  # of this very moment, or soon after: a restructuring begins with it
    seconds: Mapping[str, float]  # stage -> wall-clock time, for metrics only


class StreamLearner:
    """The learner with all that surrounds it: repeats, hold-outs, prequential accuracy, forgetting, drift."""

    def __init__(self, settings: LearnerSettings) -> None:
        self.settings = settings
        self.recent_ids = RecentIds(settings.deduplication_window)
        self.hold_out = HoldOut(settings.hold_out)
        self.prequential = Prequential(settings.evaluation)
        self.forgetting = ForgettingHistory(settings.evaluation)
        self.drift = DriftDetector(settings.drift)
        self.trigger = RestructuringTrigger(settings.restructuring)
        self.erasures = Erasures()
        self.assembler = BatchAssembler(settings, self.recent_ids, self.hold_out, self.erasures)
        self.learner: Learner | None = None  # None until a sample showed what the input looks like
        self.records_consumed = 0
        self.records_trained = 0
        self.records_held_out = 0
        self.high_water = 0  # records consumed before an adoption went back: below it the log is learnt once more
        self.decisions: list[dict[str, Json]] = []  # recorded decisions, each with its offsets
        self._spec: InputSpec | None = None
        self._assembled: list[Decoded] = []  # the records of the batch being assembled
        self._waiting: deque[Decoded] = deque()  # those after it: there are some only while that batch is complete
        self._culprits = CulpritWindow()
        self._foretold: list[dict[str, Json]] = []  # decisions of a first pass over this stretch of the log
        self._unread: list[tuple[list[str], Tensor, int]] = []  # labels, correct_B on the device, known_before
        self._drift_pending = False

    # -- what others may see ---------------------------------------------------------------------------------------

    @property
    def is_relearning(self) -> bool:
        """What comes was learnt before, by a model that an adoption has replaced, and was told then."""
        return self.records_consumed < self.high_water

    @property
    def decided_jobs(self) -> list[Json]:
        """Restructurings whose offers were adopted or refused."""
        return [decision["job"] for decision in self.decisions if decision["kind"] in ("adoption", "refusal")]

    @property
    def class_columns(self) -> Mapping[str, int]:
        """{class: logit column} of the known classes."""
        return {} if self.learner is None else self.learner.class_columns

    @property
    def class_names(self) -> Sequence[str]:
        return () if self.learner is None else self.learner.class_names

    @property
    def spec(self) -> InputSpec | None:
        """What a sample of this stream looks like; None before the first good one was stepped on."""
        return self._spec

    def replay_counts(self) -> Mapping[str, int]:
        """{class: samples in the reservoir}. Reads from the device."""
        if self.learner is None:
            return {}
        counts = self.learner.reservoir.counts_per_column()
        return {name: int(counts[column]) for name, column in self.class_columns.items()}

    # -- learning --------------------------------------------------------------------------------------------------

    def add(self, decoded: Decoded) -> bool:
        """Take one record for the batch being assembled; True when a batch is complete, and the next call is `step`.

        After a step a batch may be complete at once (`assembler.is_complete`). It may be stepped on then or when the
        next record is here, which waits for the batch after it.
        """
        if self._waiting or self.assembler.is_complete:
            self._waiting.append(decoded)
            self._assemble()
        else:
            self._take_up(decoded)
        return self.assembler.is_complete

    def _assemble(self) -> None:
        while self._waiting and not self.assembler.is_complete:
            self._take_up(self._waiting.popleft())

    def _take_up(self, decoded: Decoded) -> None:
        self._assembled.append(decoded)
        self.assembler.add(decoded, self._spec, self.class_columns)

    def discard_pending(self) -> None:
        """Drop the batch being assembled and what came after it: nothing of it has touched the state."""
        self.assembler.discard()
        self._assembled = []
        self._waiting.clear()

    def obey(self, decisions: Sequence[Mapping[str, Json]]) -> None:
        """Do again what was decided on a first pass over what comes next. The state's own are obeyed anyway."""
        self._foretold = [*self.decisions, *(dict(decision) for decision in decisions)]
        self.assembler.obey([_ends(decision) for decision in self._foretold])

    def flush(self) -> StepReport | None:
        """The stream is idle: step on what there is, and record this decision with its offsets. None: nothing there.

        Call it until it says None: a step on a batch that became shorter leaves the rest.
        """
        if not self.assembler.pending_records:
            return None
        if not self.assembler.is_complete:
            self.decide(idle_flush(self.assembler.pending_offsets))
        return self.step(self.assembler.take())

    def decide(self, decision: dict[str, Json]) -> None:
        """Record a decision, which nobody changes from now on: {"kind": ..., ...}. A known one stands once."""
        if decision not in self.decisions:
            self.decisions.append(decision)
            del self.decisions[:-_DECISIONS_KEPT]

    def step(self, batch: MicroBatch) -> StepReport:
        """One step on one complete batch.

        1. One update on its trainable records (none of them: no update). What no update can bear goes to the dead.
        2. What the batch holds becomes part of the state: ids, hold-outs, counts.
        3. The prequential bits are read every so many updates; the drift detector hears of them.
        4. The hold-outs are evaluated where so many records have passed, or where a class's first burst has ended; of
           many samples only those of the classes whose turn it is (evaluation/turns.py).
        5. A restructuring is asked for where it is time, but not on what is learnt once more.
        6. What the batch was cut short by begins the next one, which may be complete at once.

        `WeightsDiverged` where nothing more can be learnt; the state is then undefined.
        """
        # 1.
        before = self.records_consumed
        batch, update = self._learn(batch)
        labels = batch.labels
        # 2.
        learnt = time.perf_counter()
        self.records_consumed += batch.records
        self._spec = self._spec or batch.spec
        if batch.ended_by is not None:
            self.decide(self._foretold[batch.ended_by])
        for identity in (*batch.held_out_ids, *batch.trainable_ids):
            self.recent_ids.add(identity)
        for sample in batch.held_out:
            self.hold_out.add(sample)
        self.records_held_out += len(batch.held_out)
        if update is not None:
            self._drift_pending = False
            self.records_trained += len(labels)
            self._unread.append((labels, update.correct_B, update.known_before))
        taken = time.perf_counter()
        # 3.
        drift = False
        if self.learner is not None and update is not None and self.learner.updates % _UPDATES_PER_READ == 0:
            drift = self._read_prequential()
        read = time.perf_counter()
        # 4.
        self.forgetting.observe(Counter(labels))
        seconds = {"intake": taken - learnt, **(update.seconds if update else {})}
        evaluation: EvaluationReport | None = None
        period = self.settings.evaluation.every_records
        is_due = before // period != self.records_consumed // period
        is_evaluated = bool(self.forgetting.burst_ended()) or is_due
        if is_evaluated:
            evaluation = self._evaluate(periodic_budget(period) if is_due else 0)
            seconds["evaluate"] = time.perf_counter() - read
        # 5.
        had_base, request = self.trigger.has_base, None
        if self.records_consumed > self.high_water:
            request = self.trigger.observe(
                Seen(
                    records_before=before,
                    records_consumed=self.records_consumed,
                    known_classes=len(self.class_names),
                    drift=drift,
                    average_forgetting=None if evaluation is None else evaluation.average_forgetting,
                    evaluated=self._seen_by_column(evaluation) if is_evaluated else None,
                    sub_modules=1 if self.learner is None else self.learner.sub_modules_count,
                )
            )
        # 6.
        self._waiting.extendleft(reversed(self._assembled[batch.records :]))
        self._assembled = []
        self._assemble()
        return StepReport(
            batch=batch,
            update=update,
            evaluation=evaluation,
            drift=drift,
            records_consumed=self.records_consumed,
            request=request,
            wants_snapshot=request is not None or self.trigger.has_base != had_base,
            seconds=seconds,
        )

    def _learn(self, batch: MicroBatch) -> tuple[MicroBatch, UpdateReport | None]:
        """The update on the batch, or on what is left of it without those that it cannot bear.

        1. The update. The first one makes the learner, which nobody keeps if nothing can be learnt.
        2. Where it is not finite, nothing of it has happened. Is it with the replay alone, then the weights diverged.
        3. Else the culprits are found, on the weights from before this batch, and the batch is put together as if they
           had been dead letters from the beginning: no class, shape, id or repeat follows from them. What was refused
           for such a reason may be trainable now: the batch ends as soon as it is complete. One that lacks rows now is
           not filled up. Again from 1.
        4. All that came to be trained on, culprits too, goes into the window; are they too many, the weights diverged.
        """
        update: UpdateReport | None = None
        culprits: dict[int, BadRecord] = {}  # id of the sample -> why
        while batch.trainable and update is None:
            # 1.
            spec = self._spec or batch.spec
            assert spec is not None, "the first good sample sets the spec"
            learner = self.learner or Learner(self.settings, spec)
            x, labels, drift = batch.x, batch.labels, self._drift_pending
            subjects = np.array(batch.subjects, dtype=np.int64)
            try:
                update = learner.update(x, labels, subjects=subjects, drift=drift)
            except NotFinite as error:
                # 2.
                what = learner.fault(x[:0], [], drift=drift)
                if what is not None:
                    raise weights_diverged(
                        f"{what} in an update with the replay alone", self.settings.optimizer
                    ) from error
                # 3.
                found = find_culprits(
                    range(len(x)),
                    str(error),
                    lambda rows: learner.fault(x[list(rows)], [labels[row] for row in rows], drift=drift),  # noqa: B023
                )
                for row, why in found.items():
                    culprits[id(batch.trainable[row])] = BadRecord(DeadLetterReason.NOT_LEARNABLE, why)
                batch = self._without(batch, culprits)
            else:
                self.learner = learner
        # 4.
        what = self._culprits.take_in(self._trained_on_in_log_order(batch, culprits))
        if what is not None:
            dead = [record for record, problem in batch.dead if problem.reason is DeadLetterReason.NOT_LEARNABLE]
            raise weights_diverged(what, self.settings.optimizer, dead)
        return batch, update

    def _without(self, batch: MicroBatch, culprits: Mapping[int, BadRecord]) -> MicroBatch:
        """The batch's records assembled anew, the culprits {id of the sample: why} as dead letters, up to where it is
        complete.

        `_assembled` stays as it is: what is cut off is judged anew in the batch that it will be in, as it is where the
        process was ended between the two and has read it again.
        """
        assert batch.records <= len(self._assembled), f"{len(self._assembled)} of the batch's {batch.records} records"
        assembler = BatchAssembler(self.settings, self.recent_ids, self.hold_out, self.erasures)
        for decoded in self._assembled:
            if assembler.is_complete:
                break
            problem = culprits.get(id(decoded.sample))
            judged = decoded if problem is None else Decoded(decoded.record, None, problem)
            assembler.add(judged, self._spec, self.class_columns)
        without = assembler.take()
        without.ended_by = batch.ended_by  # also where it is cut short: what was judged ended there
        return without

    def _trained_on_in_log_order(self, batch: MicroBatch, culprits: Mapping[int, BadRecord]) -> list[bool]:
        """Of each record that was to be trained on, whether it was a culprit."""
        if not culprits:
            return [False] * len(batch.trainable)
        learnt = {id(sample) for sample in batch.trainable}
        samples = [id(decoded.sample) for decoded in self._assembled[: batch.records]]
        return [sample in culprits for sample in samples if sample in culprits or sample in learnt]

    def _read_prequential(self) -> bool:
        drift = False
        for labels, correct_B, known_before in self._unread:
            correct = cast(list[bool], correct_B.tolist())
            for label, right in zip(labels, correct, strict=True):
                was_known = self.class_columns[label] < known_before
                self.prequential.record([label], [right], known_before if was_known else 0)
            drift = self.drift.update([not right for right in correct]) or drift
        self._unread.clear()
        self._drift_pending = self._drift_pending or drift
        return drift

    def _held_out_counts(self) -> dict[str, int]:
        """{class: held-out samples} of the known classes that have any, by logit column."""
        counts = {label: self.hold_out.count(label) for label in self.class_names}
        return {label: count for label, count in counts.items() if count}

    def _accuracies(self, labels: Collection[str]) -> Mapping[str, tuple[float, int]]:
        assert self.learner is not None, "nothing was learnt yet"
        return evaluate_hold_out(self.hold_out, self.class_names, self.learner.predict_columns, frozenset(labels))

    def _evaluate(self, budget: int) -> EvaluationReport | None:
        counts = self._held_out_counts()
        if not counts:
            return None
        now = classes_in_turn(counts, self.forgetting.evaluated_at, ended=self.forgetting.unmeasured, budget=budget)
        return self.forgetting.record(self.records_consumed, self._accuracies(now), left_out=counts.keys() - set(now))

    def _seen_by_column(self, evaluation: EvaluationReport | None) -> list[ClassSeen | None]:
        """What the trigger hears of an evaluation; None: nothing was held out."""
        seen = {
            entry.name: ClassSeen(accuracy=entry.accuracy, at_records=entry.at_records, is_judged=entry.in_averages)
            for entry in (() if evaluation is None else evaluation.classes)
        }
        # a class that has never been looked at waits for its turn: as if it had been looked at before the first record
        waiting = ClassSeen(accuracy=0.0, at_records=0, is_judged=True)
        fewest = self.settings.evaluation.min_class_samples
        will_be = {name: waiting for name, samples in self._held_out_counts().items() if samples >= fewest}
        return [seen.get(name, will_be.get(name)) for name in self.class_names]

    def evaluate_unrecorded(self) -> EvaluationReport | None:
        """How the model stands now, with all classes, beside the history but not in it: the moment of a stop is
        nobody's to choose, so an evaluation made then must not be part of the state. The recorded one where that is of
        all classes at this very moment. None while nothing is known or held out."""
        counts = self._held_out_counts()
        if not counts:
            return None
        newest = self.forgetting.newest_report()
        if newest is not None and newest.at_records == self.records_consumed:
            at_this_moment = {entry.name for entry in newest.classes if entry.at_records == newest.at_records}
            if at_this_moment >= counts.keys():
                return newest
        return copy.deepcopy(self.forgetting).record(self.records_consumed, self._accuracies(counts))

    # -- state -----------------------------------------------------------------------------------------------------

    def state(self) -> StateTree:
        """The whole state at a batch boundary (a batch begun since is not in it): copies, which other threads may read
        while the learner goes on."""
        learner, spec = self.learner, self._spec
        unread: StateTree = {
            "labels": [list(labels) for labels, _, _ in self._unread],
            "known_before": [known for _, _, known in self._unread],
            "correct": torch.cat([torch.empty(0, dtype=torch.bool), *(bits_B.cpu() for _, bits_B, _ in self._unread)]),
        }
        return {
            "spec": None if spec is None else {"kind": spec.kind, "shape": cast(Json, list(spec.shape))},
            "learner": {} if learner is None else learner.state(),
            "recent_ids": self.recent_ids.state(),
            "hold_out": self.hold_out.state(),
            "prequential": self.prequential.state(),
            "forgetting": self.forgetting.state(),
            "drift": self.drift.state(),
            "drift_pending": self._drift_pending,
            "restructuring": self.trigger.state(),
            "unread": unread,
            "records_consumed": self.records_consumed,
            "records_trained": self.records_trained,
            "records_held_out": self.records_held_out,
            "high_water": self.high_water,
            "decisions": cast(Json, list(self.decisions)),  # nobody writes into one
            "erasures": self.erasures.state(),
            "poison": self._culprits.state(),
        }

    def load_state(self, state: StateTree) -> None:
        """Inverse of `state`; the batch being assembled is dropped."""
        self.discard_pending()
        self._spec = spec_of(state)
        self.learner = None
        if state["learner"]:
            assert self._spec is not None, "what was learnt had a spec"
            self.learner = Learner(self.settings, self._spec)
            self.learner.load_state(_tree(state["learner"]))
        self.recent_ids.load_state(_tree(state["recent_ids"]))
        self.hold_out.load_state(_tree(state["hold_out"]))
        self.prequential.load_state(_tree(state["prequential"]))
        self.forgetting.load_state(_tree(state["forgetting"]))
        self.drift.load_state(_tree(state["drift"]))
        self._drift_pending = bool(state["drift_pending"])
        self.trigger.load_state(_tree(state.get("restructuring", {})))
        unread = _tree(state["unread"])
        bits = cast(Tensor, unread["correct"])
        self._unread = []
        position = 0
        for labels, known in zip(
            cast(list[list[str]], unread["labels"]), cast(list[int], unread["known_before"]), strict=True
        ):
            self._unread.append((list(labels), bits[position : position + len(labels)].clone(), known))
            position += len(labels)
        self.records_consumed = cast(int, state["records_consumed"])
        self.records_trained = cast(int, state["records_trained"])
        self.records_held_out = cast(int, state["records_held_out"])
        self.high_water = cast(int, state.get("high_water", 0))  # releases before there were adoptions saved none
        self.decisions = list(cast("list[dict[str, Json]]", state["decisions"]))
        self.erasures.load_state(cast(Json, state.get("erasures", [])))
        self._culprits.load_state(_tree(state.get("poison", {})))
        self.obey(())

    def adopt(self, state: StateTree, decision: dict[str, Json], decisions: Sequence[Mapping[str, Json]] = ()) -> None:
        """Go on with the state that a restructuring has made of an earlier one of this learner.

        Of the present one are kept: the hold-outs (those at the earlier place are among them), the best accuracies, the
        decisions, which are obeyed again, how far it had come, and what it knows of when to restructure next.
        `decision`: that it is adopted; `decisions`: further ones to obey. `UserError` where the state does not fit
        these settings; then nothing has changed.
        """
        try:
            StreamLearner(self.settings).load_state(state)
        except UserError:
            raise
        except Exception as error:  # somebody else made it: whatever is wrong with it must not end the learning
            raise UserError(f"its state cannot be loaded: {type(error).__name__}: {error}") from error
        hold_out, best, erasures = self.hold_out.state(), self.forgetting.best, self.erasures.state()
        recorded, high_water = self.decisions, max(self.high_water, self.records_consumed)
        trigger = self.trigger.state()
        self.load_state(state)
        self.trigger.load_state(trigger)
        self.trigger.ended(self.records_consumed, adopted_classes=len(self.class_names))
        self.hold_out.load_state(hold_out)
        self.forgetting.keep_best(best)
        self.erasures.load_state(erasures)
        self.decisions, self.high_water = list(recorded), high_water
        self.decide(decision)
        self.obey(decisions)

    def refuse(self, decision: dict[str, Json], *, requested_at: object = None, base_is_lost: bool = False) -> None:
        """Go on as it is: `decision` says what is not adopted, and why. `requested_at`: the request (its records
        consumed) whose end that is; `base_is_lost`: as any other of the same base would end."""
        self.decide(decision)
        request = self.trigger.request
        if request is not None and request.at_records == requested_at:
            known = len(self.class_names) if base_is_lost else None
            self.trigger.ended(self.records_consumed, adopted_classes=known)

    def predict_columns(self, x: np.ndarray) -> np.ndarray:
        """Logit columns that the present network chooses among the known classes."""
        assert self.learner is not None, "nothing was learnt yet"
        return self.learner.predict_columns(x)


def spec_of(state: StateTree) -> InputSpec | None:
    """Of a stream learner's state: what a sample looks like; None before the first good one."""
    spec = cast("dict[str, object] | None", state["spec"])
    if spec is None:
        return None
    return InputSpec(kind=cast(InputKind, spec["kind"]), shape=tuple(cast(list[int], spec["shape"])))


def idle_flush(offsets: Mapping[Partition, int]) -> dict[str, Json]:
    """The decision that a span ends at these offsets (exclusive) because nothing more came."""
    return {"kind": "idle_flush", "offsets": [[p.topic, p.number, offset] for p, offset in sorted(offsets.items())]}


def _ends(decision: Mapping[str, Json]) -> dict[Partition, int]:
    if decision["kind"] != "idle_flush":
        return {}
    return {
        Partition(topic, number): offset
        for topic, number, offset in cast("list[tuple[str, int, int]]", decision["offsets"])
    }


def _tree(value: object) -> StateTree:
    assert isinstance(value, dict)
    return cast(StateTree, value)
