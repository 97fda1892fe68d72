"""Masks fixed before training: random, SNIP, SynFlow, or taken from another run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from .allocate import Allocation, kept_counts, random_masks
from .base import Masked, register
from .export import load_masks
from .scores import global_topk, kept_count, snip, synflow_masks


@register("random")
@dataclass
class RandomPruning(Masked):
    """Random masks at given layer densities, with exact counts; they are set when the model is attached.

    Args:
        sparsity: share pruned of all prunable weights; each layer keeps N - floor((1 - density) N).
        exclude: globs of weights to keep dense.
        allocation: layer densities: erk, balanced or uniform.
    """

    allocation: Allocation = Allocation.erk

    def __post_init__(self) -> None:
        """Take the allocation as a string too."""
        super().__post_init__()
        self.allocation = Allocation(self.allocation)

    def _prepare(self) -> None:
        kept = kept_counts(self._shapes(), self.sparsity, self.allocation)
        generator = torch.Generator().manual_seed(self.seed)
        self._prune(random_masks(self._shapes(), kept, generator=generator))


@dataclass
class AtInitialization(Masked):
    """Base of the methods that need data to prune: they do it in `initialize`, or after a resume never."""

    def _prepare(self) -> None:
        self._ready = False

    def _keep(self) -> int:
        return kept_count(sum(w.numel() for w in self.masks.weights.values()), self.sparsity)

    def after_backward(self, step: int, optimizer: Optimizer) -> bool:
        """Mask the gradients. Raises RuntimeError if nothing was pruned yet."""
        if not self._ready:
            raise RuntimeError(
                f"{type(self).__name__} has not pruned yet: call initialize(batches, loss_fn) before training"
            )
        return super().after_backward(step, optimizer)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the masks; `initialize` is then not needed."""
        super().load_state_dict(state)
        self._ready = True


@register("snip")
@dataclass
class SNIP(AtInitialization):
    """Keep the weights whose removal would change the loss most, |dL/dmask| = |g theta| (Lee et al., 2019).

    Args:
        sparsity: share pruned of all prunable weights, by one threshold for all layers.
        exclude: globs of weights to keep dense.
        batches: how many to sum the gradient over before the absolute value is taken; 10 of 1024 images are
            the ten per class of ganguli-lab/Synaptic-Flow.
    """

    batches: int = 10

    def __post_init__(self) -> None:
        """Raise ValueError on values out of range."""
        super().__post_init__()
        if self.batches < 1:
            raise ValueError(f"batches must be at least 1, got {self.batches}")

    def initialize(self, batches: Iterable = (), loss_fn: Callable | None = None) -> None:
        """Prune by the gradients of `loss_fn(model(inputs), targets)` over the first batches.

        Raises:
            ValueError: no loss function, or fewer batches than asked for.
        """
        if loss_fn is None:
            raise ValueError("SNIP needs a loss: initialize(batches, torch.nn.functional.cross_entropy)")
        taken = 0

        def counted() -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal taken
            for batch in islice(batches, self.batches):
                taken += 1
                yield batch

        scores = snip(self.model, self.masks.weights, counted(), loss_fn)
        if taken < self.batches:
            raise ValueError(f"SNIP asks for {self.batches} batches, got {taken}: lower its batches")
        self._prune(global_topk(scores, self._keep()))
        self._ready = True


@register("synflow")
@dataclass
class SynFlow(AtInitialization):
    """Keep the weights that carry most synaptic flow, pruned bit by bit without data (Tanaka et al., 2020).

    Args:
        sparsity: share pruned of all prunable weights, by one threshold for all layers.
        exclude: globs of weights to keep dense.
        iterations: density goes down as density^(k / iterations).
    """

    iterations: int = 100

    def __post_init__(self) -> None:
        """Raise ValueError on values out of range."""
        super().__post_init__()
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}; the authors take 100")

    def initialize(self, batches: Iterable = (), loss_fn: Callable | None = None) -> None:
        """Prune; of the data only the shape of the first input is used.

        Raises:
            ValueError: no batch to take the shape from.
        """
        first = next(iter(batches), None)
        if first is None:
            raise ValueError("SynFlow needs one batch for the shape of the inputs: initialize(batches)")
        shape = (1, *first[0].shape[1:])
        total = sum(w.numel() for w in self.masks.weights.values())
        schedule = [
            round(total * (self._keep() / total) ** (k / self.iterations))
            for k in range(1, self.iterations + 1)
        ]
        self._prune(synflow_masks(self.model, self.masks.weights, shape, schedule))
        self._ready = True


@register("mask_from")
@dataclass
class MaskFrom(Masked):
    """The masks of a finished run on weights drawn anew (Table 10), set when the model is attached.

    A mask found by thresholds (STR) misses its target a little: it is cut or filled to exactly `sparsity` by
    the weights' distance to their threshold. Others are taken as they are.

    Args:
        sparsity: share pruned; a hard mask must have it within half a percent.
        exclude: globs of weights to keep dense; the file must not hold them.
        source: a file that `save_masks` wrote, or the folder that holds masks.pt. In a config also the name
            of an experiment, of which the run of the same seed is taken.
        redraw: draw the initial weights from another random stream than the source run's.
    """

    source: str = ""
    redraw: bool = True

    tolerance: ClassVar[float] = 0.005
    resumed: ClassVar[bool] = False
    """Set it to True on an instance whose masks come by `load_state_dict`: the source is not read again."""

    def __post_init__(self) -> None:
        """Raise ValueError without a source."""
        super().__post_init__()
        if not self.source:
            raise ValueError("MaskFrom needs a source: the folder of a finished run, or its masks.pt")

    @property
    def redraws_weights(self) -> bool:
        """As `redraw` says."""
        return self.redraw

    @property
    def depends_on(self) -> str:
        """The source where it names an experiment; "" where it is a path, which has a slash."""
        return "" if "/" in self.source else self.source

    def resolve(self, folder_of: Callable[[str], str], *, resumed: bool) -> MaskFrom:
        """Take the masks from the run that `folder_of` names; a resumed run reads no source."""
        if resumed:
            resolved = replace(self)
            resolved.resumed = True
            return resolved
        return replace(self, source=folder_of(self.depends_on)) if self.depends_on else self

    def _prepare(self) -> None:
        if self.resumed:
            return
        kept, margins, self.origin = load_masks(self.source)
        names = self.masks.weights.keys()
        if kept.keys() != names:
            odd = sorted(kept.keys() ^ names)
            raise ValueError(
                f"the masks in {self.source} are of another model: {len(odd)} names differ, such as {odd[0]}"
            )
        if margins:
            total = sum(m.numel() for m in margins.values())
            kept = global_topk(margins, kept_count(total, self.sparsity))
        self._prune(kept)
        if abs(self.achieved_sparsity() - self.sparsity) > self.tolerance:
            raise ValueError(
                f"the masks in {self.source} prune {self.achieved_sparsity():.4f}, not {self.sparsity:g}: "
                f"choose that sparsity, or another source"
            )

    def stats(self) -> dict[str, Any]:
        """Adds where the masks come from."""
        return {**super().stats(), "masks_from": self.origin}

    def state_dict(self) -> dict[str, Any]:
        """Adds where the masks come from."""
        return {**super().state_dict(), "origin": self.origin}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the masks and where they came from."""
        super().load_state_dict(state)
        self.origin = state["origin"]
