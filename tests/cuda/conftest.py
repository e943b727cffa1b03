"""These run where torch finds a CUDA device, and are not collected elsewhere: `python -m pytest tests/cuda`."""

from __future__ import annotations

import os

import torch

# read when cuBLAS starts, which other tests of this run may bring about before `configure_torch` does
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
