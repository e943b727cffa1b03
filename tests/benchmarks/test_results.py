from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.results import main, section


def run(seed: int, accuracy: float, rate: float) -> dict[str, Any]:
    return {"seed": seed, "accuracy": accuracy, "samples_per_second": rate}


ACCURACY: dict[str, Any] = {
    "command": "python -m benchmarks.accuracy --data-root /some/where --seeds 0 1 --json a.json",
    "stream": "split-mnist",
    "via": "kafka",
    "seeds": [0, 1],
    "records": None,
    "epochs": 1,
    "set": {},
    "date": "2026-01-02",
    "machine": "two cores",
    "rows": [
        {
            "method": "der_pp",
            "source": "DER++",
            "buffer": 200,
            "runs": [run(0, 0.8, 900.0), run(1, 0.9, 1100.0)],
            "mean": 0.85,
            "std": 0.0707,
        }
    ],
}
THROUGHPUT: dict[str, Any] = {
    "command": "python -m benchmarks.throughput",
    "plain": {"samples_per_second": [10.0, 20.0], "mean": 15.0, "spread": 10.0},
    "memory": {"samples_per_second": [30.0, 30.0], "mean": 30.0, "spread": 0.0},
    "ratios": {"memory/plain": 2.0},
    "not_measured": {},
    "settings": {"repeat": 2, "records": 100, "dataset": "mnist", "threads": 1, "device": "cpu"},
    "date": "2026-01-02T03:04:05+00:00",
    "machine": "two cores",
    "load_average": [0.5, 0.5, 0.5],
}


def written(tmp_path: Path, *results: dict[str, Any]) -> str:
    files = []
    for number, result in enumerate(results):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(result))
    out = tmp_path / "RESULTS.md"
    main([*map(str, files), "--out", str(out)])
    return out.read_text()


def test_a_table_has_our_rows_and_the_published_ones(tmp_path: Path) -> None:
    text = written(tmp_path, ACCURACY)
    assert "| accuracy, % | 100 | 200 | 500 |" in text
    assert "| `der_pp` (DER++) |  | 85.0 ± 7.1 |  |" in text
    assert "| DER+SD (published) | 79.4 | 86.5 | 91.5 |" in text
    assert "2 seeds; via kafka. 2026-01-02, two cores." in text
    assert "\n    python -m benchmarks.accuracy --seeds 0 1\n" in text


def test_a_smaller_run_says_so(tmp_path: Path) -> None:
    text = written(tmp_path, {**ACCURACY, "records": 5000, "epochs": 3, "set": {"network": {"options": {"width": 16}}}})
    changed = 'all methods changed by {"network": {"options": {"width": 16}}}.'
    assert f"via kafka, 5,000 records only, 3 epochs a step, {changed}" in text


def test_throughput(tmp_path: Path) -> None:
    text = written(tmp_path, ACCURACY, THROUGHPUT)
    assert "| plain | 15 | 10 |\n| memory | 30 | 0 |" in text
    assert "Ratios of the means: memory/plain 2.00. 2 turns each, 100 records of mnist" in text


def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    (row,) = ACCURACY["rows"]
    text = written(tmp_path, {**ACCURACY, "rows": [{**row, "runs": row["runs"][:1]}]})
    assert "|  | 85.0 |  |" in text


def test_growth_and_ingest(tmp_path: Path) -> None:
    about = {"command": "python -m benchmarks.x", "date": "2026-01-02T03:04:05", "machine": "two cores"}
    ratio = {"update": 1.5, "update_least": 1.25, "update_most": 2.0, "memory_anonymous": 1.1}
    cost = {"capacity": 2000, "snapshot_megabytes": 3.8, "copy": 7.1, "stall": 15.0, "recovery": 37.0}
    growth = {**about, "load_before": [0.1], "checkpoints": [], "ratios": {"classes": ratio}, "reservoirs": [cost]}
    text = written(tmp_path, growth)
    assert "| classes | 1.50 | 1.25 to 2.00 | 1.10 |" in text
    assert "| 2,000 | 3.8 | 7.1 | 15 | 37 |" in text
    kind = {
        "payloads": "arrays",
        "payload_bytes": 3264.0,
        "records_per_second": {"ours": {"median": 9136.0}, "raw": {"median": 20625.0}},
        "ratio_to_raw": {"median": 0.4, "least": 0.4, "most": 0.49},
        "decoding_share": 0.2,
    }
    text = written(tmp_path, {**about, "load_before": [0.1], "kinds": [kind]})
    assert "| arrays, 3,264 bytes | 9,136 | 20,625 | 0.40 (0.40 to 0.49) | 20 % |" in text


def test_a_strangers_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        written(tmp_path, {"something": "else"})
    assert "0.json: not a result of benchmarks.accuracy, throughput, update_cost, growth, " in capsys.readouterr().err


def test_a_consolidation_in_a_stream_has_a_row_a_kind(tmp_path: Path) -> None:
    rows = [
        {"no adoption": {"then": then, "end": 0.8}, "defaults": {"then": 0.95, "end": end, "seconds": 3.0}}
        for then, end in ((0.9, 0.8), (0.92, 0.9))
    ]
    result = {
        "command": "python -m benchmarks.consolidated_stream --json c.json",
        "consolidated_stream": {"records": 12_000, "buffer": 500},
        "seeds": [0, 1],
        "runs": [{"seed": seed, "rows": of_seed} for seed, of_seed in enumerate(rows)],
        "machine": "two cores",
        "date": "2026-01-02",
    }
    page = written(tmp_path, result)
    assert "## Consolidation in the midst of a stream: blurred MNIST, buffer 500" in page
    assert "| no adoption | 91.0 ± 1.4 | 80.0 ± 0.0 |  |" in page
    assert "| defaults | 95.0 ± 0.0 | 85.0 ± 7.1 | 3 |" in page
    assert "12,000 records, 2 seeds. 2026-01-02, two cores" in page


def test_what_an_update_costs_has_a_row_a_variant_and_a_column_a_network(tmp_path: Path) -> None:
    cost = {"milliseconds": 1.234, "least": 1.0, "most": 2.0}
    result = {
        "command": "python -m benchmarks.update_cost --json c.json",
        "update_costs": {"mlp": {"DER++": cost, "fine-tuning": cost}, "resnet18": {"DER++": cost}},
        "width": 64,
        "threads": 1,
        "device": "cuda:0",
        "repeat": 5,
        "load_before": [0.5, 0.5, 0.5],
        "machine": "a card",
        "date": "2026-01-02T03:04:05+00:00",
    }
    page = written(tmp_path, result)
    assert "## What an update costs, on a GPU" in page
    assert "| ms an update | mlp | resnet18 |" in page
    assert "| DER++ | 1.23 (1.00 to 2.00) | 1.23 (1.00 to 2.00) |" in page
    assert "| fine-tuning | 1.23 (1.00 to 2.00) |  |" in page
    assert "resnet18 of width 64. 2026-01-02, a card" in page


def test_serving_has_a_row_a_network_and_its_swaps() -> None:
    swaps = [
        {"told": True, "seconds": 0.3, "gap_ms": 50.0, "usual_gap_ms": 40.0},
        {"told": False, "seconds": 2.0, "gap_ms": 90.0, "usual_gap_ms": 60.0},
    ]
    turn = {"loop_per_second": 40_000.0, "rate": 500.0, "latency_ms_p50": 20.0, "latency_ms_p99": 60.0, "swaps": swaps}
    turns = [{**turn, "served_per_second": rate, "ratio": rate / 40_000} for rate in (4_000.0, 5_000.0, 8_000.0)]
    result = {
        "date": "2026-11-26T12:00:00+00:00",
        "command": "python -m benchmarks.serving --kinds mlp --json x.json",
        "machine": "2 cores",
        "load_before": [0.5, 0.5, 0.5],
        "serving": {"mlp": turns},
        "threads": 1,
        "partitions": 4,
    }
    text = section(result)
    assert "| `mlp` | 40,000 (40,000 to 40,000) | 5,000 (4,000 to 8,000) | 0.12 (0.10 to 0.20) |" in text
    assert "- `mlp`, told as an event: 0.3 (0.3 to 0.3) s from the alias to the first answer; 10 (10 to 10) ms" in text
    assert "- `mlp`, found by looking: 2.0 (2.0 to 2.0) s from the alias to the first answer; 30 (30 to 30) ms" in text
    assert "least and the most of 3 turns" in text
