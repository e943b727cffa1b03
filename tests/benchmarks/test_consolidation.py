from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import consolidation
from benchmarks.results import section
from pipeline.network import build_network
from pipeline.restructuring.consolidation_settings import ConsolidationSettings
from pipeline.restructuring.labelled_rows import LabelledRows
from pipeline.restructuring.specialist import SpecialistTraining
from pipeline.sample import InputSpec
from pipeline.settings import NetworkSettings
from pipeline.user_error import UserError


def digits(
    _data_root: Path, seed: int, most_unlabelled: int | None, _checkpoint: str | None = None
) -> consolidation.Problem:
    """Real digits in the place of MNIST: 60 labelled of each class, 80 unlabelled, the rest judges."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = [str(label) for label in bunch.target]
    names = tuple(map(str, range(10)))
    order = {name: [i for i, label in enumerate(labels) if label == name] for name in names}
    parts = [[i for name in names for i in order[name][a:b]] for a, b in ((0, 60), (60, 140), (140, None))]
    labelled, unlabelled, test = parts
    return consolidation.Problem(
        names=names,
        labelled=LabelledRows(x=x[labelled], labels=tuple(labels[i] for i in labelled)),
        unlabelled=x[unlabelled][:most_unlabelled],
        test=LabelledRows(x=x[test], labels=tuple(labels[i] for i in test)),
        network=build_network(
            NetworkSettings(options={"hidden": [64]}, initial_columns=10),
            InputSpec(kind="image", shape=(1, 8, 8)),
            seed,
        ),
        settings=ConsolidationSettings(specialist_epochs=20, epochs=10, batch_size=32, learning_rate=3e-3),
    )


def test_all_rows_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(consolidation.DATASETS, "mnist", digits)
    file = tmp_path / "result.json"
    consolidation.main(["--seeds", "0", "1", "--device", "cpu", "--json", str(file)])
    assert "seed 1 palimpsest: old " in capsys.readouterr().err
    result = json.loads(file.read_text())
    rows = result["runs"][0]["rows"]
    assert list(rows) == [
        "old_teacher",
        "new_teacher",
        "finetune",
        "joint",
        "side_by_side",
        "dmc",
        "palimpsest, side by side",
        "palimpsest",
    ]
    assert set(rows["old_teacher"]) == {"old", "seconds"}
    assert rows["old_teacher"]["old"] > 0.8
    assert rows["new_teacher"]["new"] > 0.8
    for name in ("side_by_side", "dmc", "palimpsest", "finetune", "joint"):
        row = rows[name]
        assert row["all"] == pytest.approx((row["old"] + row["new"]) / 2)
    assert rows["finetune"]["old"] < 0.3
    assert rows["joint"]["all"] > 0.85
    assert rows["palimpsest"]["all"] > rows["finetune"]["all"]
    text = section(result)
    assert "| `old_teacher` | " in text
    joint = [100 * run["rows"]["joint"]["all"] for run in result["runs"]]
    assert f"| {np.mean(joint):.1f} ± {np.std(joint, ddof=1):.1f} | " in text


def test_the_specialist_is_the_one_that_a_consolidation_would_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is trained once for all variants; those that hear outliers train their own."""
    trained: list[tuple[str, ...]] = []
    step = SpecialistTraining.step

    def counting(training: SpecialistTraining) -> None:
        if training.training.done == 0:
            trained.append(training.class_names)
        step(training)

    monkeypatch.setattr(SpecialistTraining, "step", counting)
    measurement = consolidation.Measurement(digits(Path(), 0, None), torch.device("cpu"), 0, {}, lambda: None)
    new = measurement.problem.new
    for variant in ("dmc", "palimpsest", "dmc_20_64_1e-4"):
        measurement.consolidate(variant, {**consolidation.VARIANTS[variant], "epochs": 1})
    assert trained == [measurement.problem.old, new]
    once = {name: dict(row) for name, row in measurement.rows.items()}
    monkeypatch.setattr(consolidation, "_specialist_of", lambda _settings: object())
    measurement.consolidate("palimpsest", {"epochs": 1})
    assert trained == [measurement.problem.old, new, new]
    assert measurement.rows["palimpsest"]["all"] == once["palimpsest"]["all"]
    measurement.consolidate("outliers", {**consolidation.VARIANTS["outliers"], "epochs": 1})
    assert len(trained) == 4


def test_a_run_that_is_cut_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(_self: consolidation.Measurement, _name: str, _changes: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(consolidation.DATASETS, "mnist", digits)
    monkeypatch.setattr(consolidation.Measurement, "consolidate", cut)
    file = tmp_path / "result.json"
    with pytest.raises(KeyboardInterrupt):
        consolidation.main(["--device", "cpu", "--json", str(file)])
    result = json.loads(file.read_text())
    assert list(result["runs"][0]["rows"]) == ["old_teacher", "new_teacher", "finetune", "joint"]


def test_a_row_that_some_seeds_lack_says_of_how_many_it_is() -> None:
    result = {
        "consolidation": "mnist",
        "command": "python -m benchmarks.consolidation",
        "title": "T",
        "seeds": [0, 1],
        "date": "2026-01-02",
        "machine": "two cores",
        "runs": [
            {"seed": 0, "rows": {"joint": {"all": 0.5, "seconds": 2.0}}},
            {"seed": 1, "rows": {"joint": {"all": 0.6, "seconds": 4.0}, "dmc": {"all": 0.25, "seconds": 9.0}}},
        ],
    }
    text = section(result)
    assert "| `joint` |  |  | 55.0 ± 7.1 | 3 |" in text
    assert "| `dmc`, 1 seed |  |  | 25.0 | 9 |" in text


def test_labelled_and_unlabelled_rows_are_different_ones() -> None:
    x = np.arange(4000)
    labels = [str(i % 2) for i in range(4000)]
    labelled, unlabelled = consolidation._split(x, labels, ("0", "1"), 0, None)
    assert len(labelled) == 1000
    assert sorted([*labelled.x.tolist(), *unlabelled.tolist()]) == x.tolist()
    assert all(str(i % 2) == label for i, label in zip(labelled.x.tolist(), labelled.labels, strict=True))
    assert len(consolidation._split(x, labels, ("0", "1"), 0, 7)[1]) == 7
    other, _ = consolidation._split(x, labels, ("0", "1"), 1, None)
    assert other.x.tolist() != labelled.x.tolist()


def test_an_encoder_of_a_local_checkpoint(tmp_path: Path) -> None:
    from transformers import AutoModel, BertConfig, BertModel

    folder, data = tmp_path / "checkpoint", tmp_path / "thucnews"
    config = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, pad_token_id=0
    )
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "股", "市", "球"]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    data.mkdir()
    for part in ("test", "dev"):
        (data / f"{part}.txt").write_text("股市\t0\n球市好\t1\n", encoding="utf-8")
    problem = consolidation.thucnews(tmp_path, 0, None, str(folder))
    assert problem.test.x[:, :6].tolist() == [[2, 5, 6, 3, 0, 0], [2, 7, 6, 1, 3, 0]]
    held = problem.network.body.state_dict()
    for name, tensor in AutoModel.from_pretrained(folder, add_pooling_layer=False).state_dict().items():
        assert torch.equal(held[f"encoder.{name}"], tensor), name
    with pytest.raises(UserError, match="leave --checkpoint out"):
        consolidation.mnist(tmp_path, 0, None, str(folder))


def test_characters_that_the_training_part_lacks_are_one_token() -> None:
    ids = consolidation._tokens(["ab?", "b" * 40], {"a": 2, "b": 3})
    assert ids[0, :4].tolist() == [2, 3, 1, 0]
    assert ids[1].tolist() == [3] * 26
