"""The demo's stream in parts: a part is sent when what came before is learnt and what was asked for is answered.

In a stream that runs for months a job takes minutes of the days between two new classes. The demo's whole stream is
learnt in seconds, so that without a pause all classes would be there before the first job is done.
"""

from __future__ import annotations

import itertools
import threading

import numpy as np

from consumers.kafka_settings import KafkaSettings
from deploy.progress import stage_progress
from producers.sample_producer import produce
from producers.sample_stream import SampleStream

# The first step's classes are the base; those of so many more are what one job is about.
_STEPS_OF_A_PART = 2


class DemoStream:
    """Sends the parts, each by a thread of its own: whoever learns asks for the next one and is not kept waiting."""

    def __init__(self, stream: SampleStream, *, name: str, kafka: KafkaSettings) -> None:
        self._stream = stream
        self._name = name
        self._kafka = kafka
        self._parts = _parts(stream)
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self.labelled = 0  # delivered
        self.unlabelled = 0

    @property
    def is_sending(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def begin_next(self) -> bool:
        """False: all is sent, or no more can be; `wait` says which."""
        assert not self.is_sending, "one part after the other"
        if self._failure is not None or not self._parts:
            return False
        self._thread = threading.Thread(target=self._send, args=(self._parts.pop(0),), name="demo-stream", daemon=True)
        self._thread.start()
        return True

    def wait(self) -> None:
        """Until the part is sent. Raises what sending has raised, of this part or one before."""
        if self._thread is not None:
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _send(self, numbers: range) -> None:
        try:
            with stage_progress() as progress:
                report = produce(
                    self._stream,
                    numbers=numbers,
                    stream_name=self._name,
                    kafka=self._kafka,
                    on_progress=lambda told: progress("producing", told.delivered, told.total),
                )
            self.labelled += report.labelled
            self.unlabelled += report.unlabelled
        except Exception as error:  # raised again where somebody waits
            self._failure = error


def _parts(stream: SampleStream) -> list[range]:
    """Each ends before the first record of the step after it."""
    steps = range(1 + _STEPS_OF_A_PART, int(stream.step_N.max()) + 1, _STEPS_OF_A_PART)
    begins = [0, *(int(np.flatnonzero(stream.step_N == step)[0]) for step in steps), len(stream)]
    return [range(begin, end) for begin, end in itertools.pairwise(begins)]
