"""Sums over an epoch on this rank: training loss, accuracy, and the first step that was not finite."""

from __future__ import annotations

import torch
from torch import Tensor

from ham import distributed


class EpochMetrics:
    """Sums on the device, without a host sync; results are over all ranks and need a collective.

    Args:
        device: device of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.steps = self.count = 0
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)

    def update_accuracy(self, logits: Tensor, labels: Tensor) -> None:
        """Count the training samples that are classified correctly: logits [N, classes], labels [N]."""
        self.correct += (logits.detach().argmax(dim=1) == labels).sum()
        self.count += len(labels)

    def update_loss(self, step: int, loss: Tensor) -> None:
        """Add the loss of one step, the mean over this rank's samples."""
        loss = loss.detach()
        self.loss_sum += loss
        self.steps += 1
        bad = ~torch.isfinite(loss) & (self._first_bad < 0)
        self._first_bad.copy_(torch.where(bad, step, self._first_bad))

    def running_loss(self) -> float:
        """Mean loss on this rank since the epoch began."""
        return float(self.loss_sum) / max(self.steps, 1)

    def means(self) -> tuple[float, float]:
        """Training loss and accuracy in [0, 1] since the epoch began, over all ranks."""
        loss_sum, steps, correct, count = distributed.all_gather(self._row()).sum(dim=0).tolist()
        return loss_sum / max(steps, 1), correct / max(count, 1)

    def diverged_at(self) -> int:
        """The first step whose loss was not finite on some rank; -1 without one."""
        return int(distributed.all_gather(self._first_bad).max())

    def reset(self) -> None:
        """Reset the sums, at the start of an epoch."""
        self.loss_sum.zero_()
        self.correct.zero_()
        self.steps = self.count = 0

    def state_dict(self) -> dict[str, Tensor]:
        """The sums of every rank."""
        return {"rows": distributed.all_gather(self._row())}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore this rank's sums; with another world size rank 0 gets the sums of all ranks."""
        rows, me = state["rows"], distributed.world()
        if len(rows) == me.size:
            own = rows[me.rank]
        else:
            own = rows.sum(dim=0) if me.is_main_process else torch.zeros(4)
        loss_sum, steps, correct, count = own.tolist()
        self.loss_sum.fill_(loss_sum)
        self.correct.fill_(int(correct))
        self.steps, self.count = int(steps), int(count)

    def _row(self) -> Tensor:
        counts = torch.tensor([self.steps, self.count], dtype=torch.float64)  # exact up to 2^53
        return torch.stack([self.loss_sum.cpu(), counts[0], self.correct.cpu().double(), counts[1]])
