from __future__ import annotations

import copy

import pytest
import torch

from pipeline.finiteness import NotFinite
from pipeline.learner import Learner
from pipeline.state import fingerprint
from tests.cuda.streams import KINDS, batches, deterministic, learn, settings

UPDATES = 110  # the last class comes with the 76th

every_kind = pytest.mark.parametrize("kind", sorted(KINDS))


def learnt(kind: str, *, recorded: bool, updates: int = UPDATES) -> Learner:
    with deterministic(settings(kind)):
        learner = Learner(settings(kind), KINDS[kind][0])
        if not recorded:
            learner.launch_one_by_one()
        learn(learner, batches(kind), updates)
        return learner


@every_kind
def test_recorded_passes_come_to_the_same_weights_bit_for_bit(kind: str) -> None:
    recorded, launched = learnt(kind, recorded=True), learnt(kind, recorded=False)
    assert recorded._repeated.is_recorded
    assert not launched._repeated.is_recorded
    assert fingerprint(recorded.state()) == fingerprint(launched.state())


@every_kind
def test_two_runs_are_the_same_bit_for_bit(kind: str) -> None:
    assert fingerprint(learnt(kind, recorded=True).state()) == fingerprint(learnt(kind, recorded=True).state())


@every_kind
def test_a_learner_that_was_stopped_goes_on_to_the_same_weights(kind: str) -> None:
    whole = learnt(kind, recorded=True)
    with deterministic(settings(kind)):
        stream = batches(kind)
        stopped = Learner(settings(kind), KINDS[kind][0])
        learn(stopped, stream, 97)
        resumed = Learner(settings(kind), KINDS[kind][0])
        resumed.load_state(copy.deepcopy(stopped.state()))
        learn(resumed, stream, UPDATES - 97)
    assert fingerprint(resumed.state()) == fingerprint(whole.state())


def test_what_is_not_finite_is_undone_in_a_recorded_update_too() -> None:
    with deterministic(settings("mlp")):
        learner, stream = Learner(settings("mlp"), KINDS["mlp"][0]), batches("mlp")
        learn(learner, stream, UPDATES)
        assert learner._repeated.is_recorded
        before = fingerprint(learner.state())
        x, labels = next(stream)
        broken = x.copy()
        broken[3] = float("inf")
        with pytest.raises(NotFinite):
            learner.update(broken, labels)
        assert learner._repeated.is_recorded
        assert fingerprint(learner.state()) == before
        learner.update(x, labels)
        assert fingerprint(learner.state()) != before


def test_a_report_stays_as_it_was_when_later_updates_repeat_the_graph() -> None:
    with deterministic(settings("mlp")):
        learner, stream = Learner(settings("mlp"), KINDS["mlp"][0]), batches("mlp")
        learn(learner, stream, UPDATES)
        report = learner.update(*next(stream))
        losses = {name: loss.item() for name, loss in report.loss.items()}
        correct = report.correct_B.tolist()
        learn(learner, stream, 3)
        assert {name: loss.item() for name, loss in report.loss.items()} == losses
        assert report.correct_B.tolist() == correct


def test_the_cpu_waits_once_in_an_update() -> None:
    with deterministic(settings("mlp")):
        learner, stream = Learner(settings("mlp"), KINDS["mlp"][0]), batches("mlp")
        learn(learner, stream, UPDATES)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with pytest.warns(UserWarning, match="synchroniz") as waits:
                learn(learner, stream, 10)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 10


def test_bfloat16_for_images_and_float32_for_vectors() -> None:
    """In `auto`: products in eight bits of mantissa show in the logits' last places."""
    for kind, rounded in (("resnet18", True), ("mlp", False)):
        with deterministic(settings(kind)):
            auto = Learner(settings(kind), KINDS[kind][0])
            exact = Learner(settings(kind, precision="float32"), KINDS[kind][0])
            x = torch.from_numpy(next(batches(kind))[0]).cuda()
            with torch.no_grad():
                same = torch.equal(auto._passes.forward(x)[0], exact._passes.forward(x)[0])
        assert same is not rounded
