"""The memory of a CUDA device that this process holds, asked for at each scrape, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class DeviceMemory(Collector):
    """`palimpsest_device_memory_bytes{kind}`: allocated by tensors, reserved for them by torch."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cuda", device
        self._device = device

    def collect(self) -> Iterable[Metric]:
        """Called by each scrape, from the server's thread."""
        family = GaugeMetricFamily(
            "palimpsest_device_memory_bytes", "Memory of the CUDA device that learning holds.", labels=["kind"]
        )
        family.add_metric(["allocated"], torch.cuda.memory_allocated(self._device))
        family.add_metric(["reserved"], torch.cuda.memory_reserved(self._device))
        yield family

    def describe(self) -> Iterator[Metric]:
        """Nothing to check for duplicates at registration."""
        yield from ()
