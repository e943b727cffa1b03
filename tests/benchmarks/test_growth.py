from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch

from benchmarks.growing_stream import Stream
from benchmarks.growth import axes_of, main, parse, streams_of
from benchmarks.growth_checkpoints import memory_now


@pytest.fixture(scope="module")
def _torch_as_before() -> Iterator[None]:
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def result(_torch_as_before: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    written = tmp_path_factory.mktemp("growth") / "made" / "growth.json"
    main(["--quick", "--json", str(written)])
    read: dict[str, Any] = json.loads(written.read_text())
    return read


def test_every_checkpoint_is_reached_and_timed(result: dict[str, Any]) -> None:
    expected = [(stream.name, records) for stream in streams_of(parse(["--quick"])) for records in stream.checkpoints]
    assert [(point["stream"], point["records"]) for point in result["checkpoints"]] == expected
    assert [(pace["stream"], pace["records"]) for pace in result["paces"]] == expected
    for point in result["checkpoints"]:
        trained = 10 * point["updates"]
        # what is not trained on is held out; a batch that was begun may be neither yet
        assert 0 <= point["records"] - trained - point["held_out_samples"] < 50
        assert point["classes"] <= point["columns"]
        assert point["memory"]["all"] > point["memory"]["anonymous"] > 0
        assert point["state_megabytes"]["all"] >= point["state_megabytes"]["learner"]
        assert point["snapshot_megabytes"] > 0
    for pace in result["paces"]:
        assert 0 < pace["update_median"] <= pace["update_p90"]
        assert len(pace["turn_medians"]) == 2, "the first turn warms up and does not count"
        assert set(pace["stages"]) == {"draw", "forward", "backward", "optimizer", "insert", "intake"}
        assert (pace["evaluation_median"] is None) == (pace["evaluations"] == 0)
    last = {trail: points[-1]["records"] for trail, points in result["memory_trails"].items()}
    assert last["records"] == last["together"] == 2_000


def test_ratios_are_the_last_checkpoint_to_the_first(result: dict[str, Any]) -> None:
    paces = {(pace["stream"], pace["records"]): pace for pace in result["paces"]}
    points = {(point["stream"], point["records"]): point for point in result["checkpoints"]}
    axes = axes_of(streams_of(parse(["--quick"])))
    assert set(result["ratios"]) == set(axes) == {"classes", "records", "together"}
    for axis, ratio in result["ratios"].items():
        first, last = axes[axis][0], axes[axis][-1]
        for told, measured in (("update", "update_median"), ("update_processor", "update_processor_median")):
            assert ratio[told] == pytest.approx(paces[last][measured] / paces[first][measured])
        for told, measured in (("memory", "all"), ("memory_anonymous", "anonymous")):
            assert ratio[told] == pytest.approx(points[last]["memory"][measured] / points[first]["memory"][measured])
        assert ratio["snapshot"] == pytest.approx(
            points[last]["snapshot_megabytes"] / points[first]["snapshot_megabytes"]
        )
        assert ratio["update_least"] <= ratio["update_most"]


def test_reservoirs_cost_what_they_hold(result: dict[str, Any]) -> None:
    small, large = result["reservoirs"]
    assert (small["capacity"], large["capacity"]) == (50, 200)
    assert large["snapshot_megabytes"] > small["snapshot_megabytes"] + 150 * 28 * 28 / 1e6
    for cost in (small, large):
        assert cost["snapshots"] >= 1
        assert min(cost[name] for name in ("update", "copy", "write", "load", "rebuild")) > 0
        assert cost["recovery"] >= max(cost["load"], cost["rebuild"]) / 2
        assert cost["stall"] <= cost["stall_most"]


def test_the_file_says_when_and_how(result: dict[str, Any]) -> None:
    assert result["command"].startswith("python -m benchmarks.growth --quick --json ")
    assert result["settings"]["replay"]["capacity"] == 500, "the defaults"
    assert result["settings"]["evaluation"]["every_records"] == 500


def test_full_size_is_the_goals() -> None:
    axes = axes_of(streams_of(parse([])))
    assert axes["classes"] == [("classes-10", 10_000), ("classes-100", 10_000), ("classes-1000", 10_000)]
    assert axes["records"] == [("records", 10_000), ("records", 100_000), ("records", 1_000_000)]
    (together,) = (stream for stream in streams_of(parse([])) if stream.name == "together")
    assert [together.classes_at(records - 1) for records in together.checkpoints] == [10, 100, 1000]
    assert "resnet-classes" in axes_of(streams_of(parse(["--resnet"])))


def test_a_stream_goes_on_from_anywhere() -> None:
    (stream,) = (stream for stream in streams_of(parse(["--quick"])) if stream.name == "together")
    whole = list(islice(stream.samples(), 1_500))
    later = list(islice(stream.samples(1_000), 500))
    assert [decoded.record.offset for decoded in later] == list(range(1_000, 1_500))
    for once, again in zip(whole[1_000:], later, strict=True):
        assert once.sample is not None
        assert again.sample is not None
        assert (once.sample.label, once.sample.id) == (again.sample.label, again.sample.id)
        assert (once.sample.x == again.sample.x).all()


def test_mixed_classes_all_come_early() -> None:
    stream = Stream(
        name="mixed",
        classes=300,
        records=500,
        checkpoints=(500,),
        arriving=False,
        network={},
        evaluation={},
        kind="vector",
        shape=(4,),
    )
    labels = [decoded.sample.label for decoded in islice(stream.samples(), 300) if decoded.sample is not None]
    assert len(set(labels)) == 300


def test_memory_is_what_the_kernel_says() -> None:
    before = memory_now()
    kept = b"x" * 50_000_000
    after = memory_now()
    assert len(kept) == 50_000_000
    assert 40 < after.anonymous - before.anonymous < 60


def test_fewer_at_the_end_than_at_first_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--classes", "5"])
    assert ended.value.code == 2
    assert "at least as many classes" in capsys.readouterr().err
