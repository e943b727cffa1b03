"""Records that no update can bear leave no trace but a dead letter; weights that diverged are not blamed on records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import keyed_randomness
from pipeline.backbones.resnet18 import ResNet18
from pipeline.finiteness import NotFinite
from pipeline.learner import Learner
from pipeline.poison import CulpritWindow, WeightsDiverged, find_culprits
from pipeline.record import Partition, Record
from pipeline.retention.ewc_pp import EwcPlusPlus
from pipeline.retention.term import Change
from pipeline.sample import BadRecord, DeadLetterReason, Decoded, InputSpec, Sample
from pipeline.settings import LearnerSettings
from pipeline.state import Json, StateTree, fingerprint, join, split
from pipeline.stream_learner import StepReport, StreamLearner

VECTOR = InputSpec(kind="vector", shape=(4,))
IMAGE = InputSpec(kind="image", shape=(1, 8, 8))
POISON = 1e38  # a proper float32
WRONG = "the loss is not finite"
SPAN = 10  # records of a batch, here


def settings(**changes: Any) -> LearnerSettings:
    """Every span is ten records long, so that a dead letter among them takes nobody else's place."""
    given: dict[str, Any] = {
        "device": "cpu",
        "batch_size": SPAN,
        "max_records_per_batch": SPAN,
        "hold_out": {"share": 0.0},
        "network": {"options": {"hidden": [8]}, "initial_columns": 2},
        "optimizer": {"learning_rate": 0.05, "momentum": 0.9},
        "replay": {"capacity": 30, "draw_size": 8},
    }
    return LearnerSettings.model_validate(given | changes)


RESNET: dict[str, Any] = {"network": {"backbone": "resnet18", "options": {"width": 2}, "initial_columns": 2}}


@pytest.fixture(autouse=True)
def _white_is_poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are always small: for the convolutional network an all-white image stands for one with huge values."""
    plain = ResNet18.forward

    def forward(self: ResNet18, x_BCHW: Tensor) -> Tensor:
        white_B = (x_BCHW == 1).flatten(1).all(1)
        return plain(self, torch.where(white_B[:, None, None, None], white_value, x_BCHW))

    white_value = POISON
    monkeypatch.setattr(ResNet18, "forward", forward)


def sample(number: int, label: str | None = None, *, poison: bool = False, image: bool = False) -> Sample:
    """The classes of the stream: two at first, one more every 60 records."""
    random = keyed_randomness.generator(3, "test poison", number)
    drawn = int(random.integers(0, 2 + number // 60))
    if image:
        x: np.ndarray[Any, Any] = random.integers(0, 256, IMAGE.shape, dtype=np.uint8)
        x[...] = 255 if poison else x
    else:
        corner = np.array([drawn & 1, drawn >> 1 & 1, drawn >> 2 & 1, 1], dtype=np.float32)
        x = np.full(4, POISON, np.float32) if poison else corner + random.normal(0, 0.1, 4).astype(np.float32)
    kind = "image" if image else "vector"
    return Sample(x=x, kind=kind, label=label or f"c{drawn}", source="s", id=str(number))  # type: ignore[arg-type]


def record(number: int) -> Record:
    return Record("t", 0, number, b"value")


def stream(
    count: int, culprits: Iterable[int] = (), *, dead: bool = False, image: bool = False, label: str | None = None
) -> list[Decoded]:
    """The culprits hold huge values (of class `label`), or, with `dead`, were dead letters before anybody looked."""
    known_bad = BadRecord(DeadLetterReason.NO_LABEL, "none")
    culprits = set(culprits)
    return [
        Decoded(record(number), None, known_bad)
        if dead and number in culprits
        else Decoded(
            record(number),
            sample(number, label if number in culprits else None, poison=number in culprits, image=image),
        )
        for number in range(count)
    ]


def learn(learner: StreamLearner, records: Iterable[Decoded]) -> list[StepReport]:
    return [learner.step(learner.assembler.take()) for decoded in records if learner.add(decoded)]


def without_window(learner: StreamLearner) -> str:
    return fingerprint({name: value for name, value in learner.state().items() if name != "poison"})


def offsets_of(reports: Sequence[StepReport]) -> list[int]:
    """Of the records that no update could bear."""
    dead = [entry for report in reports for entry in report.batch.dead]
    return [where.offset for where, problem in dead if problem.reason is DeadLetterReason.NOT_LEARNABLE]


def all_finite(state: StateTree) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in split(state)[0].values())


# -- one update -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [0, 1, 7])
@pytest.mark.parametrize("label", ["c0", "new"])
@pytest.mark.parametrize(("drift", "fused"), [(False, True), (True, False)], ids=["", "drift-unfused"])
@pytest.mark.parametrize("image", [False, True], ids=["mlp", "resnet18"])
def test_an_update_that_is_not_finite_changes_nothing(
    updates: int, label: str, drift: bool, fused: bool, image: bool
) -> None:
    """Whether it is tried or only asked about; nor does asking about one that is finite."""
    given = settings(
        retention={"der_pp": {}, "ewc": {"min_records": 1}, "ewc_pp": {}},
        augmentation={"horizontal_flip": True},  # a white image stays one
        replay={"capacity": 12, "draw_size": 5, "fused": fused},
        **(RESNET if image else {}),
    )
    spec = IMAGE if image else VECTOR
    learner, untroubled = Learner(given, spec), Learner(given, spec)
    for number in range(updates):
        rows = [sample(4 * number + row, image=image) for row in range(4)]
        for each in (learner, untroubled):
            each.update(np.stack([row.x for row in rows]), [row.label or "" for row in rows])
    before, columns = fingerprint(learner.state()), learner.class_columns
    network, known = learner.network, dict(columns)

    x = np.stack([sample(900, image=image).x, sample(901, poison=True, image=image).x])
    with pytest.raises(NotFinite):
        learner.update(x, ["c1", label], drift=drift)
    assert fingerprint(learner.state()) == before
    assert learner.fault(x, ["c1", label], drift=drift) is not None
    assert learner.fault(x[:1], [label], drift=drift) is None
    assert learner.fault(x[:0], [], drift=drift) is None
    assert fingerprint(learner.state()) == before
    assert learner.network is network
    assert dict(columns) == known

    # and what comes after is as if nothing had been: the head, its momenta and the terms are the ones in use
    for number in range(3):
        rows = [sample(300 + 4 * number + row, image=image) for row in range(4)]
        for each in (learner, untroubled):
            each.update(np.stack([row.x for row in rows]), [row.label or "" for row in rows])
    assert fingerprint(learner.state()) == fingerprint(untroubled.state())


def test_asking_tells_the_terms_what_the_update_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anchors that move with a new class or a drift are part of what is judged."""
    learner = Learner(settings(), VECTOR)
    x = np.ones((2, 4), np.float32)
    learner.update(x, ["a", "a"])
    heard: list[Change] = []
    monkeypatch.setattr(EwcPlusPlus, "on_change", lambda _self, change: heard.append(change))
    learner.fault(x, ["a", "new"], drift=True)
    assert heard == [Change.NEW_CLASS, Change.DRIFT]


def test_row_gradients_that_cancel_out_in_the_batch_do_not_get_into_the_fisher() -> None:
    """Two rows of the same huge values and opposite labels: loss, logits and gradient are finite, squares are not."""
    huge = np.full((2, 4), 1e25, np.float32)
    for retention, finite in (
        ({"ewc_pp": {}}, False),
        ({"ewc": {}}, False),
        ({"ewc_pp": {"fisher": "batch_mean"}}, True),
    ):
        learner = Learner(settings(retention=retention), VECTOR)
        with torch.no_grad():
            first = cast(Any, learner.network.body).layers[0]
            first.weight.zero_()
            first.bias.fill_(1e-10)
            learner.network.head.weight.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, 8))
            learner.network.head.bias.zero_()
        if finite:
            learner.update(huge, ["a", "b"])
        else:
            with pytest.raises(NotFinite, match="single rows"):
                learner.update(huge, ["a", "b"])
        assert all_finite(learner.state())


def test_statistics_of_batch_norms_stay_finite_where_the_loss_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variance may be past float32's end, and what it normalises well inside."""
    wrapped = ResNet18.forward
    monkeypatch.setattr(ResNet18, "forward", lambda self, x: wrapped(self, torch.where(x == 1, 1e22, x)))
    learner = Learner(settings(**RESNET), IMAGE)
    x = np.stack([sample(number, image=True).x for number in range(4)])
    x[x == 255] = 254
    learner.update(x, list("abab"))
    before = fingerprint(learner.state())
    x[0, 0, 0, 0] = 255
    with pytest.raises(NotFinite):
        learner.update(x, list("abab"))
    assert fingerprint(learner.state()) == before
    assert all_finite(learner.state())


def test_infinite_logits_that_the_loss_does_not_show_are_not_stored() -> None:
    learner = Learner(settings(retention={}), VECTOR)
    learner.update(np.ones((2, 4), np.float32), ["a", "b"])
    with torch.no_grad():
        learner.network.head.bias[1] = -3e38  # a loss of "a" is 0, its logit of "b" no number for a squared error
    with pytest.raises(NotFinite, match=r"^the sum of the squared logits is not finite$"):
        learner.update(np.ones((1, 4), np.float32), ["a"])
    with torch.no_grad():
        learner.network.head.bias[1] = -1e10
    with pytest.raises(NotFinite, match=r"^the sum of the squared logits is too large$"):
        learner.update(np.ones((1, 4), np.float32), ["a"])


@pytest.mark.parametrize(
    ("optimizer", "finite"),
    [
        ({"learning_rate": 1e20}, False),
        ({"learning_rate": 1e20, "max_gradient_norm": 0.01}, True),
        ({"learning_rate": 1e4, "weight_decay": 1e18}, False),
        ({"learning_rate": 1e4, "weight_decay": 1e10}, True),
    ],
)
def test_a_step_past_the_end_of_float32(optimizer: dict[str, float], finite: bool) -> None:
    learner = Learner(settings(optimizer=optimizer), VECTOR)
    x = np.stack([sample(number).x for number in range(4)])
    if finite:
        learner.update(x, list("abab"))
        assert learner.updates == 1
    else:
        assert learner.fault(x, list("abab")) == "the squared step is not finite"
        with pytest.raises(NotFinite):
            learner.update(x, list("abab"))
    assert all_finite(learner.state())


# -- culprits among a batch -----------------------------------------------------------------------------------------


def fault_of(*sets: set[int]) -> Any:
    """Not finite is what holds one of these sets."""
    return lambda rows: WRONG if any(each <= set(rows) for each in sets) else None


@pytest.mark.parametrize("count", [1, 2, 3, 10, 33])
def test_single_culprits_are_found_and_nobody_else(count: int) -> None:
    for culprits in ({0}, {count - 1}, {count // 2, count // 3}, set(range(count))):
        found = find_culprits(range(count), WRONG, fault_of(*({row} for row in culprits)))
        assert set(found) == culprits
        assert set(found.values()) == {"the loss is not finite in an update with it"}


def test_rows_that_only_together_cannot_be_learnt() -> None:
    found = find_culprits(range(10), WRONG, fault_of({2, 7}))
    why = "the loss is not finite in an update with it and 1 more, and nothing is wrong with fewer"
    assert found == dict.fromkeys((2, 7), why)
    assert set(find_culprits(range(10), WRONG, fault_of({1, 4, 9}, {1, 5, 9}))) in ({1, 4, 9}, {1, 5, 9})
    assert set(find_culprits(range(10), WRONG, fault_of({8}, {2, 7}))) == {8}, "the pair comes to light later"


@pytest.mark.parametrize("image", [False, True], ids=["mlp", "resnet18"])
@pytest.mark.parametrize("culprits", [{34}, {3}, {0}, {31, 34, 39}, {5, 45, 95, 135}])
def test_the_rest_is_learnt_as_if_the_culprits_had_never_been_there(image: bool, culprits: set[int]) -> None:
    """Bit for bit, whole states, against a stream where the same records were dead letters all along."""
    given = settings(**(RESNET if image else {}), optimizer={"learning_rate": 0.01, "momentum": 0.9})
    poisoned, clean = StreamLearner(given), StreamLearner(given)
    reports = learn(poisoned, stream(150, culprits, image=image))
    learn(clean, stream(150, culprits, image=image, dead=True))
    assert offsets_of(reports) == sorted(culprits)
    assert poisoned.records_trained == 150 - len(culprits)
    assert without_window(poisoned) == without_window(clean)
    assert all_finite(poisoned.state())
    for report in reports:
        assert sum(len(part) for part in (report.batch.trainable, report.batch.dead)) == report.batch.records == SPAN
        for _, problem in report.batch.dead:
            assert problem.detail.endswith(" is not finite in an update with it")
            assert "\n" not in problem.detail


def test_a_class_that_only_culprits_brought_does_not_become_known() -> None:
    given = settings()
    learner, clean = StreamLearner(given), StreamLearner(given)
    reports = learn(learner, stream(50, {34}, label="only here"))
    learn(clean, stream(50, {34}, dead=True))
    assert offsets_of(reports) == [34]
    assert learner.learner is not None
    assert learner.class_names == ["c0", "c1"] or learner.class_names == ["c1", "c0"]
    assert learner.learner.network.columns == 2
    assert without_window(learner) == without_window(clean)


def test_a_culprit_sent_again_is_no_repeat() -> None:
    learner = StreamLearner(settings())
    learn(learner, stream(40, {34}))
    mended = [Decoded(record(40 + n), sample(34 if n == 0 else 40 + n)) for n in range(SPAN)]
    (report,) = learn(learner, mended)
    assert not report.batch.duplicates
    assert len(report.batch.trainable) == SPAN
    again = [Decoded(record(50 + n), sample(34 if n == 0 else 50 + n)) for n in range(SPAN)]
    (report,) = learn(learner, again)
    assert [repeat.offset for repeat in report.batch.duplicates] == [50]


def test_what_followed_from_a_culprit_within_its_batch_is_undone() -> None:
    """It set the shape of the stream, made a mended copy a repeat, and took the last free column."""
    decoded = stream(SPAN)
    other_shape = Sample(x=np.full(3, POISON, np.float32), kind="vector", label="c0", source="s", id="odd")
    decoded[0] = Decoded(record(0), other_shape)
    decoded[1] = Decoded(record(1), sample(1, "last", poison=True))
    decoded[2] = Decoded(record(2), sample(1, "c0"))  # the same id
    decoded[3] = Decoded(record(3), sample(3, "first"))
    decoded[4:] = [Decoded(record(n), sample(n, "c0")) for n in range(4, SPAN)]
    learner = StreamLearner(settings(network={"options": {"hidden": [8]}, "max_classes": 2}))
    (report,) = learn(learner, decoded)
    assert offsets_of([report]) == [0, 1]
    assert learner.spec == VECTOR
    assert [sample.id for sample in report.batch.trainable] == ["1", *map(str, range(3, SPAN))]
    assert not report.batch.duplicates
    assert learner.class_names == ["c0", "first"]


def test_a_batch_of_culprits_only_leaves_no_learner_behind() -> None:
    learner = StreamLearner(settings(batch_size=2, max_records_per_batch=2))
    (report,) = learn(learner, stream(2, {0, 1}))
    assert report.update is None
    assert offsets_of([report]) == [0, 1]
    assert (learner.learner, learner.spec) == (None, None)
    assert (learner.records_consumed, learner.records_trained) == (2, 0)
    assert learn(learner, stream(4)[2:])[0].update is not None


def test_an_announced_drift_waits_for_the_update_that_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = StreamLearner(settings(batch_size=2, max_records_per_batch=2))
    records = stream(10, {4, 5, 7})
    learn(learner, records[:4])
    learner._drift_pending = True
    heard: list[bool] = []
    plain = Learner.update

    def update(self: Learner, *args: Any, drift: bool, **named: Any) -> Any:
        report = plain(self, *args, drift=drift, **named)
        heard.append(drift)
        return report

    monkeypatch.setattr(Learner, "update", update)
    learn(learner, records[4:])
    assert heard == [True, False]


def test_a_stream_of_one_class_only_is_learnt() -> None:
    learner = StreamLearner(settings())
    same = [Decoded(record(n), sample(n, "only")) for n in range(100)]
    reports = learn(learner, same)
    assert offsets_of(reports) == []
    assert learner.class_names == ["only"]
    assert learner.records_trained == 100
    assert all_finite(learner.state())


# -- diverged -------------------------------------------------------------------------------------------------------


def spread(count: int, every: int) -> set[int]:
    return {number * every for number in range(count)}


@pytest.mark.parametrize(
    ("culprits", "said"),
    [
        (spread(5, 10), None),
        (spread(1, 1), None),
        (spread(6, 1), "6 of the newest 6 records"),
        (spread(6, 10), "6 of the newest 51 records"),
        ({0, 10, 20, 30, 40, 99}, "6 of the newest 100 records"),
        ({0, 10, 20, 30, 40, 100}, None),
        ({0, 10, 20, 30, 40, 100, 109}, "6 of the newest 100 records"),
        (spread(12, 20), None),
    ],
)
@pytest.mark.parametrize("saved_after", [None, 2, 7])
def test_too_many_culprits_among_the_newest_records(
    culprits: set[int], said: str | None, saved_after: int | None
) -> None:
    """The same whether the learner was saved and restored on the way or not."""
    learner = StreamLearner(settings())
    records = stream(250, culprits)
    found: list[int] = []

    def run() -> None:
        nonlocal learner
        for number in range(0, 250, SPAN):
            found.extend(offsets_of(learn(learner, records[number : number + SPAN])))
            if saved_after is not None and number // SPAN + 1 == saved_after:
                state = join(*split(learner.state()))
                learner = StreamLearner(settings())
                learner.load_state(state)
                assert fingerprint(learner.state()) == fingerprint(state)

    if said is None:
        run()
        assert found == sorted(culprits)
    else:
        with pytest.raises(WeightsDiverged, match=said) as raised:
            run()
        newest = max(culprit for culprit in culprits if culprit < 120)
        assert f"t-0@{newest}: look at what the producer sends there, or" in str(raised.value)
        assert "kafka-delete-records.sh and --accept-gap, or begin another --branch" in str(raised.value)
        assert "(--from-state, --from-snapshot) with a lower" in str(raised.value)
        assert "learning_rate (now 0.05) or max_gradient_norm (now 15)" in str(raised.value)
        assert "\n" not in str(raised.value)


def test_the_newest_culprits_are_named_by_their_places() -> None:
    learner = StreamLearner(settings())
    newest = ", ".join(f"t-0@{offset}" for offset in range(3, 9))
    with pytest.raises(
        WeightsDiverged, match=rf"^6 of the newest 7 records cannot be learnt, the newest at {newest}: "
    ):
        learn(learner, stream(SPAN, set(range(1, 9))))


def test_the_window_looks_at_every_record_of_a_large_batch() -> None:
    window = CulpritWindow()
    assert window.take_in([number in {100, 120, 140, 160, 180, 210, 230} for number in range(500)]) is None
    assert window.take_in([False] * 94 + [True] * 6) is not None
    crowded = CulpritWindow()
    assert crowded.take_in([number in {100, 120, 140, 160, 180, 190} for number in range(500)]) is not None


def test_a_learning_rate_that_is_far_too_high_ends_the_stream() -> None:
    for rate in (1e20, 1e6):
        learner = StreamLearner(settings(optimizer={"learning_rate": rate}))
        with pytest.raises(WeightsDiverged, match="learning_rate"):
            learn(learner, stream(300))


def test_replay_that_is_not_finite_is_nobody_s_fault() -> None:
    learner = StreamLearner(settings())
    learn(learner, stream(50))
    assert learner.learner is not None
    learner.learner.reservoir._logits_NK.fill_(1e30)
    with pytest.raises(WeightsDiverged, match="the loss is not finite in an update with the replay alone: b") as raised:
        learn(learner, stream(60)[50:])
    assert "\n" not in str(raised.value)


def test_a_penalty_that_is_not_finite_is_nobody_s_fault() -> None:
    """Without a replay: the anchors alone are judged."""
    learner = StreamLearner(settings(retention={"ewc_pp": {}}))
    learn(learner, stream(70))
    assert learner.learner is not None
    with torch.no_grad():
        learner.learner.network.head.weight.fill_(1e30)
    with pytest.raises(WeightsDiverged, match="in an update with the replay alone"):
        learn(learner, stream(80)[70:])


# -- the state ------------------------------------------------------------------------------------------------------


def test_a_state_from_before_there_were_culprits_and_erasures_loads() -> None:
    learner = StreamLearner(settings())
    learn(learner, stream(50))
    state = learner.state()
    expected = fingerprint(state)
    del state["poison"], state["erasures"]
    other = StreamLearner(settings())
    learn(other, stream(30, {3, 13}))
    other.load_state(state)
    old = other.state()
    assert fingerprint({name: old[name] for name in old if name != "poison"}) == fingerprint(
        {name: value for name, value in learner.state().items() if name != "poison"}
    )
    assert len(cast("dict[str, Tensor]", old["poison"])["culprits"]) == 0
    assert fingerprint(learner.state()) == expected


def test_erased_subjects_are_skipped_also_where_a_culprit_is_among_the_batch() -> None:
    learner = StreamLearner(settings())
    erased = sample(33)
    learner.erasures.add(learner.hold_out.key(erased), {Partition("t", 0): 40})
    state = learner.state()
    learner = StreamLearner(settings())
    learner.load_state(state)
    reports = learn(learner, stream(50, {34}))
    assert offsets_of(reports) == [34]
    assert [gone.offset for report in reports for gone in report.batch.erased] == [33]
    assert fingerprint({"": learner.state()["erasures"]}) == fingerprint({"": state["erasures"]})


def test_the_reservoir_knows_whom_its_rows_are_about() -> None:
    learner = StreamLearner(settings())
    learn(learner, stream(20, {4}))
    held = cast("dict[str, dict[str, Tensor]]", learner.state()["learner"])["reservoir"]
    expected = [learner.hold_out.key(sample(number)) for number in range(20) if number != 4]
    assert held["subjects"].tolist() == expected


def test_an_unknown_decision_is_kept_and_ends_no_span() -> None:
    learner = StreamLearner(settings())
    gap: dict[str, Json] = {"kind": "accepted_gap", "partition": ["t", 0], "from": 3, "to": 7}
    learner.decide(gap)
    learner.decide(dict(gap))
    learn(learner, stream(20))
    other = StreamLearner(settings())
    other.load_state(learner.state())
    learn(other, stream(40)[20:])
    assert other.decisions == [gap]
    assert other.records_trained == 40


def test_no_leaf_of_a_state_is_shared_with_the_learner() -> None:
    """Another thread writes it while the learner goes on; and what was loaded stays its owner's."""
    learner = StreamLearner(settings())
    learner.erasures.add(7, {Partition("t", 0): 3})
    learn(learner, stream(65))
    learner.flush()
    before = fingerprint(learner.state())
    spoil(learner.state())
    assert fingerprint(learner.state()) == before
    loaded = learner.state()
    other = StreamLearner(settings())
    other.load_state(loaded)
    spoil(loaded)
    assert fingerprint(other.state()) == before
    learn(other, stream(120)[65:])
    assert fingerprint(learner.state()) == before


def spoil(tree: Any) -> None:
    """Overwrite tensors, empty lists; a recorded decision is never written into."""
    for name, value in tree.items():
        if isinstance(value, Tensor):
            value.zero_()
        elif isinstance(value, dict) and name != "architecture":
            spoil(value)
        elif isinstance(value, list):
            for entry in value:
                if isinstance(entry, list):
                    entry.clear()
            value.clear()
        elif isinstance(value, dict):
            value.clear()
