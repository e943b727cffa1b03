"""A message that waits to be told."""

from __future__ import annotations

from model_store.snapshot import OutboxMessage
from pipeline.record import Record


def test_its_size_is_that_of_the_record_it_will_be() -> None:
    headers = (("name", b"12345"), ("null", None), ("\u00e9", b""))
    message = OutboxMessage("t", b"key", b"value", headers)
    assert message.size_bytes == Record("t", 0, 0, message.value, message.key, headers).size_bytes == 8 + 15
