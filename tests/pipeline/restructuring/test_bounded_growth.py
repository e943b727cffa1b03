"""The whole of it in memory: twenty classes come, the network grows, is folded back, and its size stays bounded.

The bound for a budget of b sub-modules: a request grows only a network with fewer than b, by one pruned sub-module, and
a consolidation makes it a single one of the first one's kind again. So there are never more parameters than

    the single body + (b - 1) pruned bodies + a head over the features of all of them

whatever comes, while without pruning and consolidation there is one whole body more after every request.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch

from pipeline.restructuring.consolidation import consolidation_of
from pipeline.restructuring.consolidation_settings import ConsolidationSettings
from pipeline.restructuring.expansion import expansion_of
from pipeline.restructuring.expansion_settings import ExpansionSettings
from pipeline.restructuring.replaced_network import with_network
from pipeline.restructuring.trigger import Kind, Reason, Request
from pipeline.sample import Decoded
from pipeline.settings import LearnerSettings
from pipeline.state import StateTree
from pipeline.stream_learner import StreamLearner
from tests.pipeline.restructuring.twenty_digits import twenty_digits

_HIDDEN = 32
_INPUTS = 64
_COLUMNS = 20
_PRUNED = 0.5  # share of a new sub-module's units that it loses
_BUDGET = 3


def settings(**restructuring: Any) -> LearnerSettings:
    asks = {"new_classes": 2, "settle_records": 150, "rest_records": 0, "expand_below": 0.98, **restructuring}
    return LearnerSettings.model_validate(
        {
            "device": "cpu",
            "threads": 1,
            "batch_size": 10,
            "network": {"options": {"hidden": [_HIDDEN]}, "initial_columns": _COLUMNS},
            "optimizer": {"momentum": 0.5},
            "averaging": {"rate": 0.1},  # right after an adoption a single update may move much: it is judged by these
            "replay": {"capacity": 400, "draw_size": 32},
            "hold_out": {"share": 0.15},
            "evaluation": {"every_records": 50, "min_class_samples": 5},
            "restructuring": asks,
        }
    )


@dataclass
class Course:
    """One run over the whole stream."""

    learner: StreamLearner
    requests: list[Request] = field(default_factory=list)
    sub_modules: list[int] = field(default_factory=list)  # after each step
    parameters: list[int] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """On samples that no learner and no job has seen, of all classes as many."""
        stream = twenty_digits()
        names = np.array(self.learner.class_names)
        return float((names[self.learner.predict_columns(stream.test_x)] == np.array(stream.test_labels)).mean())


def run(settings: LearnerSettings, expansion: ExpansionSettings) -> Course:
    """What is asked for is done at once, on the learner's own state, and adopted; then the stream goes on."""
    course = Course(StreamLearner(settings))
    learner, trigger = course.learner, course.learner.trigger
    base, since_base = learner.state(), list[Decoded]()
    for decoded in twenty_digits().records:
        since_base.append(decoded)
        if not learner.add(decoded):
            continue
        report = learner.step(learner.assembler.take())
        if report.request is not None:
            course.requests.append(report.request)
            state = _done(report.request, learner, base, since_base, expansion)
            learner.adopt(state, {"kind": "adoption", "job": f"{report.request.kind}-{report.records_consumed}"})
        if not trigger.new_classes:
            base, since_base = learner.state(), []
        assert learner.learner is not None
        network = learner.learner.network
        course.sub_modules.append(len(network.body.bodies))
        course.parameters.append(sum(parameter.numel() for parameter in network.parameters()))
    return course


def _done(
    request: Request, learner: StreamLearner, base: StateTree, since_base: list[Decoded], expansion: ExpansionSettings
) -> StateTree:
    """The state that the job makes of the learner's."""
    parent, stream = learner.state(), twenty_digits()
    samples = [decoded.sample for decoded in since_base if decoded.sample is not None]
    records = [(one.x, one.label) for one in samples if one.label is not None and not learner.hold_out.chooses(one)]
    unlabelled = np.concatenate([stream.unlabelled[name] for name in learner.class_names])  # as many as came so far
    where: dict[str, Any] = {"device": torch.device("cpu"), "seed": learner.settings.seed}
    if request.kind is Kind.EXPANSION:
        new = learner.class_names[len(learner.class_names) - learner.trigger.new_classes :]
        growth = expansion_of(
            parent, new, records, unlabelled, expansion, learner_settings=learner.settings, **where
        ).run()
        assert growth is not None, "nobody stops it"
        return with_network(parent, growth, learner.settings)
    student = consolidation_of(
        parent, base, records, unlabelled, ConsolidationSettings(min_unlabelled=100), **where
    ).run()
    assert student is not None, "nobody stops it"
    return with_network(parent, student, learner.settings)


def bound(sub_modules: int, pruned: float | None) -> int:
    """The most parameters that a network with so many has, all but the first of which have lost that share."""
    added = _HIDDEN if pruned is None else math.ceil((1 - pruned) * _HIDDEN)
    bodies = [_HIDDEN, *[added] * (sub_modules - 1)]
    return sum((_INPUTS + 1) * width for width in bodies) + (sum(bodies) + 1) * _COLUMNS


@cache
def breathing() -> Course:
    return run(settings(most_sub_modules=_BUDGET), ExpansionSettings(prune=_PRUNED))


@cache
def only_growing() -> Course:
    """The same without pruning, and with a budget that is never used up."""
    return run(settings(most_sub_modules=64, expand_below=1.0), ExpansionSettings(prune=None))


def test_it_grows_and_shrinks_within_its_bound() -> None:
    course = breathing()
    kinds = [request.kind for request in course.requests]
    assert kinds.count(Kind.EXPANSION) >= 3
    assert kinds.count(Kind.CONSOLIDATION) >= 2
    assert Reason.BUDGET in {request.reason for request in course.requests}
    changes = np.diff(course.parameters)
    assert (changes > 0).any()
    assert (changes < 0).any()
    assert max(course.sub_modules) == _BUDGET
    assert min(course.parameters) == bound(1, None)
    assert max(course.parameters) <= bound(_BUDGET, _PRUNED)
    for sub_modules, parameters in zip(course.sub_modules, course.parameters, strict=True):
        assert parameters <= bound(sub_modules, _PRUNED)


def test_without_pruning_and_consolidation_the_same_run_breaks_the_bound() -> None:
    course = only_growing()
    assert {request.kind for request in course.requests} == {Kind.EXPANSION}
    assert max(course.sub_modules) > _BUDGET
    assert course.parameters[-1] > bound(_BUDGET, _PRUNED)
    assert course.parameters == sorted(course.parameters), "nothing ever takes a parameter away"


def test_it_knows_all_classes_at_the_end() -> None:
    """No worse than a learner that never restructures, on samples that neither has seen; chance is 0.05."""
    never = run(settings(new_classes=None), ExpansionSettings())
    assert never.requests == []
    assert never.accuracy > 0.5
    assert breathing().accuracy > never.accuracy
