"""The training loop. The order of effects within a step is the science here: it stands in `train_step`."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntFlag
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ham.data import Batch
from ham.optim import perturbed
from pruning.scores import NotFinite
from pruning.stats import inverse_metric_at_zero, l1_norm

from . import checkpoint, distributed
from .build import Run
from .evaluate import evaluate
from .optimization import Ascent


class Diverged(Exception):
    """The loss or a weight is no number any more."""


class Stopped(Exception):
    """A signal asked the run to end; a checkpoint is saved."""


class Wish(IntFlag):
    """What a rank wants of all after a step."""

    LOOK = 1
    SAVE = 2
    STOP = 4


def train(run: Run) -> None:
    """Train from where the run stands to its last epoch.

    Ranks see signals and the time at different moments: what one of them wants, all do after the same step.

    Raises:
        Diverged: the loss turned nan or inf; the last checkpoint is from before.
        Stopped: SIGTERM or SIGUSR1 arrived; the checkpoint is from this very step.
        CheckpointError: a checkpoint could not be written.
        RanksLost: another rank died or hangs.
    """
    where = lambda: f"in epoch {run.epoch + 1}, step {run.step}"  # noqa: E731
    with signals() as received, distributed.watched(where), _scores_checked(run):
        run.saved_at = time.monotonic()
        while run.epoch < run.cfg.epochs:
            if run.batch == 0:  # not again after a resume inside the epoch
                run.sparsifier.on_epoch_start(run.epoch, run.optimizer)
            for batch in run.loaders.train.batches(run.epoch, start=run.batch):
                run.tally.step(run.step, train_step(run, batch))
                run.record.step()
                run.step, run.batch = run.step + 1, run.batch + 1
                _heed(run, received)
            if run.epoch + 1 == run.cfg.epochs:
                run.sparsifier.on_end()  # before the last test: what is reported is what is left
            finish_epoch(run)
            if distributed.any_rank(bool(received)) and run.epoch < run.cfg.epochs:
                raise Stopped(f"stopped by {_name(received)} after epoch {run.epoch}, step {run.step}")


def _heed(run: Run, received: list[str]) -> None:
    """Do what any rank wants now: look for divergence, save, stop."""
    inside = run.batch < len(run.loaders.train)
    due = inside and time.monotonic() - run.saved_at >= 60 * run.cfg.checkpoint.minutes
    wishes = Wish.LOOK * run.record.is_time_to_look() | Wish.SAVE * due | Wish.STOP * bool(received)
    wishes = distributed.any_rank(int(wishes))
    if wishes & Wish.LOOK:
        _refuse_divergence(run)
        run.record.show(loss=f"{run.tally.running_loss():.4f}")
    if wishes & (Wish.SAVE | Wish.STOP):
        save(run)
    if wishes & Wish.STOP:
        raise Stopped(f"stopped by {_name(received)} in epoch {run.epoch + 1}, step {run.step}")


def _name(received: list[str]) -> str:
    return received[0] if received else "a signal to another rank"


def train_step(run: Run, batch: Batch) -> Tensor:
    """One iteration: gradients, mask, SAM, decay, base step and HAM, mask; then the schedule moves on."""
    cfg = run.cfg.optimizer
    own_ascent = cfg.sam_rho > 0 and cfg.sam_ascent is Ascent.per_rank  # RigL averages its scores itself
    loss = forward_backward(run, batch, average=not own_ascent)
    if run.sparsifier.after_backward(run.step, run.optimizer):  # False: no SAM, no step, no HAM
        if cfg.sam_rho > 0:
            frozen = run.model if cfg.sam_freeze_bn else None
            with perturbed(run.params, rho=cfg.sam_rho, adaptive=cfg.sam_adaptive, freeze_bn=frozen):
                forward_backward(run, batch, count=False)
                run.sparsifier.mask_gradients()
        run.sparsifier.add_decay()
        if cfg.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(run.params, cfg.clip_norm)
        run.optimizer.step()  # HAM fires here
        run.sparsifier.after_step()
    run.scheduler.step()
    run.optimizer.zero_grad()
    return loss


def forward_backward(run: Run, batch: Batch, *, count: bool = True, average: bool = True) -> Tensor:
    """Add the gradient of the mean loss over the batch, in `accumulate` parts; returns that loss.

    With `average` the gradient is the mean over the ranks, else this rank's own; the loss is always that of
    this rank's images. With `count` those classified right are added to the epoch's training accuracy.
    """
    parts = run.cfg.optimizer.accumulate
    total = torch.zeros((), device=run.device)
    for part, (images, classes) in enumerate(zip(*(t.chunk(parts) for t in batch), strict=True), start=1):
        with distributed.averaging(run.network, average and part == parts):
            logits = run.forward(images)
            loss = F.cross_entropy(logits, classes) * (len(classes) / len(batch[1]))
            loss.backward()
        if count:
            run.tally.answer(logits, classes)
        total += loss.detach()
    return total


def finish_epoch(run: Run) -> None:
    """Test, record, and save with the next epoch as the place to go on from."""
    _refuse_divergence(run)
    loss, accuracy = run.tally.means()
    facts = {"train_loss": loss, "train_top1": 100 * accuracy, **evaluate(run)}
    facts["lr"] = run.scheduler.base_lrs[0] * run.scheduler.lr_lambdas[0](run.step - 1)
    facts |= run.sparsifier.stats() | statistics(run)
    run.record.epoch(run.epoch, run.step, **facts)
    run.sparsifier.on_epoch_end(train_accuracy=accuracy)
    run.epoch, run.batch = run.epoch + 1, 0
    run.tally.reset()
    save(run)


def statistics(run: Run) -> dict[str, Any]:
    """What the figures show, see `pruning.stats`; once per epoch."""
    masks = run.sparsifier.masks
    first = next(iter(masks.weights))
    facts = l1_norm(masks) | run.flips.on_epoch_end(run.epoch + 1)
    facts["inverse_metric_at_zero"] = inverse_metric_at_zero(masks.weights[first], masks.pruned.get(first))
    facts["layers"] = {name: 1 - kept / total for name, kept, total in run.sparsifier.counts()}
    if run.ham:
        facts["clamped_share"] = float(run.ham.clamped_share())
    return facts


def save(run: Run) -> None:
    """Write a checkpoint, unless the run has diverged: the last good one stays."""
    _refuse_divergence(run)
    distributed.share_buffers(run.model)
    tensors = {name: t for name, t in run.model.state_dict().items() if t.is_floating_point()}
    finite = torch.isfinite(torch.stack(torch._foreach_norm(list(tensors.values()), float("inf"))))
    if not bool(finite.all()):
        name = list(tensors)[int(finite.logical_not().nonzero()[0])]
        raise Diverged(_divergence(run, run.step, f"{name} is not finite"))
    state = run.state_dict()
    distributed.led(lambda: checkpoint.save(run.record.folder, state))
    run.saved_at = time.monotonic()


def _refuse_divergence(run: Run) -> None:
    at = run.tally.diverged_at()
    if at >= 0:
        raise Diverged(_divergence(run, at, "the loss is not finite"))


def _divergence(run: Run, step: int, what: str) -> str:
    last = run.record.folder / checkpoint.LAST
    kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written yet"
    cure = "optimizer.lr or ham.alpha" if run.ham else "optimizer.lr"
    return f"diverged: {what} at step {step}; {kept}; lower {cure}"


@contextmanager
def _scores_checked(run: Run) -> Iterator[None]:
    """A sparsifier that finds nan in its scores has met a divergence before the loss told of it."""
    try:
        yield
    except NotFinite as error:
        raise Diverged(_divergence(run, run.step, str(error).partition(":")[0])) from error


@contextmanager
def signals() -> Iterator[list[str]]:
    """The names of stop signals received so far, in a list that stays empty until one arrives."""
    received: list[str] = []
    wanted = (signal.SIGTERM, signal.SIGUSR1)
    before = {
        s: signal.signal(s, lambda number, _: received.append(signal.Signals(number).name)) for s in wanted
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
