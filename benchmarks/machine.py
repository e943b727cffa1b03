"""What a figure was measured on: stands in every result file."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.command_line import command_of


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


def circumstances(module: str, arguments: Sequence[str] | None) -> dict[str, Any]:
    """When, how and where a benchmark was run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_of(module, arguments),
        "machine": machine(),
        "versions": {name: version(name) for name in ("palimpsest", "numpy", "kafka-python", "pillow")},
        "load_before": list(os.getloadavg()),  # of 1, 5 and 15 minutes: other work shows here
    }


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        return ""
