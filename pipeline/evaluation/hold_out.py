"""The samples that nobody may train on, and the accuracy on them."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Container, Iterator, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.sample import Sample
from pipeline.settings import HoldOutSettings
from pipeline.state import StateTree

# A prediction is asked for at most so many samples: 1,000 classes of 200 images would not fit into memory at once.
_SAMPLES_PER_PREDICTION = 4096


class HoldOut:
    """A fixed share of the subjects, chosen by a salted hash; of each class the `per_class` smallest hashes are kept.

    Chosen is by the hash of ce_subject where present, else of ce_source + ce_id: all records about one subject (one
    person; augmented copies of one original image) are held out together or trained on together. The choice needs no
    state and no label, so jobs make the same one on records they read themselves.

    A class keeps at most one sample of a subject, the first that came, so that n counts subjects: a hundred copies of
    one image are one observation. Which subjects are kept does not depend on the order in which they came (what was
    pushed out by k smaller hashes stays out). What is chosen but not kept is not trained on either.

    An erased subject leaves its place to the next one that comes; those that it had pushed out do not come back.
    """

    def __init__(self, settings: HoldOutSettings) -> None:
        self._per_class = settings.per_class
        self._limit = int(settings.share * 2**64)  # exact: 2^64 only shifts the exponent
        key = hashlib.blake2b(settings.salt.encode(), digest_size=32).digest()  # a salt may be of any length
        # Hashes begun: with the key in them, and the kind of name, so that a subject is never an id.
        self._of_id = hashlib.blake2b(digest_size=8, key=key, person=b"id")
        self._of_subject = hashlib.blake2b(digest_size=8, key=key, person=b"subject")
        self._classes: dict[str, _SmallestHashes] = {}

    def key(self, sample: Sample) -> int:
        """Whom the sample is about, as the 64-bit hash that chooses it, signed as int64 tensors hold it."""
        return _signed(self._hash(sample))

    def subject_key(self, subject: str) -> int:
        """The `key` of every sample with this ce_subject."""
        return _signed(_ended(self._of_subject, subject))

    def chooses(self, sample: Sample) -> bool:
        """Whether the sample is held out: never to be trained on, kept here or not."""
        return self.chooses_key(self.key(sample))

    def chooses_key(self, key: int) -> bool:
        """The same of a sample's `key`."""
        return key % 2**64 < self._limit

    def add(self, sample: Sample) -> bool:
        """Keep a chosen, labelled sample if its hash is among its class's smallest. True if it is kept now."""
        assert sample.label is not None, "a held-out sample needs its label"
        value = self._hash(sample)
        assert value < self._limit, f"sample {sample.source} {sample.id} is not held out"
        kept = self._classes.setdefault(sample.label, _SmallestHashes())
        return kept.insert(value, sample.x, self._per_class)

    @property
    def classes(self) -> list[str]:
        """Labels with at least one kept sample, sorted."""
        return sorted(self._classes)

    def count(self, label: str) -> int:
        return len(self._classes[label].hashes) if label in self._classes else 0

    def samples(self, label: str) -> npt.NDArray[np.generic]:
        """(n, ...) in the dtype of the input spec, by ascending hash."""
        return np.stack(self._classes[label].x)

    def state(self) -> StateTree:
        """{"labels": C strings, "counts": (C,), "hashes": int64 (N,), "x": (N, ...)}: class after class, sorted.

        Hashes are unsigned; the tensor holds their bits. There is no "x" while nothing is kept.
        """
        classes = [self._classes[label] for label in self.classes]
        hashes = np.array([value for kept in classes for value in kept.hashes], dtype=np.uint64)
        state: StateTree = {
            "labels": list(self.classes),
            "counts": torch.tensor([len(kept.hashes) for kept in classes], dtype=torch.int64),
            "hashes": torch.from_numpy(hashes.view(np.int64)),
        }
        if classes:
            state["x"] = torch.from_numpy(np.stack([x for kept in classes for x in kept.x]))
        return state

    def load_state(self, state: StateTree) -> None:
        labels = cast(list[str], state["labels"])
        counts = cast(list[int], cast(Tensor, state["counts"]).tolist())
        hashes = cast(Tensor, state["hashes"]).numpy().view(np.uint64).tolist()
        self._classes = {}
        start = 0
        for label, count in zip(labels, counts, strict=True):
            rows = cast(Tensor, state["x"])[start : start + count].numpy()
            kept = self._classes[label] = _SmallestHashes()
            kept.hashes = hashes[start : start + count]
            kept.x = [row.copy() for row in rows]  # a view would keep the whole tensor alive
            start += count

    def _hash(self, sample: Sample) -> int:
        """Uniform in 0 .. 2^64 - 1."""
        if sample.subject is None:
            return _ended(self._of_id, f"{sample.source}\0{sample.id}")
        return _ended(self._of_subject, sample.subject)


def _ended(begun: hashlib.blake2b, name: str) -> int:
    whole = begun.copy()
    whole.update(name.encode("utf-8", "surrogatepass"))
    return int.from_bytes(whole.digest(), "big")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def without_key(state: StateTree, key: int) -> tuple[StateTree, int]:
    """A hold-out's state without the samples of this key, and how many these were. A class whose last sample goes is no
    class of the hold-out any more."""
    hashes = cast(Tensor, state["hashes"])
    removed = hashes == key
    if not removed.any():
        return state, 0
    labels, kept = cast(list[str], state["labels"]), torch.nonzero(~removed).flatten()
    sizes = cast(list[int], cast(Tensor, state["counts"]).tolist())
    counts = [len(part) - int(part.sum()) for part in torch.split(removed, sizes)]
    left: StateTree = {
        "labels": [label for label, count in zip(labels, counts, strict=True) if count],
        "counts": torch.tensor([count for count in counts if count], dtype=torch.int64),
        "hashes": hashes.index_select(0, kept),
    }
    if len(kept):
        left["x"] = cast(Tensor, state["x"]).index_select(0, kept)
    return left, len(hashes) - len(kept)


class _SmallestHashes:
    """The kept samples of one class, by ascending hash."""

    __slots__ = ("hashes", "x")

    def __init__(self) -> None:
        self.hashes: list[int] = []
        self.x: list[npt.NDArray[np.generic]] = []

    def insert(self, value: int, x: npt.NDArray[np.generic], limit: int) -> bool:
        place = bisect_left(self.hashes, value)
        if place == limit or (place < len(self.hashes) and self.hashes[place] == value):
            return False
        self.hashes.insert(place, value)
        self.x.insert(place, np.array(x))  # a copy: x may be a view into a whole poll's payloads
        del self.hashes[limit:]
        del self.x[limit:]
        return True


def evaluate_hold_out(
    hold_out: HoldOut,
    class_columns: Sequence[str],
    predict_columns: Callable[[npt.NDArray[np.generic]], npt.NDArray[np.integer]],
    only: Container[str] | None = None,
) -> dict[str, tuple[float, int]]:
    """{class: (accuracy, n)} in the order of `class_columns`, which are the known classes by logit column.

    `predict_columns` maps samples (n, ...) to the predicted columns (n,). `only`: some of the classes; default: all.

    A held-out class that the learner does not know yet is left out until it does: it cannot be predicted, so its
    accuracy of 0 would tell nothing about the network and would stand in the averages as if it had been unlearnt.
    """
    known = [
        (column, label)
        for column, label in enumerate(class_columns)
        if hold_out.count(label) and (only is None or label in only)
    ]
    correct = dict.fromkeys((label for _, label in known), 0)
    for group in _groups(known, hold_out):
        x = np.concatenate([hold_out.samples(label) for _, label in group])
        hits = predict_columns(x) == np.concatenate([np.full(hold_out.count(label), column) for column, label in group])
        assert hits.shape == (len(x),), f"{len(x)} samples, predictions of shape {hits.shape}"
        start = 0
        for _, label in group:
            end = start + hold_out.count(label)
            correct[label] = int(np.count_nonzero(hits[start:end]))
            start = end
    return {label: (hits / hold_out.count(label), hold_out.count(label)) for label, hits in correct.items()}


def _groups(known: Sequence[tuple[int, str]], hold_out: HoldOut) -> Iterator[list[tuple[int, str]]]:
    """Whole classes, as many as fit into one prediction (at least one)."""
    group: list[tuple[int, str]] = []
    samples = 0
    for column, label in known:
        if group and samples + hold_out.count(label) > _SAMPLES_PER_PREDICTION:
            yield group
            group, samples = [], 0
        group.append((column, label))
        samples += hold_out.count(label)
    if group:
        yield group
