"""Against values worked out by hand from the paper's equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pipeline.restructuring import mixmatch


def test_sharpened() -> None:
    """T = 1/2 squares: 0.36, 0.09, 0.01 of 0.46."""
    found = mixmatch.sharpened(torch.tensor([[0.6, 0.3, 0.1]]), 0.5)
    assert_close(found, torch.tensor([[0.36, 0.09, 0.01]]) / 0.46)
    assert_close(mixmatch.sharpened(torch.tensor([[0.6, 0.3, 0.1]]), 1.0), torch.tensor([[0.6, 0.3, 0.1]]))


def test_a_guess_is_put_together_of_two_networks() -> None:
    """Columns 0 and 2 are old, together 0.5; sqrt(0.4 * 0.2) : sqrt(0.1 * 0.8) = 1 : 1."""
    said = torch.tensor([[0.4, 0.5, 0.1]])
    present = torch.tensor([[0.2, 0.8]])
    found = mixmatch.put_together(said, present, torch.tensor([0, 2]))
    assert_close(found, torch.tensor([[0.25, 0.5, 0.25]]))
    assert_close(said, torch.tensor([[0.4, 0.5, 0.1]]))  # nothing of it was written over


def test_where_there_is_no_old_class_the_guess_is_the_temporary_network_s() -> None:
    said = torch.tensor([[0.4, 0.6]])
    assert mixmatch.put_together(said, torch.empty(1, 0), torch.empty(0, dtype=torch.int64)) is said


def test_guesses_are_shared_out_evenly() -> None:
    """[[4, 1], [1, 1]], its second row and its second column taken twice: [[4, 2], [2, 4]], whose rows and columns have
    the same sum. Rows of sum 1 are then (2/3, 1/3) and (1/3, 2/3)."""
    found = mixmatch.aligned(torch.tensor([[0.8, 0.2], [0.5, 0.5]]))
    assert_close(found, torch.tensor([[2.0, 1.0], [1.0, 2.0]]) / 3)


def test_a_class_that_nobody_guesses_makes_no_guess_nan() -> None:
    found = mixmatch.aligned(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert_close(found, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert mixmatch.aligned(torch.empty(0, 3)).shape == (0, 3)


def test_mixed_up() -> None:
    x = torch.tensor([[1.0, 2.0], [5.0, 6.0]])
    found = mixmatch.mixup(x, torch.tensor([1, 0]), torch.tensor([0.75, 1.0]))
    assert_close(found, torch.tensor([[0.75 * 1 + 0.25 * 5, 0.75 * 2 + 0.25 * 6], [5.0, 6.0]]))
    images = torch.arange(16.0).reshape(2, 2, 2, 2)
    assert mixmatch.mixup(images, torch.tensor([1, 0]), torch.tensor([0.5, 0.5])).shape == images.shape


def test_a_row_stays_more_itself_than_what_it_is_mixed_with() -> None:
    """lambda' is at least a half; its mean for Beta(3/4, 3/4) is 1/2 + E|lambda - 1/2|."""
    share = mixmatch.shares(np.random.default_rng(0), 20_000, 0.75)
    assert share.dtype == torch.float32
    assert float(share.min()) >= 0.5
    assert float(share.max()) <= 1
    drawn = np.random.default_rng(1).beta(0.75, 0.75, 20_000)
    assert float(share.mean()) == pytest.approx(0.5 + np.abs(drawn - 0.5).mean(), abs=0.01)


def test_losses() -> None:
    """Logits 0 and ln 3: probabilities 1/4 and 3/4."""
    logits = torch.tensor([[0.0, math.log(3)]])
    target = torch.tensor([[0.5, 0.5]])
    expected = -0.5 * math.log(0.25) - 0.5 * math.log(0.75)
    assert_close(mixmatch.cross_entropies(logits, target), torch.tensor([expected]))
    assert_close(mixmatch.squared_error(logits, target), torch.tensor(0.25**2 + 0.25**2))


def test_the_weight_rises_on_a_line() -> None:
    assert [mixmatch.ramped(2.0, done, 100, over=0.4) for done in (0, 10, 20, 40, 99)] == [0.0, 0.5, 1.0, 2.0, 2.0]
