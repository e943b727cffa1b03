"""How much of a row is not the old teacher's: a network that tells the new classes' records from rows without labels.

Both teachers are sharp among their own classes and just as loud about the other's, whom neither has ever seen. But the
unlabelled rows show what else there is, and of the new classes there are labelled records. With s = 1 for a record and
s = 0 for an unlabelled row,

    log odds of s = 1  =  log p(x | new) - log p(x) + constant

is monotone in p(new | x): learning from positive and unlabelled examples (Elkan and Noto 2008, "Learning Classifiers
from Only Positive and Unlabeled Data", KDD, doi:10.1145/1401890.1401920, lemma 1). A slope and a shift fitted on the
reservoir make a probability of it (`combination.py`).

    loss = E[softplus(g(u))] + E[softplus(-g(r))] + 1/2 E[softplus(g(o))]      unlabelled u, records r, stored old o

It must not come to know rows by heart: it would tell the records from other samples of their own classes, and the
unlabelled rows from the records. So its length is counted in passes over the smaller of the two. To hold some back and
keep the weights that are best on them did not serve: of 500 records held back the figure is less sure than what one
epoch differs from the next, and weights from before the learning rate has fallen are worse.

Where we differ: Elkan and Noto divide by a constant estimated on records held back; here it is the fitted shift, since
the reservoir has samples of both sides.

Legend: N = unlabelled rows, B = rows of a step
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.device import to_device
from pipeline.network import Network
from pipeline.restructuring.consolidation_settings import ConsolidationSettings
from pipeline.restructuring.refused import Refused
from pipeline.restructuring.specialist import network_like
from pipeline.restructuring.teacher import Teacher
from pipeline.restructuring.training import Training
from pipeline.state import StateTree

_STORED_WEIGHT = 0.5
_STORED_SHARE = 4  # a batch holds a fourth as many stored samples as unlabelled rows: there are few different ones


class GateTraining:
    """A step at a time."""

    def __init__(
        self,
        unlabelled: npt.NDArray[np.generic],
        records: npt.NDArray[np.generic],
        stored_old: npt.NDArray[np.generic],
        old: Network,
        settings: ConsolidationSettings,
        *,
        device: torch.device,
        seed: int,
    ) -> None:
        """Rows (N, ...) each. `old`: the old teacher, at whose body this one begins."""
        self._device = device
        self._network = network_like(old, 1, seed, "gate", body=old).to(device)
        self._network.train()
        self._unlabelled, self._records = to_device(unlabelled, device), to_device(records, device)
        self._stored = to_device(stored_old, device)
        self.training = Training(
            self._network,
            rows=min(len(unlabelled), len(records)),
            epochs=settings.gate_epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            seed=seed,
            purpose="restructuring/gate",
        )

    def step(self) -> None:
        training = self.training
        size = len(training.rows())
        pools = (
            (self._unlabelled, self._rows("unlabelled", len(self._unlabelled), size)),
            (self._records, self._rows("records", len(self._records), size)),
            (self._stored, training.draw("stored", len(self._stored), -(-size // _STORED_SHARE))),
        )
        x = torch.cat([pool[to_device(rows, self._device)] for pool, rows in pools])
        odds_B = self._network(x)[0][:, 0]
        unlabelled_B, records_B, stored_B = torch.split(odds_B, [len(rows) for _, rows in pools])
        loss = F.softplus(unlabelled_B).mean() + F.softplus(-records_B).mean()
        training.step(loss + _STORED_WEIGHT * F.softplus(stored_B).mean())

    def _rows(self, what: str, of: int, size: int) -> npt.NDArray[np.int64]:
        """Of the smaller pool, or of two that are alike, the next ones of the pass; of the larger one a draw."""
        smaller = min(len(self._unlabelled), len(self._records))
        return self.training.rows() if of == smaller else self.training.draw(what, of, size)

    def log_odds(self, x: npt.NDArray[np.generic]) -> Tensor:
        """(B,) on the device: higher where a row is rather of the new classes."""
        assert self.training.is_done, "it has not learnt yet"
        odds_B = Teacher(self._network, ["new"]).ask(x).logits_BC[:, 0]
        if not bool(odds_B.isfinite().all()):
            raise Refused("the gate's weights are not finite: lower learning_rate, or set gated to false")
        return odds_B

    def state(self) -> StateTree:
        return self.training.state()

    def load_state(self, state: StateTree) -> None:
        self.training.load_state(state)
