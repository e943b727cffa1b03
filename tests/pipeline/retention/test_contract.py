"""What every retention term must hold to; a new file in pipeline/retention is found and tested by itself."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pydantic
import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.retention import retention_terms
from pipeline.retention.term import Change, ReplayRows, RetentionTerm, Rows
from pipeline.row_gradients import RowGradientCapture
from pipeline.settings_section import Section, fixed_values
from pipeline.state import StateTree, fingerprint, join, split

TERMS = retention_terms()
ROWS, DRAWN, INPUTS, WIDTH = 300, 6, 5, 7  # many incoming rows: some terms wait for a number of records
NEW_CLASS_AT, DRIFT_AT, GROWN_AT = 3, 6, 8

every_term = pytest.mark.parametrize("name", sorted(TERMS))


class World:
    """A small network, a term on it, and updates whose rows are keyed by their number."""

    def __init__(self, name: str, columns: int = 4) -> None:
        random = torch.Generator().manual_seed(1)
        self.body, self.head = nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, columns)
        self.network = nn.ModuleDict({"body": self.body, "head": self.head})
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=random))
        self.network.forward = lambda x: self.head(F.relu(self.body(x)))
        self.parameters = dict(self.network.named_parameters())
        self.term = new_term(name, self.parameters)

    def rows(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        random = torch.Generator().manual_seed(number)
        count = ROWS + DRAWN * self.term.draws
        x = torch.randn(count, INPUTS, generator=random)
        y = torch.randint(0, 4, (count,), generator=random)
        return x, y, torch.randn(count, 4, generator=random)

    def slices(self, number: int, *, empty: bool = False) -> tuple[Rows, tuple[ReplayRows, ...]]:
        x, y, stored = self.rows(number)
        logits = self.network(x)
        stored = F.pad(stored, (0, logits.shape[1] - 4))  # zero from column S = 4 on
        replays = tuple(
            ReplayRows(
                y_B=y[start : start + DRAWN],
                logits_BK=logits[start : start + DRAWN],
                features_BD=x[start : start + DRAWN],
                stored_logits_BK=stored[start : start + DRAWN],
                stored_columns_B=torch.full((DRAWN,), 4),
            )
            for start in range(ROWS, len(x), DRAWN)
        )
        incoming = Rows(y_B=y[:ROWS], logits_BK=logits[:ROWS], features_BD=x[:ROWS])
        return incoming, () if empty else replays

    def update(self, number: int) -> dict[str, float]:
        """As the learner does it. The reservoir is empty in the first update."""
        if number == GROWN_AT:
            self.grow(8)
        if number in (1, NEW_CLASS_AT):
            self.term.on_change(Change.NEW_CLASS)
        if number == DRIFT_AT:
            self.term.on_change(Change.DRIFT)
        capture = RowGradientCapture(self.network) if self.term.needs_row_gradients else None
        if capture:
            capture.start(ROWS, scale=ROWS)
        incoming, replays = self.slices(number, empty=number == 1)
        losses = {"incoming": F.cross_entropy(incoming.logits_BK, incoming.y_B), **self.term.loss(incoming, replays)}
        self.network.zero_grad()
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        self.term.after_backward(capture.finish() if capture else None)
        with torch.no_grad():
            for parameter in self.parameters.values():
                assert parameter.grad is not None
                parameter.sub_(0.05 * parameter.grad)
        self.term.after_update(ROWS)
        return {name: value.item() for name, value in losses.items()}

    def grow(self, columns: int) -> None:
        old = {name: parameter.detach() for name, parameter in self.head.named_parameters()}
        for name, before in old.items():
            grown = torch.ones((columns, *before.shape[1:]))
            grown[: len(before)] = before
            setattr(self.head, name, nn.Parameter(grown))
            self.parameters[f"head.{name}"] = getattr(self.head, name)
        self.term.grow({f"head.{name}": tuple(self.parameters[f"head.{name}"].shape) for name in old})


def new_term(name: str, parameters: Mapping[str, nn.Parameter]) -> RetentionTerm:
    return TERMS[name](TERMS[name].Config(), parameters)


def stored_and_read(state: StateTree) -> StateTree:
    """Through the form that a snapshot has on disk."""
    tensors, facts = split(state)
    read = {path: tensor.detach().clone() for path, tensor in tensors.items()}
    return join(read, json.loads(json.dumps(facts, allow_nan=False)))


def test_the_named_ones_are_found() -> None:
    assert {"der", "der_pp", "er", "ewc", "ewc_pp"} <= set(TERMS)


@every_term
def test_config(name: str) -> None:
    config = TERMS[name].Config()
    assert isinstance(config, Section)
    assert set(fixed_values(config)) <= set(type(config).model_fields)  # asserts that each is marked
    for field in type(config).model_fields.values():
        assert field.description
    with pytest.raises(pydantic.ValidationError, match="Extra inputs are not permitted"):
        TERMS[name].Config.model_validate({"no_such_setting": 1})
    for field_name in type(config).model_fields:
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            setattr(config, field_name, 1)


@every_term
def test_documentation(name: str) -> None:
    module = __import__(f"pipeline.retention.{name}", fromlist=["_"])
    assert module.__doc__
    assert "arXiv:" in module.__doc__, "the paper"
    assert "Where we differ" in module.__doc__
    assert "loss" in module.__doc__, "the equation"


@every_term
def test_knows_no_tasks(name: str) -> None:
    world = World(name)
    world.update(1)
    names = {*dir(world.term), *vars(world.term), *TERMS[name].Config.model_fields, *split(world.term.state())[0]}
    assert not [n for n in names if "task" in n.lower()]


@every_term
def test_losses_are_finite_differentiable_scalars(name: str) -> None:
    world = World(name)
    seen = set()
    for number in range(1, 12):
        world.update(number)
        incoming, replays = world.slices(100 + number)
        for part, loss in world.term.loss(incoming, replays).items():
            assert "/" not in part
            assert loss.shape == ()
            assert bool(torch.isfinite(loss))
            assert loss.requires_grad
            seen.add(part)
    assert seen, "a term without any loss in ten updates"


@every_term
def test_draws(name: str) -> None:
    world = World(name)
    assert world.term.draws >= 0
    assert world.term.draws == new_term(name, {}).draws


@every_term
def test_empty_reservoir(name: str) -> None:
    world = World(name)
    incoming, replays = world.slices(1, empty=True)
    assert all(bool(torch.isfinite(loss)) for loss in world.term.loss(incoming, replays).values())


class Recorded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What torch is asked for, and which tensors from outside it is asked for it with."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.asked: list[tuple[object, ...]] = []
        self._made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outside = [t.data_ptr() for t in given if t.untyped_storage()._cdata not in self._made]
        self.asked.append((func, *outside, *[tuple(t.shape) for t in given]))
        for made in pytree.tree_leaves(out):
            if isinstance(made, Tensor):
                self._made[made.untyped_storage()._cdata] = made  # held, so that no other gets its place
        return out


@every_term
def test_equal_work_is_the_same_work(name: str) -> None:
    """What a CUDA graph would repeat: the same operations, of the same tensors."""
    world, met = World(name), 0
    asked: dict[object, list[tuple[object, ...]]] = {}
    given = world.slices(0)  # one place for all
    for number in range(1, 26):
        world.update(number)
        if number == GROWN_AT:  # another head: the learner forgets by itself
            asked.clear()
            given = world.slices(0)
        work = world.term.work
        if work is None:
            continue
        incoming, replays = given
        with Recorded() as recorded:
            world.term.loss(
                replace(incoming, logits_BK=incoming.logits_BK.detach()),
                tuple(replace(replay, logits_BK=replay.logits_BK.detach()) for replay in replays),
            )
        met += work in asked
        assert asked.setdefault(work, recorded.asked) == recorded.asked
    assert met or world.term.work is None


def leaves(tensor: Tensor) -> list[Tensor]:
    """All that a backward pass from here would write a gradient to."""
    found, nodes, seen = [], [tensor.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        if hasattr(node, "variable"):
            found.append(cast(Tensor, node.variable))
    return found


@every_term
def test_gradients_reach_only_the_networks_parameters(name: str) -> None:
    world = World(name)
    for number in range(1, 6):
        world.update(number)
    weights = copy.deepcopy(world.network.state_dict())
    world.network.zero_grad()
    losses = world.term.loss(*world.slices(6))
    reached = [leaf for loss in losses.values() for leaf in leaves(loss)]
    assert reached
    assert {id(leaf) for leaf in reached} <= {id(parameter) for parameter in world.parameters.values()}
    # `loss` itself changes neither weights nor gradients.
    assert all(parameter.grad is None for parameter in world.parameters.values())
    assert all(torch.equal(value, weights[key]) for key, value in world.network.state_dict().items())


@every_term
@pytest.mark.parametrize("stop_after", [1, 2, NEW_CLASS_AT, DRIFT_AT, GROWN_AT])
def test_goes_on_bit_for_bit_after_a_restart(name: str, stop_after: int) -> None:
    uninterrupted, first = World(name), World(name)
    expected = [uninterrupted.update(number) for number in range(1, 13)]
    got = [first.update(number) for number in range(1, stop_after + 1)]
    state = first.term.state()
    printed = fingerprint(state)
    weights = copy.deepcopy(first.network.state_dict())

    second = World(name, columns=first.head.out_features if stop_after < GROWN_AT else 8)
    second.network.load_state_dict(weights)
    read = stored_and_read(state)
    second.term.load_state(read)
    assert fingerprint(second.term.state()) == printed
    got += [second.update(number) for number in range(stop_after + 1, 13)]

    assert got == expected
    assert fingerprint(second.term.state()) == fingerprint(uninterrupted.term.state())
    for key, value in uninterrupted.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[key])
    # Neither what was handed out nor what was handed in moves with later updates.
    first.update(stop_after + 1)
    assert fingerprint(state) == printed
    assert fingerprint(read) == printed


@every_term
def test_state_is_tensors_and_json(name: str) -> None:
    world = World(name)
    for number in range(1, 12):
        world.update(number)
        tensors, facts = split(world.term.state())
        assert all(not tensor.requires_grad for tensor in tensors.values())
        json.dumps(facts, allow_nan=False)
        assert fingerprint(stored_and_read(world.term.state())) == fingerprint(world.term.state())


@every_term
def test_growth_keeps_the_loss(name: str) -> None:
    """New columns hold nothing: no stored logit, no anchor. (A cross-entropy over all columns sees them, and may.)"""
    world = World(name)
    for number in range(1, GROWN_AT):
        world.update(number)
    before = world.term.loss(*world.slices(50))
    world.grow(8)
    after = world.term.loss(*world.slices(50))
    assert before.keys() == after.keys()
    for part in before:
        if part != "labels":
            torch.testing.assert_close(after[part], before[part])
    shapes = {tuple(cast(Tensor, p).shape) for p in world.parameters.values()}
    for tensor in split(world.term.state())[0].values():
        assert tuple(tensor.shape) in shapes


@every_term
def test_same_rows_same_losses(name: str) -> None:
    assert [World(name).update(1)] == [World(name).update(1)]


@every_term
def test_an_adoption_anchors_the_new_weights(name: str) -> None:
    world = World(name)
    for number in range(1, 6):
        world.update(number)
    fisher = {key: torch.ones_like(parameter) for key, parameter in world.parameters.items()}
    world.term.on_adoption(fisher if world.term.anchors else {})
    at_once = world.term.loss(*world.slices(6))
    assert ("penalty" in at_once) == world.term.anchors
    assert not at_once.get("penalty", torch.zeros(())).item()
    with torch.no_grad():
        world.body.weight.add_(0.1)
    if world.term.anchors:
        assert world.term.loss(*world.slices(6))["penalty"].item() > 0
    second = new_term(name, world.parameters)
    second.load_state(stored_and_read(world.term.state()))
    assert fingerprint(second.state()) == fingerprint(world.term.state())
    assert all(bool((value == 1).all()) for value in fisher.values())  # what was handed in stays as it was
    world.update(7)
