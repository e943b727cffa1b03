"""What a figure was measured on: stands in every result file."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def machine() -> str:
    """ "2 cores (x86_64, Intel Xeon ...), Python 3.11.7, torch 2.15.0", and the GPU where there is one."""
    name = _processor()
    parts = [
        f"{len(os.sched_getaffinity(0))} cores ({platform.machine()}{', ' + name if name else ''})",
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
    ]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        return ""
