from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.augmentation import Augmentation
from pipeline.sample import InputSpec
from pipeline.settings import AugmentationSettings

SPEC = InputSpec(kind="image", shape=(2, 3, 4))


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
    out = augmentation(x, 7)
    assert out.dtype == torch.uint8
    assert out.shape == x.shape
    expected = variants(x[0], padding, flips)
    seen = {expected[row.numpy().tobytes()] for row in out}
    assert seen == set(expected.values())


def test_an_update_has_its_own_draws_and_always_the_same() -> None:
    augmentation = Augmentation(AugmentationSettings(crop_padding=2, horizontal_flip=True), SPEC, seed=1)
    x = images(50)
    assert torch.equal(augmentation(x, 7), augmentation(x, 7))
    assert not torch.equal(augmentation(x, 7), augmentation(x, 8))
    # row b does not depend on how many rows follow it
    assert torch.equal(augmentation(x, 7)[:20], augmentation(x[:20], 7))


def test_floats_move_as_bytes_do() -> None:
    augmentation = Augmentation(AugmentationSettings(crop_padding=1, horizontal_flip=True), SPEC, seed=1)
    x = images(30)
    assert torch.equal(augmentation(x.float(), 3), augmentation(x, 3).float())


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
    assert Augmentation(settings, spec, seed=0)(x, 1) is x
