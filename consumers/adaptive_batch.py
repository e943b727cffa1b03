"""How many requests are answered together: as many as there are, for throughput, but none waits longer than a bound.

A turn of n requests takes seconds(n) = a + b n: a transaction's round trips, and the network's rows. One that comes
right after a turn has begun waits for the rest of it, and then for its own: each may take half of the bound.

    n <= (bound / 2 - a) / b

a and b are fitted to the newest turns by least squares whose weights halve with every 20th turn.
"""

from __future__ import annotations

_DECAY = 0.5 ** (1 / 20)
_FIRST = 32  # requests, until there is something to go by


class AdaptiveBatch:
    """The limit of the next turn."""

    def __init__(self, *, bound_seconds: float, most: int) -> None:
        """`bound_seconds`: from a request's arrival to its answer, queues before the predictor apart."""
        self._turn_seconds = bound_seconds / 2
        self._most = most
        # weighted sums over the turns: 1, n, n^2, seconds, n seconds
        self._w = self._n = self._nn = self._s = self._ns = 0.0

    def took(self, requests: int, seconds: float) -> None:
        """A turn has ended."""
        self._w = self._w * _DECAY + 1
        self._n = self._n * _DECAY + requests
        self._nn = self._nn * _DECAY + requests**2
        self._s = self._s * _DECAY + seconds
        self._ns = self._ns * _DECAY + requests * seconds

    @property
    def limit(self) -> int:
        """At least 1: where one alone takes longer than the bound, more together are no help."""
        if self._w == 0:
            return min(_FIRST, self._most)
        fixed, each = self.fitted
        if each <= 0:
            return self._most
        return int(max(1, min(self._most, (self._turn_seconds - fixed) / each)))

    @property
    def fitted(self) -> tuple[float, float]:
        """(a, b) in seconds. Where all turns had the same size, half of a turn is taken for its fixed part."""
        mean_n, mean_s = self._n / self._w, self._s / self._w
        variance = self._nn / self._w - mean_n**2
        if variance <= 1e-9 * max(1.0, mean_n**2):
            return mean_s / 2, mean_s / 2 / mean_n
        each = max(0.0, (self._ns / self._w - mean_n * mean_s) / variance)
        return max(0.0, mean_s - each * mean_n), each
