from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codec.text import TextCodec, encode_text
from pipeline.codec.tokenizer import tokenize
from pipeline.sample import BadRecord, DeadLetterReason
from pipeline.settings import InputSettings
from pipeline.user_error import UserError

PROPERTY = settings(max_examples=150)


def decode(value: bytes, inputs: InputSettings | None = None, **parameters: str) -> npt.NDArray[np.generic]:
    payload = TextCodec().decode(value, parameters, inputs or InputSettings())
    assert payload.kind == "text"
    assert payload.x.dtype == np.int32
    return payload.x


def reason(value: bytes, inputs: InputSettings | None = None, **parameters: str) -> DeadLetterReason:
    with pytest.raises(BadRecord) as caught:
        decode(value, inputs, **parameters)
    return caught.value.reason


def test_ids_worked_out_by_hand() -> None:
    # 1 + code point mod 8191: 0x4E2D = 20013 = 2 * 8191 + 3631; 0x1F600 = 128512 = 15 * 8191 + 5647
    assert decode("aé中😀".encode(), InputSettings(max_tokens=6)).tolist() == [98, 234, 3632, 5648, 0, 0]


def test_long_texts_are_cut() -> None:
    assert decode(b"abcdef", InputSettings(max_tokens=3)).tolist() == [98, 99, 100]


@PROPERTY
@given(text=st.text(min_size=1, max_size=80), vocabulary_size=st.integers(256, 70_000), max_tokens=st.integers(1, 60))
def test_every_text_has_ids_in_range(text: str, vocabulary_size: int, max_tokens: int) -> None:
    ids = decode(encode_text(text), InputSettings(vocabulary_size=vocabulary_size, max_tokens=max_tokens))
    length = min(len(text), max_tokens)
    assert ids.shape == (max_tokens,)
    assert ids[length:].tolist() == [0] * (max_tokens - length)
    assert ids[:length].tolist() == [1 + ord(character) % (vocabulary_size - 1) for character in text[:length]]


@PROPERTY
@given(st.text(alphabet=st.characters(max_codepoint=8190), min_size=1, max_size=48))
def test_text_round_trip_where_nothing_collides(text: str) -> None:
    ids = decode(encode_text(text)).tolist()
    assert "".join(chr(id_ - 1) for id_ in ids if id_) == text


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", "utf8", "us-ascii"])
def test_charsets_that_are_utf_8(charset: str) -> None:
    assert decode(b"a", charset=charset)[0] == 98


def test_other_charsets_are_refused() -> None:
    assert reason("ä".encode("latin-1"), charset="iso-8859-1") == DeadLetterReason.UNKNOWN_CONTENT_TYPE


@pytest.mark.parametrize("value", [b"\xff", b"abc\xc3", b"\xed\xa0\x80", "ä".encode("utf-16")])
def test_text_that_is_not_utf_8(value: bytes) -> None:
    assert reason(value) == DeadLetterReason.TEXT_NOT_UTF8


@pytest.mark.parametrize("text", ["", "\ud800"])
def test_texts_that_are_not_encoded(text: str) -> None:
    with pytest.raises(UserError, match="a text payload must"):
        encode_text(text)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wordpiece(
        tmp_path_factory.mktemp("checkpoint"), ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello", "world", "##s"]
    )


def wordpiece(folder: Path, vocabulary: list[str]) -> Path:
    """A BERT-like tokenizer with the ids of `vocabulary`'s order."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    ids = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder


def test_a_checkpoint_brings_its_own_tokenizer(checkpoint: Path) -> None:
    inputs = InputSettings(checkpoint=str(checkpoint), max_tokens=8)
    assert decode(b"hello worlds!", inputs).tolist() == [2, 4, 5, 6, 1, 3, 0, 0]
    # cut so that the closing token stays
    assert tokenize("hello " * 100_000, inputs.model_copy(update={"max_tokens": 4})).tolist() == [2, 4, 4, 3]


def test_a_checkpoint_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"input.checkpoint 'bert-base-uncased' is not a folder"):
        tokenize("a", InputSettings(checkpoint="bert-base-uncased"))
    with pytest.raises(UserError, match="holds no tokenizer"):
        tokenize("a", InputSettings(checkpoint=str(tmp_path)))


def test_a_checkpoint_that_runs_code_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}, "tokenizer_class": "Evil"}'
    )
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match="holds no tokenizer"):
        tokenize("a", InputSettings(checkpoint=str(tmp_path)))


def test_a_checkpoint_that_pads_otherwise(tmp_path: Path) -> None:
    folder = wordpiece(tmp_path, ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "hello"])
    with pytest.raises(UserError, match="pads with id 1"):
        tokenize("a", InputSettings(checkpoint=str(folder)))


def test_a_length_without_room_for_tokens(checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"max_tokens 2 leaves no room beside 2 special"):
        tokenize("a", InputSettings(checkpoint=str(checkpoint), max_tokens=2))
