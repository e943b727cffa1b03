"""A whole state with another network in it: what is new, what stays, and that learning goes on from it."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.network import Network, network_from_architecture
from pipeline.restructuring.consolidation import consolidation_of
from pipeline.restructuring.consolidation_settings import ConsolidationSettings
from pipeline.restructuring.replaced_network import with_network
from pipeline.retention.ewc import OnlineEwc
from pipeline.retention.ewc_pp import EwcPlusPlus
from pipeline.state import StateTree, fingerprint, join, split
from pipeline.stream_learner import StreamLearner
from tests.pipeline.restructuring.digits_stream import digits_stream, learn, settings


@cache
def offer() -> StateTree:
    stream = digits_stream()
    job = consolidation_of(
        stream.parent,
        stream.base,
        stream.labelled(),
        stream.unlabelled,
        ConsolidationSettings(epochs=20, specialist_epochs=20, gate_epochs=5, min_unlabelled=100, learning_rate=3e-3),
        device=torch.device("cpu"),
        seed=0,
    )
    student = job.run()
    assert student is not None
    return with_network(stream.parent, student, settings())


def student() -> Network:
    learner: Any = offer()["learner"]
    network = network_from_architecture(learner["architecture"], weights=learner["network"])
    network.load_state_dict(learner["network"])
    return network.eval()


def test_the_rest_is_the_parents() -> None:
    parent, offered = digits_stream().parent, offer()
    assert parent.keys() == offered.keys()
    for part in parent.keys() - {"learner"}:
        assert fingerprint({"part": parent[part]}) == fingerprint({"part": offered[part]}), part
    before, after = cast(Any, parent["learner"]), cast(Any, offered["learner"])
    assert before.keys() == after.keys()
    assert after["classes"] == before["classes"]  # a column means the same class for ever
    assert after["updates"] == before["updates"]
    assert after["architecture"] == before["architecture"]
    for part in ("x", "y", "subjects"):
        assert torch.equal(before["reservoir"][part], after["reservoir"][part])
    for part in ("seen", "holes", "sampling"):
        assert before["reservoir"][part] == after["reservoir"][part]
    assert fingerprint(before["reservoir"]["sampled"]) == fingerprint(after["reservoir"]["sampled"])


def test_stored_logits_are_what_the_new_network_says() -> None:
    reservoir: Any = cast(Any, offer()["learner"])["reservoir"]
    with torch.no_grad():
        said, _ = student()(reservoir["x"])
    torch.testing.assert_close(reservoir["logits"], said)
    assert (reservoir["columns"] == said.shape[1]).all()


def test_spare_columns_stand_to_the_known_ones_as_they_did() -> None:
    """The stream had four columns, and grew to eight, all of them known: a ninth class must wait. So with one less."""
    stream = digits_stream()
    learner = dict(cast(Any, stream.parent["learner"]))
    names = learner["classes"]["names"]
    assert len(names) == 8
    learner["classes"] = {"names": names[:6]}
    of_known = learner["reservoir"]["y"] < 6
    learner["reservoir"] = {
        **learner["reservoir"],
        **{part: learner["reservoir"][part][of_known] for part in ("x", "y", "logits", "columns", "subjects")},
    }
    parent = network_from_architecture(learner["architecture"], weights=learner["network"])
    parent.load_state_dict(learner["network"])
    replaced = with_network({**stream.parent, "learner": learner}, student(), settings())
    network = cast(Any, replaced["learner"])["network"]
    stored = cast(Any, replaced["learner"])["reservoir"]
    with torch.no_grad():
        before, _ = parent.eval()(stored["x"])
    above = before[:, 6:].mean() - before[:, :6].mean()
    after = stored["logits"]
    assert bool((network["head.weight"][6:] == 0).all())
    torch.testing.assert_close(after[:, 6:].mean() - after[:, :6].mean(), above)
    torch.testing.assert_close(after[:, 6:], after[:, 6:].mean().expand(len(after), 2))  # of every row the same


def test_momenta_and_average_begin_anew() -> None:
    parent, learner = (cast(Any, state["learner"]) for state in (digits_stream().parent, offer()))
    assert parent["momenta"]
    assert learner["momenta"] == {}
    assert parent["average"]["updates"] > 0
    assert learner["average"]["updates"] == 0
    for name, tensor in learner["average"]["weights"].items():
        assert torch.equal(tensor, learner["network"][name])


def test_anchors_stand_on_the_new_weights_with_a_fisher_of_the_reservoir() -> None:
    learner: Any = offer()["learner"]
    network, reservoir = student(), learner["reservoir"]
    squares: dict[str, Tensor] = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for x, y in zip(reservoir["x"], reservoir["y"], strict=True):
        network.zero_grad()
        torch.autograd.backward(F.cross_entropy(network(x[None])[0], y[None]))
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None
            squares[name] += parameter.grad.square() / len(reservoir["x"])
    ewc_pp, ewc = learner["retention"]["ewc_pp"], learner["retention"]["ewc"]
    assert ewc_pp["records_since_anchor"] == ewc["records_since_anchor"] == 0
    cap = cast(float, EwcPlusPlus.Config().max_stiffness) / EwcPlusPlus.Config().strength
    online = OnlineEwc.Config()
    of_online = cast(float, online.max_stiffness) / (online.strength * online.gamma)
    for name, fisher in squares.items():
        torch.testing.assert_close(ewc_pp["running"][name], fisher, rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(ewc_pp["anchor"]["stiffness"][name], fisher.clamp(max=cap), rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(ewc["anchor"]["stiffness"][name], fisher.clamp(max=of_online), rtol=1e-3, atol=1e-9)
        for term in (ewc_pp, ewc):
            assert torch.equal(term["anchor"]["place"][name], learner["network"][name])
        assert not ewc["new"][name].any()


def test_a_learner_that_adopts_it_is_better_at_once_and_goes_on_learning() -> None:
    stream = digits_stream()
    accuracy = {}
    for name, state in (("parent", stream.parent), ("offer", offer())):
        learner = StreamLearner(settings())
        learner.load_state(state)
        report = learner.evaluate_unrecorded()
        assert report is not None
        accuracy[name] = report.average_accuracy or 0.0
    assert accuracy["offer"] > accuracy["parent"] - 0.02, accuracy

    adopted, again = StreamLearner(settings()), StreamLearner(settings())
    for learner in (adopted, again):
        learner.load_state(join(*split(offer())))
    before = adopted.records_trained
    for learner in (adopted, again):
        learn(learner, stream.later)
    assert adopted.records_trained > before
    assert fingerprint(adopted.state()) == fingerprint(again.state())
    after = adopted.evaluate_unrecorded()
    assert after is not None
    assert (after.average_accuracy or 0.0) > accuracy["offer"] - 0.1


def test_a_new_class_still_finds_its_column() -> None:
    learner = StreamLearner(settings())
    learner.load_state(offer())
    assert learner.learner is not None
    x = digits_stream().unlabelled[:10]
    report = learner.learner.update(x, ["nine"] * 10)
    assert report.new_classes == ("nine",)
    assert learner.class_columns["nine"] == 8
    assert learner.learner.network.columns == 16


def test_the_parent_is_left_alone() -> None:
    before = fingerprint(digits_stream().parent)
    offer()
    assert fingerprint(digits_stream().parent) == before


def test_without_an_average_there_is_none() -> None:
    parent = digits_stream().parent
    plain = {**parent, "learner": {**cast(Any, parent["learner"]), "average": {}}}
    assert cast(Any, with_network(plain, student(), settings())["learner"])["average"] == {}


@pytest.mark.parametrize("terms", [{}, {"er": {}}, {"ewc_pp": {"fisher": "batch_mean"}}])
def test_other_retention_terms(terms: dict[str, Any]) -> None:
    stream, chosen = digits_stream(), settings(retention=terms)
    fresh = StreamLearner(chosen)
    learn(fresh, stream.later)
    assert fresh.learner is not None
    retention = fresh.learner.state()["retention"]
    parent = {**stream.parent, "learner": {**cast(Any, stream.parent["learner"]), "retention": retention}}
    if terms == {"ewc_pp": {"fisher": "batch_mean"}}:  # of another network: its shapes are not the parent's
        learner = StreamLearner(chosen)
        learner.load_state(
            {
                **offer(),
                "learner": {
                    **cast(Any, offer()["learner"]),
                    "retention": {"ewc_pp": cast(Any, offer()["learner"])["retention"]["ewc_pp"]},
                },
            }
        )
        parent = learner.state()
    replaced = with_network(parent, student(), chosen)
    assert set(cast(Any, replaced["learner"])["retention"]) == set(terms)
    learner = StreamLearner(chosen)
    learner.load_state(replaced)
    learn(learner, stream.later)
