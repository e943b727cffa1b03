"""POST /predict: one payload with its content type, one answer in JSON, by the version that answers requests too.

    curl --data-binary @cat.jpeg -H 'Content-Type: image/jpeg' http://127.0.0.1:9096/predict
    {"label": "cat", "probability": 0.93, "top": [["cat", 0.93], ["dog", 0.05]], "model": "pets", "version": 7, ...}

What cannot be answered says why in JSON as well: 400, 411, 413, 415 or 422 for the payload, 405 for another method, 503
where there is no version yet, or too many ask at once: their payloads are not read.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping

from consumers.answers import answer_data
from consumers.http_server import Admission, HttpAnswer, HttpRequest, Refusal, Route
from consumers.model_slot import ModelSlot
from pipeline.evaluation.shadow_scores import Role
from pipeline.sample import BadRecord, DeadLetterReason
from pipeline.state import Json

_STATUSES: Mapping[DeadLetterReason, int] = {
    DeadLetterReason.NO_PAYLOAD: 400,
    DeadLetterReason.PAYLOAD_TOO_LARGE: 413,
    DeadLetterReason.IMAGE_TOO_LARGE: 413,
    DeadLetterReason.UNKNOWN_CONTENT_TYPE: 415,
}
_UNPROCESSABLE = 422


class PredictRoute:
    """One route of an HTTP server; any number of threads."""

    def __init__(
        self,
        slot: ModelSlot,
        *,
        stream: str,
        role: Role,
        top_k: int,
        most_at_once: int,
        most_body_bytes: int,
        answered: Callable[[int], None],
    ) -> None:
        """`answered(status)` hears of each."""
        self._slot = slot
        self._stream, self._role, self._top_k = stream, role, top_k
        self._places = threading.BoundedSemaphore(most_at_once)
        self._most_body_bytes = most_body_bytes
        self._answered = answered

    @property
    def routes(self) -> Mapping[str, Mapping[str, Route]]:
        return {"/predict": {"POST": self.predict}, "/model": {"GET": self.model}}

    @property
    def admissions(self) -> Mapping[str, Admission]:
        """What stands before the routes: payloads take memory, so no more are read than are answered at once."""
        return {
            "/predict": Admission(
                most_body_bytes=self._most_body_bytes,
                enter=self._enter,
                leave=self._places.release,
                refused=_refused,
                answered=self._answered,
            )
        }

    def predict(self, request: HttpRequest) -> HttpAnswer:
        """One payload."""
        model = self._slot.model
        if model is None:
            return self._no_version()
        (answer,) = model.classifier.predict([(request.body, request.headers.get("Content-Type", ""))])
        data = answer_data(answer, model=self._stream, version=model.version, role=self._role, top_k=self._top_k)
        if isinstance(answer, BadRecord):
            return _json(_STATUSES.get(answer.reason, _UNPROCESSABLE), data)
        return _json(200, data)

    def model(self, _: HttpRequest) -> HttpAnswer:
        """Which version answers now."""
        model = self._slot.model
        if model is None:
            return self._no_version()
        return _json(
            200,
            {
                "model": self._stream,
                "version": model.version,
                "role": self._role,
                "run_id": model.run_id,
                "classes": list(model.classifier.class_names),
            },
        )

    def _enter(self) -> HttpAnswer | None:
        if self._slot.model is None:
            return self._no_version()
        if not self._places.acquire(blocking=False):
            return _json(503, _error("busy", "too many requests at once"), {"Retry-After": "1"})
        return None

    def _no_version(self) -> HttpAnswer:
        detail = f"model {self._stream!r} has no {self._role} here yet"
        return _json(503, _error("no_version", detail), {"Retry-After": "5"})


def _refused(refusal: Refusal) -> HttpAnswer:
    return _json(refusal.status, _error(refusal.reason, refusal.detail), refusal.headers)


def _error(reason: str, detail: str) -> dict[str, Json]:
    return {"error": {"reason": reason, "detail": detail}}


def _json(status: int, data: Mapping[str, Json], headers: Mapping[str, str] | None = None) -> HttpAnswer:
    body = json.dumps(data, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    return HttpAnswer(status=status, content_type="application/json", body=body, headers=headers or {})
