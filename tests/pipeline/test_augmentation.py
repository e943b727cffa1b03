from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import keyed_randomness
from pipeline.augmentation import Augmentation
from pipeline.sample import InputSpec
from pipeline.settings import AugmentationSettings

SPEC = InputSpec(kind="image", shape=(2, 3, 4))


def changed(augmentation: Augmentation, x: torch.Tensor, number: int, incoming: int = 0) -> torch.Tensor:
    """As an update does it."""
    draws = augmentation.draw(len(x), number)
    if draws is None:
        return x
    indices, theta = (None if a is None else torch.from_numpy(a) for a in (draws.indices, draws.theta_B23))
    return augmentation.apply(x, indices, theta, incoming)


def images(rows: int) -> torch.Tensor:
    """uint8 images without a zero in them, all pixels of one image different."""
    return (torch.arange(rows * 24) % 24 + 1).reshape(rows, 2, 3, 4).to(torch.uint8)


def variants(image: torch.Tensor, padding: int, flips: bool) -> dict[bytes, tuple[int, int, bool]]:
    """By loops and numpy alone: what an image may become."""
    padded = np.pad(image.numpy(), ((0, 0), (padding, padding), (padding, padding)))
    found = {}
    for down in range(2 * padding + 1):
        for right in range(2 * padding + 1):
            crop = padded[:, down : down + 3, right : right + 4]
            for flip in (False, True) if flips else (False,):
                found[(crop[:, :, ::-1] if flip else crop).tobytes()] = (down, right, flip)
    return found


@pytest.mark.parametrize(("padding", "flips"), [(1, True), (2, False), (0, True)])
def test_every_row_becomes_one_of_its_variants_and_all_of_them_occur(padding: int, flips: bool) -> None:
    augmentation = Augmentation(AugmentationSettings(crop_padding=padding, horizontal_flip=flips), SPEC, seed=1)
    x = images(400)
    out = changed(augmentation, x, 7)
    assert out.dtype == torch.uint8
    assert out.shape == x.shape
    expected = variants(x[0], padding, flips)
    seen = {expected[row.numpy().tobytes()] for row in out}
    assert seen == set(expected.values())


def test_an_update_has_its_own_draws_and_always_the_same() -> None:
    augmentation = Augmentation(AugmentationSettings(crop_padding=2, horizontal_flip=True), SPEC, seed=1)
    x = images(50)
    assert torch.equal(changed(augmentation, x, 7), changed(augmentation, x, 7))
    assert not torch.equal(changed(augmentation, x, 7), changed(augmentation, x, 8))
    # row b does not depend on how many rows follow it
    assert torch.equal(changed(augmentation, x, 7)[:20], changed(augmentation, x[:20], 7))


def test_floats_move_as_bytes_do() -> None:
    augmentation = Augmentation(AugmentationSettings(crop_padding=1, horizontal_flip=True), SPEC, seed=1)
    x = images(30)
    assert torch.equal(changed(augmentation, x.float(), 3), changed(augmentation, x, 3).float())


@pytest.mark.parametrize(
    ("settings", "spec"),
    [
        (AugmentationSettings(), SPEC),
        (AugmentationSettings(crop_padding=2, horizontal_flip=True), InputSpec(kind="vector", shape=(2, 3, 4))),
        (AugmentationSettings(crop_padding=2, horizontal_flip=True), InputSpec(kind="text", shape=(24,))),
    ],
)
def test_what_is_no_image_passes_as_it_is(settings: AugmentationSettings, spec: InputSpec) -> None:
    x = images(2)
    assert changed(Augmentation(settings, spec, seed=0), x, 1) is x


class ScriptedGenerator:
    """Stands in for the keyed generator: every draw is this number."""

    def __init__(self, drawn: float) -> None:
        self._drawn = drawn

    def random(self, shape: tuple[int, int], dtype: type = np.float64) -> np.ndarray:
        return np.full(shape, self._drawn, dtype)


@pytest.mark.parametrize(
    ("drawn", "degrees", "shape", "turned"),
    [
        (1.0, 90.0, (2, 5, 5), lambda x: torch.rot90(x, 1, (2, 3))),
        (0.0, 90.0, (2, 5, 5), lambda x: torch.rot90(x, -1, (2, 3))),
        (1.0, 180.0, (2, 3, 4), lambda x: x.flip(2, 3)),
        (0.5, 180.0, (2, 3, 4), lambda x: x),
    ],
)
def test_turns_by_hand(
    drawn: float, degrees: float, shape: tuple[int, int, int], turned: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyed_randomness, "generator", lambda *_: ScriptedGenerator(drawn))
    spec = InputSpec(kind="image", shape=shape)
    augmentation = Augmentation(AugmentationSettings(rotation_degrees=degrees), spec, seed=0)
    x = (torch.arange(3 * spec_size(spec)) * 7 % 251).reshape(3, *shape).to(torch.uint8)
    assert callable(turned)
    torch.testing.assert_close(changed(augmentation, x, 1), turned(x).float() / 255, atol=1e-5, rtol=0)


def spec_size(spec: InputSpec) -> int:
    return int(np.prod(spec.shape))


def test_scaling_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # half the size (1 - 0.5): of eight columns that are all 1, the middle four are left, and black around them
    monkeypatch.setattr(keyed_randomness, "generator", lambda *_: ScriptedGenerator(0.0))
    spec = InputSpec(kind="image", shape=(1, 8, 8))
    augmentation = Augmentation(AugmentationSettings(scale=0.5), spec, seed=0)
    out = changed(augmentation, torch.full((1, 1, 8, 8), 255, dtype=torch.uint8), 1)
    expected = torch.zeros(8, 8)
    expected[2:6, 2:6] = 1.0
    torch.testing.assert_close(out[0, 0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("turn", [0.0, 20.0])
def test_incoming_rows_may_stay_as_they_are(turn: float) -> None:
    both = AugmentationSettings(crop_padding=2, rotation_degrees=turn)
    replayed = both.model_copy(update={"rows": "replayed"})
    x = images(40)
    out = changed(Augmentation(replayed, SPEC, seed=1), x, 7, 10)
    assert torch.equal(out[:10], x[:10] if turn == 0 else x[:10].float() / 255)
    assert torch.equal(out[10:], changed(Augmentation(both, SPEC, seed=1), x, 7, 10)[10:])
    assert not torch.equal(out[10:], x[10:].to(out.dtype))


def test_turned_rows_have_draws_of_their_own_each() -> None:
    augmentation = Augmentation(AugmentationSettings(rotation_degrees=15, scale=0.1), SPEC, seed=1)
    x = images(24)[:1].expand(50, 2, 3, 4)
    out = changed(augmentation, x, 7)
    assert torch.equal(out, changed(augmentation, x, 7))
    assert torch.equal(out[:20], changed(augmentation, x[:20], 7))
    assert len({row.numpy().tobytes() for row in out}) == 50
    assert 0.0 <= float(out.min()) <= float(out.max()) <= 1.0
