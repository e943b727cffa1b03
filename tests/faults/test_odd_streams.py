"""Streams at the edges: one class only, a record now and then, images of a megabyte each."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
from PIL import Image

from pipeline.codec.cloud_event import CloudEvent
from tests.faults.fault_stream import Written, mixed, one_class
from tests.faults.harness import Trial
from tests.faults.learner_runs import LearnerRun

pytestmark = pytest.mark.kafka


def test_a_stream_of_one_class(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial()
    trial.write(one_class(2_400))  # what is learnt while the first commit is written, too
    assert trial.kill_at("commit.written", nth=2)
    assert trial.kill_at("step.done", nth=12)
    run = trial.learn_to_the_end()
    assert run.events[-1]["event"] == "stopped"
    verdict = trial.verdict()
    assert verdict.passed, verdict.why


def has_learnt(run: LearnerRun, records: int) -> bool:
    return run.records_consumed() == records


def test_a_record_now_and_then_is_learnt_at_once_and_once(make_trial: Callable[..., Trial]) -> None:
    """Each record is followed by a lull, in which the batch of one is learnt; a kill comes in every third lull."""
    trial = make_trial(idle_flush_seconds=0.05)
    records = list(mixed(12, seed=71))
    trial.write(records[:1])
    run = trial.start(until_idle_seconds=None)
    run.wait_until(partial(has_learnt, run, 1), "one record learnt")
    for number, record in enumerate(records[1:], start=1):
        if number % 3 == 0:
            run.kill()
            trial.met["kill in a lull"] += 1
            run = trial.start(until_idle_seconds=None)
        trial.write([record])
        run.wait_until(partial(has_learnt, run, number + 1), f"{number + 1} records learnt", seconds=30)
    run.send(signal.SIGTERM)
    assert run.wait() == 0, run.text
    # Flushes are told, but kills came before their commits: of another branch the batches are others.
    verdict = trial.verdict(same_fingerprint=False)
    assert verdict.passed, verdict.why


def photographs(first: int, end: int, *, side: int = 600) -> Iterator[Written]:
    """PNG and JPEG in turn, about 1 MB each: noise, which packs badly, around a bright or a dark middle."""
    for number in range(first, end):
        noise = np.random.default_rng(number)
        pixels = noise.integers(0, 256, (side, side, 3), dtype=np.uint8)
        pixels[side // 4 : -side // 4, side // 4 : -side // 4] //= 1 + number % 2
        out = io.BytesIO()
        if number % 2:
            Image.fromarray(pixels).resize((side * 5 // 4, side * 5 // 4)).save(out, "JPEG", quality=97)
        else:
            Image.fromarray(pixels).save(out, "PNG", compress_level=1)
        event = CloudEvent(
            id=f"photograph-{number}",
            source="tests",
            type="sample",
            content_type="image/jpeg" if number % 2 else "image/png",
            data=out.getvalue(),
            label=("bright", "dark")[number % 2],
        )
        yield Written(value=event.data, headers=event.headers(), id=event.id)


def test_images_of_a_megabyte_are_learnt_in_bounded_memory(make_trial: Callable[..., Trial]) -> None:
    """Three times as long a log takes no more memory: a bounded part of it is held at a time."""
    trial = make_trial(network="  network: {backbone: mlp}", input="{shape: [3, 16, 16]}", every_records=50)
    trial.write(photographs(0, 80))
    short = trial.learn(branch="short")
    log = trial.write(photographs(80, 240))
    assert log.bytes > 0.8 * 240 * 2**20
    whole = trial.learn(branch="whole")
    assert (short.records_consumed(), whole.records_consumed()) == (80, 240)
    grown_mib = (whole.peak_kib - short.peak_kib) / 1024
    assert grown_mib < 64, f"{grown_mib:.0f} MiB more for 160 images more"
    assert trial.kill_at("commit.written", nth=2)
    trial.learn_to_the_end()
    verdict = trial.verdict()
    assert verdict.passed, verdict.why
