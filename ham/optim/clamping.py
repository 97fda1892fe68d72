"""Counts of the clamped exponents, and the warning after a first step with many of them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .checks import outer_stacklevel

_MANY = 0.01  # fraction of the first step's exponents


class ClampCounts:
    """Number of clamped exponents and of all exponents, counted on each device without a host sync."""

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
        """Fraction of the clamped exponents since the last call, a 0-dim tensor; resets the counts."""
        counts = list(self._counts.values())
        if not counts:
            return torch.zeros((), device="cpu")
        device = counts[0][0].device
        clamped, seen = (
            torch.stack([c.to(device) for c in column]).sum() for column in zip(*counts, strict=True)
        )
        for count in (c for pair in counts for c in pair):
            count.zero_()
        return clamped / seen.clamp(min=1)

    def rows(self, flag: Tensor | None = None) -> list[Tensor]:
        """For each device both counts and whether `flag` is not 0, as an int64 tensor [3] on it."""
        return [torch.stack((*pair, _as_count(flag, device))) for device, pair in self._counts.items()]

    def state_dict(self) -> dict[str, Any]:
        """Both counts, summed over the devices."""
        rows = [row.tolist() for row in self.rows()]
        return {"clamped": sum(row[0] for row in rows), "seen": sum(row[1] for row in rows)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Set the counts on `device` to what `state_dict` returned."""
        for count, value in zip(self.on(device), (state["clamped"], state["seen"]), strict=True):
            count.fill_(value)


class FirstStep:
    """Warns where more than 1 % of the exponents of the first step are clamped, without a host sync.

    From a GPU the counts are copied asynchronously, and read in the first later step that finds the
    copy complete. Other accelerators and CUDA graphs are not examined.
    """

    def __init__(self) -> None:
        self._is_done = False
        self._copies: list[tuple[Tensor, torch.cuda.Event | None]] = []

    def must_count(self, optimizer: Optimizer) -> bool:
        """Return True if the exponents of this step must be counted."""
        if self._is_done or self._copies or torch.compiler.is_compiling():
            return False
        kinds = {p.device.type for group in optimizer.param_groups for p in group["params"]}
        is_captured = "cuda" in kinds and torch.cuda.is_current_stream_capturing()
        return kinds <= {"cpu", "cuda"} and not is_captured

    def copy(self, counts: ClampCounts, found_inf: Tensor | None) -> None:
        """Start to copy the counts of a step to the host."""
        for row in counts.rows(found_inf):
            if row.is_cuda:
                host = torch.empty_like(row, device="cpu", pin_memory=True).copy_(row, non_blocking=True)
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(row.device))
                self._copies.append((host, event))
            else:
                self._copies.append((row, None))

    def examine(self, name: str) -> None:
        """Warn if the copies are complete; a skipped step, or one that changed nothing, is not the first.

        Args:
            name: name of the optimizer, for the warning.
        """
        if not self._copies or torch.compiler.is_compiling():
            return
        if not all(event is None or event.query() for _, event in self._copies):
            return
        clamped, seen, flags = (
            sum(column) for column in zip(*(h.tolist() for h, _ in self._copies), strict=True)
        )
        self._copies = []
        if seen > 0 and flags == 0:
            self._is_done = True
            _warn_if_many(clamped, seen, name)


def _warn_if_many(clamped: int, seen: int, name: str) -> None:
    if clamped > _MANY * seen:
        warnings.warn(
            f"{clamped / seen:.0%} of the exponents of HAM's first step with {name} are clamped: lower "
            "alpha, or pass lr=..., a function of the group, where the optimizer's rate is not group['lr']",
            stacklevel=outer_stacklevel(),
        )


def _as_count(flag: Tensor | None, device: torch.device) -> Tensor:
    if flag is None:
        return torch.zeros((), dtype=torch.int64, device=device)
    return (flag != 0).to(device, torch.int64).reshape(())
