"""Small learners in memory, learnt once, for tests that only look at what is left of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consumers.observers import Observer
from tests.consumers.digit_records import digit_stream
from tests.consumers.learner_world import World, learner_settings

RECORDS_PER_STEP = 90


def learnt(folder: Path, *, observer: Observer | None = None, **settings: Mapping[str, Any]) -> World:
    """Three steps of two digits; an evaluation every 90 records."""
    world = World(folder, settings=learner_settings(**settings))
    world.write(digit_stream(RECORDS_PER_STEP))
    world.learn(observer=observer)
    return world
