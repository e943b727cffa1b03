"""The job from end to end on real digits, and every way in which it says no."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from pipeline.backbones.backbone import Backbone
from pipeline.backbones.mlp import Mlp
from pipeline.backbones.sub_modules import SubModules
from pipeline.network import Network, build_network
from pipeline.restructuring.expansion import Expansion, Inputs, expansion_of
from pipeline.restructuring.expansion_settings import ExpansionSettings
from pipeline.restructuring.labelled_rows import LabelledRows
from pipeline.restructuring.refused import Refused
from pipeline.restructuring.replaced_network import with_network
from pipeline.restructuring.teacher import Teacher
from pipeline.sample import InputSpec
from pipeline.settings import AugmentationSettings, NetworkSettings
from pipeline.state import StateTree, fingerprint, join, split
from pipeline.stream_learner import StreamLearner
from tests.pipeline.restructuring.digits_stream import NEW, OLD, digits_stream, learn, settings

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"epochs": 2, "distillation_epochs": 1, "head_epochs": 2}


def job(*, from_log: bool = True, unlabelled: bool = True, seed: int = 0, **changes: Any) -> Expansion:
    stream = digits_stream()
    return expansion_of(
        stream.parent,
        NEW,
        stream.labelled() if from_log else None,
        stream.unlabelled if unlabelled else [],
        ExpansionSettings.model_validate({**QUICK, **changes}),
        learner_settings=settings(),
        device=CPU,
        seed=seed,
    )


def finished(expansion: Expansion) -> Network:
    network = expansion.run()
    assert network is not None
    return network


def printed(network: Network) -> str:
    return fingerprint(cast(StateTree, dict(network.state_dict())))


def accuracy(network: Network, of: tuple[str, ...]) -> float:
    """On the unlabelled rows of these classes, whose labels nobody was told."""
    stream = digits_stream()
    names = np.array(cast(Any, stream.parent)["learner"]["classes"]["names"])
    with torch.no_grad():
        logits, _ = network.eval()(torch.from_numpy(stream.unlabelled))
    said = names[logits[:, : len(names)].argmax(dim=1).numpy()]
    true = np.array(stream.unlabelled_labels)
    return float((said == true)[np.isin(true, of)].mean())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prune": None},
        {"mixmatch_weight": 0.0, "pseudo_weight": 0.0},
        {"unlabelled": False},
        {"align_guesses": True},
        {"align_guesses": True, "unlabelled": False},
    ],
    ids=[
        "default",
        "unpruned",
        "unlabelled rows without labels",
        "no unlabelled rows",
        "guesses shared out evenly",
        "none to share out",
    ],
)
def test_the_grown_network_knows_old_and_new(changes: dict[str, Any]) -> None:
    network = finished(job(epochs=20, distillation_epochs=20, head_epochs=20, **changes))
    assert accuracy(network, OLD) > 0.85
    assert accuracy(network, NEW) > 0.85


def test_it_has_one_small_sub_module_more_and_the_old_one_as_it_was() -> None:
    before = Teacher.from_state(cast(StateTree, digits_stream().parent["learner"])).network
    after = finished(job())
    assert isinstance(after.body, SubModules)
    old, new = after.body.bodies
    assert fingerprint(dict(old.state_dict())) == fingerprint(dict(before.body.state_dict()))
    assert new.resolved_options == {"hidden": [16]}  # half of 32
    assert [part["frozen"] for part in cast(Any, after.architecture)["options"]["parts"]] == [True, False]
    unpruned = finished(job(prune=None)).body
    assert isinstance(unpruned, SubModules)
    assert unpruned.bodies[1].resolved_options == {"hidden": [32]}


def test_a_network_that_cannot_be_pruned_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the backbones of torchvision are: no options describe one with fewer channels."""
    expansion = job()
    finished(expansion)
    assert expansion.did_without() == []
    unpruned = job(prune=None)
    finished(unpruned)
    assert unpruned.did_without() == [], "nobody asked for it"
    monkeypatch.setattr(Mlp, "measured_options", Backbone.measured_options)
    whole, stages = job(), set[str]()
    assert whole.run(progress=lambda stage, _done, _of: stages.add(stage)) is not None
    assert stages == {"temporary network", "joint head"}, "there is nothing that would have to learn once more"
    assert whole.did_without() == [
        "the sub-module is not pruned: its backbone has no options for one with fewer channels"
    ]


def test_the_pruned_network_learns_from_unlabelled_rows_where_as_many_as_may_be_are_kept_of_fewer_than_records() -> (
    None
):
    """Of a stream of millions a job keeps `most_unlabelled`, and may keep more records."""
    records = len(digits_stream().records)

    def distillation_steps(**changes: Any) -> int:
        of: dict[str, int] = {}
        expansion = job(distillation_epochs=2, distillation_batch_size=10, batch_size=10, **changes)
        expansion.run(progress=lambda stage, _done, steps: of.__setitem__(stage, steps))
        return of["pruned network"]

    most = records - 10
    assert len(digits_stream().unlabelled) > most
    assert distillation_steps(most_unlabelled=most) == 2 * math.ceil(most / 10)
    assert distillation_steps(unlabelled=False) == 2 * math.ceil(records / 10)


def test_with_a_share_for_the_sub_modules_all_of_them_learn() -> None:
    before = Teacher.from_state(cast(StateTree, digits_stream().parent["learner"])).network
    after = finished(job(sub_modules_share=0.1))
    assert isinstance(after.body, SubModules)
    assert fingerprint(dict(after.body.bodies[0].state_dict())) != fingerprint(dict(before.body.state_dict()))
    assert [part["frozen"] for part in cast(Any, after.architecture)["options"]["parts"]] == [False, False]


def test_the_same_inputs_give_the_same_bits() -> None:
    assert printed(finished(job())) == printed(finished(job()))
    assert printed(finished(job())) != printed(finished(job(seed=1)))


def test_guesses_that_are_shared_out_evenly_tune_another_head() -> None:
    """And nothing below it."""
    as_said, evenly = finished(job()), finished(job(align_guesses=True))
    assert fingerprint(dict(as_said.body.state_dict())) == fingerprint(dict(evenly.body.state_dict()))
    assert printed(as_said) != printed(evenly)


@pytest.mark.parametrize("stop_after", [3, 25, 33], ids=["temporary network", "pruned network", "joint head"])
def test_stopped_and_gone_on_with_it_comes_to_the_same_bits(stop_after: int) -> None:
    whole = finished(job())
    steps = 0

    def counted(_stage: str, _done: int, _total: int) -> None:
        nonlocal steps
        steps += 1

    first = job()
    assert first.run(progress=counted, stop=lambda: steps >= stop_after) is None
    tensors, facts = split(first.state())
    saved = join(tensors, json.loads(json.dumps(facts)))
    second = job()
    second.load_state(saved)
    assert printed(finished(second)) == printed(whole)


def test_what_another_job_saved_is_refused() -> None:
    first = job()
    with pytest.raises(Refused, match="of an expansion of other rows or settings"):
        job(seed=1).load_state(first.state())


def test_the_stages_are_told() -> None:
    told: list[str] = []

    def note(stage: str, done: int, total: int) -> None:
        if done == total:
            told.append(stage)

    assert job().run(progress=note) is not None
    assert told == ["temporary network", "pruned network", "joint head"]


def test_the_learner_goes_on_with_what_came_of_it() -> None:
    """The state is whole: a learner loads it, learns on, and keeps the frozen sub-module as it is."""
    stream = digits_stream()
    state = with_network(stream.parent, finished(job()), settings())
    learner = StreamLearner(settings())
    learner.load_state(state)
    assert learner.learner is not None
    body = learner.learner.network.body
    assert isinstance(body, SubModules)
    frozen, newest = (fingerprint(dict(part.state_dict())) for part in body.bodies)
    learn(learner, stream.later)
    frozen_later, newest_later = (fingerprint(dict(part.state_dict())) for part in body.bodies)
    assert frozen_later == frozen
    assert newest_later != newest


def test_without_a_log_the_reservoir_s_samples_are_taken() -> None:
    assert isinstance(finished(job(from_log=False)).body, SubModules)


def test_a_network_s_beginning_is_a_sub_module_alone() -> None:
    """Nothing is there that could grow: what is learnt, pruned and tuned is the network."""
    spec = InputSpec(kind="vector", shape=(6,))
    generator = np.random.default_rng(0)
    labels = tuple("ab"[row % 2] for row in range(80))
    x = np.stack([generator.normal(1 if label == "a" else -1, 0.3, 6) for label in labels]).astype(np.float32)
    inputs = Inputs(
        class_names=("a", "b"),
        new_classes=("a", "b"),
        records=LabelledRows(x=x, labels=labels),
        reservoir=LabelledRows(x=x[:0], labels=()),
        unlabelled=x[:0],
        present=None,
        like=build_network(NetworkSettings(options={"hidden": [8]}), spec, 0),
        columns=4,
        augmentation=AugmentationSettings(),
    )
    network = finished(Expansion(inputs, ExpansionSettings(), device=CPU, seed=0))
    assert network.architecture["options"] == {"hidden": [4]}
    assert network.columns == 4
    with torch.no_grad():
        said = network(torch.from_numpy(x))[0][:, :2].argmax(dim=1)
    right = [label == "ab"[column] for label, column in zip(labels, said.tolist(), strict=True)]
    assert np.mean(right) > 0.9


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"new_classes": ()}, "no new class to grow for"),
        ({"new_classes": ("4", "9")}, "no record of class '9'"),
        ({"class_names": (*OLD, *NEW, "8")}, "the reservoir has none of '8'"),
        ({"unlabelled": np.zeros((3, 1, 9, 9), np.uint8)}, "unlabelled rows are uint8"),
    ],
)
def test_what_cannot_be_done_well_is_refused(changes: dict[str, Any], why: str) -> None:
    inputs = replace(job()._inputs, **changes)
    with pytest.raises(Refused, match=why):
        Expansion(inputs, ExpansionSettings(), device=CPU, seed=0)


def test_before_the_first_record_there_is_no_network() -> None:
    with pytest.raises(Refused, match="before the first record"):
        expansion_of(
            StreamLearner(settings()).state(),
            NEW,
            [],
            [],
            ExpansionSettings(),
            learner_settings=settings(),
            device=CPU,
            seed=0,
        )
