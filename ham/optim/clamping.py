"""Counts of the exponents at the bound, and the warning after a first step with many of them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .checks import outer_stacklevel

_MANY = 0.01  # share of the first step's exponents


class ClampCounts:
    """Number of exponents at the bound and of all exponents, counted on each device without a host sync."""

    def __init__(self) -> None:
        self._counts: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The two counts on `device`, 0-dim int64 tensors to add to."""
        if device not in self._counts:
            zero = torch.zeros((), dtype=torch.int64, device=device)
            self._counts[device] = (zero, zero.clone())
        return self._counts[device]

    def add(self, other: ClampCounts) -> None:
        """Add the counts of `other`."""
        for device, counts in other._counts.items():
            for count, more in zip(self.on(device), counts, strict=True):
                count.add_(more)

    def share(self) -> Tensor:
        """Share of the exponents at the bound since the last call, a 0-dim tensor; restarts the counts."""
        counts = list(self._counts.values())
        if not counts:
            return torch.zeros(())
        device = counts[0][0].device
        clamped, seen = (
            torch.stack([c.to(device) for c in column]).sum() for column in zip(*counts, strict=True)
        )
        for count in (c for pair in counts for c in pair):
            count.zero_()
        return clamped / seen.clamp(min=1)

    def totals(self, flag: Tensor | None = None) -> tuple[int, int, bool]:
        """Both counts summed over the devices, and is `flag` not 0? Waits for each device once."""
        rows = [
            torch.stack((*pair, _as_count(flag, device))).tolist() for device, pair in self._counts.items()
        ]
        clamped, seen, flags = (sum(column) for column in zip(*rows, strict=True)) if rows else (0, 0, 0)
        return clamped, seen, flags != 0

    def state_dict(self) -> dict[str, Any]:
        """Both counts, summed over the devices."""
        clamped, seen, _ = self.totals()
        return {"clamped": clamped, "seen": seen}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Set the counts on `device` to what `state_dict` returned."""
        for count, value in zip(self.on(device), (state["clamped"], state["seen"]), strict=True):
            count.fill_(value)


def may_wait(optimizer: Optimizer) -> bool:
    """May the host wait for the devices of these parameters now?

    Not while a CUDA graph is captured, and not where torch.cuda.set_sync_debug_mode reports host syncs.
    """
    if not any(p.is_cuda for group in optimizer.param_groups for p in group["params"]):
        return True
    return torch.cuda.get_sync_debug_mode() == 0 and not torch.cuda.is_current_stream_capturing()


def warn_if_many(clamped: int, seen: int, name: str) -> None:
    """Warn where more than 1 % of the exponents of the first step of optimizer `name` are at the bound."""
    if clamped > _MANY * seen:
        warnings.warn(
            f"{clamped / seen:.0%} of the exponents of HAM's first step with {name} are at the bound: lower "
            "alpha, or pass lr=..., a function of the group, where the optimizer's rate is not group['lr']",
            stacklevel=outer_stacklevel(),
        )


def _as_count(flag: Tensor | None, device: torch.device) -> Tensor:
    if flag is None:
        return torch.zeros((), dtype=torch.int64, device=device)
    return (flag != 0).to(device, torch.int64).reshape(())
