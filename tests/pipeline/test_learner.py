"""Legend: B = incoming rows, K = logit columns, S = logit columns when a row was stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import keyed_randomness, retention
from pipeline.learner import Learner, UpdateReport
from pipeline.retention.term import Change, ReplayRows, RetentionTerm, RowGradients, Rows
from pipeline.sample import InputSpec
from pipeline.settings import LearnerSettings
from pipeline.state import StateTree, fingerprint, join, split
from pipeline.user_error import UserError

IMAGE = InputSpec(kind="image", shape=(1, 8, 8))


class Recorder(RetentionTerm):
    """Two draws, a loss on each, a state that grows with the head; writes down what it was told."""

    name = "recorder"
    needs_row_gradients = False

    def __init__(self, config: Any, parameters: Mapping[str, Any]) -> None:
        super().__init__(config, parameters)
        self.told: list[Any] = []
        self.replays: tuple[ReplayRows, ...] = ()
        self.incoming: Rows | None = None
        self.average = torch.zeros_like(parameters["head.weight"], requires_grad=False)

    @property
    def draws(self) -> int:
        return 2

    def on_change(self, change: Change) -> None:
        self.told.append(change)

    def loss(self, incoming: Rows, replays: tuple[ReplayRows, ...]) -> Mapping[str, Tensor]:
        self.incoming, self.replays = incoming, replays
        penalty = {"penalty": 0.01 * (self.parameters["head.weight"] - self.average).square().sum()}
        if not replays:
            return penalty
        first, second = replays
        return {
            **penalty,
            "logits": 0.1 * (first.logits_BK - first.stored_logits_BK).square().mean(),
            "labels": F.cross_entropy(second.logits_BK, second.y_B),
        }

    def after_backward(self, row_gradients: RowGradients | None) -> None:
        assert row_gradients is None
        assert all(parameter.grad is not None for parameter in self.parameters.values())
        self.told.append("after_backward")

    def after_update(self, rows: int) -> None:
        self.average = 0.9 * self.average + 0.1 * self.parameters["head.weight"].detach()
        self.told.append(("after_update", rows))

    def grow(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.told.append(("grow", dict(shapes)))
        grown = torch.zeros(shapes["head.weight"])
        grown[: len(self.average)] = self.average
        self.average = grown

    def state(self) -> StateTree:
        return {"average": self.average}

    def load_state(self, state: StateTree) -> None:
        average = state["average"]
        assert isinstance(average, Tensor)
        self.average = average


@pytest.fixture(autouse=True)
def _recorder_is_a_term(monkeypatch: pytest.MonkeyPatch) -> None:
    terms = {**retention.retention_terms(), "recorder": Recorder}
    monkeypatch.setattr(retention, "retention_terms", lambda: terms)


def settings(**changes: Any) -> LearnerSettings:
    given: dict[str, Any] = {
        "device": "cpu",
        "retention": {"recorder": {}},
        "network": {"options": {"hidden": [6]}, "initial_columns": 4},
        "replay": {"capacity": 12, "draw_size": 5},
        "optimizer": {"learning_rate": 0.1},
    }
    return LearnerSettings.model_validate({**given, **changes})


def stream(
    spec: InputSpec = IMAGE, rows: int = 4, classes: int = 3
) -> Iterator[tuple[np.ndarray[Any, Any], list[str]]]:
    """Endless batches; class c of the stream first comes in batch 5 * c."""
    number = 0
    while True:
        rng = keyed_randomness.generator(0, "test stream", number)
        if spec.kind == "image":
            x: np.ndarray[Any, Any] = rng.integers(0, 256, (rows, *spec.shape), dtype=np.uint8)
        elif spec.kind == "vector":
            x = rng.standard_normal((rows, *spec.shape), dtype=np.float32)
        else:
            x = rng.integers(0, 256, (rows, *spec.shape), dtype=np.int32)
        known = min(number // 5 + 1, classes)
        yield x, [f"class {c}" for c in rng.integers(0, known, rows - 1)] + [f"class {known - 1}"]
        number += 1


def learn(
    learner: Learner, batches: Iterator[tuple[np.ndarray[Any, Any], list[str]]], count: int
) -> list[UpdateReport]:
    return [learner.update(*next(batches)) for _ in range(count)]


def recorder(learner: Learner) -> Recorder:
    term = learner._terms["recorder"]
    assert isinstance(term, Recorder)
    return term


# -- one update -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fused", "passes"), [(True, 1), (False, 3)])
def test_one_forward_and_one_backward(fused: bool, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(settings(replay={"capacity": 12, "draw_size": 5, "fused": fused}), IMAGE)
    batches = stream()
    learn(learner, batches, 3)
    rows: list[int] = []
    backwards: list[int] = []
    learner.network.register_forward_hook(lambda _module, args, _output: rows.append(len(args[0])))
    plain = Tensor.backward

    def counted(self: Tensor) -> None:
        backwards.append(1)
        plain(self)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(Tensor, "backward", counted)
    learn(learner, batches, 1)
    assert rows[0] <= 14 if fused else rows == [4, 5, 5]  # a row of both draws passes once
    assert len(rows) == passes
    assert len(backwards) == 1


@pytest.mark.parametrize("draw_size", [2, 5, 8])
def test_a_row_that_both_draws_hold_passes_once(draw_size: int) -> None:
    """Of eight stored rows; where few are shared, each has a pass of its own."""
    learner = Learner(settings(replay={"capacity": 8, "draw_size": draw_size}), IMAGE)
    batches = stream()
    learn(learner, batches, 3)
    rows: list[int] = []
    learner.network.register_forward_hook(lambda _module, args, _output: rows.append(len(args[0])))
    for number in range(4, 14):
        drawn = [
            learner.reservoir.draw(draw_size, keyed_randomness.generator(0, f"replay/recorder/{i}", number))
            for i in range(2)
        ]
        different = len({*drawn[0].tolist(), *drawn[1].tolist()})
        learn(learner, batches, 1)
        assert rows.pop() == 4 + (different if different <= 0.9 * 2 * draw_size else 2 * draw_size)


def test_fused_and_unfused_learn_the_same_where_rows_do_not_mix() -> None:
    learners = [
        Learner(settings(replay={"capacity": 12, "draw_size": 5, "fused": fused}), IMAGE) for fused in (True, False)
    ]
    reports = [learn(learner, stream(), 20) for learner in learners]
    for fused, unfused in zip(*reports, strict=True):
        assert set(fused.loss) == set(unfused.loss)
        for name in fused.loss:
            torch.testing.assert_close(fused.loss[name], unfused.loss[name])
    for fused_weights, unfused_weights in zip(*(learner.network.parameters() for learner in learners), strict=True):
        torch.testing.assert_close(fused_weights, unfused_weights)


def test_a_plain_update_is_what_torch_alone_makes_of_it() -> None:
    """No term: fine-tuning, written down here a second time."""
    learner = Learner(settings(retention={}, optimizer={"learning_rate": 0.1, "momentum": 0.9}), IMAGE)
    network = torch.nn.Sequential(torch.nn.Linear(64, 6), torch.nn.ReLU(), torch.nn.Linear(6, 4))
    network.load_state_dict(dict(zip(network.state_dict(), learner.network.state_dict().values(), strict=True)))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    batches = stream()
    for _ in range(8):
        x, labels = next(batches)
        report = learner.update(x, labels)
        logits_BK = network(torch.from_numpy(x).float().flatten(1) / 255)
        y_B = torch.tensor([int(label.removeprefix("class ")) for label in labels])
        loss = F.cross_entropy(logits_BK, y_B)  # over all four columns, though at most two stand for a class
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        torch.testing.assert_close(report.loss["incoming"], loss.detach())
    for ours, theirs in zip(learner.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_gradient_norm_is_clipped() -> None:
    free = Learner(settings(retention={}), IMAGE)
    clipped = Learner(settings(retention={}, optimizer={"learning_rate": 0.1, "max_gradient_norm": 0.001}), IMAGE)
    for learner, expected in ((free, None), (clipped, 0.0001)):
        before = torch.nn.utils.parameters_to_vector(learner.network.parameters()).detach().clone()
        learn(learner, stream(), 1)
        moved = (torch.nn.utils.parameters_to_vector(learner.network.parameters()).detach() - before).norm()
        if expected is None:
            assert moved > 0.001
        else:
            torch.testing.assert_close(moved, torch.tensor(expected), rtol=1e-3, atol=0)


def test_a_term_sees_its_slices_of_the_pass_and_what_was_stored() -> None:
    learner = Learner(settings(), IMAGE)
    batches = stream()
    learn(learner, batches, 1)
    term = recorder(learner)
    assert term.replays == ()  # nothing stored before the first update
    learn(learner, batches, 4)
    x, labels = next(batches)
    with torch.no_grad():
        stored = learner.reservoir.rows(torch.arange(learner.reservoir.filled))
        stored_now = {bytes(row.numpy().tobytes()): learner.network(row[None])[0][0] for row in stored.x}
        incoming_now, features_now = learner.network(torch.from_numpy(x))
    indices = [learner.reservoir.draw(5, keyed_randomness.generator(0, f"replay/recorder/{i}", 6)) for i in range(2)]
    learner.update(x, labels)
    assert term.incoming is not None
    torch.testing.assert_close(term.incoming.logits_BK, incoming_now)
    torch.testing.assert_close(term.incoming.features_BD, features_now)
    replays: tuple[ReplayRows, ...] = term.replays
    assert len(replays) == 2
    for drawn, replay in zip(indices, replays, strict=True):
        rows = torch.from_numpy(drawn)
        assert torch.equal(replay.y_B, stored.y_B[rows])
        assert torch.equal(replay.stored_logits_BK, stored.logits_BK[rows])
        assert replay.stored_columns_B is None  # all of them
        expected = torch.stack([stored_now[row.numpy().tobytes()] for row in stored.x[rows]])
        torch.testing.assert_close(replay.logits_BK, expected)
    assert indices[0].tolist() != indices[1].tolist()


def test_the_reservoir_takes_rows_as_they_came_and_the_logits_of_this_pass() -> None:
    augmented = settings(
        augmentation={"crop_padding": 2, "horizontal_flip": True}, replay={"capacity": 50, "draw_size": 5}
    )
    learner = Learner(augmented, IMAGE)
    batches = stream()
    term = recorder(learner)
    for first in (0, 4, 8):
        x, labels = next(batches)
        learner.update(x, labels)
        kept = learner.reservoir.rows(torch.arange(first, first + 4))
        assert torch.equal(kept.x, torch.from_numpy(x))
        assert term.incoming is not None
        assert torch.equal(kept.logits_BK, term.incoming.logits_BK)
        with torch.no_grad():
            assert not torch.allclose(kept.logits_BK, learner.network(torch.from_numpy(x))[0])


def test_the_order_in_which_a_term_is_called() -> None:
    learner = Learner(settings(), IMAGE)
    x = np.zeros((2, 1, 8, 8), np.uint8)
    learner.update(x, ["a", "b"])
    learner.update(x, ["a", "b"])
    learner.update(x, ["c", "d"], drift=True)
    learner.update(x, ["e", "e"])
    step = ["after_backward", ("after_update", 2)]
    growth = ("grow", {"head.weight": (8, 6), "head.bias": (8,)})
    assert recorder(learner).told == [
        *(Change.NEW_CLASS, *step),
        *step,
        *(Change.NEW_CLASS, Change.DRIFT, *step),
        *(growth, Change.NEW_CLASS, *step),
    ]


def test_the_report() -> None:
    learner = Learner(settings(), IMAGE)
    x, _ = next(stream())
    first = learner.update(x, ["a", "b", "a", "a"])
    assert (first.number, first.rows, first.new_classes) == (1, 4, ("a", "b"))
    assert set(first.loss) == {"incoming", "recorder.penalty"}
    assert first.correct_B.tolist() == [False] * 4  # no class was known before
    assert set(first.seconds) == {"draw", "forward", "backward", "optimizer", "insert"}
    predicted = [learner.class_names[column] for column in learner.predict_columns(x)]
    with torch.no_grad():
        learner.network.head.bias[2] = 100.0  # the column that "new" gets: not known yet, so not predicted yet
    second = learner.update(x, ["a", "a", "a", "new"])
    assert set(second.loss) == {"incoming", "recorder.penalty", "recorder.logits", "recorder.labels"}
    assert not any(loss.requires_grad for loss in second.loss.values())
    assert second.correct_B.tolist() == [label == "a" for label in predicted[:3]] + [False]
    assert learner.updates == 2


# -- classes and growth ---------------------------------------------------------------------------------------------


def test_capacity_doubles_when_columns_are_exhausted() -> None:
    learner = Learner(settings(optimizer={"learning_rate": 0.1, "momentum": 0.9}), IMAGE)
    learner.update(np.full((4, 1, 8, 8), 50, np.uint8), list("abcd"))
    assert learner.network.columns == 4
    body = learner.network.body
    head = learner.network.head.weight.detach().clone()
    stored = learner.reservoir.rows(torch.arange(4)).logits_BK
    count = learner.parameters_count

    learner.update(np.full((9, 1, 8, 8), 90, np.uint8), list("efghijklm"))
    assert learner.network.columns == 16
    assert learner.network.body is body
    assert learner.class_names == list("abcdefghijklm")
    assert learner.parameters_count == count + 12 * 7
    assert learner.network.head.weight.shape == (16, 6)
    assert not torch.equal(learner.network.head.weight[:4], head)  # old columns still learn
    kept = learner.reservoir.rows(torch.arange(12))
    held = kept.columns_B == 4
    assert kept.columns_B is not None
    assert set(kept.columns_B.tolist()) <= {4, 16}
    assert not kept.logits_BK[held][:, 4:].any()
    for row in kept.logits_BK[held]:
        assert any(torch.equal(row[:4], before) for before in stored)
    momenta = learner.state()["momenta"]
    assert isinstance(momenta, dict)
    assert isinstance(momenta["head.weight"], Tensor)
    assert momenta["head.weight"].shape == (16, 6)


def test_classes_past_the_limit() -> None:
    learner = Learner(settings(network={"options": {"hidden": [6]}, "max_classes": 2}), IMAGE)
    x = np.zeros((2, 1, 8, 8), np.uint8)
    learner.update(x, ["a", "b"])
    before = fingerprint(learner.state())
    with pytest.raises(UserError, match="would be class 3"):
        learner.update(x, ["a", "c"])
    assert fingerprint(learner.state()) == before


def test_predictions_choose_among_known_classes_and_change_nothing() -> None:
    spec = InputSpec(kind="image", shape=(3, 8, 8))
    learner = Learner(settings(network={"backbone": "resnet18", "options": {"width": 2}, "initial_columns": 64}), spec)
    batches = stream(spec)
    learn(learner, batches, 7)
    before, drawn = fingerprint(learner.state()), torch.get_rng_state()
    x = np.concatenate([next(batches)[0] for _ in range(70)])
    columns = learner.predict_columns(x)
    assert columns.shape == (280,)
    assert columns.dtype == np.int64
    assert set(columns.tolist()) <= {0, 1}
    np.testing.assert_array_equal(columns[:3], learner.predict_columns(x[:3]))
    assert learner.predict_columns(x[:0]).shape == (0,)
    assert fingerprint(learner.state()) == before
    assert torch.equal(torch.get_rng_state(), drawn)
    assert learner.network.training


# -- the same again -------------------------------------------------------------------------------------------------

SPECS = {
    "mlp": IMAGE,
    "resnet18": InputSpec(kind="image", shape=(3, 8, 8)),
    "text_encoder": InputSpec(kind="text", shape=(6,)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [6]},
    "resnet18": {"width": 2},
    "text_encoder": {"width": 8, "layers": 1, "vocabulary": 256},
}


@pytest.mark.parametrize("backbone", ["mlp", "resnet18", "text_encoder"])
@pytest.mark.parametrize("terms", [{"recorder": {}}, {"der_pp": {}, "ewc_pp": {}}], ids=["recorder", "der_pp+ewc_pp"])
def test_a_restored_learner_goes_on_bit_for_bit(backbone: str, terms: dict[str, Any]) -> None:
    """30 updates, against 15, saved, loaded into a new learner, 15 more; the head grows on both sides of the cut."""
    given = settings(
        retention=terms,
        network={"backbone": backbone, "options": OPTIONS[backbone], "initial_columns": 1},
        optimizer={"learning_rate": 0.05, "momentum": 0.9, "max_gradient_norm": 5.0},
        augmentation={"crop_padding": 1, "horizontal_flip": True},
    )
    spec = SPECS[backbone]
    straight = Learner(given, spec)
    straight_reports = learn(straight, stream(spec, classes=6), 30)

    batches = stream(spec, classes=6)
    cut = Learner(given, spec)
    learn(cut, batches, 15)
    assert cut.network.columns == 4
    saved = join(*split(cut.state()))
    kept = fingerprint(saved)
    learn(cut, batches, 1)  # what goes on living does not reach into what was saved
    assert fingerprint(saved) == kept

    batches = stream(spec, classes=6)
    for _ in range(15):
        next(batches)
    restored = Learner(given, spec)
    restored.load_state(saved)
    assert fingerprint(restored.state()) == kept
    restored_reports = learn(restored, batches, 15)
    assert fingerprint(saved) == kept
    assert restored.network.columns == 8
    assert restored.updates == 30
    assert fingerprint(restored.state()) == fingerprint(straight.state())
    for ours, theirs in zip(restored_reports, straight_reports[15:], strict=True):
        assert {name: loss.item() for name, loss in ours.loss.items()} == {
            name: loss.item() for name, loss in theirs.loss.items()
        }


def test_other_seeds_other_weights_and_no_global_generator() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    fingerprints = set()
    for seed in (0, 0, 1):
        learner = Learner(settings(seed=seed, augmentation={"crop_padding": 1}), IMAGE)
        learn(learner, stream(), 8)
        fingerprints.add(fingerprint(learner.state()))
    assert len(fingerprints) == 2
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], numpy_state)


@pytest.mark.parametrize("fused", [True, False])
def test_single_rows_with_batch_norm(fused: bool) -> None:
    """Maps of one pixel and one row: nothing to take a variance of."""
    spec = InputSpec(kind="image", shape=(1, 8, 8))
    learner = Learner(
        settings(
            network={"backbone": "resnet18", "options": {"width": 2}},
            replay={"capacity": 3, "draw_size": 2, "fused": fused},
            retention={"der_pp": {}, "ewc_pp": {}},
        ),
        spec,
    )
    for report in learn(learner, stream(spec, rows=1), 6):
        assert all(loss.isfinite() for loss in report.loss.values())
    assert all(tensor.isfinite().all() for tensor in learner.network.state_dict().values())


def test_arrays_that_torch_cannot_share() -> None:
    """Read-only ones, and views with negative strides."""
    x = np.arange(128, dtype=np.uint8).reshape(2, 1, 8, 8)
    read_only = x.copy()
    read_only.flags.writeable = False
    fingerprints = set()
    for given in (x, read_only, x[::-1].copy()[::-1]):
        learner = Learner(settings(), IMAGE)
        learner.update(given, ["a", "b"])
        fingerprints.add(fingerprint(learner.state()))
    assert len(fingerprints) == 1


# -- states that do not fit -----------------------------------------------------------------------------------------


def test_a_state_with_another_network_is_taken_as_it_is() -> None:
    """A restructuring hands back a smaller network and no momenta."""
    other = Learner(settings(network={"options": {"hidden": [3]}, "initial_columns": 8}), IMAGE)
    learn(other, stream(), 6)
    state = other.state()
    state["momenta"] = {}
    learner = Learner(settings(optimizer={"learning_rate": 0.1, "momentum": 0.9}), IMAGE)
    learn(learner, stream(), 2)
    learner.load_state(state)
    assert learner.architecture["options"] == {"hidden": [3]}
    assert learner.network.columns == 8
    learn(learner, stream(), 3)
    assert learner.updates == 9


def test_a_state_of_another_input_or_other_terms_is_refused() -> None:
    learner = Learner(settings(), IMAGE)
    state = learner.state()
    wider = Learner(settings(), InputSpec(kind="image", shape=(1, 9, 8)))
    with pytest.raises(UserError, match=r"was learnt from image of shape \(1, 8, 8\)"):
        wider.load_state(state)
    with pytest.raises(UserError, match="retention terms \\['recorder'\\], the settings name \\[\\]"):
        Learner(settings(retention={}), IMAGE).load_state(state)


# -- settings -------------------------------------------------------------------------------------------------------


def test_a_text_encoder_takes_the_ids_of_the_tokenizer() -> None:
    spec = InputSpec(kind="text", shape=(6,))
    given = settings(network={"options": {"width": 8, "layers": 1}}, input={"vocabulary_size": 777})
    learner = Learner(given, spec)
    assert learner.architecture["backbone"] == "text_encoder"
    learner.update(np.full((2, 6), 776, np.int32), ["a", "b"])


def test_bfloat16_is_float32_at_the_edges() -> None:
    learner = Learner(settings(precision="bfloat16"), IMAGE)
    reference = Learner(settings(), IMAGE)
    reports, expected = learn(learner, stream(), 6), learn(reference, stream(), 6)
    term = recorder(learner)
    assert term.incoming is not None
    assert term.incoming.logits_BK.dtype == torch.float32
    assert reports[-1].loss["incoming"].dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in learner.network.parameters())
    first, exact = reports[0].loss["incoming"], expected[0].loss["incoming"]
    assert first != exact
    torch.testing.assert_close(first, exact, rtol=0.02, atol=0.02)
