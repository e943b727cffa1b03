"""The learner's page: hears what the learner does, and answers `GET /` and `GET /history`.

1. The thread that learns leaves a `Standing` at each evaluation: references, and no work.
2. Whoever asks has the answer made, in a thread of the server's, when something has changed since the last one; and
   even then not again before nineteen times as long has passed as that took, so that however large the history is and
   however many look, the thread that learns has the interpreter for all but a twentieth of the time.
3. What has not changed is not sent: an ETag names it, and the page says which one it has.
"""

from __future__ import annotations

import gzip
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from consumers.http_server import HttpAnswer, HttpRequest, Route, plain
from consumers.log_gap import Gap
from consumers.observers import Observer
from consumers.page.baseline import Baseline
from consumers.page.document import live_document, security_policy
from consumers.page.event_follower import EventFollower
from consumers.page.event_log import EventLog
from consumers.page.history_json import history_json
from consumers.page.standing import Standing, standing_of
from consumers.page.told_event import event_of
from pipeline.evaluation.forgetting import EvaluationReport
from pipeline.state import Json
from pipeline.stream_learner import StepReport, StreamLearner

_WORTH_PACKING_BYTES = 1_000
_REST_FACTOR = 19  # see 2.
# For an answer that another thread is making: its baseline may be large, or lie on a disk that does not answer. The
# page gives up after 20 s, and asks again; a thread each time would use up those that /livez is answered by.
_MAKING_SECONDS = 10.0
_NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packed:
    """A body, and how it goes to those who take gzip."""

    body: bytes
    packed: bytes

    def answer(self, request: HttpRequest, content_type: str, headers: Mapping[str, str]) -> HttpAnswer:
        named = {**_NO_STORE, "Vary": "Accept-Encoding", **headers}
        if len(self.body) >= _WORTH_PACKING_BYTES and _takes_gzip(request):
            named["Content-Encoding"] = "gzip"
            return HttpAnswer(status=200, content_type=content_type, body=self.packed, headers=named)
        return HttpAnswer(status=200, content_type=content_type, body=self.body, headers=named)


class LearnerPage(Observer):
    """Its observer's methods are the learning thread's, its routes any thread's."""

    def __init__(
        self,
        *,
        stream: str,
        branch: str,
        events: EventLog,
        follower: EventFollower | None,
        baseline: Baseline | None,
        baseline_title: str,
    ) -> None:
        """`follower` fills `events` from the stream's own; None: the branch tells none, and they are what happens from
        now on. `baseline`: the learner beside which this one is shown."""
        self._stream, self._branch = stream, branch
        self._events = events
        self._follower = follower
        self._baseline = baseline
        self._baseline_title = baseline_title
        self._run = uuid.uuid4().hex[:12]  # an ETag of another run says nothing of this one
        self._standing: tuple[int, Standing | None] = (0, None)  # with a number that grows with each change
        self._document = _pack(live_document(stream=stream, branch=branch))
        self._making = threading.Lock()
        self._made: tuple[str, _Packed] | None = None  # ETag, and what it names
        self._rests_until = 0.0  # monotonic

    # -- answers ---------------------------------------------------------------------------------------------------

    @property
    def routes(self) -> Mapping[str, Mapping[str, Route]]:
        """For the learner's server."""
        return {"/": {"GET": self._page}, "/history": {"GET": self._history}}

    def _page(self, request: HttpRequest) -> HttpAnswer:
        self._look()
        policy = {"Content-Security-Policy": security_policy(is_live=True)}
        return self._document.answer(request, "text/html; charset=utf-8", policy)

    def _history(self, request: HttpRequest) -> HttpAnswer:
        self._look()
        newest = self._newest()
        if newest is None:
            return plain(503, "the history is being made: ask again", Retry_After="10")
        etag, packed = newest
        if etag in request.headers.get("If-None-Match", ""):
            return HttpAnswer(
                status=304, content_type="application/json", body=b"", headers={**_NO_STORE, "ETag": etag}
            )
        return packed.answer(request, "application/json", {"ETag": etag})

    def _look(self) -> None:
        if self._follower is not None:
            self._follower.look()

    def _newest(self) -> tuple[str, _Packed] | None:
        """One thread makes it. Those who ask meanwhile wait for that, and after a while have the one before, if any."""
        if not self._making.acquire(timeout=_MAKING_SECONDS):
            return self._made
        try:
            standing_number, standing = self._standing
            lines = self._events.lines
            baseline = None if self._baseline is None else self._baseline.look()
            number = 0 if baseline is None else baseline.number
            etag = f'"{self._run}-{standing_number}-{lines.number}-{number}"'
            began = time.monotonic()
            if self._made is not None and (self._made[0] == etag or began < self._rests_until):
                return self._made
            body = history_json(
                stream=self._stream,
                branch=self._branch,
                standing=standing,
                events=lines,
                baseline=baseline,
                baseline_title=self._baseline_title,
            )
            self._made = etag, _pack(body)
            ended = time.monotonic()
            self._rests_until = ended + _REST_FACTOR * (ended - began)
            return self._made
        finally:
            self._making.release()

    # -- Observer --------------------------------------------------------------------------------------------------

    def started(self, learner: StreamLearner, resumed: bool) -> None:
        """The history is that of the state, so it is there before the first record is."""
        self._show(standing_of(learner, learner.forgetting.newest_report()))

    def evaluated(self, learner: StreamLearner, report: EvaluationReport) -> None:
        self._show(standing_of(learner, report))

    def adopted(self, learner: StreamLearner, kind: str, expected_seconds: float | None) -> None:
        """The history is that of the adopted state, which goes back."""
        self._show(standing_of(learner, learner.forgetting.newest_report()))
        self._note("adopted", learner.records_consumed, {"job": kind})

    def refused(self, kind: str) -> None:
        self._note("offer_refused", None, {"job": kind, "why": "see the learner's log"})

    def gap_accepted(self, gap: Gap) -> None:
        self._note("accepted_gap", None, {"why": [gap.why]})

    def stepped(self, learner: StreamLearner, report: StepReport) -> None:
        """Of a branch that tells the stream nothing: what another one would have told."""
        if self._follower is not None or learner.is_relearning:
            return
        at = report.records_consumed
        for name in report.update.new_classes if report.update is not None else ():
            self._note("new_class", at, {"class": name})
        if report.drift:
            self._note("drift", at, {"detector": str(learner.settings.drift.detector)})
        if report.request is not None:
            asked = {"kind": str(report.request.kind), "reason": str(report.request.reason)}
            self._note("restructuring_requested", at, asked)

    def _show(self, standing: Standing) -> None:
        self._standing = self._standing[0] + 1, standing

    def _note(self, kind: str, at_records: int | None, data: Mapping[str, Json]) -> None:
        if self._follower is None:
            now = time.time()
            told = {**data, "records_consumed": at_records}
            self._events.add([event_of(f"{kind}/{at_records}/{now}/{data}", kind, told, time_seconds=now)])


def _pack(body: bytes) -> _Packed:
    return _Packed(body=body, packed=gzip.compress(body, compresslevel=6, mtime=0))


def _takes_gzip(request: HttpRequest) -> bool:
    """Without weighing: `gzip;q=0` is the one way to say no."""
    for entry in request.headers.get("Accept-Encoding", "").lower().split(","):
        name, _, weight = entry.partition(";")
        if name.strip() in ("gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
