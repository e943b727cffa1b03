"""Objects that live as long as the process are no work for Python's garbage collector while records come."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def settled() -> Iterator[None]:
    """What is alive now is left alone by the collector until the end.

    Mostly these are half a million objects of imported modules, which it would walk again and again for the sake of a
    few thousand records: a tenth of what reading a record costs. Garbage is collected first, or it would stay as well.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
