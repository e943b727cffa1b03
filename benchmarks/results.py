"""benchmarks/RESULTS.md from the result files of the benchmarks: every figure in it was measured by a command that it
names.

    python -m benchmarks.results runs/bench/*.json [--out benchmarks/RESULTS.md]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.streams import benchmark_streams

_HEAD = """# Results

Written by `python -m benchmarks.results` from the files that the benchmarks wrote; `make bench` runs them all. Means
over seeds or turns, with the sample standard deviation or the spread.
"""


def accuracy_section(result: dict[str, Any]) -> str:
    """A row a method, a column a buffer; published figures below ours."""
    stream = benchmark_streams()[result["stream"]]
    buffers = sorted(
        {row["buffer"] for row in result["rows"]} | {b for row in stream.published for b in row.accuracies}
    )
    by_place = {(row["method"], row["buffer"]): row for row in result["rows"]}
    lines = [f"| accuracy, % | {' | '.join(map(str, buffers))} | samples/s |", "|---|" + "---:|" * (len(buffers) + 1)]
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        rows = [by_place.get((method, buffer)) for buffer in buffers]
        cells = ["" if row is None else f"{100 * row['mean']:.1f} ± {100 * row['std']:.1f}" for row in rows]
        rates = [run["samples_per_second"] for row in rows if row is not None for run in row["runs"]]
        source = next(row["source"] for row in rows if row is not None)
        lines.append(f"| `{method}` ({source}) | {' | '.join(cells)} | {min(rates):,.0f} to {max(rates):,.0f} |")
    for published in stream.published:
        cells = [f"{published.accuracies[b]:.1f}" if b in published.accuracies else "" for b in buffers]
        lines.append(f"| {published.source} | {' | '.join(cells)} | |")
    less = "" if result["records"] is None else f", {result['records']:,} records only"
    if result["epochs"] > 1:
        less += f", {result['epochs']} epochs a step"
    changes = f", with {json.dumps(result['set'])}" if result["set"] else ""
    return "\n".join(
        [
            f"## {stream.title}",
            "",
            *lines,
            "",
            f"Columns are the buffer's samples; {len(result['seeds'])} seeds; via {result['via']}{less}{changes}. "
            f"{result['date']}, {result['machine']}.",
            "",
            f"    python -m benchmarks.accuracy --stream {result['stream']} --methods "
            f"{' '.join(dict.fromkeys(row['method'] for row in result['rows']))} --buffers "
            f"{' '.join(map(str, sorted({row['buffer'] for row in result['rows']})))} --seeds "
            f"{' '.join(map(str, result['seeds']))} --via {result['via']}",
        ]
    )


def throughput_section(result: dict[str, Any]) -> str:
    """A row each that was measured, then the ratios."""
    measured = [name for name in result if isinstance(result[name], dict) and "samples_per_second" in result[name]]
    lines = ["| DER++, same work | samples/s | spread |", "|---|---:|---:|"]
    lines += [f"| {name} | {result[name]['mean']:,.0f} | {result[name]['spread']:,.0f} |" for name in measured]
    ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in result["ratios"].items())
    settings = result["settings"]
    return "\n".join(
        [
            "## Throughput",
            "",
            *lines,
            "",
            f"Ratios of the means: {ratios}. {settings['repeat']} turns each, {settings['records']:,} records of "
            f"{settings['dataset']}, {settings['threads']} thread(s), {settings['device']}. {result['date'][:10]}, "
            f"{result['machine']}, load {result['load_average'][0]:.1f} at the beginning. What is timed: "
            "`benchmarks/throughput.py`.",
        ]
    )


def section(result: dict[str, Any]) -> str:
    """Of one file. Raises `ValueError` for one that no benchmark here wrote."""
    if "stream" in result and "rows" in result:
        return accuracy_section(result)
    if "ratios" in result and "settings" in result and "plain" in result:
        return throughput_section(result)
    raise ValueError("not a result of benchmarks.accuracy or benchmarks.throughput")


def document(results: Sequence[dict[str, Any]]) -> str:
    """All sections, in the order of the files."""
    return "\n\n".join([_HEAD.rstrip(), *map(section, results)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """As described on top."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("RESULTS.md"))
    args = parser.parse_args(arguments)
    results = []
    for file in args.files:
        result = json.loads(file.read_text())
        try:
            section(result)
        except ValueError as error:
            parser.error(f"{file}: {error}")
        results.append(result)
    args.out.write_text(document(results))


if __name__ == "__main__":
    main()
