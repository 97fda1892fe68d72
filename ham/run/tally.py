"""Running sums of an epoch on this rank: training loss, accuracy, and the first step that was not finite."""

from __future__ import annotations

import torch
from torch import Tensor

from . import distributed


class Tally:
    """Counts on the device, without a host sync; what it tells is over all ranks and a collective.

    Args:
        device: of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.right = torch.zeros((), dtype=torch.int64, device=device)
        self.losses = self.seen = 0
        self._bad = torch.full((), -1, dtype=torch.int64, device=device)

    def answer(self, logits: Tensor, classes: Tensor) -> None:
        """Count the training images that were classified right."""
        self.right += (logits.detach().argmax(dim=1) == classes).sum()
        self.seen += len(classes)

    def step(self, step: int, loss: Tensor) -> None:
        """Count one step's loss, the mean over this rank's images."""
        loss = loss.detach()
        self.loss_sum += loss
        self.losses += 1
        bad = ~torch.isfinite(loss) & (self._bad < 0)
        self._bad.copy_(torch.where(bad, step, self._bad))

    def running_loss(self) -> float:
        """Mean loss on this rank since the epoch began."""
        return float(self.loss_sum) / max(self.losses, 1)

    def means(self) -> tuple[float, float]:
        """Training loss and accuracy, in [0, 1], since the epoch began, over all ranks."""
        loss_sum, losses, right, seen = distributed.stacked(self._row()).sum(dim=0).tolist()
        return loss_sum / max(losses, 1), right / max(seen, 1)

    def diverged_at(self) -> int:
        """The first step whose loss was not finite on some rank, -1 if there was none."""
        return int(distributed.stacked(self._bad).max())

    def reset(self) -> None:
        """Begin an epoch."""
        self.loss_sum.zero_()
        self.right.zero_()
        self.losses = self.seen = 0

    def state_dict(self) -> dict[str, Tensor]:
        """The sums of every rank."""
        return {"rows": distributed.stacked(self._row())}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back this rank's sums; of another number of ranks the first takes them all."""
        rows, me = state["rows"], distributed.world()
        if len(rows) != me.size:
            rows = torch.stack([rows.sum(dim=0), *torch.zeros(me.size - 1, rows.shape[1], dtype=rows.dtype)])
        loss_sum, losses, right, seen = rows[me.rank].tolist()
        self.loss_sum.fill_(loss_sum)
        self.right.fill_(int(right))
        self.losses, self.seen = int(losses), int(seen)

    def _row(self) -> Tensor:
        counts = torch.tensor([self.losses, self.seen], dtype=torch.float64)  # exact up to 2^53
        return torch.stack([self.loss_sum.cpu(), counts[0], self.right.cpu().double(), counts[1]])
