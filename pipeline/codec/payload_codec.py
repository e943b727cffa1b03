"""The contract of a payload codec: the bytes of one content type -> the array a network learns from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.sample import InputKind
from pipeline.settings import InputSettings

# More axes than any network here takes, and far below the 64 where numpy (and stacking into a batch) gives up.
MAX_DIMENSIONS = 8


class Payload(NamedTuple):
    """What a payload held. `x` is C-contiguous, writable and in the dtype that `InputSpec` gives for `kind`."""

    x: npt.NDArray[np.generic]
    kind: InputKind
    label: object = None  # what a payload that can name its label (JSON) names as one, of any type, unchecked


class PayloadCodec(ABC):
    """One content type (and its aliases). A subclass in any file of `pipeline/codec/` is found by itself.

    A codec keeps no state: the same bytes and settings give the same array, in any thread.
    """

    content_types: ClassVar[tuple[str, ...]]  # lower case, without parameters

    @abstractmethod
    def decode(self, value: bytes, parameters: Mapping[str, str], settings: InputSettings) -> Payload:
        """`value` is neither empty nor above `settings.max_payload_bytes`; `parameters` are the content type's, with
        names in lower case (`charset`).

        Raises `BadRecord` on every payload that cannot be used, and nothing else, whatever the bytes are.
        """


def quoted(value: object, limit: int = 80) -> str:
    """`repr`, cut: what came in a record goes into messages and headers, so it must be short and on one line."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
