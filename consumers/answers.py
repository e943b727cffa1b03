"""What a predictor answers to a request, as a CloudEvent in JSON: its format, written and read.

    {"label": "cat", "probability": 0.93, "top": [["cat", 0.93], ["dog", 0.05]], "model": "pets", "version": 7,
     "role": "champion", "request": {"source": "shop", "topic": "pets.requests", "partition": 0, "offset": 41}}

The answer to a payload that cannot be read has `"error": {"reason": "undecodable", "detail": "..."}` in the place of
label, probability and top. `ce_id` is the request's, by which whoever asked finds the answer to it; a request without
an id has the one that the decoder gives it where it stands (topic/partition/offset). The key is the request's too.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from consumers.dead_letter_reader import identified
from model_store.snapshot import OutboxMessage
from pipeline.classifier import Prediction
from pipeline.codec.cloud_event import rfc3339, unix_seconds
from pipeline.codec.record_headers import last_headers
from pipeline.evaluation.shadow_scores import ROLES, Role
from pipeline.record import Record
from pipeline.sample import BadRecord
from pipeline.state import Json

_TYPE = "io.palimpsest.prediction"
_ECHOED_BYTES = 16 * 1024  # of a request's key, id and source
# As `max_label_bytes` has it by default: no class that was learnt has a longer name.
MAX_LABEL_BYTES = 256
_encoder = json.JSONEncoder(ensure_ascii=False)  # json.dumps would make one anew for each answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """As read back. `label` is None where the payload could not be read."""

    request_id: str
    role: Role
    version: int
    label: str | None
    probability: float | None
    time_seconds: float  # Unix time at which it was given, by the predictor's clock


def answer_data(answer: Prediction | BadRecord, *, model: str, version: int, role: Role, top_k: int) -> dict[str, Json]:
    """What is answered, without whom."""
    data: dict[str, Json]
    if isinstance(answer, BadRecord):
        data = {"error": {"reason": str(answer.reason), "detail": answer.detail}}
    else:
        ranked = heapq.nsmallest(top_k, answer.probabilities.items(), key=lambda entry: (-entry[1], entry[0]))
        top: list[Json] = [[name, probability] for name, probability in ranked]
        data = {"label": answer.label, "probability": answer.probability, "top": top}
    return {**data, "model": model, "version": version, "role": role}


def answer_message(request: Record, data: Mapping[str, Json], *, topic: str, stream: str, now: float) -> OutboxMessage:
    """The record that answers this one; `now`: Unix time in seconds.

    It is never much larger than a label: a key or an id of kilobytes, which anybody may write, is not sent back (the
    answer's id is then the request's place in the log), since an answer that the brokers refuse would end every
    predictor in turn.
    """
    last = {name.lower(): value for name, value in identified(request) if value is not None}
    if len(last["ce_id"]) > _ECHOED_BYTES:
        last["ce_id"] = f"{request.topic}/{request.partition}/{request.offset}".encode()
    key = request.key if request.key is None or len(request.key) <= _ECHOED_BYTES else None
    asked: dict[str, Json] = {
        "source": last["ce_source"][:_ECHOED_BYTES].decode(errors="replace"),
        "topic": request.topic,
        "partition": request.partition,
        "offset": request.offset,
    }
    headers = (
        ("ce_specversion", b"1.0"),
        ("ce_id", last["ce_id"]),  # its very bytes, be they UTF-8 or not: whoever asked looks for them
        ("ce_source", f"palimpsest/{stream}/{data['role']}".encode()),
        ("ce_type", _TYPE.encode()),
        ("ce_time", _time(now)),
        ("content-type", b"application/json"),
    )
    value = _encoder.encode({**data, "request": asked}).encode("utf-8", "replace")
    return OutboxMessage(topic=topic, key=key, value=value, headers=headers)


@lru_cache(maxsize=4)
def _time(now: float) -> bytes:
    """All answers of a batch have the same."""
    return rfc3339(now).encode()


def parse_answer(record: Record) -> Answer | None:
    """None for what is no answer of ours: anybody may write to the topic.

    Nor is one whose id is not UTF-8: no label can name it, since the decoder takes none with such an id. A label that
    is longer than one can be is none of ours either: whoever counts answers by their number must know what they take.
    """
    headers = _texts(record.headers)
    if headers.get("ce_type") != _TYPE or not headers.get("ce_id") or record.value is None:
        return None
    try:
        data = json.loads(record.value)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    role, version, label, probability = (data.get(name) for name in ("role", "version", "label", "probability"))
    if role not in ROLES or type(version) is not int:
        return None
    said = isinstance(label, str) and type(probability) in (int, float) and 0 <= cast(float, probability) <= 1
    if not said and "error" not in data:
        return None
    # one that JSON's escapes made of half a surrogate pair is as long as it would be whole
    if said and len(cast(str, label).encode("utf-8", "surrogatepass")) > MAX_LABEL_BYTES:
        return None
    told = unix_seconds(headers.get("ce_time", ""))
    return Answer(
        request_id=headers["ce_id"],
        role=cast(Role, role),
        version=version,
        label=cast(str, label) if said else None,
        probability=float(cast(float, probability)) if said else None,
        time_seconds=record.timestamp_ms / 1000 if told is None else told,
    )


def _texts(headers: Sequence[tuple[str, bytes | None]]) -> dict[str, str]:
    """Those that are UTF-8; of repeated ones the last."""
    found: dict[str, str] = {}
    for name, value in last_headers(headers).items():
        with suppress(UnicodeDecodeError):
            found[name] = value.decode()
    return found
