"""Record -> Sample, or the reason why it cannot be one.

Written for what other programs write, too. Header names count in any case; a header without a value counts as absent;
of a repeated one the last counts. Where a producer leaves attributes out: without `ce_id` (or with an empty one) the id
is "topic/partition/offset"; without `ce_source` the source is the topic; a `ce_time` that is not RFC 3339 and a
`ce_task` that is not UTF-8 are ignored, since nothing is learnt from them and a good sample would be lost. But a
`ce_id`, `ce_source` or `ce_subject` that is not UTF-8 is BAD_HEADER: repeats and hold-outs are told by them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pipeline.codec import payload_codecs
from pipeline.codec.cloud_event import unix_seconds
from pipeline.codec.content_type import parse_content_type
from pipeline.codec.json_payload import json_label
from pipeline.codec.payload_codec import Payload, quoted
from pipeline.codec.record_headers import last_headers
from pipeline.codec.tokenizer import check_checkpoint
from pipeline.record import Record
from pipeline.sample import BadRecord, DeadLetterReason, Decoded, InputKind, Sample
from pipeline.settings import InputSettings
from pipeline.user_error import UserError


class RecordDecoder:
    """Decodes records by `settings`; keeps no state, so that any number of threads may share it.

    `labelled=False` is for the topic of unlabelled records: no label is asked for, and none that is there is read.
    Raises `UserError` on settings that no record could meet.
    """

    def __init__(self, settings: InputSettings, *, labelled: bool = True) -> None:
        if settings.shape is not None and (not settings.shape or min(settings.shape) < 1):
            raise UserError(f"input.shape {settings.shape} must hold at least one length, each 1 or more")
        check_checkpoint(settings)
        self.settings = settings
        self.labelled = labelled
        self._codecs = payload_codecs()

    def decode(self, record: Record) -> Decoded:
        """Never raises because of what a record holds: a bad one comes back with its `problem`."""
        try:
            return Decoded(record, self._sample(record))
        except BadRecord as problem:
            # Dead letters wait in an outbox; tracebacks would keep half-decoded images and arrays alive there.
            problem.__cause__ = problem.__context__ = None
            return Decoded(record, None, problem.with_traceback(None))

    def decode_payload(self, value: bytes, content_type: str) -> tuple[npt.NDArray[np.generic], InputKind]:
        """The array of a payload without a record around it. Raises `BadRecord`."""
        payload = self._payload(value, content_type)
        return payload.x, payload.kind

    def decode_label(self, record: Record) -> tuple[str, str] | None:
        """(id, label) as `decode` would give them, of a record whose payload nobody needs: no image is unpacked.

        None where it names no label that could be learnt.
        """
        try:
            headers = last_headers(record.headers)
            label = self._header_label(headers)
            if label is None:
                media_type, _ = parse_content_type(_text(headers, "content-type") or "")
                if media_type != "application/json" or not record.value:
                    return None
                self._check_payload_length(record.value)
                label = self._payload_label(json_label(record.value, self.settings))
            return _id(record, headers), label
        except BadRecord:
            return None  # the learner writes it to the dead letters, with the reason

    def _sample(self, record: Record) -> Sample:
        """1. Is there a payload? 2. The label's header, 3. what names the record, 4. the payload, 5. a label inside it.

        Cheap checks come first; a record with several faults goes under the first one's reason.
        """
        headers = last_headers(record.headers)
        # 1.
        if not record.value:
            raise BadRecord(DeadLetterReason.NO_PAYLOAD, "no value (a tombstone)" if record.value is None else "empty")
        # 2.
        label = self._header_label(headers) if self.labelled else None
        # 3.
        id, source, subject = _id(record, headers), _text(headers, "ce_source"), _text(headers, "ce_subject")
        time = _text_or_none(headers, "ce_time")
        # 4.
        payload = self._payload(record.value, _text(headers, "content-type") or "")
        # 5.
        if self.labelled and label is None:
            label = self._payload_label(payload.label)
        return Sample(
            x=payload.x,
            kind=payload.kind,
            label=label,
            source=source or record.topic,
            id=id,
            subject=subject,
            task=_text_or_none(headers, "ce_task"),
            event_time_seconds=None if time is None else unix_seconds(time),
        )

    def _payload(self, value: bytes, content_type: str) -> Payload:
        if not value:
            raise BadRecord(DeadLetterReason.NO_PAYLOAD, "empty")
        self._check_payload_length(value)
        if not content_type:
            raise BadRecord(
                DeadLetterReason.UNKNOWN_CONTENT_TYPE, f"no content-type; known are {', '.join(sorted(self._codecs))}"
            )
        media_type, parameters = parse_content_type(content_type)
        codec = self._codecs.get(media_type)
        if codec is None:
            raise BadRecord(
                DeadLetterReason.UNKNOWN_CONTENT_TYPE,
                f"{quoted(media_type)}; known are {', '.join(sorted(self._codecs))}",
            )
        return codec.decode(value, parameters, self.settings)

    def _header_label(self, headers: Mapping[str, bytes]) -> str | None:
        """None where only the payload can still name one."""
        raw = headers.get("ce_label")
        if raw is None:
            return None
        self._check_label_length(len(raw))
        try:
            label = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRecord(
                DeadLetterReason.LABEL_NOT_UTF8, f"{quoted(raw)}: {error.reason} at byte {error.start}"
            ) from error
        if label == "":
            raise BadRecord(DeadLetterReason.EMPTY_LABEL, "ce_label is empty")
        return label

    def _payload_label(self, content: object) -> str:
        field = self.settings.json_label_field
        if content is None:
            raise BadRecord(
                DeadLetterReason.NO_LABEL, f"no ce_label header (nor, in application/json, a field {field!r})"
            )
        # An integer is a label by its digits; a bool is an int only to Python.
        if not isinstance(content, str | int) or isinstance(content, bool):
            kind = type(content).__name__
            raise BadRecord(DeadLetterReason.WRONG_TYPE, f"{kind} at json_label_field {field!r}; a string is known")
        label = str(content)
        if label == "":
            raise BadRecord(DeadLetterReason.EMPTY_LABEL, f"an empty string at json_label_field {field!r}")
        try:
            self._check_label_length(len(label.encode("utf-8")))
        except UnicodeEncodeError as error:  # JSON's \ud800 escapes bring lone surrogates
            raise BadRecord(DeadLetterReason.LABEL_NOT_UTF8, f"{quoted(label)} holds a lone surrogate") from error
        return label

    def _check_payload_length(self, value: bytes) -> None:
        if len(value) > self.settings.max_payload_bytes:
            raise BadRecord(
                DeadLetterReason.PAYLOAD_TOO_LARGE,
                f"{len(value)} bytes, where max_payload_bytes is {self.settings.max_payload_bytes}",
            )

    def _check_label_length(self, length_bytes: int) -> None:
        if length_bytes > self.settings.max_label_bytes:
            raise BadRecord(
                DeadLetterReason.LABEL_TOO_LONG,
                f"{length_bytes} bytes, where max_label_bytes is {self.settings.max_label_bytes}",
            )


def _id(record: Record, headers: Mapping[str, bytes]) -> str:
    return _text(headers, "ce_id") or f"{record.topic}/{record.partition}/{record.offset}"


def _text(headers: Mapping[str, bytes], name: str) -> str | None:
    """None where it is absent or empty; an empty attribute says nothing (and CloudEvents forbids it)."""
    raw = headers.get(name)
    if not raw:
        return None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord(DeadLetterReason.BAD_HEADER, f"header {name} is not UTF-8: {quoted(raw)}") from error


def _text_or_none(headers: Mapping[str, bytes], name: str) -> str | None:
    try:
        return _text(headers, name)
    except BadRecord:
        return None  # documented above: such a header is ignored
