"""Answers and the true labels that come later, joined by the request's id: each answer is scored as it was given.

An answer and a label belong together where their ids are equal and their times lie at most `horizon_seconds` apart. So
it does not matter which of them is told first, as long as memory holds the one until the other comes:

- at most `most_open` ids with answers, and as many with nothing but a label, are kept; the oldest go first;
- whoever tells says how far the logs are read (`advance`); what is older than that by the horizon waits no longer.

Most labels are of samples that nobody ever asked about, and they leave without a word. A label that comes after its
answers have waited in vain is late: it is counted and scores nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pipeline.evaluation.shadow_scores import ROLES, Role, ShadowScores

Waiting = Literal["answers", "labels"]


class _Answer(NamedTuple):
    version: int
    label: str | None  # None: the payload could not be read
    time_seconds: float


class _Label(NamedTuple):
    label: str
    time_seconds: float


@dataclass(slots=True)
class _Request:
    """An id that was answered. It stays when all is known, so that what is told again is known as such."""

    answers: dict[Role, _Answer] = field(default_factory=dict)
    label: _Label | None = None
    is_late: bool = False

    @property
    def time_seconds(self) -> float:
        return max(answer.time_seconds for answer in self.answers.values())


class DelayedLabels:
    """Told of answers and of true labels in any order; keeps the scores. Not thread-safe: one thread at a time."""

    def __init__(self, *, horizon_seconds: float, most_open: int, window: int) -> None:
        """`window`: how many of the newest answers the recent figures are over."""
        self._horizon_seconds = horizon_seconds
        self._most_open = most_open
        self.scores = ShadowScores(window)
        self.late = 0  # labels
        self.dropped: dict[Waiting, int] = {"answers": 0, "labels": 0}  # given up for want of memory while they waited
        self._read_to_seconds = -math.inf
        # All three by digest and in the order of their coming, so that the oldest is the first.
        self._requests: dict[bytes, _Request] = {}
        self._labels: dict[bytes, _Label] = {}  # of ids without an answer so far
        self._expired: dict[bytes, None] = {}  # answered, and no label came in time

    def answered(self, request_id: str, role: Role, version: int, label: str | None, time_seconds: float) -> None:
        """A version's answer in a role; `label` is None where it could not read the payload.

        1. The first answer of a role to a request stands: it is the one that was given at the time.
        2. It is counted by itself, and with the answer of the other role,
        3. and scored where the label is known already.
        4. The oldest request goes where there are too many.
        """
        key = _digest(request_id)
        request = self._requests.get(key)
        # 1.
        if request is None:
            request = self._requests[key] = _Request(label=self._labels.pop(key, None))
            self._expired.pop(key, None)
        elif role in request.answers:
            return
        # 2.
        request.answers[role] = _Answer(version, label, time_seconds)
        self.scores.add_answer(role, version, readable=label is not None, time_seconds=time_seconds)
        if len(request.answers) == len(ROLES):
            self._pair(request)
        # 3.
        if request.label is not None:
            self._score(request, [role])
        # 4.
        if len(self._requests) > self._most_open:
            self._drop_request()

    def labelled(self, request_id: str, label: str, time_seconds: float) -> None:
        """The true label of what may have been a request. The first one stands."""
        key = _digest(request_id)
        request = self._requests.get(key)
        if request is not None:
            if request.label is None:
                request.label = _Label(label, time_seconds)
                self._score(request, list(request.answers))
        elif key in self._expired:
            del self._expired[key]
            self.late += 1
        elif key not in self._labels:
            self._labels[key] = _Label(label, time_seconds)
            if len(self._labels) > self._most_open:
                del self._labels[next(iter(self._labels))]
                self.dropped["labels"] += 1

    def advance(self, read_to_seconds: float) -> None:
        """Nothing older than this is to be expected any more: what has waited for the horizon by then goes."""
        self._read_to_seconds = max(self._read_to_seconds, read_to_seconds)
        oldest_seconds = self._read_to_seconds - self._horizon_seconds
        while self._requests:
            key, request = next(iter(self._requests.items()))
            if request.time_seconds >= oldest_seconds:
                break
            del self._requests[key]
            if request.label is None:
                self._expired[key] = None
        while len(self._expired) > self._most_open:
            del self._expired[next(iter(self._expired))]
        while self._labels:
            key, waiting = next(iter(self._labels.items()))
            if waiting.time_seconds >= oldest_seconds:
                break
            del self._labels[key]

    def current(self, role: Role) -> int | None:
        """The version that answered last in this role; None where none did within the horizon."""
        newest = self.scores.newest(role)
        if newest is None or newest[0] < self._read_to_seconds - self._horizon_seconds:
            return None
        return newest[1]

    @property
    def open_ids(self) -> dict[Waiting, int]:
        """How many are kept: ids with answers, and ids with nothing but a label."""
        return {"answers": len(self._requests), "labels": len(self._labels)}

    @property
    def remembered_expired(self) -> int:
        """Ids whose label would be counted as late."""
        return len(self._expired)

    def _drop_request(self) -> None:
        request = self._requests.pop(next(iter(self._requests)))
        if request.label is None:
            self.dropped["answers"] += len(request.answers)

    def _pair(self, request: _Request) -> None:
        champion, challenger = request.answers["champion"], request.answers["challenger"]
        if champion.label is not None or challenger.label is not None:
            self.scores.add_pair(champion.version, challenger.version, agreed=champion.label == challenger.label)

    def _score(self, request: _Request, roles: Sequence[Role]) -> None:
        """Score the answers of `roles`, each of which has only now met the request's label."""
        truth = request.label
        assert truth is not None, "scored once the label is there"
        for role in roles:
            answer = request.answers[role]
            if self._is_in_time(answer, truth):
                self.scores.add_label(role, answer.version, truth.label, right=answer.label == truth.label)
            elif truth.time_seconds > answer.time_seconds and not request.is_late:
                request.is_late = True
                self.late += 1
        if len(request.answers) < len(ROLES):
            return
        champion, challenger = request.answers["champion"], request.answers["challenger"]
        was_read = champion.label is not None or challenger.label is not None
        if was_read and self._is_in_time(champion, truth) and self._is_in_time(challenger, truth):
            self.scores.add_pair_label(
                champion.version,
                challenger.version,
                truth.label,
                champion_right=champion.label == truth.label,
                challenger_right=challenger.label == truth.label,
            )

    def _is_in_time(self, answer: _Answer, truth: _Label) -> bool:
        return abs(truth.time_seconds - answer.time_seconds) <= self._horizon_seconds


def _digest(request_id: str) -> bytes:
    """Of an id, which may be of any length, in a fixed one."""
    return hashlib.blake2b(request_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
