"""Which device computes, how torch is set up on it, and how arrays get there without waiting."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.settings import LearnerSettings
from pipeline.user_error import UserError


def configure_torch(settings: LearnerSettings) -> None:
    """Set what torch keeps for the whole process. Called once, by the process, before anything is computed.

    1. The number of CPU threads: sums are split over threads, so results depend on it.
    2. Deterministic kernels: an operation that has none raises instead of giving other bits every time. Without them
       cuDNN may try which of its convolutions is the fastest here.
    """
    # 1.
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    # 2.
    if settings.deterministic:
        # cuBLAS reads it when CUDA starts; without it torch refuses matrix products in deterministic mode
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not settings.deterministic
    # The same as use_deterministic_algorithms, without the second and a half in which that loads torch's compiler.
    torch.set_deterministic_debug_mode("error" if settings.deterministic else "default")
    # torch would also fill every fresh tensor, which costs time in each update; we read no memory before writing it
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def choose_device(name: str) -> torch.device:
    """The device for the setting `device`: auto (CUDA where there is one), cpu, cuda or cuda:N."""
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    family, _, number = name.partition(":")
    if family not in ("cpu", "cuda") or (number and not number.isdecimal()) or (family == "cpu" and number):
        raise UserError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N")
    if family == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(f"device {name!r} is asked for, but torch finds no CUDA device here: use auto or cpu")
    count = torch.cuda.device_count()
    if number and int(number) >= count:
        raise UserError(
            f"device {name!r} is asked for, but the last CUDA device here is cuda:{count - 1}: use that or auto"
        )
    return torch.device("cuda", int(number) if number else torch.cuda.current_device())


def to_device(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """The array as a tensor on the device. On the CPU it may share the array's memory; on CUDA the copy is queued and
    the CPU goes on at once (a pageable array would make it wait)."""
    if not (array.flags.writeable and array.flags.c_contiguous):
        array = array.copy()  # torch takes neither read-only arrays nor negative strides
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
