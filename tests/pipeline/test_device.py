from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipeline.device import choose_device, configure_torch, to_device
from pipeline.settings import LearnerSettings
from pipeline.user_error import UserError


@pytest.fixture
def _torch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


@pytest.mark.usefixtures("_torch_as_it_was")
def test_torch_is_set_up_as_the_settings_say() -> None:
    configure_torch(LearnerSettings(threads=1, deterministic=True))
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    configure_torch(LearnerSettings(deterministic=False))
    assert torch.get_num_threads() == 1  # none: as it was
    assert not torch.are_deterministic_algorithms_enabled()


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    for name in ("gpu", "cuda:x", "cpu:1", "mps"):
        with pytest.raises(UserError, match="unknown device"):
            choose_device(name)


def test_a_missing_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="'cuda:0' is asked for, but torch finds no CUDA device here: use auto or cpu"):
        choose_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="the last CUDA device here is cuda:1"):
        choose_device("cuda:2")


def test_arrays_become_tensors_of_their_dtype() -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    tensor = to_device(array, torch.device("cpu"))
    assert tensor.dtype == torch.int32
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert to_device(array[::-1], torch.device("cpu")).tolist() == [[3, 4, 5], [0, 1, 2]]
