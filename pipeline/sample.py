"""A labelled sample, decoded; or the reason why a record could not become one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.record import Record

InputKind = Literal["image", "vector", "text"]


class DeadLetterReason(StrEnum):
    """Why a record went to dead letters: the value of a header and of the metric's label `reason`."""

    NO_LABEL = "no_label"
    EMPTY_LABEL = "empty_label"
    LABEL_NOT_UTF8 = "label_not_utf8"
    LABEL_TOO_LONG = "label_too_long"
    TOO_MANY_CLASSES = "too_many_classes"
    NO_PAYLOAD = "no_payload"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    UNKNOWN_CONTENT_TYPE = "unknown_content_type"
    BROKEN_IMAGE = "broken_image"
    IMAGE_TOO_LARGE = "image_too_large"
    BROKEN_ARRAY = "broken_array"
    BROKEN_JSON = "broken_json"
    WRONG_SHAPE = "wrong_shape"
    WRONG_TYPE = "wrong_type"
    NOT_FINITE = "not_finite"
    TEXT_NOT_UTF8 = "text_not_utf8"
    BAD_HEADER = "bad_header"
    NOT_LEARNABLE = "not_learnable"


class BadRecord(ValueError):
    """This record cannot be learnt from. `detail` is one line for a person; `reason` is counted."""

    def __init__(self, reason: DeadLetterReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """What one sample looks like. Inferred from the first good record or set; fixed for a state from then on.

    `image`: uint8, shape (C, H, W). `vector`: float32, any shape. `text`: int32 token ids, shape (T,), 0 = padding.
    """

    kind: InputKind
    shape: tuple[int, ...]

    @property
    def dtype(self) -> str:
        return {"image": "uint8", "vector": "float32", "text": "int32"}[self.kind]


class Sample(NamedTuple):
    """One labelled (or unlabelled) sample, un-augmented, in the dtype of its `InputSpec`."""

    x: npt.NDArray[np.generic]
    kind: InputKind
    label: str | None
    source: str  # ce_source, or the topic where a producer sent none
    id: str  # ce_id, or "topic/partition/offset" where a producer sent none
    subject: str | None = None  # ce_subject: what the record is about
    task: str | None = None  # ce_task: for offline evaluation only, the learner never reads it
    event_time_seconds: float | None = None  # ce_time as a Unix time

    @property
    def spec(self) -> InputSpec:
        return InputSpec(kind=self.kind, shape=tuple(self.x.shape))


class Decoded(NamedTuple):
    """A record and what became of it in the codec: exactly one of `sample` and `problem` is set."""

    record: Record
    sample: Sample | None
    problem: BadRecord | None = None
