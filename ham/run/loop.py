"""The training loop. Start with `train_step`: the order of effects within a step decides the results."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntFlag
from typing import Any

import torch
from torch import Tensor

from ham import distributed, process_group
from ham.optim import perturbed
from pruning.stats import inverse_metric_at_zero, l1_norm, small_fractions
from pruning.topk import NotFinite

from . import checkpoint, ranks
from .config.optimization import Ascent
from .logger import finite_or_none
from .state import Run

_SHORT_EPOCH = 1.0
"""Seconds between the checkpoints that are written at the ends of epochs, at least."""


class DivergedError(Exception):
    """The loss or a weight became nan or inf.

    Args:
        reason: the value that is not finite, and its step.
        advice: the last good checkpoint and the cure.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"diverged: {reason}; {advice}")
        self.reason = reason


class Interrupted(Exception):
    """A signal asked the run to stop; a checkpoint is saved."""


class Request(IntFlag):
    """Actions that any rank can request after a step (all-reduced bit flags)."""

    CHECK = 1
    CHECKPOINT = 2
    STOP = 4


def train(run: Run) -> None:
    """Train from the run's current step to its last epoch.

    Ranks see signals and the time at different moments: a request of one rank is handled by all after the
    same step.

    Raises:
        DivergedError: the loss became nan or inf; the last checkpoint is from before.
        Interrupted: SIGTERM or SIGUSR1 arrived; the checkpoint is from this very step.
        CheckpointError: a checkpoint could not be written.
        PeerLostError: another rank died or hangs.
        RanksDisagreeError: a rank holds another state; no checkpoint of it is written.
    """
    where = lambda: f"in epoch {run.epoch + 1}, step {run.step}"  # noqa: E731
    with (
        catch_stop_signals() as received,
        distributed.translate_collective_errors(where),
        _translate_nan_scores(run),
        _write_metrics_at_end(run),
    ):
        run.saved_at = time.monotonic()
        while run.epoch < run.cfg.epochs:
            if run.batch == 0:  # not again after a resume inside the epoch
                run.sparsifier.on_epoch_start(run.epoch, run.optimizer)
            for batch in run.task.batches(run.epoch, start=run.batch):
                run.metrics.update_loss(run.step, train_step(run, batch))
                run.logger.update_progress()
                run.step, run.batch = run.step + 1, run.batch + 1
                _handle_requests(run, received)
            if run.epoch + 1 == run.cfg.epochs:
                run.sparsifier.on_end()  # before the last evaluation, which is what is reported
            finish_epoch(run, received)


def _handle_requests(run: Run, received: list[str]) -> None:
    """After a step, do what any rank requests: check for divergence, save, stop."""
    inside = run.batch < run.task.steps_per_epoch
    due = inside and time.monotonic() - run.saved_at >= 60 * run.cfg.checkpoint.minutes
    requests = (
        Request.CHECK * run.logger.should_log() | Request.CHECKPOINT * due | Request.STOP * bool(received)
    )
    requests = distributed.all_reduce_or(int(requests))
    if requests & Request.CHECK:
        _check_finite(run)
        run.logger.set_postfix(loss=f"{run.metrics.running_loss():.4f}")
    if requests & (Request.CHECKPOINT | Request.STOP):
        save(run)
    if requests & Request.STOP:
        raise Interrupted(f"stopped by {_signal_name(received)} in epoch {run.epoch + 1}, step {run.step}")


def _signal_name(received: list[str]) -> str:
    return received[0] if received else "a signal to another rank"


def train_step(run: Run, batch: Any) -> Tensor:
    """One iteration: gradients, mask, SAM, decay, base step and HAM, mask; then the schedule advances."""
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
        run.optimizer.step()  # HAM's step follows in its hook
        run.sparsifier.after_step()
    run.scheduler.step()
    run.optimizer.zero_grad()
    return loss


def forward_backward(run: Run, batch: Any, *, count: bool = True, average: bool = True) -> Tensor:
    """Add the gradient of the mean loss over the batch, in `accumulate` parts; returns that loss.

    With `average` the gradient is the mean over the ranks, else this rank's own; the loss is always that of
    this rank's samples. With `count` the correctly classified ones count for the epoch's training accuracy.
    """
    parts = run.cfg.optimizer.accumulate
    accumulated_loss = torch.zeros((), device=run.device)
    for number, (part, weight) in enumerate(run.task.microbatches(batch, parts), start=1):
        with process_group.gradient_sync(run.network, average and number == parts):
            loss, logits, labels = run.task.loss(run.network, part)
            loss = loss * weight
            loss.backward()
        if count:
            run.metrics.update_accuracy(logits, labels)
        accumulated_loss += loss.detach()
    return accumulated_loss


def finish_epoch(run: Run, received: list[str]) -> None:
    """Evaluate, log, and save a checkpoint that resumes at the next epoch; stop if a signal arrived."""
    _check_finite(run)
    loss, accuracy = run.metrics.means()
    line = finite_or_none(_epoch_line(run, loss, accuracy))
    run.history.append(line)
    run.logger.log_epoch(line)
    run.sparsifier.on_epoch_end(train_accuracy=accuracy)
    run.epoch, run.batch = run.epoch + 1, 0
    run.metrics.reset()
    last = run.epoch == run.cfg.epochs
    due = time.monotonic() - run.saved_at >= min(_SHORT_EPOCH, 60 * run.cfg.checkpoint.minutes)
    requests = distributed.all_reduce_or(Request.CHECKPOINT * (due or last) | Request.STOP * bool(received))
    if requests:
        save(run)
    if requests & Request.STOP and not last:
        raise Interrupted(f"stopped by {_signal_name(received)} after epoch {run.epoch}, step {run.step}")


def _epoch_line(run: Run, loss: float, accuracy: float) -> dict[str, Any]:
    """The epoch's line of metrics.jsonl."""
    if not run.task.logs_statistics:
        return {"epoch": run.epoch, "train_loss": loss, **run.task.evaluate(run)}
    line = {"epoch": run.epoch, "step": run.step, "train_loss": loss, "train_top1": 100 * accuracy}
    line |= run.task.evaluate(run)
    line["lr"] = run.scheduler.base_lrs[0] * run.scheduler.lr_lambdas[0](run.step - 1)
    return line | run.sparsifier.stats() | statistics(run)


def statistics(run: Run) -> dict[str, Any]:
    """Statistics of the weights for the figures, see `pruning.stats`; once per epoch."""
    masks = run.sparsifier.masks
    first = next(iter(masks.weights))
    values = l1_norm(masks) | small_fractions(masks) | run.flips.on_epoch_end(run.epoch + 1)
    values["inverse_metric_at_zero"] = inverse_metric_at_zero(
        masks.weights[first], mask=masks.masks.get(first)
    )
    values["layers"] = {name: 1 - kept / total for name, kept, total in run.sparsifier.counts()}
    if run.ham:
        values["clamped_share"] = float(run.ham.clamped_share())
    return values


def save(run: Run) -> None:
    """Write the metrics and a checkpoint; a run that has diverged keeps its last good checkpoint."""
    _check_finite(run)
    distributed.broadcast_buffers(run.model)
    ranks.check_run(run)
    tensors = {name: t for name, t in run.model.state_dict().items() if t.is_floating_point()}
    finite = torch.isfinite(torch.stack(torch._foreach_norm(list(tensors.values()), float("inf"))))
    if not bool(finite.all()):
        name = list(tensors)[int(finite.logical_not().nonzero()[0])]
        raise _divergence(run, run.step, f"{name} is not finite")
    distributed.on_rank_zero(run.logger.flush)
    state = run.state_dict()
    distributed.on_rank_zero(lambda: checkpoint.save(run.logger.folder, state))
    run.saved_at = time.monotonic()


def _check_finite(run: Run) -> None:
    """Raise DivergedError if a loss of this epoch was not finite on any rank."""
    step = run.metrics.diverged_at()
    if step >= 0:
        raise _divergence(run, step, "the loss is not finite")


def _divergence(run: Run, step: int, problem: str) -> DivergedError:
    last = run.logger.folder / checkpoint.LAST
    kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written yet"
    cure = "optimizer.lr or ham.alpha" if run.ham else "optimizer.lr"
    return DivergedError(f"{problem} at step {step}", f"{kept}; lower {cure}")


@contextmanager
def _translate_nan_scores(run: Run) -> Iterator[None]:
    """Treat nan scores found by a sparsifier as divergence."""
    try:
        yield
    except NotFinite as error:
        raise _divergence(run, run.step, str(error).partition(":")[0]) from error


@contextmanager
def _write_metrics_at_end(run: Run) -> Iterator[None]:
    """Write the metrics of the finished epochs, also if training ends with an error."""
    try:
        yield
    finally:
        run.logger.flush()


@contextmanager
def catch_stop_signals() -> Iterator[list[str]]:
    """The names of the stop signals received so far, in a list that stays empty until one arrives."""
    received: list[str] = []
    stop_signals = (signal.SIGTERM, signal.SIGUSR1)
    before = {
        s: signal.signal(s, lambda number, _: received.append(signal.Signals(number).name))
        for s in stop_signals
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
