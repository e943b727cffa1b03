from __future__ import annotations

import random
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.keyed_randomness import KeyedGenerator, generator, torch_generator, torch_seed

PROPERTY = settings(max_examples=100)

MASK = 2**64 - 1


def philox_4x64_10(counter: list[int], key: list[int]) -> list[int]:
    """One block after Salmon et al. 2011, written from the paper."""
    for _ in range(10):
        low, high = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [(high >> 64) ^ counter[1] ^ key[0], high & MASK, (low >> 64) ^ counter[3] ^ key[1], low & MASK]
        key = [(key[0] + 0x9E3779B97F4A7C15) & MASK, (key[1] + 0xBB67AE8584CAA73B) & MASK]
    return counter


@PROPERTY
@given(seed=st.integers(0, 2**32 - 1), purpose=st.text(max_size=20), number=st.integers(0, 2**63))
def test_the_stream_is_philox_under_the_key_of_seed_purpose_and_number(seed: int, purpose: str, number: int) -> None:
    key = [seed << 32 | zlib.crc32(purpose.encode()), number]
    expected = [*philox_4x64_10([1, 0, 0, 0], key), *philox_4x64_10([2, 0, 0, 0], key)]
    raw = generator(seed, purpose, number).bit_generator.random_raw(8)
    assert [int(word) for word in raw] == expected


def test_the_same_key_gives_the_same_draws_and_any_other_gives_others() -> None:
    keys = [(0, "augment", 0), (1, "augment", 0), (0, "replay/der_pp/0", 0), (0, "augment", 1), (0, "", 0)]
    draws = [generator(*key).integers(0, 2**62, size=4).tolist() for key in keys]
    assert draws == [generator(*key).integers(0, 2**62, size=4).tolist() for key in keys]
    assert len({tuple(draw) for draw in draws}) == len(keys)
    seeds = [torch_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_torch_draws_follow_the_key() -> None:
    first, second = (torch.rand(5, generator=torch_generator(3, "weights", 1)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.rand(5, generator=torch_generator(3, "weights", 2)))


def test_no_global_state_is_touched() -> None:
    states = (random.getstate(), np.random.get_state()[1].tobytes(), torch.random.get_rng_state())  # type: ignore[index]
    generator(1, "a").random()
    torch.rand(3, generator=torch_generator(1, "a"))
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tobytes() == states[1]  # type: ignore[index]
    assert torch.equal(torch.random.get_rng_state(), states[2])


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="key"):
        generator(0, "a", -1)


def test_one_that_is_keyed_anew_gives_the_same_draws() -> None:
    for seed in (0, 7, 2**32 - 1):
        keyed = KeyedGenerator(seed)
        for number in (0, 5, 2**63):
            for purpose in ("replay/der_pp/0", "replay/der_pp/1"):
                ours, anew = keyed(purpose, number), generator(seed, purpose, number)
                # 32-bit draws and halves of words that are left over must not reach the next key
                assert ours.random(3, dtype=np.float32).tolist() == anew.random(3, dtype=np.float32).tolist()
                assert ours.choice(200, 33, replace=False).tolist() == anew.choice(200, 33, replace=False).tolist()
                ours.integers(0, 2**31, dtype=np.int32)
