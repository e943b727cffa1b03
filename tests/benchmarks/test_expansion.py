from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import expansion, expansion_problem
from benchmarks.expansion_problem import Source, problem_of, steps_of
from benchmarks.results import section
from pipeline.settings import AugmentationSettings
from pipeline.user_error import UserError

NAMES = tuple(map(str, range(10)))


def digits(_data_root: Path, split: str) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Real digits: of each class 100 to learn from, the rest judges."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    of_class = [np.flatnonzero(bunch.target == label) for label in range(10)]
    rows = np.concatenate([rows[:100] if split == "train" else rows[100:] for rows in of_class])
    return x[rows], [str(label) for label in bunch.target[rows]]


@pytest.fixture(autouse=True)
def _digits(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(
        parts=lambda _: [digits],
        backbone={"backbone": "mlp", "options": {"hidden": [64]}},
        augmentation=AugmentationSettings(),
        rehearsal=lambda classes: 5 * classes,
    )
    monkeypatch.setattr(expansion_problem, "SOURCES", {**expansion_problem.SOURCES, "mnist": source})


@pytest.mark.parametrize(
    ("scenario", "sizes"), [("s0-t5", [2] * 5), ("s0-t10", [1] * 10), ("s50-t5", [5, 1, 1, 1, 1, 1])]
)
def test_steps(scenario: str, sizes: list[int]) -> None:
    steps = steps_of(NAMES, scenario)
    assert [len(step) for step in steps] == sizes
    assert tuple(name for step in steps for name in step) == NAMES


@pytest.mark.parametrize("scenario", ["s50-t10", "s0-t3", "s0-t0", "five"])
def test_steps_that_these_classes_do_not_give(scenario: str) -> None:
    with pytest.raises(UserError, match="steps"):
        steps_of(NAMES, scenario)


def test_a_problem_holds_each_row_once_and_as_many_samples_of_each_class() -> None:
    problem = problem_of("mnist", "s0-t5", Path(), 0, per_class=(40, 30, 20))
    assert problem.steps[1] == ("2", "3")
    assert problem.seen(1) == ("0", "1", "2", "3")
    assert [len(problem.labelled[name]) for name in NAMES] == [40] * 10
    assert len(problem.unlabelled) == 300
    assert [len(problem.test[name]) for name in NAMES] == [20] * 10
    memory = problem.memory(problem.seen(1))
    assert [memory.labels.count(name) for name in problem.seen(1)] == [12] * 4  # 50 samples, 4 classes
    drawn = {row.tobytes() for row in np.concatenate([*problem.labelled.values(), problem.unlabelled])}
    assert len(drawn) == 700
    assert len(problem.memory(())) == 0


def test_all_rows_of_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    seeds, sizes = ["--seeds", "0", "1"], ["--per-class", "60", "40", "70"]
    methods = ["--methods", "joint", "finetune", "der_pp", "der_yan", "expansion", "random_pruning", "after_der_pp"]
    expansion.main(["--dataset", "mnist", "--device", "cpu", *seeds, *sizes, *methods, "--json", str(file)])
    assert "seed 1 expansion: " in capsys.readouterr().err
    result = json.loads(file.read_text())
    rows = result["runs"][0]["rows"]
    assert list(rows) == methods[1:]
    last = {name: row["accuracies"][-1] for name, row in rows.items()}
    assert last["finetune"] < 0.4 < last["der_pp"] < last["joint"]
    assert last["expansion"] > last["finetune"] + 0.2
    assert rows["joint"]["parameters"] == [rows["joint"]["parameters"][0]] * 5
    assert rows["der_yan"]["parameters"][-1] > 4 * rows["joint"]["parameters"][-1]
    assert rows["expansion"]["parameters"][-1] < 3 * rows["joint"]["parameters"][-1]
    after = rows["after_der_pp"]
    assert after["accuracies"][0] == rows["der_pp"]["accuracies"][0], "the same network, and from then on it grows"
    assert after["parameters"][0] == rows["der_pp"]["parameters"][0] < after["parameters"][1]
    assert after["accuracies"][-1] > last["finetune"] + 0.2
    table = section(result)
    assert "## Expansion: mnist, s0-t5 (2 + 2 + 2 + 2 + 2 classes)" in table
    assert "| `expansion` | " in table


def test_the_passes_are_divided_between_the_temporary_and_the_pruned_network() -> None:
    args = expansion.parse(["--passes", "20"])
    problem = problem_of("mnist", "s0-t5", Path(), 0, per_class=(40, 30, 20))
    assert expansion.settings_of(problem, "expansion", 1, args).epochs == 20  # distilled on unlabelled rows
    both = expansion.settings_of(problem, "without_unlabelled", 1, args)
    assert both.epochs + both.distillation_epochs == 20
    assert expansion.settings_of(problem, "unpruned", 1, args).epochs == 20


@pytest.mark.parametrize("additions", [1, 4, 5, 9])
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "sequence"])
def test_additions_are_pruned_until_the_network_is_about_one_and_a_half_times_the_single_one(
    name: str, additions: int
) -> None:
    source = expansion_problem.SOURCES[name]
    prune = expansion_problem.prune_for(source, additions)
    first = (1 - (source.beginning["prune"] or 0)) ** 2  # of a convolution's weights, both sides of which lose channels
    assert prune == 0.5 or 1.5 <= first + additions * (1 - prune) ** 2 < 1.6
    assert first + additions * (1 - prune) ** 2 < 1.6
