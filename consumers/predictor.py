"""The predictor: requests in, answers out, each exactly once, by the version that is served at that moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from consumers.adaptive_batch import AdaptiveBatch
from consumers.answers import answer_data, answer_message
from consumers.model_slot import ModelSlot, ServingModel
from consumers.predictor_settings import PredictorSettings
from consumers.request_log import RequestLog
from pipeline.classifier import Prediction
from pipeline.codec.record_headers import last_headers
from pipeline.evaluation.shadow_scores import Role
from pipeline.record import Record
from pipeline.sample import BadRecord
from pipeline.state import Json

# While there is no version to serve, a stop is looked for this often.
_WAIT_SECONDS = 0.25
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one batch was."""

    requests: Sequence[Record]
    unreadable: int
    version: int
    predict_seconds: float
    transaction_seconds: float
    answered_at: float  # Unix time, when the transaction was committed


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictReport:
    """What one run did."""

    answered: int
    unreadable: int
    stopped_by: str  # "signal", "idle"


class PredictorObserver:
    """Hears what the loop does; every method may be left as it is."""

    def turned(self, log: RequestLog) -> None:
        """The loop turns."""

    def answered(self, turn: Turn) -> None:
        """A batch was answered, durably."""

    def given_up(self, requests: int) -> None:
        """A batch was not: whoever has its partitions now is given it again."""


class Predictor:
    """The loop. One thread runs it."""

    def __init__(
        self,
        log: RequestLog,
        slot: ModelSlot,
        settings: PredictorSettings,
        *,
        stream: str,
        role: Role,
        output: str,
        observers: Sequence[PredictorObserver] = (),
    ) -> None:
        self._log, self._slot, self._settings = log, slot, settings
        self._stream, self._role, self._output = stream, role, output
        self._observers = tuple(observers)
        self._batch = AdaptiveBatch(bound_seconds=settings.latency_seconds, most=settings.most_requests)
        self._is_behind = False

    def run(self, stop: threading.Event, until_idle_seconds: float | None = None) -> PredictReport:
        """Until `stop` is set, between two batches, or all was answered and no request came for so long. Raises as the
        log's methods.

        1. Wait for a version to serve; nothing is polled before.
        2. Poll what there is, as much as can be answered in time.
        3. The network, of one version for the whole batch.
        4. Answers and offsets, in one transaction.
        """
        answered = unreadable = 0
        busy_at = time.monotonic()
        while not stop.is_set():
            for observer in self._observers:
                observer.turned(self._log)
            # 1.
            model = self._slot.wait(_WAIT_SECONDS)
            if model is None:
                busy_at = time.monotonic()
                continue
            # 2.
            requests = self._log.poll(self._most(), _POLL_SECONDS)
            if not requests:
                if until_idle_seconds is None:
                    continue
                if not self._log.is_at_end():  # to join a group takes its time, and says nothing of requests
                    busy_at = time.monotonic()
                elif time.monotonic() - busy_at >= until_idle_seconds:
                    return PredictReport(answered=answered, unreadable=unreadable, stopped_by="idle")
                continue
            since = time.time() - self._settings.latency_seconds
            self._is_behind = any(0 < request.timestamp_ms < 1000 * since for request in requests)
            turn = self._answer(requests, self._slot.model or model)
            if turn is not None:
                answered += len(turn.requests)
                unreadable += turn.unreadable
            busy_at = time.monotonic()
        return PredictReport(answered=answered, unreadable=unreadable, stopped_by="signal")

    def _most(self) -> int:
        """Of the next turn. A request that has waited for longer than the bound already is answered soonest by turns
        that are as large as they may be."""
        return self._settings.most_requests if self._is_behind else self._batch.limit

    def _answer(self, requests: Sequence[Record], model: ServingModel) -> Turn | None:
        """None: not answered."""
        began = time.monotonic()
        # 3.
        answers = model.classifier.predict([(request.value or b"", content_type(request)) for request in requests])
        predicted = time.monotonic()
        now = time.time()
        messages = [
            answer_message(request, self._data(answer, model), topic=self._output, stream=self._stream, now=now)
            for request, answer in zip(requests, answers, strict=True)
        ]
        # 4.
        done = self._log.answer(messages)
        ended = time.monotonic()
        if not done:
            for observer in self._observers:
                observer.given_up(len(requests))
            return None
        self._batch.took(len(requests), ended - began)
        turn = Turn(
            requests=requests,
            unreadable=sum(isinstance(answer, BadRecord) for answer in answers),
            version=model.version,
            predict_seconds=predicted - began,
            transaction_seconds=ended - predicted,
            answered_at=time.time(),
        )
        for observer in self._observers:
            observer.answered(turn)
        return turn

    def _data(self, answer: Prediction | BadRecord, model: ServingModel) -> dict[str, Json]:
        return answer_data(
            answer, model=self._stream, version=model.version, role=self._role, top_k=self._settings.top_k
        )


def content_type(request: Record) -> str:
    """As the decoder reads headers; what is not UTF-8 names nothing."""
    return last_headers(request.headers).get("content-type", b"").decode(errors="replace")
