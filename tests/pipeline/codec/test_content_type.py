from __future__ import annotations

import pytest

from pipeline.codec.content_type import parse_content_type
from pipeline.sample import BadRecord, DeadLetterReason


@pytest.mark.parametrize(
    ("text", "media_type", "parameters"),
    [
        ("image/png", "image/png", {}),
        (" IMAGE/PNG ", "image/png", {}),
        ("text/plain; charset=utf-8", "text/plain", {"charset": "utf-8"}),
        ('text/plain;Charset="UTF-8";x=y', "text/plain", {"charset": "UTF-8", "x": "y"}),
        ("text/plain;", "text/plain", {}),
        ("text/plain; ; charset=ascii ;", "text/plain", {"charset": "ascii"}),
        ("text/plain; charset=a; charset=b", "text/plain", {"charset": "a"}),
        ("application/cloudevents+json", "application/cloudevents+json", {}),
    ],
)
def test_media_types(text: str, media_type: str, parameters: dict[str, str]) -> None:
    assert parse_content_type(text) == (media_type, parameters)


@pytest.mark.parametrize(
    "text", ["", "png", "image/", "image png", "a/b c", "a/b; charset", 'a/b; c="d', "a/" + "b" * 300, "a/b\0", "ä/ö"]
)
def test_what_is_no_media_type(text: str) -> None:
    with pytest.raises(BadRecord) as caught:
        parse_content_type(text)
    assert caught.value.reason == DeadLetterReason.UNKNOWN_CONTENT_TYPE
    assert len(caught.value.detail) < 200
