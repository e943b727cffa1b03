"""The plain loop is the paper's algorithm, and the figures are put together as they say."""

from __future__ import annotations

import copy
import importlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from benchmarks import throughput
from benchmarks.peers import PeerFailed, avalanche_rate, mammoth_rate
from benchmarks.plain_der_pp import DerPlusPlusSettings, PlainDerPlusPlus, ReservoirBuffer
from deploy.embedded_kafka import EmbeddedKafka
from pipeline.learner import Learner
from pipeline.sample import InputSpec
from tests.system_package import require_module

CPU = torch.device("cpu")

# What the process answers when it is asked for the work; a checkout of Mammoth as far as the script in it can tell.
FAKE_MAMMOTH = {
    "main.py": """
import importlib, sys, types
import models.derpp, datasets.seq_mnist
assert not hasattr(importlib.import_module("datasets.downloads_weights"), "anything"), "this one is not to be imported"
def initialize():
    given = dict(argument.removeprefix("--").split("=") for argument in sys.argv[1:])
    assert given["dataset"] == "seq-mnist" and given["lr"] == "0.03" and given["alpha"] == "0.2", given
    assert given["batch_size"] == "10" and given["buffer_size"] == "200" and given["beta"] == "1.0", given
    args = types.SimpleNamespace(minibatch_size=int(given["batch_size"]), base_path=given["base_path"])
    return models.derpp.Model(args), None, args
""",
    "utils/training.py": """
import time, torch
from pathlib import Path
def train(model, dataset, args):
    assert args.minibatch_size == 128 and torch.get_num_threads() == 1
    assert (Path(args.base_path) / "MNIST" / "MyMNIST" / "raw" / "train-images-idx3-ubyte").is_file()
    for task in range(2):
        model.meta_begin_task(dataset)
        time.sleep(1)
        for _ in range(4):
            model.meta_observe(torch.zeros(10, 4))
        time.sleep(1)
    raise AssertionError("it was not stopped in time")
""",
    "models/derpp.py": """
import time
class Model:
    def __init__(self, args): self.args = args
    def meta_begin_task(self, dataset): pass
    def meta_observe(self, inputs): return self.observe(inputs)
    def observe(self, inputs):
        time.sleep(0.1)
        return 0.0
""",
    "datasets/seq_mnist.py": "",
    "datasets/downloads_weights.py": "anything = 1",
}


# -- the plain loop ----------------------------------------------------------------------------------------------------


def small() -> PlainDerPlusPlus:
    """A learner whose draws take the whole buffer, so that their order makes no difference to a mean."""
    settings = DerPlusPlusSettings(
        batch_size=2, draw_size=3, buffer_size=3, hidden=5, classes=3, learning_rate=0.1, alpha=0.7, beta=0.4
    )
    return PlainDerPlusPlus(4, settings, seed=1, device=CPU)


def by_hand(weights: list[Tensor], x_BF: Tensor) -> Tensor:
    """(B, F) -> (B, K) logits, without torch's modules."""
    first, first_bias, second, second_bias, head, head_bias = weights
    hidden = (x_BF @ first.T + first_bias).clamp_min(0)
    hidden = (hidden @ second.T + second_bias).clamp_min(0)
    return hidden @ head.T + head_bias


def cross_entropy(logits_BK: Tensor, y_B: Tensor) -> Tensor:
    return torch.stack([row.exp().sum().log() - row[y] for row, y in zip(logits_BK, y_B.tolist(), strict=True)]).mean()


def test_a_step_is_the_papers_equation_computed_by_hand() -> None:
    learner = small()
    generator = torch.Generator().manual_seed(2)
    stored_x, stored_logits = torch.rand(3, 4, generator=generator), torch.randn(3, 3, generator=generator)
    stored_y = torch.tensor([0, 2, 1])
    learner.buffer.add(stored_x, stored_y, stored_logits)
    x_BF, y_B = torch.rand(2, 4, generator=generator), torch.tensor([1, 1])

    weights = [parameter.detach().clone().requires_grad_() for parameter in learner.model.parameters()]
    replayed = by_hand(weights, stored_x)
    expected = (
        cross_entropy(by_hand(weights, x_BF), y_B)
        + 0.7 * ((replayed - stored_logits) ** 2).sum() / 9
        + 0.4 * cross_entropy(replayed, stored_y)
    )
    gradients = torch.autograd.grad(expected, weights)

    loss = learner.update(x_BF, y_B)

    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for after, before, gradient in zip(learner.model.parameters(), weights, gradients, strict=True):
        torch.testing.assert_close(after.detach(), before.detach() - 0.1 * gradient)


def test_the_first_step_has_nothing_to_replay_and_stores_the_logits_of_its_own_pass() -> None:
    learner = small()
    x_BF, y_B = torch.rand(2, 4, generator=torch.Generator().manual_seed(3)), torch.tensor([2, 0])
    before = copy.deepcopy(learner.model)
    loss = learner.update(x_BF, y_B)
    logits_BK = before(x_BF).detach()
    assert loss.item() == pytest.approx(cross_entropy(logits_BK, y_B).item(), rel=1e-6)
    assert learner.buffer.seen == 2
    assert torch.equal(learner.buffer.x_NF[:2], x_BF)
    assert learner.buffer.y_N[:2].tolist() == [2, 0]
    torch.testing.assert_close(learner.buffer.logits_NK[:2], logits_BK)
    assert sorted(learner.buffer.draw(128).tolist()) == [0, 1]


def test_every_row_is_as_likely_to_be_in_the_buffer() -> None:
    kept = np.zeros(40)
    for seed in range(400):
        buffer = ReservoirBuffer(10, 1, 1, seed=seed, device=CPU)
        rows = torch.arange(40.0).unsqueeze(1)
        buffer.add(rows, torch.arange(40), rows)
        assert torch.equal(buffer.x_NF[:, 0].long(), buffer.y_N)
        assert torch.equal(buffer.x_NF, buffer.logits_NK)
        kept[buffer.y_N.numpy()] += 1
    # 400 draws of a quarter: 100 with a standard deviation of 8.7
    assert kept.sum() == 4000
    assert kept.min() > 100 - 4.5 * 8.7
    assert kept.max() < 100 + 4.5 * 8.7


def test_it_learns_split_digits_without_forgetting_them_all() -> None:
    torch.set_num_threads(1)
    digits = load_digits()
    # steps of two classes; each comes three times, since one pass over so few rows is too short
    order = np.concatenate([np.tile(np.flatnonzero(digits.target // 2 == step), 3) for step in range(5)])
    x_MF = torch.from_numpy(digits.data[order]).float() / 16
    y_M = torch.from_numpy(digits.target[order]).long()
    accuracies = []
    for beta in (1.0, 0.0):
        learner = PlainDerPlusPlus(64, DerPlusPlusSettings(alpha=0.2 * beta, beta=beta), seed=0, device=CPU)
        learner.train(x_MF, y_M)
        with torch.no_grad():
            accuracies.append((learner.model(x_MF).argmax(dim=1) == y_M).float().mean().item())
    replayed, forgot = accuracies
    assert replayed > 0.5, "chance is 0.1"
    assert forgot < 0.3, "without replay only the last two classes are known"


def test_the_learner_is_told_the_same_work() -> None:
    """While a draw takes the whole buffer nothing is left to chance, and both see the same losses."""
    work = throughput.Work(throughput.parse(["--dataset", "digits", "--records", "120", "--device", "cpu"]))
    torch.set_num_threads(1)
    learner = Learner(work.learner_settings(), InputSpec(kind="image", shape=(1, 8, 8)))
    plain = PlainDerPlusPlus(64, work.settings, seed=0, device=CPU)
    with torch.no_grad():
        for ours, of_plain in zip(learner.network.parameters(), plain.model.parameters(), strict=True):
            ours.copy_(of_plain)
    random = np.random.default_rng(5)
    for number in range(12):
        y_B = np.array([number // 2, number // 2 + 1] * 5)  # a class's column is its place in the order of appearance
        x = random.integers(0, 256, (10, 1, 8, 8), dtype=np.uint8)
        report = learner.update(x, [str(y) for y in y_B])
        loss = plain.update(torch.from_numpy(x).flatten(1).float() / 255, torch.from_numpy(y_B))
        assert torch.stack(list(report.loss.values())).sum().item() == pytest.approx(loss.item(), rel=1e-4)
        assert report.replayed_rows == 2 * 10 * number


# -- the figures -------------------------------------------------------------------------------------------------------


@pytest.mark.kafka
def test_ours_on_digits(kafka_broker: EmbeddedKafka, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "made" / "throughput.json"
    common = ["--dataset", "digits", "--records", "305", "--repeat", "2", "--device", "cpu", "--skip", "avalanche"]
    server = kafka_broker.bootstrap_servers
    throughput.main([*common, "--bootstrap-servers", server, "--json", str(written)])
    result = json.loads(written.read_text())

    ours = {"plain", "memory", "kafka"}
    assert set(result) == {*ours, "command", "ratios", "not_measured", "machine", "load_average", "settings", "date"}
    for name in ours:
        figures = result[name]
        assert set(figures) == {"samples_per_second", "mean", "spread"}
        first, second = figures["samples_per_second"]
        assert min(first, second) > 0
        assert figures["mean"] == pytest.approx((first + second) / 2)
        assert figures["spread"] == pytest.approx(abs(first - second))
    assert set(result["ratios"]) == {"memory/plain", "kafka/plain", "kafka/memory"}
    for pair, ratio in result["ratios"].items():
        one, other = pair.split("/")
        assert ratio == pytest.approx(result[one]["mean"] / result[other]["mean"])
    assert result["not_measured"] == {}
    assert f"torch {torch.__version__}" in result["machine"]
    assert len(result["load_average"]) == 3
    settings = result["settings"]
    assert (settings["records"], settings["batch_size"], settings["threads"]) == (300, 10, 1), "whole batches"
    learner = settings["learner"]
    assert learner["retention"] == {"der_pp": {"alpha": 0.2, "beta": 1.0}}
    assert (learner["incoming_loss"], learner["replay"]["sampling"]) == ("cross_entropy", "uniform"), "the paper's"
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()[1:4]] == ["plain", "memory", "kafka"]
    assert f"kafka/memory: {result['ratios']['kafka/memory']:.2f}" in shown.out
    assert "turn 2: kafka " in shown.err


def test_a_peer_that_fails_is_named_in_one_line_and_the_others_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = itertools.count(1)

    def twice(*_: object, **__: object) -> float:
        if next(turns) == 2:
            raise RuntimeError("its second\nturn fails")
        return 100.0

    monkeypatch.setattr(throughput, "avalanche_rate", twice)
    written = tmp_path / "throughput.json"
    throughput.main(
        [
            *("--dataset", "digits", "--records", "100", "--repeat", "3", "--device", "cpu", "--skip", "kafka"),
            *("--mammoth", str(tmp_path), "--json", str(written)),
        ]
    )
    result = json.loads(written.read_text())
    assert result["not_measured"] == {
        "avalanche": "RuntimeError: its second turn fails",
        "mammoth": "it has this work for --dataset mnist only",
    }
    assert "avalanche" not in result, "one turn of three says nothing"
    assert [len(result[name]["samples_per_second"]) for name in ("plain", "memory")] == [3, 3]
    assert set(result["ratios"]) == {"memory/plain"}
    named = [line for line in capsys.readouterr().err.splitlines() if "is not measured" in line]
    assert named == [
        "mammoth is not measured: it has this work for --dataset mnist only",
        "avalanche is not measured: RuntimeError: its second turn fails",
    ]


def test_a_failure_of_our_own_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> float:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(throughput, "memory_rate", fails)
    with pytest.raises(RuntimeError, match="a bug of ours"):
        throughput.main(["--dataset", "digits", "--records", "100", "--skip", "kafka", "avalanche"])


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(SystemExit):
        throughput.parse(["--repeat", "0"])
    with pytest.raises(ValueError, match="less than one batch of 10"):
        throughput.main(["--dataset", "digits", "--records", "9"])


# -- the peers ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # what Avalanche's own imports warn of is not ours
def test_avalanche_is_timed_while_it_replays() -> None:
    require_module("avalanche.training.supervised.der", extra="avalanche")
    rate = avalanche_rate(torch.rand(450, 6), torch.arange(450) % 10, DerPlusPlusSettings(), seed=0, device=CPU)
    assert 1 < rate < 1e6
    with pytest.raises(PeerFailed, match="405 records are too few: 400 fill its memory"):
        avalanche_rate(torch.rand(405, 6), torch.arange(405) % 10, DerPlusPlusSettings(), seed=0, device=CPU)


def test_without_avalanche_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("avalanche", "avalanche.benchmarks"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        importlib.import_module("avalanche.benchmarks")
    with pytest.raises(PeerFailed, match=r"not importable .*: pip install palimpsest\[avalanche\]"):
        avalanche_rate(torch.rand(500, 6), torch.arange(500) % 10, DerPlusPlusSettings(), seed=0, device=CPU)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "mammoth"
    for name, code in FAKE_MAMMOTH.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").touch()
    return folder


def rate_of(checkout: Path, python: str = sys.executable) -> float:
    return mammoth_rate(
        checkout,
        Path(python),
        checkout.parent / "data",
        DerPlusPlusSettings(),
        seed=0,
        records=60,
        device=CPU,
        threads=1,
    )


def test_mammoth_is_timed_from_the_first_update_of_a_task_to_its_last(checkout: Path) -> None:
    """60 rows in six updates of 0.1 s; what it does before, between and after tasks takes seconds."""
    assert 30 < rate_of(checkout) <= 100


def test_why_mammoth_was_not_timed_is_one_line(checkout: Path) -> None:
    with pytest.raises(PeerFailed, match="no-python does not run: No such file or directory"):
        rate_of(checkout, python="no-python")
    (checkout / "main.py").write_text("import kornia_that_is_missing\n")
    with pytest.raises(PeerFailed) as failed:
        rate_of(checkout)
    assert str(failed.value) == "it ended with 1: ModuleNotFoundError: No module named 'kornia_that_is_missing'"
    (checkout / "models" / "derpp.py").unlink()
    with pytest.raises(PeerFailed, match="is no checkout of Mammoth"):
        rate_of(checkout)
