"""Text -> token ids: int32 of shape (max_tokens,), cut or padded with 0.

Without a checkpoint every character is a token, with the id

    1 + code point mod (vocabulary_size - 1)

after CANINE (Clark et al. 2022, "CANINE: Pre-training an Efficient Tokenization-Free Encoder for Language
Representation", TACL), which hashes a code point x to ((x + 1) * p) mod buckets for several primes p. Where we differ:
one hash with p = 1, moved up since 0 is the padding. Code points below vocabulary_size - 1 never collide (with 8192:
all of Latin, Greek, Cyrillic, Arabic and the scripts of India); nothing is learnt or stored, no script is unknown.

With a checkpoint, its own transformers tokenizer, from the local folder and nowhere else.

Legend: T = max_tokens
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.settings import InputSettings
from pipeline.user_error import UserError

# A checkpoint's tokenizer reads no more characters than this a token, so that 4 MiB of text do not take seconds.
CHARACTERS_PER_TOKEN = 64

_LOCK = Lock()  # the Rust tokenizers refuse to be used by two threads while truncation is being set


def tokenize(text: str, settings: InputSettings) -> npt.NDArray[np.int32]:
    """Ids of shape (T,). `text` must be encodable as UTF-8 (no lone surrogates).

    Raises `UserError` where the checkpoint's folder holds no tokenizer that can be used.
    """
    ids_T = np.zeros(settings.max_tokens, dtype=np.int32)
    if settings.checkpoint is None:
        code_points = np.frombuffer(text[: settings.max_tokens].encode("utf-32-le"), dtype="<u4")
        ids_T[: len(code_points)] = code_points % (settings.vocabulary_size - 1) + 1
        return ids_T
    tokenizer = checkpoint_tokenizer(settings.checkpoint, settings.max_tokens)
    with _LOCK:
        ids = tokenizer(
            text[: settings.max_tokens * CHARACTERS_PER_TOKEN], truncation=True, max_length=settings.max_tokens
        )["input_ids"]
    ids_T[: len(ids)] = ids
    return ids_T


def check_checkpoint(settings: InputSettings) -> None:
    """Raise `UserError` where `checkpoint` is not a folder. The tokenizer itself is loaded with the first text."""
    # Checked before transformers sees it, to which a name that is no folder is one to be looked up on a hub.
    if settings.checkpoint is not None and not Path(settings.checkpoint).is_dir():
        raise UserError(
            f"input.checkpoint {settings.checkpoint!r} is not a folder; name one that holds a transformers tokenizer"
        )


@lru_cache(maxsize=4)
def checkpoint_tokenizer(checkpoint: str, max_tokens: int) -> Any:
    """The folder's tokenizer, checked against our padding and length."""
    check_checkpoint(InputSettings(checkpoint=checkpoint))
    from transformers import AutoTokenizer  # takes seconds, and only texts need it

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a folder's files can be wrong in any way, and transformers raises as many types
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"input.checkpoint {checkpoint!r} holds no tokenizer that transformers can load; "
            f"put its files there ({type(error).__name__}: {reason})"
        ) from error
    if tokenizer.pad_token_id != 0:
        raise UserError(
            f"the tokenizer of input.checkpoint {checkpoint!r} pads with id {tokenizer.pad_token_id}; "
            "only those that pad with 0 can be used (BERT, ALBERT, DistilBERT, ELECTRA, T5)"
        )
    special = tokenizer.num_special_tokens_to_add()
    if special >= max_tokens:
        raise UserError(
            f"input.max_tokens {max_tokens} leaves no room beside {special} special tokens of {checkpoint!r}; raise it"
        )
    return tokenizer
