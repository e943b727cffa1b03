"""The job from end to end on real digits, and every way in which it says no."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipeline.network import Network, build_network
from pipeline.restructuring.consolidation import Consolidation, Inputs, consolidation_of
from pipeline.restructuring.consolidation_settings import PLAIN_DMC, ConsolidationSettings
from pipeline.restructuring.labelled_rows import LabelledRows, gather_labelled, gather_unlabelled
from pipeline.restructuring.refused import Refused
from pipeline.restructuring.replaced_network import reservoir_rows
from pipeline.restructuring.teacher import Teacher
from pipeline.sample import InputSpec
from pipeline.settings import NetworkSettings
from pipeline.settings_section import fixed_values
from pipeline.state import StateTree, fingerprint, join, split
from pipeline.user_error import UserError
from tests.pipeline.restructuring.digits_stream import NEW, OLD, digits_stream

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {
    "epochs": 2,
    "specialist_epochs": 2,
    "gate_epochs": 1,
    "min_unlabelled": 100,
    "learning_rate": 3e-3,
}


def job(*, from_log: bool = True, seed: int = 0, **changes: Any) -> Consolidation:
    stream = digits_stream()
    return consolidation_of(
        stream.parent,
        stream.base,
        stream.labelled() if from_log else None,
        stream.unlabelled,
        ConsolidationSettings.model_validate({**QUICK, **changes}),
        device=CPU,
        seed=seed,
    )


def finished(consolidation: Consolidation) -> Network:
    student = consolidation.run()
    assert student is not None
    return student


def printed(network: Network) -> str:
    return fingerprint(cast(StateTree, dict(network.state_dict())))


def accuracies(logits: npt.NDArray[np.float32], names: tuple[str, ...]) -> dict[str, float]:
    """Of the old and the new classes on the unlabelled rows, whose labels nobody was told."""
    said = np.array(names)[logits.argmax(axis=1)]
    true = np.array(digits_stream().unlabelled_labels)
    return {
        part: float((said == true)[np.isin(true, classes)].mean()) for part, classes in (("old", OLD), ("new", NEW))
    }


LONG: dict[str, Any] = {"epochs": 30, "specialist_epochs": 30, "gate_epochs": 10}


@pytest.mark.parametrize(("changes", "at_least"), [(PLAIN_DMC, 0.4), ({}, 0.85)], ids=["plain", "default"])
def test_the_student_knows_old_and_new(changes: Mapping[str, Any], at_least: float) -> None:
    """Plain, the specialist, which had many epochs, is louder than the old teacher, who learnt from a stream."""
    consolidation = job(**LONG, **changes)
    student = finished(consolidation)
    stream = digits_stream()
    names = tuple(cast(Any, stream.parent)["learner"]["classes"]["names"])
    together = accuracies(consolidation.side_by_side(stream.unlabelled), names)
    of_student = accuracies(Teacher(student, names).ask(stream.unlabelled).logits_BC.numpy(), names)
    for part in ("old", "new"):
        assert of_student[part] > at_least, f"{of_student} of {together}"
        assert of_student[part] > together[part] - 0.03, f"{of_student} of {together}"
    assert student.columns == cast(Any, stream.parent)["learner"]["architecture"]["columns"]


def test_the_gate_tells_old_from_new_better_than_two_loud_teachers() -> None:
    stream = digits_stream()
    names = tuple(cast(Any, stream.parent)["learner"]["classes"]["names"])
    right = {}
    for gate in (None, "rows", "features"):
        gated = {} if gate is None else {"gated": True, "gate_learns_from": gate}
        consolidation = job(**LONG, **{**PLAIN_DMC, **gated})
        consolidation.run()
        said = np.array(names)[consolidation.side_by_side(stream.unlabelled).argmax(axis=1)]
        right[gate] = (np.isin(said, NEW) == np.isin(stream.unlabelled_labels, NEW)).mean()
    assert min(right["rows"], right["features"]) > right[None]


@pytest.mark.parametrize("distillation", ["temperature", "hints", "relational"])
def test_alternatives_teach_too(distillation: str) -> None:
    student = finished(job(**{**LONG, "epochs": 15}, distillation=distillation))
    names = tuple(cast(Any, digits_stream().parent)["learner"]["classes"]["names"])
    reached = accuracies(Teacher(student, names).ask(digits_stream().unlabelled).logits_BC.numpy(), names)
    assert min(reached.values()) > 0.8


def test_progress_counts_each_stage_to_its_end() -> None:
    told: list[tuple[str, int, int]] = []
    job().run(progress=lambda stage, done, total: told.append((stage, done, total)))
    for stage in ("specialist", "gate", "student"):
        steps = [(done, total) for name, done, total in told if name == stage]
        assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
        assert {total for _, total in steps} == {len(steps)}
    assert [*dict.fromkeys(stage for stage, _, _ in told)] == ["specialist", "gate", "student"]


def stored_and_read(state: StateTree) -> StateTree:
    """Through the form that it has on disk."""
    tensors, facts = split(state)
    return join({path: tensor.clone() for path, tensor in tensors.items()}, json.loads(json.dumps(facts)))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gate_learns_from": "features"},
        {"distillation": "hints", "specialist_hears": "outliers"},
        {"distillation": "hints", "gate_learns_from": "features", "replays": "records"},
    ],
)
def test_resumed_it_is_bit_for_bit_what_it_would_have_been(changes: dict[str, Any]) -> None:
    """Stopped at the very beginning, in each stage, and between them."""
    expected = printed(finished(job(**changes)))
    steps = 0

    def count(_stage: str, _done: int, _total: int) -> None:
        nonlocal steps
        steps += 1

    job(**changes).run(progress=count)
    for after in (0, 1, 5, 17, steps // 2, steps - 1):
        first = job(**changes)
        left = after

        def stop() -> bool:
            nonlocal left
            left -= 1
            return left < 0

        assert first.run(stop=stop) is None
        second = job(**changes)
        second.load_state(stored_and_read(first.state()))
        student = second.run()
        assert student is not None
        assert printed(student) == expected


def test_same_inputs_same_bits_and_another_seed_other_ones() -> None:
    assert printed(finished(job())) == printed(finished(job()))
    assert printed(finished(job(seed=1))) != printed(finished(job()))


def test_it_leaves_what_it_was_given_alone() -> None:
    stream = digits_stream()
    before = fingerprint(stream.parent), fingerprint(stream.base), stream.unlabelled.sum()
    job().run()
    assert (fingerprint(stream.parent), fingerprint(stream.base), stream.unlabelled.sum()) == before


def test_what_was_begun_goes_on_with_the_same_inputs_only() -> None:
    first = job()
    state = first.state()
    for other in (job(epochs=3), job(seed=1), job(from_log=False)):
        with pytest.raises(Refused, match="of other rows, teachers or settings: remove it"):
            other.load_state(state)


def test_from_the_reservoir_where_the_log_has_been_cut() -> None:
    consolidation = job(from_log=False, **{**LONG, "epochs": 15})
    student = finished(consolidation)
    names = tuple(cast(Any, digits_stream().parent)["learner"]["classes"]["names"])
    assert (
        min(accuracies(Teacher(student, names).ask(digits_stream().unlabelled).logits_BC.numpy(), names).values()) > 0.7
    )


def test_a_fresh_student_and_one_that_begins_as_the_old_teacher() -> None:
    """Of the old classes the latter says at once, centred, what the old teacher says."""
    from pipeline.restructuring.student import new_student

    stream = digits_stream()
    old = Teacher.from_state(cast(StateTree, stream.base["learner"]))
    names = cast(Any, stream.parent)["learner"]["classes"]["names"]
    said = old.ask(stream.unlabelled).logits_BC
    kept = new_student(old, names, 8, ConsolidationSettings(), 0).eval()
    columns = [names.index(name) for name in old.class_names]
    expected = said - said.mean(dim=1, keepdim=True)
    with torch.no_grad():
        torch.testing.assert_close(
            kept(torch.from_numpy(stream.unlabelled))[0][:, columns], expected, rtol=0, atol=1e-4
        )
    fresh = new_student(old, names, 8, ConsolidationSettings(initialisation="fresh"), 0)
    assert not torch.equal(fresh.body.state_dict()["layers.0.weight"], kept.body.state_dict()["layers.0.weight"])


def test_a_student_that_begins_as_the_learners_own_network() -> None:
    """Of all classes it says at once, centred, what that one says; where the parent has grown, it begins as the old
    teacher, since it is of the old one's architecture."""
    from pipeline.restructuring.student import new_student

    stream = digits_stream()
    old = Teacher.from_state(cast(StateTree, stream.base["learner"]))
    parent = Teacher.from_state(cast(StateTree, stream.parent["learner"]))
    names = list(parent.class_names)
    said = parent.ask(stream.unlabelled).logits_BC
    student = new_student(old, names, 8, ConsolidationSettings(), 0, parent=parent).eval()
    with torch.no_grad():
        now = student(torch.from_numpy(stream.unlabelled))[0][:, : len(names)]
    torch.testing.assert_close(now, said - said.mean(dim=1, keepdim=True), rtol=0, atol=1e-4)
    grown = build_network(NetworkSettings(options={"hidden": [48]}, initial_columns=8), old.network.spec, 3)
    as_old = new_student(old, names, 8, ConsolidationSettings(), 0)
    beside_grown = new_student(old, names, 8, ConsolidationSettings(), 0, parent=Teacher(grown, names))
    assert printed(beside_grown) == printed(as_old)


def test_the_learners_own_network_is_heard_as_far_as_it_is_wanted() -> None:
    """With all the weight, what is taught is what it says itself; with none, it is not asked."""
    stream = digits_stream()
    parent = Teacher.from_state(cast(StateTree, stream.parent["learner"]))
    own = parent.ask(stream.unlabelled).logits_BC.argmax(dim=1).numpy()
    taught = {}
    for weight in (0.0, 0.5, 1.0):
        consolidation = job(parent_weight=weight)
        finished(consolidation)
        taught[weight] = (consolidation.side_by_side(stream.unlabelled).argmax(axis=1) == own).mean()
    assert taught[1.0] == 1.0
    assert taught[0.0] < taught[0.5] < 1.0
    plain = job(**PLAIN_DMC)
    assert printed(finished(plain)) != printed(finished(job(**{**PLAIN_DMC, "parent_weight": 0.5})))


def test_fresh_networks_begin_with_a_pretrained_body_where_there_is_one() -> None:
    from pipeline.restructuring.student import new_student

    inputs = inputs_of()
    pretrained = build_network(NetworkSettings(options={"hidden": [32]}), inputs.old.network.spec, 7)
    student = new_student(
        inputs.old, inputs.class_names, 8, ConsolidationSettings(initialisation="fresh"), 0, fresh=pretrained
    )
    for name, tensor in pretrained.body.state_dict().items():
        assert torch.equal(student.body.state_dict()[name], tensor)
    settings = ConsolidationSettings.model_validate({**QUICK, "initialisation": "fresh"})
    jobs = [
        Consolidation(replace(inputs, pretrained=body), settings, device=CPU, seed=0) for body in (pretrained, None)
    ]
    assert printed(finished(jobs[0])) != printed(finished(jobs[1]))
    with pytest.raises(Refused, match="of other rows, teachers or settings"):
        jobs[1].load_state(jobs[0].state())


# -- two ready teachers, by hand ---------------------------------------------------------------------------------------

SPEC = InputSpec(kind="vector", shape=(4,))


def ready(names: tuple[str, ...], seed: int, spec: InputSpec = SPEC) -> Teacher:
    return Teacher(
        build_network(NetworkSettings(options={"hidden": [8]}, initial_columns=len(names)), spec, seed), names
    )


def by_hand(old: Teacher, new: Teacher, names: tuple[str, ...], **changes: Any) -> Consolidation:
    x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    settings = ConsolidationSettings.model_validate({**QUICK, **PLAIN_DMC, **changes})
    inputs = Inputs(class_names=names, columns=len(names), old=old, specialist=new, unlabelled=x)
    return Consolidation(inputs, settings, device=CPU, seed=0)


def test_two_teachers_that_share_a_class() -> None:
    names = ("a", "b", "c")
    consolidation = by_hand(ready(("a", "b"), 1), ready(("b", "c"), 2), names, epochs=40)
    student = finished(consolidation)
    x = np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)
    target = consolidation.side_by_side(x)
    said = Teacher(student, names).ask(x).logits_BC.numpy()
    assert np.abs(said - target).mean() < 0.3 * np.abs(target).mean()


def test_attention_wants_layers_with_positions() -> None:
    teachers = ready(("a", "b"), 1), ready(("c",), 2)
    with pytest.raises(Refused, match="attention transfer needs layers with positions, and backbone 'mlp' has none"):
        by_hand(*teachers, ("a", "b", "c"), distillation="attention")


def test_attention_wants_teachers_of_one_kind() -> None:
    spec = InputSpec(kind="image", shape=(1, 8, 8))
    wide, narrow = (
        Teacher(
            build_network(
                NetworkSettings(backbone="resnet18", options={"width": width}, initial_columns=2), spec, width
            ),
            names,
        )
        for width, names in ((8, ("a", "b")), (4, ("c",)))
    )
    x = np.zeros((40, 1, 8, 8), np.uint8)
    changes = {"distillation": "attention", "min_unlabelled": 1}
    settings = ConsolidationSettings.model_validate({**QUICK, **PLAIN_DMC, **changes})
    inputs = Inputs(class_names=("a", "b", "c"), columns=3, old=wide, specialist=narrow, unlabelled=x)
    with pytest.raises(Refused, match="layer by layer, and the teachers are of two kinds "):
        Consolidation(inputs, settings, device=CPU, seed=0)


def test_attention_of_a_convolutional_network() -> None:
    spec = InputSpec(kind="image", shape=(1, 8, 8))

    def teacher(names: tuple[str, ...], seed: int) -> Teacher:
        network = build_network(
            NetworkSettings(backbone="resnet18", options={"width": 4}, initial_columns=len(names)), spec, seed
        )
        return Teacher(network, names)

    x = np.random.default_rng(0).integers(0, 255, (40, 1, 8, 8)).astype(np.uint8)
    settings = ConsolidationSettings.model_validate(
        {**QUICK, **PLAIN_DMC, "distillation": "attention", "min_unlabelled": 1, "epochs": 1}
    )
    names = ("a", "b", "c")
    inputs = Inputs(
        class_names=names, columns=4, old=teacher(("a", "b"), 1), specialist=teacher(("c",), 2), unlabelled=x
    )
    consolidation = Consolidation(inputs, settings, device=CPU, seed=0)
    student = finished(consolidation)
    assert all(bool(tensor.isfinite().all()) for tensor in student.state_dict().values() if tensor.is_floating_point())


def test_a_gate_for_texts_has_no_network_of_its_own() -> None:
    x = np.random.default_rng(0).integers(1, 50, (60, 6)).astype(np.int32)
    network = build_network(
        NetworkSettings(backbone="text_encoder", options={"width": 8, "vocabulary": 50}, initial_columns=2),
        InputSpec(kind="text", shape=(6,)),
        0,
    )
    inputs = Inputs(
        class_names=("a", "b", "c"),
        columns=3,
        old=Teacher(network, ("a", "b")),
        specialist=LabelledRows(x=x[:20], labels=("c",) * 20),
        unlabelled=x[20:],
        reservoir=LabelledRows(x=x[:6], labels=("a", "b", "c") * 2),
    )
    stages: dict[str, set[str]] = {}
    for learns_from in ("auto", "features", "rows"):
        settings = ConsolidationSettings.model_validate(
            {**QUICK, "min_unlabelled": 1, "epochs": 1, "gate_learns_from": learns_from}
        )
        job = Consolidation(inputs, settings, device=CPU, seed=0)
        told = stages.setdefault(learns_from, set())
        job.run(progress=lambda stage, _done, _total, told=told: told.add(stage))  # type: ignore[misc]
        assert np.isfinite(job.side_by_side(x)).all()
    assert stages == {
        "auto": {"specialist", "student"},
        "features": {"specialist", "student"},
        "rows": {"specialist", "gate", "student"},
    }


def test_replayed_records_of_new_classes_stand_beside_stored_samples_of_old_ones() -> None:
    inputs = inputs_of()
    replayed = {}
    for replays in ("reservoir", "records"):
        settings = ConsolidationSettings.model_validate({**QUICK, "replays": replays})
        replayed[replays] = Consolidation(inputs, settings, device=CPU, seed=0)._replayed()
    assert inputs.reservoir is not None
    assert replayed["reservoir"] is inputs.reservoir
    records = replayed["records"]
    assert set(records.labels) == {*OLD, *NEW}
    assert len({records.labels.count(name) for name in (*OLD, *NEW)}) == 1
    known = {x.tobytes() for x in inputs.reservoir.x}
    for x, label in zip(records.x, records.labels, strict=True):
        assert (x.tobytes() in known) or label in NEW
    assert {x.tobytes() for x, label in zip(records.x, records.labels, strict=True) if label in NEW} == {
        x.tobytes() for x in cast(LabelledRows, inputs.specialist).x
    }


# -- refusals ----------------------------------------------------------------------------------------------------------


def inputs_of(**changes: Any) -> Inputs:
    stream = digits_stream()
    learner = cast(StateTree, stream.parent["learner"])
    inputs = Inputs(
        class_names=cast(Any, learner)["classes"]["names"],
        columns=8,
        old=Teacher.from_state(cast(StateTree, stream.base["learner"])),
        specialist=gather_labelled(stream.labelled(), 10_000, 0),
        unlabelled=stream.unlabelled,
        reservoir=reservoir_rows(learner),
    )
    return replace(inputs, **changes)


def refused(inputs: Inputs, match: str, **changes: Any) -> None:
    settings = ConsolidationSettings.model_validate({**QUICK, **changes})
    with pytest.raises(Refused, match=match) as caught:
        Consolidation(inputs, settings, device=CPU, seed=0)
    assert "\n" not in str(caught.value)


def test_too_few_unlabelled_rows() -> None:
    few = digits_stream().unlabelled[:99]
    refused(inputs_of(unlabelled=few), "99 unlabelled rows are too few for a good student, at least 100 are wanted")
    refused(inputs_of(unlabelled=gather_unlabelled([], 5, 0)), "0 unlabelled rows are too few")


def test_no_new_class() -> None:
    old = Teacher.from_state(cast(StateTree, digits_stream().parent["learner"]))
    refused(inputs_of(old=old), r"no class that the old teacher does not know \(8 classes\): wait until one comes")


def test_a_class_without_a_record() -> None:
    nothing = LabelledRows(x=digits_stream().unlabelled[:0], labels=())
    refused(inputs_of(specialist=nothing), "no record of class '[4-7]' to train a specialist on: let more of them come")


def test_rows_of_another_kind() -> None:
    rows = np.zeros((200, 1, 9, 9), np.uint8)
    refused(inputs_of(unlabelled=rows), r"unlabelled rows are uint8 of shape \(1, 9, 9\), the teachers take uint8")
    refused(inputs_of(unlabelled=digits_stream().unlabelled.astype(np.float32)), "unlabelled rows are float32")


def test_a_reservoir_without_some_class() -> None:
    whole = inputs_of().reservoir
    assert whole is not None
    kept = [row for row, label in enumerate(whole.labels) if label != "2"]
    lacking = LabelledRows(x=whole.x[kept], labels=tuple(whole.labels[row] for row in kept))
    refused(inputs_of(reservoir=lacking), "calibrated needs samples of every class, and the reservoir has none of '2'")
    refused(inputs_of(reservoir=None), "calibrated needs samples of every class")
    Consolidation(
        inputs_of(reservoir=None), ConsolidationSettings.model_validate({**QUICK, **PLAIN_DMC}), device=CPU, seed=0
    )


def test_teachers_that_do_not_go_together() -> None:
    a_and_b, c = ready(("a", "b"), 1), ready(("c",), 2)
    with pytest.raises(Refused, match="class 'b' of the old teacher is none of the student's"):
        by_hand(a_and_b, c, ("a", "c"))
    with pytest.raises(Refused, match="no teacher knows class 'd': give one that does"):
        by_hand(a_and_b, c, ("a", "b", "c", "d"))
    with pytest.raises(Refused, match=r"one teacher takes .*\(4,\).*, the other .*\(3,\)"):
        by_hand(a_and_b, ready(("c",), 2, InputSpec(kind="vector", shape=(3,))), ("a", "b", "c"))
    with pytest.raises(Refused, match="two ready teachers have none: set gated to false"):
        by_hand(a_and_b, c, ("a", "b", "c"), gated=True)


def test_before_the_first_record_there_is_nothing_to_consolidate() -> None:
    stream = digits_stream()
    with pytest.raises(Refused, match="nothing to consolidate: let the learner learn first"):
        consolidation_of(
            stream.parent,
            {**stream.base, "learner": {}},
            None,
            stream.unlabelled,
            ConsolidationSettings(),
            device=CPU,
            seed=0,
        )


def test_a_student_that_diverged() -> None:
    expected: list[tuple[Mapping[str, Any], str]] = [
        ({}, "the gate's weights are not finite"),
        ({"gate_learns_from": "features"}, "what a teacher makes of some rows is not finite"),
        (PLAIN_DMC, "the student's weights are not finite"),
    ]
    for changes, match in expected:
        with pytest.raises(Refused, match=match):
            job(learning_rate=1e30, **changes).run()


def test_a_refusal_is_the_users_to_put_right() -> None:
    assert issubclass(Refused, UserError)


def test_all_settings_are_marked() -> None:
    assert fixed_values(ConsolidationSettings()) == {}


# -- rows --------------------------------------------------------------------------------------------------------------


def test_of_more_rows_each_is_kept_as_likely() -> None:
    kept = [gather_unlabelled((np.array([n]) for n in range(20)), 5, seed)[:, 0] for seed in range(400)]
    counts = np.bincount(np.concatenate(kept), minlength=20)
    assert counts.min() > 60  # 100 expected each, standard deviation 8.7
    assert counts.max() < 140
    assert gather_unlabelled((np.array([n]) for n in range(3)), 5, 0)[:, 0].tolist() == [0, 1, 2]
    labelled = gather_labelled(((np.array([n]), str(n)) for n in range(20)), 5, 3)
    assert [str(x) for x in labelled.x[:, 0]] == list(labelled.labels)
