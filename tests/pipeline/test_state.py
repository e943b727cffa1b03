from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.state import fingerprint, join, split

PROPERTY = settings(max_examples=100)

DTYPES = [torch.uint8, torch.bool, torch.int32, torch.int64, torch.bfloat16, torch.float32, torch.float64]

keys = st.sampled_from(["a", "b", "", "ü x", "labels", "0"])
any_text = st.sampled_from(["", "a", "a/b", "/", "ü", "\n"])
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=5,
)
tensors = st.builds(
    lambda values, dtype, square: torch.tensor(values).to(dtype).reshape((2, -1) if square else (-1,)),
    values=st.lists(st.integers(0, 100), min_size=2, max_size=8).filter(lambda values: len(values) % 2 == 0),
    dtype=st.sampled_from(DTYPES),
    square=st.booleans(),
)
trees: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(keys, tensors | json_values, max_size=4),
    lambda inner: st.dictionaries(keys, inner | tensors | json_values, max_size=4),
    max_leaves=10,
)


def same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


@PROPERTY
@given(tree=trees)
def test_join_undoes_split(tree: dict[str, Any]) -> None:
    flat_tensors, facts = split(tree)
    assert all(isinstance(leaf, Tensor) for leaf in flat_tensors.values())
    assert not flat_tensors.keys() & facts.keys()
    assert same(join(flat_tensors, json.loads(json.dumps(facts))), tree)


def test_paths() -> None:
    one, two = torch.zeros(1), torch.ones(2)
    flat_tensors, facts = split({"a": {"b": one, "c": {"d": two}, "n": 3}, "labels": {"x/y": 1}, "none": None, "e": {}})
    assert flat_tensors == {"a/b": one, "a/c/d": two}
    assert facts == {"a/n": 3, "labels": {"x/y": 1}, "none": None, "e": {}}


@pytest.mark.parametrize("tree", [{"a/b": 1}, {"a": {"b/c": torch.zeros(1)}}])
def test_a_key_with_a_slash_is_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must not hold '/'"):
        split(tree)


def test_the_fingerprint_is_the_sha256_it_says() -> None:
    tree = {"w": {"b": torch.tensor([1, 2], dtype=torch.int16), "a": torch.tensor(True)}, "n": {"y": 1.5, "x": ["ü"]}}
    digest = hashlib.sha256()
    digest.update(b"w/a|torch.bool|()|" + b"\x01")
    digest.update(b"w/b|torch.int16|(2,)|" + b"\x01\x00\x02\x00")
    digest.update(b'{"n":{"x":["\\u00fc"],"y":1.5}}')
    assert fingerprint(tree) == digest.hexdigest()


@PROPERTY
@given(tree=trees)
def test_the_fingerprint_does_not_depend_on_the_order_of_keys(tree: dict[str, Any]) -> None:
    def reordered(node: dict[str, Any]) -> dict[str, Any]:
        return {key: reordered(value) if isinstance(value, dict) else value for key, value in reversed(node.items())}

    assert fingerprint(reordered(tree)) == fingerprint(tree)


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 2.0]), "n": 1},
        {"a": torch.tensor([1.0, 3.0], dtype=torch.float64), "n": 1},
        {"a": torch.tensor([[1.0, 3.0]]), "n": 1},
        {"b": torch.tensor([1.0, 3.0]), "n": 1},
        {"a": torch.tensor([1.0, 3.0]), "n": 2},
        {"a": torch.tensor([1.0, 3.0]), "n": 1.0},
        {"a": torch.tensor([1.0, 3.0]), "m": 1},
        {"a": torch.tensor([1.0, 3.0])},
        {"a": [1.0, 3.0], "n": 1},
    ],
)
def test_any_other_state_has_another_fingerprint(other: dict[str, Any]) -> None:
    assert fingerprint(other) != fingerprint({"a": torch.tensor([1.0, 3.0]), "n": 1})


def test_the_fingerprint_sees_bits_not_values_and_not_the_layout() -> None:
    assert fingerprint({"a": torch.tensor([0.0])}) != fingerprint({"a": torch.tensor([-0.0])})
    nan = torch.tensor([float("nan")])
    assert fingerprint({"a": nan}) == fingerprint({"a": nan.clone()})
    matrix = torch.arange(6).reshape(2, 3)
    assert fingerprint({"a": matrix.T}) == fingerprint({"a": matrix.T.contiguous()})
    assert fingerprint({"a": torch.zeros(0)}) != fingerprint({"a": torch.zeros(0, 2)})
    assert fingerprint({"a": torch.zeros(2, requires_grad=True)}) == fingerprint({"a": torch.zeros(2)})


def test_what_is_neither_tensor_nor_json_is_refused() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        fingerprint({"a": [torch.zeros(1)]})
    with pytest.raises(TypeError, match="not JSON serializable"):
        fingerprint({"a": {1, 2}})
