"""A network that grew says what it said, and lives on as any other does: in a learner, a state and a servable."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.backbones.sub_modules import SubModules
from pipeline.classifier import Classifier
from pipeline.learner import Learner
from pipeline.network import Network, build_network, network_from_architecture
from pipeline.restructuring.consolidation import Consolidation, Inputs
from pipeline.restructuring.consolidation_settings import ConsolidationSettings
from pipeline.restructuring.grown_network import grown
from pipeline.restructuring.labelled_rows import LabelledRows
from pipeline.restructuring.refused import Refused
from pipeline.restructuring.replaced_network import reservoir_rows, with_network
from pipeline.restructuring.specialist import network_like
from pipeline.restructuring.student import new_student
from pipeline.restructuring.teacher import Teacher
from pipeline.sample import InputSpec
from pipeline.settings import InputSettings, NetworkSettings
from pipeline.state import StateTree, fingerprint, join, split
from pipeline.stream_learner import StreamLearner
from pipeline.user_error import UserError
from tests.pipeline.restructuring.digits_stream import digits_stream, learn, settings

DIGITS = InputSpec(kind="image", shape=(1, 8, 8))
KINDS: dict[str, tuple[InputSpec, dict[str, Any], dict[str, Any]]] = {
    "mlp": (DIGITS, {"hidden": [12]}, {"hidden": [7]}),
    "resnet18": (DIGITS, {"width": 4}, {"width": 2}),
    "text_encoder": (
        InputSpec(kind="text", shape=(6,)),
        {"width": 8, "vocabulary": 40},
        {"width": 4, "vocabulary": 40, "layers": 1},
    ),
}


def built(backbone: str, spec: InputSpec, options: dict[str, Any], *, columns: int = 4, seed: int = 0) -> Network:
    return build_network(NetworkSettings(backbone=backbone, options=options, initial_columns=columns), spec, seed)


def rows(spec: InputSpec, count: int = 9) -> Tensor:
    most = 40 if spec.kind == "text" else 256
    x = torch.randint(1, most, (count, *spec.shape), generator=torch.Generator().manual_seed(1))
    return x.to(torch.int32 if spec.kind == "text" else torch.uint8)


def printed(network: Network) -> str:
    return fingerprint({"architecture": network.architecture, "weights": dict(network.state_dict())})


# -- the function ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", KINDS)
def test_it_says_what_it_said_and_json_rebuilds_it(backbone: str) -> None:
    spec, options, narrower = KINDS[backbone]
    network, addition = built(backbone, spec, options), built(backbone, spec, narrower, columns=2, seed=1)
    network(rows(spec))  # statistics of batch norms that are not the fresh ones
    before, of_addition = printed(network), printed(addition)
    result = grown(network.eval(), addition)
    assert (printed(network), printed(addition)) == (before, of_addition)

    assert not result.training
    said, features_BO = network(rows(spec))
    now, features_BD = result(rows(spec))
    torch.testing.assert_close(now, said, rtol=1e-6, atol=1e-6)
    assert torch.equal(features_BD[:, : network.body.width], features_BO)
    assert torch.equal(features_BD[:, network.body.width :], addition.eval()(rows(spec))[1])
    assert result.body.width == network.body.width + addition.body.width
    assert torch.equal(result.head.weight[:, : network.body.width], network.head.weight)
    assert not result.head.weight[:, network.body.width :].any()
    shared = {tensor.data_ptr() for one in (network, addition) for tensor in one.state_dict().values()}
    assert not shared & {tensor.data_ptr() for tensor in result.state_dict().values()}

    weights = result.state_dict()
    rebuilt = network_from_architecture(json.loads(json.dumps(result.architecture)), 9, weights=weights)
    rebuilt.load_state_dict(weights)
    assert printed(rebuilt) == printed(result)
    assert torch.equal(rebuilt.eval()(rows(spec))[0], now)


def test_grown_twice_it_is_flat_and_what_was_frozen_stays_so() -> None:
    network = built("mlp", DIGITS, {"hidden": [12]}).eval()
    once = grown(network, built("mlp", DIGITS, {"hidden": [7]}, seed=1), freeze_old=True)
    twice = grown(once, built("mlp", DIGITS, {"hidden": [5]}, seed=2))
    assert isinstance(twice.body, SubModules)
    parts = cast("list[dict[str, Any]]", twice.body.resolved_options["parts"])
    assert [(part["options"]["hidden"], part["frozen"]) for part in parts] == [([12], True), ([7], False), ([5], False)]
    torch.testing.assert_close(twice(rows(DIGITS))[0], network(rows(DIGITS))[0], rtol=1e-6, atol=1e-6)
    both = grown(once, once, freeze_old=True)  # of one that has several, all are added
    assert [part["frozen"] for part in cast(Any, both.body.resolved_options)["parts"]] == [True, True, True, False]
    assert printed(grown(network, network, freeze_new=True)) != printed(grown(network, network))


def test_the_head_grows_as_ever() -> None:
    network = built("mlp", DIGITS, {"hidden": [12]}).eval()
    result = grown(network, built("mlp", DIGITS, {"hidden": [7]}, seed=1))
    result.grow(8)
    torch.testing.assert_close(result(rows(DIGITS))[0][:, :4], network(rows(DIGITS))[0], rtol=1e-6, atol=1e-6)


def test_too_many_sub_modules() -> None:
    many = build_network(
        NetworkSettings(
            backbone="sub_modules", options={"parts": [{"backbone": "mlp", "options": {"hidden": [2]}}] * 64}
        ),
        DIGITS,
        0,
    )
    with pytest.raises(UserError, match=r"network.options.parts of backbone 'sub_modules'"):
        grown(many, built("mlp", DIGITS, {"hidden": [2]}))


# -- in a learner ------------------------------------------------------------------------------------------------------


def network_of(state: StateTree) -> Network:
    learner: Any = state["learner"]
    network = network_from_architecture(learner["architecture"], weights=learner["network"])
    network.load_state_dict(learner["network"])
    return network.eval()


@cache
def offer(*, frozen: bool = False) -> StateTree:
    """The digits' parent, its network grown by a narrower one."""
    parent = digits_stream().parent
    network = network_of(parent)
    return with_network(
        parent, grown(network, built("mlp", DIGITS, {"hidden": [8]}, seed=5), freeze_old=frozen), settings()
    )


def resumed(state: StateTree, **changes: Any) -> StreamLearner:
    """By the path of a snapshot."""
    learner = StreamLearner(settings(**changes))
    learner.load_state(join(*split(json_of(state))))
    return learner


def json_of(state: StateTree) -> StateTree:
    """What is not a tensor goes through JSON in a snapshot."""
    tensors, facts = split(state)
    return join(tensors, json.loads(json.dumps(facts)))


def test_a_learner_that_takes_it_predicts_as_before() -> None:
    before, after = network_of(digits_stream().parent), network_of(offer())
    x = torch.from_numpy(digits_stream().unlabelled)
    known = len(cast(Any, offer()["learner"])["classes"]["names"])
    with torch.no_grad():
        torch.testing.assert_close(after(x)[0][:, :known], before(x)[0][:, :known], rtol=1e-5, atol=1e-5)
        expected = before(x)[0][:, :known].argmax(dim=1).numpy()
    learner = resumed(offer())
    assert learner.learner is not None
    assert (learner.learner.predict_columns(digits_stream().unlabelled) == expected).all()
    again = resumed(learner.state())
    assert fingerprint(again.state()) == fingerprint(learner.state())


@pytest.mark.parametrize("frozen", [False, True])
def test_it_goes_on_learning_and_what_is_frozen_does_not(frozen: bool) -> None:
    learner = resumed(offer(frozen=frozen), optimizer={"momentum": 0.5, "weight_decay": 0.01})
    assert learner.learner is not None
    x, names = digits_stream().unlabelled[:10], digits_stream().unlabelled_labels[:10]
    before = {name: tensor.clone() for name, tensor in learner.learner.network.state_dict().items()}
    losses = [float(learner.learner.update(x, names).loss["incoming"]) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    new_class = learner.learner.update(x, ["nine"] * 10)  # terms hear of it, and the head grows
    assert new_class.new_classes == ("nine",)
    after = learner.learner.network.state_dict()
    old, new = ({n for n in before if n.startswith(f"body.parts.{part}.")} for part in (0, 1))
    assert old
    assert new
    assert all(torch.equal(after[name], before[name]) == frozen for name in old)
    assert not any(torch.equal(after[name], before[name]) for name in new)
    assert after["head.weight"][:8, 32:].any()  # classes hear the new features now

    state: Any = learner.learner.state()
    of_terms = [state["retention"]["ewc_pp"]["running"], state["retention"]["ewc"]["new"]]
    of_terms += [state["retention"][name]["anchor"]["stiffness"] for name in ("ewc_pp", "ewc")]
    for held in (state["momenta"], *of_terms):
        assert set(held) == set(after) - (old if frozen else set())
    averaged = state["average"]["weights"]
    assert all(torch.equal(averaged[name], before[name]) == frozen for name in old)


@pytest.mark.parametrize("frozen", [False, True])
def test_saved_on_the_way_it_is_bit_for_bit_the_same(frozen: bool) -> None:
    uninterrupted = resumed(offer(frozen=frozen))
    learn(uninterrupted, digits_stream().later[:10])
    gone_on = resumed(uninterrupted.state())
    for learner in (uninterrupted, gone_on):
        learn(learner, digits_stream().later[10:])
    assert uninterrupted.records_trained > cast(int, offer()["records_trained"])
    assert fingerprint(gone_on.state()) == fingerprint(uninterrupted.state())


@pytest.mark.parametrize("backbone", ["resnet18", "text_encoder"])
def test_with_batch_norms_and_of_texts_too(backbone: str) -> None:
    spec, options, narrower = KINDS[backbone]
    chosen = settings(
        network={"backbone": backbone, "options": options, "initial_columns": 4},
        retention={"der_pp": {}, "ewc_pp": {"fisher_every": 2}},
    )
    first = Learner(chosen, spec)
    batches = [rows(spec, 12).roll(number, dims=0).numpy() for number in range(6)]
    names = list("abcabcabcabc")
    for x in batches[:2]:
        first.update(x, names)
    learnt: StateTree = {"learner": first.state()}
    bigger = grown(network_of(learnt), built(backbone, spec, narrower, seed=1), freeze_old=True)
    offered = cast(StateTree, with_network(learnt, bigger, chosen)["learner"])
    straight, stopped, gone_on = Learner(chosen, spec), Learner(chosen, spec), Learner(chosen, spec)
    for learner in (straight, stopped):
        learner.load_state(offered)
    for x in batches[2:]:
        straight.update(x, names)
    for x in batches[2:4]:
        stopped.update(x, names)
    gone_on.load_state(join(*split(stopped.state())))
    for x in batches[4:]:
        gone_on.update(x, names)
    assert fingerprint(gone_on.state()) == fingerprint(straight.state())
    frozen = {name: tensor for name, tensor in bigger.state_dict().items() if name.startswith("body.parts.0.")}
    assert all(torch.equal(straight.network.state_dict()[name], tensor) for name, tensor in frozen.items())


def test_a_servable_of_it_predicts_the_same(tmp_path: Path) -> None:
    learner = resumed(offer(frozen=True))
    learn(learner, digits_stream().later)
    assert learner.learner is not None
    classifier = Classifier.from_state(learner.learner.state(), InputSettings())
    classifier.save(tmp_path / "servable")
    loaded = Classifier.load(tmp_path / "servable")
    x = digits_stream().unlabelled[:50]
    assert np.array_equal(loaded.predict_probabilities(x), classifier.predict_probabilities(x))
    assert np.array_equal(loaded.predict_probabilities(x).argmax(axis=1), learner.learner.predict_columns(x))
    assert loaded.network.architecture == learner.learner.architecture


# -- consolidated ------------------------------------------------------------------------------------------------------


def grown_teacher() -> Teacher:
    network = network_of(digits_stream().base)
    result = grown(network, built("mlp", DIGITS, {"hidden": [8]}, seed=5), freeze_old=True)
    return Teacher(result, cast(Any, digits_stream().base["learner"])["classes"]["names"])


def test_networks_of_its_kind_are_compact() -> None:
    old = grown_teacher()
    alone = network_of(digits_stream().base)
    fresh = network_like(old.network, 3, 0, "specialist", body=None)
    begun = network_like(old.network, 4, 0, "specialist", body=old.network)
    for network in (fresh, begun):
        assert {**network.architecture, "columns": 4} == {**alone.architecture, "columns": 4}
        assert all(parameter.requires_grad for parameter in network.parameters())
    assert fingerprint(begun.body.state_dict()) == fingerprint(alone.body.state_dict())


def test_a_student_is_compact_and_begins_as_the_newest_sub_module() -> None:
    """Which has 8 channels of its 32, and what the head makes of them, less the level of its classes. The others are
    drawn anew: trained for other features, they would disturb these."""
    old = grown_teacher()
    body = old.network.body
    assert isinstance(body, SubModules)
    with torch.no_grad():
        old.network.head.weight[:, -8:] = torch.randn((4, 8), generator=torch.Generator().manual_seed(3))
    names = (*map(str, range(8)),)
    its_columns = [names.index(name) for name in old.class_names]
    student = new_student(old, names, 8, ConsolidationSettings(), 0)
    assert student.architecture["options"] == {"hidden": [32]}
    newest, first = body.bodies[-1].state_dict(), student.body.state_dict()
    assert torch.equal(first["layers.0.weight"][:8], newest["layers.0.weight"])
    assert not torch.equal(first["layers.0.weight"][8:], body.compact.state_dict()["layers.0.weight"][8:])
    taught = old.network.head.weight[:4, -8:]
    torch.testing.assert_close(student.head.weight[its_columns, :8], taught - taught.mean(dim=0))


def test_a_student_of_a_kind_that_the_newest_sub_module_is_not_begins_as_the_first() -> None:
    """Right after growing that is all that is said, so it says what the student of the old network alone does."""
    alone = Teacher(network_of(digits_stream().base), grown_teacher().class_names)
    wider = built("mlp", DIGITS, {"hidden": [40]}, seed=5)
    old = Teacher(grown(network_of(digits_stream().base), wider, freeze_old=True), alone.class_names)
    parent = Teacher(network_of(digits_stream().parent), (*map(str, range(8)),))
    names = list(parent.class_names)
    chosen = ConsolidationSettings()
    assert printed(new_student(old, names, 8, chosen, 0)) == printed(new_student(alone, names, 8, chosen, 0))
    # the learner's own network, compact again or grown too
    beside = [new_student(one, names, 8, chosen, 0, parent=parent) for one in (old, alone)]
    assert printed(beside[0]) == printed(beside[1])
    both = Teacher(grown(parent.network, wider, freeze_old=True), parent.class_names)
    assert printed(new_student(old, names, 8, chosen, 0, parent=both)) == printed(beside[0])
    fresh = new_student(old, names, 8, ConsolidationSettings(initialisation="fresh"), 0)
    assert fresh.architecture == beside[0].architecture


def inputs(old: Teacher) -> Inputs:
    stream = digits_stream()
    names = cast(Any, stream.parent["learner"])["classes"]["names"]
    records = LabelledRows(
        x=np.stack([sample.x for sample in stream.records]),
        labels=tuple(cast(str, sample.label) for sample in stream.records),
    )
    return Inputs(
        class_names=names,
        columns=8,
        old=old,
        specialist=records,
        unlabelled=stream.unlabelled,
        parent=Teacher(network_of(offer()), names),
        reservoir=reservoir_rows(cast(StateTree, stream.parent["learner"])),
    )


@pytest.mark.parametrize("distillation", ["dmc", "hints", "attention"])
def test_consolidation_makes_it_compact_again(distillation: str) -> None:
    chosen = ConsolidationSettings.model_validate(
        {
            "epochs": 10,
            "specialist_epochs": 10,
            "gate_epochs": 2,
            "min_unlabelled": 100,
            "learning_rate": 3e-3,
            "distillation": distillation,
        }
    )
    if distillation == "attention":
        with pytest.raises(Refused, match="the old teacher has grown sub-modules that the student lacks"):
            Consolidation(inputs(grown_teacher()), chosen, device=torch.device("cpu"), seed=0)
        return
    student = Consolidation(inputs(grown_teacher()), chosen, device=torch.device("cpu"), seed=0).run()
    assert student is not None
    assert student.architecture == network_of(digits_stream().parent).architecture
    parent = resumed(offer()).state()  # a learner whose network has grown takes the compact one
    learner = resumed(with_network(parent, student, settings()))
    assert learner.learner is not None
    columns = learner.learner.predict_columns(digits_stream().unlabelled)
    names = learner.learner.class_names
    right = [names[column] == label for column, label in zip(columns, digits_stream().unlabelled_labels, strict=True)]
    assert np.mean(right) > 0.8
    learn(learner, digits_stream().later)
