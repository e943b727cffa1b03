"""What a consolidation gives: two teachers, each of half the classes, and one student for all of them.

    python -m benchmarks.consolidation --dataset mnist --seeds 0 1 2 --data-root DIR --json FILE
    python -m benchmarks.consolidation --dataset thucnews --device cuda ...

Old classes are the first five, new ones the last five. Labelled are 500 rows a class, and the reservoir holds 20 a
class of these; the rest of the training part has no labels. The figures are macro-F1 over the old, the new and all
classes, among all ten, on the test part. Rows, each written as soon as it is measured:

    old_teacher, new_teacher    each on its own classes' rows, among these
    finetune                    the old teacher trained on the new classes' records instead
    joint                       one network on all labelled rows, which nobody has in a stream
    side_by_side                both teachers' centred logits: the ceiling of plain DMC's student
    dmc                         plain Deep Model Consolidation; then the other `VARIANTS` asked for, palimpsest being
                                the defaults, each beside the ceiling of its own
    dmc_20_64_1e-4 ...          plain, the student trained as in the original experiment: epochs, batch, learning rate

The teachers learn once for all variants. A variant's seconds are those of its student, and of its gate if it has one.

`mnist`: the perceptron of the other benchmarks, which starts at random. `thucnews`: an encoder of ALBERT-tiny's size (4
layers that share their weights, 312 wide, embeddings of 200 from `char-embeddings.npz`, over the characters of the
training part), or that of `--checkpoint`; `thucnews/test.txt` is the training part and `dev.txt` judges. ALBERT is the
original experiment's choice, no claim of accuracy: a linear model on character pairs does better on these headlines.
Its matrix products take factors rounded to bfloat16 where the processor has such products (`--matmul-precision`).

The defaults were chosen on `mnist`, seeds 0 and 1, with its test part in sight; the gate for texts on `thucnews`, seed
0, with `dev.txt` in sight.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from benchmarks.command_line import command_of, run, write_result
from benchmarks.machine import machine
from benchmarks.streams.benchmark_stream import decoded
from pipeline import keyed_randomness
from pipeline.device import choose_device, configure_torch, to_device
from pipeline.network import Network, build_network
from pipeline.restructuring.consolidation import Consolidation, Inputs
from pipeline.restructuring.consolidation_settings import PLAIN_DMC, ConsolidationSettings
from pipeline.restructuring.labelled_rows import LabelledRows
from pipeline.restructuring.specialist import SpecialistTraining, network_like
from pipeline.restructuring.student import new_student
from pipeline.restructuring.teacher import Teacher
from pipeline.restructuring.training import Training
from pipeline.sample import InputSpec
from pipeline.settings import LearnerSettings, NetworkSettings
from pipeline.user_error import UserError
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.labelled_dataset import LabelledDataset

_LABELLED_PER_CLASS = 500
_STORED_PER_CLASS = 20
_OLD_CLASSES = 5
_TOKENS = 26  # the longest headlines have 30 characters, 2 in a hundred more than 26
_SPECIAL_TOKENS = 2  # that a checkpoint's tokenizer puts around a text
_EMBEDDING_STD = 0.05  # at the std that the file has, no encoder learns in a few epochs

Rows = npt.NDArray[np.generic]
Row = dict[str, float]
Payloads = Mapping[str, Sequence[tuple[bytes, str]]]  # of each part: bytes, content type

# Settings over the data set's own.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "dmc": PLAIN_DMC,
    "dmc_fresh": {**PLAIN_DMC, "initialisation": "fresh"},
    "temperature": {**PLAIN_DMC, "distillation": "temperature"},
    "hints": {**PLAIN_DMC, "distillation": "hints"},
    "relational": {**PLAIN_DMC, "distillation": "relational"},
    "replay": {**PLAIN_DMC, "replay_weight": 1.0},
    "outliers": {**PLAIN_DMC, "specialist_hears": "outliers"},
    "calibrated": {**PLAIN_DMC, "calibrated": True},
    "gated": {**PLAIN_DMC, "gated": True},
    "palimpsest": {},
    # The original's three: epochs, batch and learning rate of the student.
    "dmc_30_8_1e-5": {**PLAIN_DMC, "epochs": 30, "batch_size": 8, "learning_rate": 1e-5},
    "dmc_50_8_5e-5": {**PLAIN_DMC, "epochs": 50, "batch_size": 8, "learning_rate": 5e-5},
    "dmc_20_64_1e-4": {**PLAIN_DMC, "epochs": 20, "batch_size": 64, "learning_rate": 1e-4},
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Rows and networks of one data set and seed."""

    names: tuple[str, ...]  # classes, old ones first
    labelled: LabelledRows
    unlabelled: Rows
    test: LabelledRows
    network: Network  # fresh, with a column for each class
    settings: ConsolidationSettings  # the data set's own, before a variant's
    pretrained: bool = False  # the fresh network's body is where every fresh one begins

    @property
    def old(self) -> tuple[str, ...]:
        return self.names[:_OLD_CLASSES]

    @property
    def new(self) -> tuple[str, ...]:
        return self.names[_OLD_CLASSES:]

    def of(self, names: Sequence[str]) -> LabelledRows:
        return self.labelled.of(names)

    def reservoir(self, seed: int) -> LabelledRows:
        """So many labelled rows of each class, drawn by the seed."""
        labels = np.array(self.labelled.labels)
        generator = keyed_randomness.generator(seed, "benchmark/reservoir")
        rows = [generator.permutation(np.flatnonzero(labels == name))[:_STORED_PER_CLASS] for name in self.names]
        return _rows(self.labelled, np.concatenate(rows))


def _rows(rows: LabelledRows, chosen: Sequence[int] | npt.NDArray[np.int64]) -> LabelledRows:
    return LabelledRows(x=rows.x[chosen], labels=tuple(rows.labels[row] for row in chosen))


def _split(
    x: Rows, labels: Sequence[str], names: Sequence[str], seed: int, most_unlabelled: int | None
) -> tuple[LabelledRows, Rows]:
    """So many labelled rows of each class, drawn by the seed, and the rest without labels."""
    of_row = np.array(labels)
    generator = keyed_randomness.generator(seed, "benchmark/labelled")
    chosen = np.concatenate(
        [generator.permutation(np.flatnonzero(of_row == name))[:_LABELLED_PER_CLASS] for name in names]
    )
    rest = generator.permutation(np.setdiff1d(np.arange(len(x)), chosen))[:most_unlabelled]
    return LabelledRows(x=x[chosen], labels=tuple(of_row[chosen].tolist())), x[rest]


def mnist(data_root: Path, seed: int, most_unlabelled: int | None, checkpoint: str | None = None) -> Problem:
    """Digits 0 to 4, then 5 to 9."""
    if checkpoint is not None:
        raise UserError("a checkpoint is one of a text encoder, and mnist has images: leave --checkpoint out")
    (x, labels, names), (test_x, test_labels, _) = (_mnist_part(data_root, split) for split in ("train", "test"))
    labelled, unlabelled = _split(x, labels, names, seed, most_unlabelled)
    spec = InputSpec(kind="image", shape=(1, 28, 28))
    return Problem(
        names=names,
        labelled=labelled,
        unlabelled=unlabelled,
        test=LabelledRows(x=test_x, labels=test_labels),
        network=build_network(NetworkSettings(initial_columns=len(names)), spec, seed),
        settings=ConsolidationSettings(specialist_epochs=20),
    )


@cache
def _mnist_part(data_root: Path, split: Literal["train", "test"]) -> tuple[Rows, tuple[str, ...], tuple[str, ...]]:
    """Rows, their labels, the classes. Once for all seeds: 60,000 images take a while."""
    part = open_dataset("mnist", DatasetOptions(data_root=data_root, split=split))
    x = decoded([part.payload(item) for item in range(len(part))], {})
    return x, tuple(_labels(part)), part.classes


def thucnews(data_root: Path, seed: int, most_unlabelled: int | None, checkpoint: str | None = None) -> Problem:
    """Subjects by their numbers. The encoder of a checkpoint's folder, or one that is made here."""
    options = DatasetOptions(data_root=data_root, delimiter="\t", text_column="1", label_column="2")
    parts = {name: open_dataset(f"csv:{data_root / 'thucnews' / f'{name}.txt'}", options) for name in ("test", "dev")}
    payloads = {name: [part.payload(item) for item in range(len(part))] for name, part in parts.items()}
    names = parts["test"].classes
    if checkpoint is None:
        x, network = _of_characters(payloads, len(names), data_root, seed)
    else:
        x, network = _of_checkpoint(payloads, len(names), checkpoint, seed)
    labelled, unlabelled = _split(x["test"], _labels(parts["test"]), names, seed, most_unlabelled)
    return Problem(
        names=names,
        labelled=labelled,
        unlabelled=unlabelled,
        test=LabelledRows(x=x["dev"], labels=tuple(_labels(parts["dev"]))),
        network=network,
        settings=ConsolidationSettings(epochs=8, specialist_epochs=8, learning_rate=3e-4, replays="records"),
        pretrained=True,
    )


def _of_checkpoint(payloads: Payloads, classes: int, folder: str, seed: int) -> tuple[dict[str, Rows], Network]:
    """Tokens by the checkpoint's tokenizer, its weights."""
    tokens = _TOKENS + _SPECIAL_TOKENS
    settings = {"input": {"checkpoint": folder, "max_tokens": tokens}}
    network = build_network(
        NetworkSettings(backbone="text_encoder", options={"checkpoint": folder}, initial_columns=classes),
        InputSpec(kind="text", shape=(tokens,)),
        seed,
    )
    return {name: decoded(part, settings) for name, part in payloads.items()}, network


def _of_characters(payloads: Payloads, classes: int, data_root: Path, seed: int) -> tuple[dict[str, Rows], Network]:
    """A token a character. Those that the training part lacks are one token."""
    texts = {name: [body.decode() for body, _ in part] for name, part in payloads.items()}
    characters = sorted(set("".join(texts["test"])))
    token = {character: 2 + place for place, character in enumerate(characters)}  # 0 pads, 1 is any other
    encoder = {
        "model_type": "albert",
        "vocab_size": len(characters) + 2,
        "embedding_size": 200,
        "hidden_size": 312,
        "num_hidden_layers": 4,
        "num_attention_heads": 12,
        "intermediate_size": 1248,
        "hidden_act": "gelu_pytorch_tanh",  # ALBERT's gelu_new, in one kernel
        "max_position_embeddings": _TOKENS,
        "type_vocab_size": 1,
        "pad_token_id": 0,
    }
    network = build_network(
        NetworkSettings(backbone="text_encoder", options={"encoder": encoder}, initial_columns=classes),
        InputSpec(kind="text", shape=(_TOKENS,)),
        seed,
    )
    _embed(network, characters, data_root / "thucnews" / "char-embeddings.npz")
    return {name: _tokens(lines, token) for name, lines in texts.items()}, network


def _tokens(texts: Sequence[str], token: Mapping[str, int]) -> npt.NDArray[np.int32]:
    ids_NT = np.zeros((len(texts), _TOKENS), np.int32)
    for row, text in enumerate(texts):
        ids = [token.get(character, 1) for character in text[:_TOKENS]]
        ids_NT[row, : len(ids)] = ids
    return ids_NT


def _embed(network: Network, characters: Sequence[str], file: Path) -> None:
    """Tencent's embeddings of the characters that it has."""
    with np.load(file) as arrays:
        embeddings, code_points = arrays["embeddings"], arrays["characters"].tolist()
    place = {code_point: row for row, code_point in enumerate(code_points)}
    scaled = torch.from_numpy(embeddings * (_EMBEDDING_STD / embeddings.std()))
    table: torch.Tensor = network.body.encoder.embeddings.word_embeddings.weight  # type: ignore[union-attr, assignment]
    with torch.no_grad():
        for row, character in enumerate(characters):
            if ord(character) in place:
                table[2 + row] = scaled[place[ord(character)]]


def _labels(part: LabelledDataset) -> list[str]:
    return [part.classes[int(label)] for label in part.labels]


class Measurement:
    """One problem, all rows of the table."""

    def __init__(
        self, problem: Problem, device: torch.device, seed: int, rows: dict[str, Row], noted: Callable[[], None]
    ) -> None:
        """`rows` takes each row as it is measured; then `noted` is called. Both teachers learn here, once."""
        self.problem, self.device, self.seed, self.rows, self._noted = problem, device, seed, rows, noted
        fresh = problem.network
        self._old = self._trained(problem.old, fresh, fresh).teacher()
        self._note("old_teacher", self._answers(self._old), problem.old)
        # as a consolidation itself would train it
        self._specialist = self._trained(problem.new, self._old.network, fresh if problem.pretrained else None)
        self._note("new_teacher", self._answers(self._specialist.teacher()), problem.new)

    def _trained(self, names: Sequence[str], like: Network, body: Network | None) -> SpecialistTraining:
        """On these classes' labelled rows."""
        problem = self.problem
        began = time.perf_counter()
        none = problem.labelled.x[:0]
        training = SpecialistTraining(
            names, problem.of(names), none, like, body, problem.settings, device=self.device, seed=self.seed
        )
        while not training.training.is_done:
            training.step()
        self._seconds = time.perf_counter() - began
        return training

    def consolidate(self, name: str, changes: Mapping[str, Any]) -> None:
        """A row for the student, and one for the teachers side by side where no variant before had them so."""
        problem = self.problem
        settings = ConsolidationSettings.model_validate({**problem.settings.model_dump(), **changes})
        plain = not settings.gated and settings.specialist_hears == "new"
        inputs = Inputs(
            class_names=problem.names,
            columns=len(problem.names),
            old=self._old,
            specialist=self._specialist.teacher() if plain else problem.of(problem.new),
            unlabelled=problem.unlabelled,
            reservoir=problem.reservoir(self.seed),
            pretrained=problem.network if problem.pretrained else None,
        )
        began = time.perf_counter()
        job = Consolidation(inputs, settings, device=self.device, seed=self.seed)
        if not plain and _specialist_of(settings) == _specialist_of(problem.settings):
            job.load_state({**job.state(), "specialist": self._specialist.state()})
        student = job.run()
        assert student is not None
        self._seconds = time.perf_counter() - began
        together = "side_by_side" if plain and not settings.calibrated else f"{name}, side by side"
        if together not in self.rows:
            self._note(together, job.side_by_side(problem.test.x), problem.names)
        self._note(name, self._answers(Teacher(student, problem.names)), problem.names)

    def supervised(self, name: str, network: Network, names: Sequence[str]) -> None:
        """A network of all classes, trained on the labelled rows of these."""
        problem, rows = self.problem, self.problem.of(names)
        network = network.to(self.device).train()
        x = to_device(rows.x, self.device)
        y = to_device(np.array([problem.names.index(label) for label in rows.labels], np.int64), self.device)
        settings = problem.settings
        began = time.perf_counter()
        training = Training(
            network,
            rows=len(rows),
            epochs=settings.specialist_epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            seed=self.seed,
            purpose=f"benchmark/{name}",
        )
        while not training.is_done:
            rows_B = to_device(training.rows(), self.device)
            training.step(F.cross_entropy(network(x[rows_B])[0], y[rows_B]))
        self._seconds = time.perf_counter() - began
        self._note(name, self._answers(Teacher(network, problem.names)), problem.names)

    def finetune(self) -> None:
        problem = self.problem
        network = new_student(self._old, problem.names, len(problem.names), problem.settings, self.seed)
        self.supervised("finetune", network, problem.new)

    def joint(self) -> None:
        network = self.problem.network
        copy = network_like(network, network.columns, self.seed, "joint", body=network)
        self.supervised("joint", copy, self.problem.names)

    def _answers(self, teacher: Teacher) -> npt.NDArray[np.float32]:
        answers: npt.NDArray[np.float32] = teacher.ask(self.problem.test.x).logits_BC.cpu().numpy()
        return answers

    def _note(self, name: str, logits_NK: npt.NDArray[np.float32], names: Sequence[str]) -> None:
        """Macro-F1 among these classes: on the rows of these."""
        from sklearn.metrics import f1_score

        problem = self.problem
        said = np.array(names)[logits_NK.argmax(axis=1)]
        true = np.array(problem.test.labels)
        judged = np.isin(true, names)
        scores = f1_score(true[judged], said[judged], labels=list(names), average=None, zero_division=0)
        score = dict(zip(names, scores.tolist(), strict=True))
        row = {} if name.endswith(("side_by_side", "side by side")) else {"seconds": self._seconds}
        for part, classes in (("old", problem.old), ("new", problem.new), ("all", problem.names)):
            if set(classes) <= set(names):
                row[part] = statistics.fmean(score[name] for name in classes)
        self.rows[name] = row
        shown = ", ".join(f"{part} {row[part]:.2%}" for part in ("old", "new", "all") if part in row)
        took = f", {row['seconds']:.0f} s" if "seconds" in row else ""
        print(f"seed {self.seed} {name}: {shown}{took}", file=sys.stderr, flush=True)
        self._noted()


def _specialist_of(settings: ConsolidationSettings) -> tuple[object, ...]:
    """What a specialist's training depends on."""
    rate = settings.specialist_learning_rate or settings.learning_rate
    trained = (settings.specialist_epochs, settings.batch_size, rate, settings.weight_decay)
    return (settings.specialist_hears, settings.outlier_weight, settings.specialist_initialisation, *trained)


DATASETS = {"mnist": mnist, "thucnews": thucnews}
DEFAULT_VARIANTS: Mapping[str, Sequence[str]] = {
    "mnist": ("dmc", "palimpsest"),
    "thucnews": ("dmc", "palimpsest", "dmc_20_64_1e-4", "dmc_30_8_1e-5", "dmc_50_8_5e-5"),
}
# Of float32 matrix products. Medium: their factors are rounded to bfloat16, where the processor multiplies that.
_PRECISIONS = {"mnist": "highest", "thucnews": "medium"}
TITLES = {
    "mnist": "Consolidation: Split-MNIST, 0 to 4 and then 5 to 9",
    "thucnews": "Consolidation: THUCNews headlines, five subjects and then five more, an ALBERT-tiny-sized encoder",
}

# That stand below the table.
NOTES = {
    "thucnews": "ALBERT is the original experiment's choice, no claim of accuracy: a linear model on character pairs "
    "does better on these headlines."
}


def measure(args: argparse.Namespace, seed: int, rows: dict[str, Row], noted: Callable[[], None]) -> None:
    """All rows for one seed into `rows`; `noted` is called after each."""
    problem = DATASETS[args.dataset](args.data_root, seed, args.unlabelled, args.checkpoint)
    changes = {"epochs": args.epochs, "specialist_epochs": args.specialist_epochs, **args.set}
    settings = {
        **problem.settings.model_dump(),
        **{name: value for name, value in changes.items() if value is not None},
    }
    problem = replace(problem, settings=ConsolidationSettings.model_validate(settings))
    measurement = Measurement(problem, choose_device(args.device), seed, rows, noted)
    measurement.finetune()
    measurement.joint()
    for variant in args.variants or DEFAULT_VARIANTS[args.dataset]:
        measurement.consolidate(variant, VARIANTS[variant])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=sorted(DATASETS), default="mnist")
    parser.add_argument("--variants", choices=list(VARIANTS), nargs="+", help="default: the data set's own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--unlabelled", type=int, help="at most so many unlabelled rows; default: all")
    parser.add_argument("--epochs", type=int, help="of the student; default: the data set's own")
    parser.add_argument("--specialist-epochs", type=int, help="of teachers, fine-tuning and joint training")
    parser.add_argument("--set", type=json.loads, default={}, help="settings of all consolidations, as JSON")
    parser.add_argument("--checkpoint", help="a local transformers folder: its encoder and tokenizer; thucnews only")
    parser.add_argument("--matmul-precision", choices=["highest", "high", "medium"], help="default: the data set's own")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    args.command = command_of("benchmarks.consolidation", arguments)
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """As described on top. Raises `UserError` for what the user can put right."""
    args = parse(arguments)
    configure_torch(LearnerSettings(device=args.device, threads=args.threads))
    torch.set_float32_matmul_precision(args.matmul_precision or _PRECISIONS[args.dataset])
    runs: list[dict[str, Any]] = []

    def write() -> None:
        """After every row: a run of hours that is cut must not lose them."""
        if args.json is not None:
            result = {
                "command": args.command,
                "consolidation": args.dataset,
                "title": TITLES[args.dataset],
                "note": NOTES.get(args.dataset, ""),
                "seeds": [one["seed"] for one in runs],
                "date": f"{datetime.now(UTC):%Y-%m-%d}",
                "machine": machine(),
                "runs": runs,
            }
            write_result(args.json, result)

    for seed in args.seeds:
        rows: dict[str, Row] = {}
        runs.append({"seed": seed, "rows": rows})
        measure(args, seed, rows, write)


if __name__ == "__main__":
    run(main, "consolidation")
