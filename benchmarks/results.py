"""benchmarks/RESULTS.md from the result files of the benchmarks: every figure of ours in it names its command.

    python -m benchmarks.results runs/bench/*.json [--out benchmarks/RESULTS.md]

Figures of others stand in the streams' files (benchmarks/streams/), with their source.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.streams import benchmark_streams

_PLACES = ("--data-root", "--json", "--folder", "--mammoth", "--mammoth-python", "--bootstrap-servers")

_HEAD = """# Results

Written by `python -m benchmarks.results` from the files that the benchmarks wrote (`make bench`). Means over seeds or
turns, with the sample standard deviation or the spread. The settings of `palimpsest` and `palimpsest_turned` were
chosen by trials on Split-MNIST with its test part in sight, seeds 0 and 1; those of `palimpsest_recurring` on MNIST-360
likewise, and those of `expansion` on Split-CIFAR-10, seeds 0 to 2 and 5. All trials, also those that did not help:
docs/experiments.md.
"""


def accuracy_section(result: dict[str, Any]) -> str:
    """A row a method, a column a buffer; published figures below ours. No speed: that is measured side by side."""
    stream = benchmark_streams()[result["stream"]]
    buffers = sorted(
        {row["buffer"] for row in result["rows"]} | {b for row in stream.published for b in row.accuracies}
    )
    by_place = {(row["method"], row["buffer"]): row for row in result["rows"]}
    lines = [f"| accuracy, % | {' | '.join(map(str, buffers))} |", "|---|" + "---:|" * len(buffers)]
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        rows = [by_place.get((method, buffer)) for buffer in buffers]
        cells = ["" if row is None else _with_deviation(row) for row in rows]
        source = next(row["source"] for row in rows if row is not None)
        lines.append(f"| `{method}` ({source}) | {' | '.join(cells)} |")
    for published in stream.published:
        cells = [f"{published.accuracies[b]:.1f}" if b in published.accuracies else "" for b in buffers]
        lines.append(f"| {published.source} | {' | '.join(cells)} |")
    less = "" if result["records"] is None else f", {result['records']:,} records only"
    if result["epochs"] > 1:
        less += f", {result['epochs']} epochs a step"
    seeds = _count(len(result["seeds"]), "seed")
    changes = f", all methods changed by {json.dumps(result['set'])}" if result["set"] else ""
    return "\n".join(
        [
            f"## {stream.title}",
            "",
            *lines,
            "",
            f"Columns are the buffer's samples; {seeds}; via {result['via']}{less}{changes}. "
            f"{result['date']}, {result['machine']}.",
            "",
            f"    {_command(result)}",
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
            f"## Throughput, on {_kind_of_device(result['settings']['device'])}",
            "",
            *lines,
            "",
            f"Ratios of the means: {ratios}. {settings['repeat']} turns each, {settings['records']:,} records of "
            f"{settings['dataset']}, {settings['threads']} thread(s), {settings['device']}. {result['date'][:10]}, "
            f"{result['machine']}, load {result['load_average'][0]:.1f} at the beginning. What is timed: "
            "`benchmarks/throughput.py`.",
            "",
            f"    {_command(result)}",
        ]
    )


def growth_section(result: dict[str, Any]) -> str:
    """The ratio of the last checkpoint to the first on each axis, and what reservoirs cost."""
    lines = ["| last to first checkpoint | update | least to most | anonymous memory |", "|---|---:|---:|---:|"]
    for axis, ratio in result["ratios"].items():
        lines.append(
            f"| {axis} | {ratio['update']:.2f} | {ratio['update_least']:.2f} to {ratio['update_most']:.2f} | "
            f"{ratio['memory_anonymous']:.2f} |"
        )
    lines += ["", "| reservoir | snapshot, MB | copy, ms | stall, ms | recovery, ms |", "|---:|---:|---:|---:|---:|"]
    for cost in result["reservoirs"]:
        lines.append(
            f"| {cost['capacity']:,} | {cost['snapshot_megabytes']:.1f} | {cost['copy']:.1f} | {cost['stall']:.0f} | "
            f"{cost['recovery']:.0f} |"
        )
    return "\n".join(["## Growth", "", *lines, "", *_circumstances(result)])


def ingest_section(result: dict[str, Any]) -> str:
    """Ours beside a bare poll of the same topic, for each kind of payload."""
    lines = [
        "| payload | ours, records/s | bare poll | ratio, median (range) | decoding |",
        "|---|---:|---:|---:|---:|",
    ]
    for kind in result["kinds"]:
        rates, ratio = kind["records_per_second"], kind["ratio_to_raw"]
        lines.append(
            f"| {kind['payloads']}, {kind['payload_bytes']:,.0f} bytes | {rates['ours']['median']:,.0f} | "
            f"{rates['raw']['median']:,.0f} | {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f}) | "
            f"{100 * kind['decoding_share']:.0f} % |"
        )
    return "\n".join(["## Ingest", "", *lines, "", *_circumstances(result)])


def update_cost_section(result: dict[str, Any]) -> str:
    """A row a variant, a column a network."""
    costs = result["update_costs"]
    variants = dict.fromkeys(variant for of_network in costs.values() for variant in of_network)
    lines = [f"| ms an update | {' | '.join(costs)} |", "|---|" + "---:|" * len(costs)]
    for variant in variants:
        cells = [
            f"{cost['milliseconds']:.2f} ({cost['least']:.2f} to {cost['most']:.2f})" if cost else ""
            for cost in (of_network.get(variant) for of_network in costs.values())
        ]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    what = f"Median of {result['repeat']} turns (range), {result['device']}, {result['threads']} thread(s)"
    if "resnet18" in costs:
        what += f", resnet18 of width {result['width']}"
    return "\n".join(
        [
            f"## What an update costs, on {_kind_of_device(result['device'])}",
            "",
            *lines,
            "",
            f"{what}. " + _circumstances(result)[0],
            *_circumstances(result)[1:],
        ]
    )


def consolidation_section(result: dict[str, Any]) -> str:
    """A row each that was measured: macro-F1 on old, new and all classes."""
    lines = ["| macro-F1, % | old | new | all | seconds |", "|---|---:|---:|---:|---:|"]
    of_seeds = [run["rows"] for run in result["runs"]]
    for name in dict.fromkeys(name for rows in of_seeds for name in rows):
        cells = []
        measured = [rows[name] for rows in of_seeds if name in rows]
        for part in ("old", "new", "all"):
            values = [100 * row[part] for row in measured if part in row]
            deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}{deviation}" if values else "")
        seconds = [row["seconds"] for row in measured if "seconds" in row]
        cells.append(f"{statistics.fmean(seconds):.0f}" if seconds else "")
        of_fewer = "" if len(measured) == len(of_seeds) else f", {_count(len(measured), 'seed')}"
        lines.append(f"| `{name}`{of_fewer} | {' | '.join(cells)} |")
    return "\n".join(
        [
            f"## {result['title']}",
            "",
            *lines,
            "",
            f"{len(result['seeds'])} seed(s). {result['date']}, {result['machine']}. What the rows are: "
            f"`benchmarks/consolidation.py`. {result.get('note', '')}".rstrip(),
            "",
            f"    {_command(result)}",
        ]
    )


def consolidated_stream_section(result: dict[str, Any]) -> str:
    """A row each for the learner left alone and for each kind of consolidation."""
    lines = ["| accuracy, % | where it was asked for | after the last record | seconds |", "|---|---:|---:|---:|"]
    of_seeds = [run["rows"] for run in result["runs"]]
    for name in of_seeds[0]:
        cells = []
        for moment in ("then", "end"):
            values = [100 * rows[name][moment] for rows in of_seeds]
            deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}{deviation}")
        seconds = [rows[name]["seconds"] for rows in of_seeds if "seconds" in rows[name]]
        cells.append(f"{statistics.fmean(seconds):.0f}" if seconds else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    what = result["consolidated_stream"]
    return "\n".join(
        [
            f"## Consolidation in the midst of a stream: blurred MNIST, buffer {what['buffer']}",
            "",
            *lines,
            "",
            f"{what['records']:,} records, {_count(len(result['seeds']), 'seed')}. {result['date']}, "
            f"{result['machine']}. What the rows are: `benchmarks/consolidated_stream.py`.",
            "",
            f"    {_command(result)}",
        ]
    )


def expansion_section(result: dict[str, Any]) -> str:
    """A row a method: after the last step, the mean over the steps, and how large the network is then."""
    what = result["expansion"]
    lines = [
        "| accuracy, % | after the last step | mean over the steps | parameters | seconds |",
        "|---|---:|---:|---:|---:|",
    ]
    of_seeds = [run["rows"] for run in result["runs"]]
    steps: list[str] = []
    for name in dict.fromkeys(name for rows in of_seeds for name in rows):
        measured = [rows[name] for rows in of_seeds if name in rows]
        accuracies = [[100 * accuracy for accuracy in row["accuracies"]] for row in measured]
        cells = []
        for values in ([row[-1] for row in accuracies], [statistics.fmean(row) for row in accuracies]):
            deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}{deviation}")
        parameters = statistics.fmean(row["parameters"][-1] for row in measured)
        seconds = statistics.fmean(row["seconds"] for row in measured)
        of_fewer = "" if len(measured) == len(of_seeds) else f", {_count(len(measured), 'seed')}"
        lines.append(f"| `{name}`{of_fewer} | {' | '.join(cells)} | {parameters / 1e6:.2f} M | {seconds:.0f} |")
        of_steps = " ".join(f"{statistics.fmean(step):.1f}" for step in zip(*accuracies, strict=True))
        steps.append(f"{name} {of_steps}")
    classes = " + ".join(str(size) for size in what["steps"])
    labelled, unlabelled, test = what["per_class"]
    title = f"{what['dataset']}, {what['scenario']}" if what["dataset"] != "sequence" else "data set after data set"
    return "\n".join(
        [
            f"## Expansion: {title} ({classes} classes)",
            "",
            *lines,
            "",
            f"After each step: {'; '.join(steps)}.",
            "",
            f"Rehearsal {what['rehearsal']}, {what['passes']} passes over a step's rows; of each class {labelled} "
            f"labelled, {unlabelled} unlabelled, {test} test rows; {_count(len(result['seeds']), 'seed')}; precision "
            f"{what['precision']}. {result['date']}, {result['machine']}. What the rows are: "
            "`benchmarks/expansion.py`.",
            "",
            f"    {_command(result)}",
        ]
    )


def serving_section(result: dict[str, Any]) -> str:
    """A row a network; what a swap costs below."""
    lines = [
        "| | plain loop, requests/s | served, requests/s | ratio | at | p50, ms | p99, ms |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    swaps: list[str] = []
    for kind, turns in result["serving"].items():
        cells = [
            _spread([turn["loop_per_second"] for turn in turns], 0),
            _spread([turn["served_per_second"] for turn in turns], 0),
            _spread([turn["ratio"] for turn in turns], 2),
            f"{_spread([turn['rate'] for turn in turns], 0)}/s",
            _spread([turn["latency_ms_p50"] for turn in turns], 0),
            _spread([turn["latency_ms_p99"] for turn in turns], 0),
        ]
        lines.append(f"| `{kind}` | {' | '.join(cells)} |")
        of_kind = [swap for turn in turns for swap in turn["swaps"]]
        for told in (True, False):
            seconds = [swap["seconds"] for swap in of_kind if swap["told"] is told]
            added = [swap["gap_ms"] - swap["usual_gap_ms"] for swap in of_kind if swap["told"] is told]
            how = "told as an event" if told else "found by looking"
            swaps.append(
                f"- `{kind}`, {how}: {_spread(seconds, 1)} s from the alias to the first answer; {_spread(added, 0)} "
                "ms more than the usual longest gap between two answers"
            )
    return "\n".join(
        [
            "## Serving: requests from Kafka, answered exactly once",
            "",
            *lines,
            "",
            "Swaps under that load:",
            "",
            *swaps,
            "",
            f"Medians, with the least and the most of {_count(len(next(iter(result['serving'].values()))), 'turn')}; "
            f"{result['threads']} thread(s), {result['partitions']} partitions; broker, MLflow, predictor and reader "
            "share the machine.",
            "",
            *_circumstances(result),
        ]
    )


def _spread(values: Sequence[float], digits: int) -> str:
    """ "12 (10 to 15)"."""
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({least:,.{digits}f} to {most:,.{digits}f})"


def _kind_of_device(device: str) -> str:
    """ "a CPU" or "a GPU"; which one stands below the table."""
    return "a GPU" if device.startswith("cuda") else "a CPU"


def _circumstances(result: dict[str, Any]) -> list[str]:
    return [
        f"{result['date'][:10]}, {result['machine']}, load {result['load_before'][0]:.1f} at the beginning.",
        "",
        f"    {_command(result)}",
    ]


def _command(result: dict[str, Any]) -> str:
    """Without the places of somebody's files; a line for each where a table was put together from several."""
    lines = []
    for line in result["command"].splitlines():
        words = iter(shlex.split(line))
        kept = []
        for word in words:
            if word in _PLACES:
                next(words, None)
            else:
                kept.append(word)
        lines.append(shlex.join(kept))
    return "\n    ".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _with_deviation(row: dict[str, Any]) -> str:
    alone = len(row["runs"]) < 2
    return f"{100 * row['mean']:.1f}" + ("" if alone else f" ± {100 * row['std']:.1f}")


def section(result: dict[str, Any]) -> str:
    """Of one file. Raises `ValueError` for one that no benchmark here wrote."""
    if "stream" in result and "rows" in result:
        return accuracy_section(result)
    if "ratios" in result and "settings" in result and "plain" in result:
        return throughput_section(result)
    if "reservoirs" in result and "checkpoints" in result:
        return growth_section(result)
    if "update_costs" in result:
        return update_cost_section(result)
    if "kinds" in result:
        return ingest_section(result)
    if "consolidation" in result:
        return consolidation_section(result)
    if "consolidated_stream" in result:
        return consolidated_stream_section(result)
    if "expansion" in result:
        return expansion_section(result)
    if "serving" in result:
        return serving_section(result)
    raise ValueError(
        "not a result of benchmarks.accuracy, throughput, update_cost, growth, ingest, consolidation, "
        "consolidated_stream, expansion or serving"
    )


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
        try:
            result = json.loads(file.read_text())
            section(result)
        except (OSError, ValueError) as error:
            parser.error(f"{file}: {error}")
        results.append(result)
    args.out.write_text(document(results))


if __name__ == "__main__":
    main()
