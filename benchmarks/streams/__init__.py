"""Every file here is one benchmark's stream and test part; a new one is found without being listed anywhere."""

from __future__ import annotations

from functools import cache

from benchmarks.streams.benchmark_stream import BenchmarkStream
from pipeline.discovery import subclasses_in


@cache
def benchmark_streams() -> dict[str, BenchmarkStream]:
    """{name: stream} of every one in this folder."""
    found: dict[str, BenchmarkStream] = {}
    for file, kind in subclasses_in(__name__, BenchmarkStream):  # type: ignore[type-abstract]
        assert kind.name == file.replace("_", "-"), f"{__name__}.{file} holds {kind.name!r}"
        found[kind.name] = kind()
    return found
