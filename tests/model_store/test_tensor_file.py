"""Files written here open with the safetensors library; sums are those of the files; other threads go on meanwhile."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from model_store.durable_files import sha256_of, write_pieces
from model_store.manifest import canonical_json, canonical_json_pieces
from model_store.tensor_file import tensor_file

WHOLE = torch.arange(24.0).reshape(4, 6)
TENSORS: dict[str, Tensor] = {
    **{
        str(dtype): torch.arange(5).to(dtype)
        for dtype in (
            torch.bool,
            torch.uint8,
            torch.int8,
            torch.int16,
            torch.uint16,
            torch.int32,
            torch.uint32,
            torch.int64,
            torch.uint64,
            torch.float16,
            torch.bfloat16,
            torch.float32,
            torch.float64,
            torch.complex64,
        )
    },
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3, dtype=torch.int16),
    "köln/größe": torch.ones(3),
    "whole": WHOLE,
    "row": WHOLE[1],
    "turned": WHOLE.T,
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


def test_the_library_opens_it(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    size, sha256 = write_pieces(file, tensor_file(TENSORS))
    content = file.read_bytes()
    assert (size, sha256) == (len(content), hashlib.sha256(content).hexdigest()) == sha256_of(tensor_file(TENSORS))
    loaded = load_file(file)
    assert set(loaded) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype, name
        assert torch.equal(loaded[name], tensor), name
    with safe_open(file, "pt") as opened:
        assert opened.get_slice("turned").get_shape() == [6, 4]


def test_no_tensors_at_all(tmp_path: Path) -> None:
    write_pieces(tmp_path / "x", tensor_file({}))
    assert load_file(tmp_path / "x") == {}


def test_the_bytes_are_the_library_s_own_where_the_elements_sizes_differ() -> None:
    """Of types of one size the library has an order of its own; here it is by name."""
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, dtype=torch.uint8), "c": torch.zeros(1, dtype=torch.int64)}
    assert b"".join(tensor_file(tensors)) == save(tensors)


def test_pieces_of_any_size_are_written_whole(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [0, 1, 1 << 20, 3, (1 << 20) - 1, (1 << 20) + 1, (17 << 20) + 5, 7, 0]
    pieces = [bytes(torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator).numpy()) for size in sizes]
    whole = b"".join(pieces)
    assert write_pieces(tmp_path / "x", pieces) == (len(whole), hashlib.sha256(whole).hexdigest())
    assert (tmp_path / "x").read_bytes() == whole
    with pytest.raises(FileExistsError):  # never into a file that another snapshot may be linked to
        write_pieces(tmp_path / "x", pieces)


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 1000])
def test_json_in_pieces_is_the_same_json(length: int) -> None:
    facts: dict[str, object] = {
        "long": [{"offsets": [["t", 0, number]], "b": None, "a": 1.5} for number in range(length)],
        "nested": {"z": [1, 2], "a": [[]]},
        "köln": "ü",
        "a/b": float("nan"),
    }
    pieces = list(canonical_json_pieces(facts))
    assert b"".join(pieces) == canonical_json(facts)
    assert max(map(len, pieces)) < 3000
    assert b"".join(canonical_json_pieces({})) == b"{}"


def turns_of_another_thread(work: Callable[[], object]) -> int:
    """How often another thread came round while `work` ran: only where `work` lets go of the interpreter itself."""
    turns, over = [0], threading.Event()

    def count() -> None:
        while not over.is_set():
            turns[0] += 1
            time.sleep(0.0001)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=count)
    try:
        thread.start()
        sys.setswitchinterval(1000.0)  # nobody is asked to let go
        before = turns[0]
        work()
        return turns[0] - before
    finally:
        sys.setswitchinterval(interval)
        over.set()
        thread.join()


def test_other_threads_run_while_a_tensor_is_written_and_summed(tmp_path: Path) -> None:
    tensors = {"w": torch.zeros(64 << 20, dtype=torch.uint8)}
    decisions = [{"offsets": [["t", 0, number]]} for number in range(100_000)]
    assert turns_of_another_thread(lambda: canonical_json(decisions)) <= 2, "what holds it is seen"
    assert turns_of_another_thread(lambda: sha256_of(tensor_file(tensors))) > 20
    assert turns_of_another_thread(lambda: write_pieces(tmp_path / "x", tensor_file(tensors))) > 20
