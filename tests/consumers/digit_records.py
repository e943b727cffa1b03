"""scikit-learn's digits as a producer writes them, two classes at a time, with bad records and repeats among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from pipeline import keyed_randomness
from pipeline.codec.cloud_event import CloudEvent
from pipeline.codec.image import encode_png

Headers = tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One record as it is given to a producer, and what is to become of it."""

    value: bytes | None
    headers: Headers
    key: bytes | None = None
    fate: str = "good"  # or "bad", "repeat"


@cache
def digit_images() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """(N, 1, 8, 8) and their digits."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None], np.asarray(bunch.target, dtype=np.int64)


def digit(item: int, *, ce_id: str | None = None, task: str | None = None) -> Written:
    """The data set's image number `item`."""
    x, y = digit_images()
    event = CloudEvent(
        id=ce_id or f"digit-{item}",
        source="tests",
        type="sample",
        content_type="image/png",
        data=encode_png(x[item]),
        time_seconds=1_700_000_000.0 + item,
        label=str(y[item]),
        task=task,
    )
    return Written(value=event.data, headers=tuple(event.headers()), key=b"digits")


def digit_stream(per_step: int, *, steps: int = 3, seed: int = 0, clean: bool = False) -> list[Written]:
    """`per_step` images of two new classes in each step; unless `clean`, some come twice and some are bad."""
    _, y = digit_images()
    written: list[Written] = []
    for step in range(steps):
        items = np.flatnonzero(y // 2 == step)
        chosen = keyed_randomness.generator(seed, "tests", step).permutation(items)[:per_step]
        for item in chosen.tolist():
            record = digit(item, task=str(step))
            written.append(record)
            number = len(written)
            if not clean and number % 11 == 0:
                written.append(spoilt(record, number))
            if not clean and number % 13 == 0:
                written.append(Written(value=record.value, headers=record.headers, key=record.key, fate="repeat"))
    return written


def spoilt(record: Written, number: int) -> Written:
    """The same with a fault, another one for each number, and with an id of its own."""
    headers = dict(record.headers) | {"ce_id": f"spoilt-{number}".encode()}
    value: bytes | None = record.value
    match number % 4:
        case 0:
            del headers["ce_label"]
        case 1:
            value = (record.value or b"")[:40]
        case 2:
            headers["content-type"] = b"application/x-unknown"
        case 3:
            value = None
    return Written(value=value, headers=tuple(headers.items()), key=record.key, fate="bad")


def of_fate(written: Sequence[Written], fate: str) -> list[Written]:
    return [record for record in written if record.fate == fate]
