"""The memory that learning holds of a GPU, as Prometheus sees it."""

from __future__ import annotations

import torch
from prometheus_client import CollectorRegistry

from consumers.device_memory_metrics import DeviceMemory


def test_what_is_allocated_is_shown_at_the_next_scrape() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    registry = CollectorRegistry()
    registry.register(DeviceMemory(device))

    def shown(kind: str) -> float:
        value = registry.get_sample_value("palimpsest_device_memory_bytes", {"kind": kind})
        assert value is not None
        return value

    before = shown("allocated")
    held = torch.zeros(4 * 1024 * 1024, device=device)
    assert shown("allocated") - before >= held.numel() * held.element_size()
    assert shown("reserved") >= shown("allocated")
