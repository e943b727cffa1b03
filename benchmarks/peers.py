"""DER++ by other libraries for continual learning, timed for `throughput` on the same work. No code of theirs is here.

Both are timed in their favour: neither start-up, nor loading of the data set, nor evaluation counts.

- Avalanche (Carta et al. 2023), `avalanche.training.supervised.der.DER` with beta above 0. It is handed decoded
  tensors, where its own benchmarks would decode images at every replay. It does less an update than the paper: one
  draw, not two, and no replay before the first experience's end; so the first experience only fills its memory, and the
  iterations of a second one are timed, without the pass in which it computes the logits to store.
- Mammoth (Boschini et al. 2022), its `derpp` on `seq-mnist`, in a process of its own in a checkout that the user names.
  Timed is from each task's first call of the model's `observe` to the last one's end, so that its data loader's work
  counts, with as many worker processes as it takes by itself, and their start does not.

The second half of this file runs in that process, as a script under an interpreter that has Mammoth's dependencies and
not ours: so it imports nothing of this project.

Legend: M = rows of the stream, F = values of a row
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from benchmarks.plain_der_pp import DerPlusPlusSettings

# Avalanche is slow enough for this many to give a steady figure, and there may be a hundred times as many.
_AVALANCHE_RECORDS = 1_000
# Mammoth's pass over all of MNIST takes half a minute; a data loader that hangs would else hang the benchmark.
_MAMMOTH_TIMEOUT_SECONDS = 1_800.0
_RESULT = "throughput: "  # begins the line that the process answers with, among all that Mammoth prints


class PeerFailed(Exception):
    """A peer could not be timed. The text is one line that says why."""


def avalanche_rate(
    x_MF: Tensor, y_M: Tensor, settings: DerPlusPlusSettings, *, seed: int, device: torch.device
) -> float:
    """Samples a second of Avalanche's DER++ on the first rows of the stream, float32 (M, F) and int64 (M,)."""
    from benchmarks.plain_der_pp import perceptron

    filling = 2 * settings.buffer_size
    timed = min(_AVALANCHE_RECORDS, len(x_MF) - filling)
    if timed < settings.batch_size:
        raise PeerFailed(f"{len(x_MF)} records are too few: {filling} fill its memory before the time is taken")
    try:
        benchmarks: Any = importlib.import_module("avalanche.benchmarks")
        der: Any = importlib.import_module("avalanche.training.supervised.der")
        plugins: Any = importlib.import_module("avalanche.training.plugins")
    except ImportError as error:
        raise PeerFailed(f"avalanche is not importable ({error}): pip install palimpsest[avalanche]") from error

    began = ended = 0.0
    samples = 0

    class Stopwatch(plugins.SupervisedPlugin):  # type: ignore[misc]
        """From the first iteration's beginning to the last one's end."""

        def before_training_iteration(self, strategy: Any, **_: Any) -> None:
            nonlocal began
            assert strategy.replay_loader is not None, "the memory is filled, so it is replayed"
            began = began or _now(device)

        def after_training_iteration(self, strategy: Any, **_: Any) -> None:
            nonlocal ended, samples
            samples += len(strategy.mb_y) - settings.draw_size
            ended = _now(device)

    first, second = (x_MF[:filling], y_M[:filling]), (x_MF[filling:][:timed], y_M[filling:][:timed])
    benchmark = benchmarks.tensors_benchmark(
        train_tensors=[first, second], test_tensors=[first], task_labels=[0, 0], complete_test_set_only=True
    )
    model = perceptron(x_MF.shape[1], settings, seed)
    strategy = der.DER(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=settings.learning_rate),
        mem_size=settings.buffer_size,
        batch_size_mem=settings.draw_size,
        alpha=settings.alpha,
        beta=settings.beta,
        train_mb_size=settings.batch_size,
        device=device,
        evaluator=plugins.EvaluationPlugin(),  # measures nothing
    )
    strategy.train(benchmark.train_stream[0])
    strategy.plugins.append(Stopwatch())
    strategy.train(benchmark.train_stream[1])
    assert samples == timed, f"{samples} of {timed} records were trained on"
    return samples / (ended - began)


def mammoth_rate(
    folder: Path,
    python: Path,
    data_root: Path,
    settings: DerPlusPlusSettings,
    *,
    seed: int,
    records: int,
    device: torch.device,
    threads: int,
) -> float:
    """Samples a second of Mammoth's DER++ on Split-MNIST, over its first `records`, in the checkout `folder`.

    `python` is an interpreter with Mammoth's dependencies; the files of MNIST lie in `data_root`/MNIST/raw.
    """
    raw = (data_root / "MNIST" / "raw").resolve()
    if not (folder / "models" / "derpp.py").is_file():
        raise PeerFailed(f"{folder} is no checkout of Mammoth: it has no models/derpp.py")
    if not raw.is_dir():
        raise PeerFailed(f"there is no {raw}")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    environment.pop("PYTHONPATH", None)  # this project's packages are not Mammoth's
    if device.type == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as base:
        for dataset in ("MNIST", "MyMNIST"):  # torchvision looks into a folder named like the class
            link = Path(base) / "MNIST" / dataset / "raw"
            link.parent.mkdir(parents=True)
            link.symlink_to(raw)
        options = {
            "dataset": "seq-mnist",
            "model": "derpp",
            "n_epochs": 1,
            "batch_size": settings.batch_size,
            "minibatch_size": settings.draw_size,
            "buffer_size": settings.buffer_size,
            "lr": settings.learning_rate,
            "alpha": settings.alpha,
            "beta": settings.beta,
            "seed": seed,
            "base_path": f"{base}/",
            "non_verbose": 1,  # without it a progress bar is drawn in every update
            **({} if device.type == "cpu" else {"device": device.index or 0}),
        }
        # A relative path would be looked for in the checkout; a bare name is looked for in PATH. Links stay: a virtual
        # environment's interpreter is one.
        program = str(python.absolute() if len(python.parts) > 1 else python)
        command = [program, str(Path(__file__).resolve()), str(records), str(threads), json.dumps(options)]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_MAMMOTH_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PeerFailed(f"it had not ended after {_MAMMOTH_TIMEOUT_SECONDS:.0f} s") from error
        except OSError as error:
            raise PeerFailed(f"{python} does not run: {error.strerror}") from error
    for line in done.stdout.splitlines():
        if line.startswith(_RESULT):
            return float(line.removeprefix(_RESULT))
    said = [line for line in done.stderr.splitlines() if line.strip()]
    raise PeerFailed(f"it ended with {done.returncode}: {said[-1].strip() if said else 'without a word'}")


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# -- inside Mammoth's process ------------------------------------------------------------------------------------------


class _Enough(Exception):
    """So many records were asked for."""


class _Observed:
    """Mammoth's model as its training loop sees it: how long it took from each task's first update to its last."""

    def __init__(self, model: Any, records: int) -> None:
        self._observe: Callable[..., float] = model.observe
        self._begin_task: Callable[..., Any] = model.meta_begin_task
        self._records = records
        self._began: float | None = None
        self._ended = 0.0
        self._earlier_seconds = 0.0  # of the tasks before this one
        self.samples = 0
        model.observe, model.meta_begin_task = self.observe, self.begin_task

    @property
    def seconds(self) -> float:
        return self._earlier_seconds + (0.0 if self._began is None else self._ended - self._began)

    def begin_task(self, *arguments: Any, **named: Any) -> Any:
        self._earlier_seconds, self._began = self.seconds, None
        return self._begin_task(*arguments, **named)

    def observe(self, inputs: Tensor, *arguments: Any, **named: Any) -> float:
        if self._began is None:
            self._began = time.perf_counter()
        loss = self._observe(inputs, *arguments, **named)  # a number: it has waited for the device
        self._ended = time.perf_counter()
        self.samples += len(inputs)
        if self.samples >= self._records:
            raise _Enough
        return loss


def _inside_mammoth(records: int, threads: int, options: dict[str, Any]) -> None:
    """Train as Mammoth's own main does, and print what was measured. The working directory is the checkout.

    1. Only what is used is imported: Mammoth imports every data set, model and backbone there is at its start, and
       some of them download weights when they are.
    2. Its main sets the number of threads when it is imported; ours comes after.
    3. It takes the batch size for the draws' size wherever a batch size is given, so that is put right.
    """
    folder = Path.cwd()
    sys.path[0] = str(folder)  # in the place of this file's folder
    # 1.
    for package, used in (("datasets", "seq_mnist"), ("models", "derpp"), ("backbone", "MNISTMLP")):
        for file in (folder / package).glob("*.py"):
            if file.stem not in ("__init__", used):
                name = f"{package}.{file.stem}"
                sys.modules[name] = types.ModuleType(name)
    sys.argv = ["main.py", *(f"--{name}={value}" for name, value in options.items())]
    main = importlib.import_module("main")
    # 2.
    torch.set_num_threads(threads)
    model, dataset, args = main.initialize()
    # 3.
    args.minibatch_size = options["minibatch_size"]
    assert model.args is args, "the model reads the size of its draws from these"
    observed = _Observed(model, records)
    with contextlib.suppress(_Enough):
        importlib.import_module("utils.training").train(model, dataset, args)
    print(f"\n{_RESULT}{observed.samples / observed.seconds}", flush=True)


if __name__ == "__main__":
    _inside_mammoth(int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
