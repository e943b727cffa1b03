from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from torchvision.transforms.functional import rotate

from pipeline.keyed_randomness import generator
from producers.image_alteration import altered


def noise(*shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_a_quarter_turn_is_counter_clockwise() -> None:
    image = np.array([[1, 2], [3, 4]], dtype=np.uint8)
    np.testing.assert_array_equal(altered(image, None, 90.0), [[2, 4], [1, 3]])


@pytest.mark.parametrize("degrees", [0.0, 17.3, 90.0, 200.5, 359.9])
def test_a_turn_alone_is_torchvisions_as_mnist_360_uses_it(degrees: float) -> None:
    image = noise(28, 28)
    np.testing.assert_array_equal(altered(image, None, degrees), np.asarray(rotate(Image.fromarray(image), degrees)))


def test_shifts_stay_within_a_14th_of_the_side_and_differ() -> None:
    image = np.zeros((280, 280), dtype=np.uint8)
    image[139:142, 139:142] = 255  # a dot in the middle, which a turn leaves where it is
    centres = []
    for number in range(60):
        rows, columns = np.nonzero(altered(image, generator(0, "test", number)))
        centres.append((rows.mean() - 140, columns.mean() - 140))
    assert np.abs(centres).max() <= 20 + 1
    assert np.abs(centres).max() > 15
    assert len(set(centres)) > 50


def test_turns_stay_within_10_degrees() -> None:
    image = np.zeros((281, 281), dtype=np.uint8)
    image[139:142] = 255  # a level line
    angles = []
    for number in range(60):
        rows, columns = np.nonzero(altered(image, generator(0, "test", number)) > 127)
        angles.append(np.degrees(np.arctan(np.polyfit(columns, rows, 1)[0])))
    assert np.abs(angles).max() <= 10.5
    assert np.abs(angles).max() > 8
    assert min(angles) < 0 < max(angles)


def test_the_same_draws_give_the_same_image() -> None:
    image = noise(28, 28, 3)
    first, again, other = (altered(image, generator(0, "test", number), 30.0) for number in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == (28, 28, 3)
