"""Averaged weights: by hand, through growths and restarts, and who sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.classifier import Classifier
from pipeline.finiteness import NotFinite
from pipeline.learner import Learner
from pipeline.network import build_network
from pipeline.sample import InputSpec
from pipeline.settings import InputSettings, LearnerSettings
from pipeline.state import fingerprint, join, split
from pipeline.user_error import UserError
from pipeline.weight_average import WeightAverage

SPEC = InputSpec(kind="vector", shape=(4,))


def settings(**changes: Any) -> LearnerSettings:
    return LearnerSettings.model_validate(
        {
            "device": "cpu",
            "network": {"options": {"hidden": [8]}, "initial_columns": 2},
            "replay": {"capacity": 20, "draw_size": 8},
            "averaging": {"rate": 0.25},
            **changes,
        }
    )


def rows(number: int, classes: int) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(number)
    labels = rng.integers(0, classes, 6)
    x = rng.normal(size=(6, 4)) + 2 * np.eye(4)[labels % 4]
    return x.astype(np.float32), [str(label) for label in labels]


def learnt(updates: int, **changes: Any) -> Learner:
    learner = Learner(settings(**changes), SPEC)
    for number in range(updates):
        learner.update(*rows(number, 2 + number // 4))
    return learner


def averaged(learner: Learner) -> dict[str, torch.Tensor]:
    state: Any = learner.state()["average"]
    found: dict[str, torch.Tensor] = state["weights"]
    return found


def test_by_hand() -> None:
    layer = nn.Linear(1, 1)
    average = WeightAverage(layer, rate=0.4)
    expected = None
    for update, weight in enumerate((1.0, 3.0, 8.0, 0.0), start=1):
        with torch.no_grad():
            layer.weight.fill_(weight)
        average.update()
        # the plain mean of 1, then of 1 and 3; from the third on 1/t is below 0.4: 2 + 0.4 * 6, then 4.4 - 0.4 * 4.4
        expected = {1: 1.0, 2: 2.0, 3: 4.4, 4: 2.64}[update]
        state: Any = average.state()
        assert state["weights"]["weight"].item() == pytest.approx(expected)
    with average.in_place_of_the_weights():
        assert layer.weight.item() == pytest.approx(2.64)
    assert layer.weight.item() == 0.0


def test_training_never_sees_it() -> None:
    """The same weights come out with an average and without; looking at predictions changes nothing either."""
    plain, averaging, looked_at = (learnt(0, averaging={"rate": rate}) for rate in (None, 0.25, 0.25))
    for number in range(14):
        x, labels = rows(number, 2 + number // 4)
        for learner in (plain, averaging, looked_at):
            learner.update(x, labels)
        looked_at.predict_columns(x)
    for learner in (averaging, looked_at):
        assert fingerprint({"n": plain.state()["network"]}) == fingerprint({"n": learner.state()["network"]})
    assert fingerprint(averaging.state()) == fingerprint(looked_at.state())


def test_it_follows_a_head_that_grows() -> None:
    learner = learnt(3)
    before = averaged(learner)
    assert before["head.weight"].shape[0] == 2
    x, _ = rows(9, 2)
    learner.update(x, ["0", "1", "2", "3", "4", "0"])
    after = averaged(learner)
    assert after["head.weight"].shape[0] == 8
    # The new rows began at what the head grew by, and took one step of 1/4 (the fourth update) towards the live ones.
    network = build_network(settings().network, SPEC, settings().seed)
    network.grow(8)
    live: Any = learner.state()["network"]
    expected = torch.lerp(network.head.weight.detach()[2:], live["head.weight"][2:], 0.25)
    torch.testing.assert_close(after["head.weight"][2:], expected)


def test_an_update_that_is_undone_leaves_it_alone() -> None:
    learner = learnt(3)
    before = fingerprint(learner.state())
    x, _ = rows(9, 2)
    x[0, 0] = np.inf
    with pytest.raises(NotFinite):
        learner.update(x, ["0", "1", "2", "3", "4", "0"])
    assert fingerprint(learner.state()) == before
    x[0, 0] = 1.0
    again = learnt(3)
    for each in (learner, again):
        each.update(x, ["0", "1", "2", "3", "4", "0"])
    assert fingerprint(learner.state()) == fingerprint(again.state())


def test_a_restored_learner_goes_on_bit_for_bit() -> None:
    straight = learnt(14)
    restored = Learner(settings(), SPEC)
    restored.load_state(join(*split(learnt(6).state())))
    for number in range(6, 14):
        restored.update(*rows(number, 2 + number // 4))
    assert fingerprint(straight.state()) == fingerprint(restored.state())


def test_a_state_with_an_average_wants_one_and_the_other_way_round() -> None:
    with pytest.raises(UserError, match=r"learnt with averaged weights: set averaging\.rate as it was then"):
        Learner(settings(averaging={"rate": None}), SPEC).load_state(learnt(2).state())
    with pytest.raises(UserError, match=r"learnt without averaged weights: set averaging\.rate to null"):
        Learner(settings(), SPEC).load_state(learnt(2, averaging={"rate": None}).state())


def test_a_version_predicts_what_the_learner_predicts() -> None:
    learner = learnt(10)
    classifier = Classifier.from_state(learner.state(), InputSettings())
    x = np.concatenate([rows(number, 4)[0] for number in range(20, 30)])
    assert np.array_equal(classifier.predict_probabilities(x).argmax(axis=1), learner.predict_columns(x))
    parameters = dict(classifier._network.state_dict())
    assert all(torch.equal(parameters[name], tensor) for name, tensor in averaged(learner).items())
    assert not torch.equal(parameters["head.weight"], learner.network.head.weight)


def test_statistics_of_batch_norms_are_averaged_too() -> None:
    spec = InputSpec(kind="image", shape=(1, 8, 8))
    network = {"backbone": "resnet18", "options": {"width": 4}, "initial_columns": 2}
    learner = Learner(settings(network=network), spec)
    images = np.random.default_rng(0).integers(0, 255, (6, 1, 8, 8)).astype(np.uint8)
    for _ in range(3):
        learner.update(images, ["0", "1"] * 3)
    names = [name for name in averaged(learner) if name.endswith("running_var")]
    live: Any = learner.state()["network"]
    assert names
    assert any(not torch.equal(averaged(learner)[name], live[name]) for name in names)
    assert len(learner.predict_columns(images)) == 6
