"""Whether a classifier is as often right as it says: the expected calibration error.

    ECE = sum over bins m of |B_m| / n * |acc(B_m) - conf(B_m)|     Guo et al. 2017, arXiv:1706.04599, equations 2 and 3

B_m are the predictions whose confidence is in ((m - 1) / M, m / M]; acc is how many of them are right, conf their mean
confidence. 0: what is said with 80 % confidence is right in 80 of 100 cases.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BINS = 15  # M, as in the paper


def expected_calibration_error(
    confidence_N: npt.NDArray[np.floating], correct_N: npt.NDArray[np.bool_], bins: int = BINS
) -> float | None:
    """0 to 1; None for no prediction at all. `confidence_N`: the predicted class's probability, above 0 and up to 1."""
    if len(confidence_N) == 0:
        return None
    confidence_N = confidence_N.astype(np.float64)
    # float32 probabilities that sum to 1 may exceed it by a bit
    place_N = np.clip(np.ceil(confidence_N * bins).astype(np.int64) - 1, 0, bins - 1)
    # |B_m| * |acc - conf| is the difference of the two sums over the bin
    right_M = np.bincount(place_N, weights=correct_N, minlength=bins)
    said_M = np.bincount(place_N, weights=confidence_N, minlength=bins)
    return float(np.abs(right_M - said_M).sum() / len(confidence_N))
