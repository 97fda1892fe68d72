"""When a run checks, saves and stops: after a step and at the end of an epoch."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ham import distributed
from ham.run import loop
from ham.run.loop import DivergedError, Interrupted, Request, catch_stop_signals, finish_epoch, train_step
from pruning.topk import NotFinite


class Noted(SimpleNamespace):
    """A stand-in for a run, which notes what is done to it, in `events`."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Noted:
    """In the middle of epoch 3 of 5; 1000 seconds after its last checkpoint, one is due every 15 minutes."""
    events: list[Any] = []
    note = lambda name: lambda *args, **kwargs: events.append((name, *args, *kwargs.items()))  # noqa: E731
    made = Noted(
        events=events,
        epoch=2,
        batch=3,
        step=23,
        saved_at=0.0,
        history=[],
        ham=None,
        cfg=SimpleNamespace(epochs=5, checkpoint=SimpleNamespace(minutes=15.0)),
        task=SimpleNamespace(steps_per_epoch=10, logs_statistics=False, evaluate=lambda run: {"top1": 50.0}),
        logger=SimpleNamespace(
            folder=tmp_path,
            should_log=lambda: False,
            set_postfix=note("postfix"),
            log_epoch=note("log"),
            flush=note("flush"),
        ),
        metrics=SimpleNamespace(
            running_loss=lambda: 1.23456,
            means=lambda: (1.5, 0.25),
            diverged_at=lambda: -1,
            reset=note("reset"),
        ),
        sparsifier=SimpleNamespace(on_epoch_end=note("epoch end")),
    )
    monkeypatch.setattr(loop.time, "monotonic", lambda: 1000.0)
    monkeypatch.setattr(loop, "save", lambda run: events.append("save"))
    return made


def test_each_request_has_a_bit_of_its_own() -> None:
    assert [int(Request.CHECK), int(Request.CHECKPOINT), int(Request.STOP)] == [1, 2, 4]


@pytest.mark.parametrize(
    ("batch", "saved_at", "minutes", "saves"),
    [
        (3, 100.0, 15.0, True),
        (3, 100.1, 15.0, False),
        (9, 0.0, 15.0, True),
        (10, 0.0, 15.0, False),
        (3, 1000.0, 0.0, True),
    ],
)
def test_inside_an_epoch_a_checkpoint_is_due_by_the_minute(
    run: Noted, batch: int, saved_at: float, minutes: float, saves: bool
) -> None:
    run.batch, run.saved_at, run.cfg.checkpoint.minutes = batch, saved_at, minutes
    loop._handle_requests(run, [])
    assert run.events == (["save"] if saves else [])


def test_a_signal_saves_and_stops_inside_an_epoch(run: Noted, monkeypatch: pytest.MonkeyPatch) -> None:
    run.saved_at = 999.0
    with pytest.raises(Interrupted, match=r"^stopped by SIGTERM in epoch 3, step 23$"):
        loop._handle_requests(run, ["SIGTERM", "SIGUSR1"])
    assert run.events == ["save"]
    monkeypatch.setattr(distributed, "all_reduce_or", lambda flags: flags | Request.STOP)
    with pytest.raises(Interrupted, match=r"^stopped by a signal to another rank in epoch 3, step 23$"):
        loop._handle_requests(run, [])


def test_the_loss_is_shown_and_checked_where_the_log_asks(run: Noted) -> None:
    run.saved_at = 999.0
    loop._handle_requests(run, [])
    assert run.events == []
    run.logger.should_log = lambda: True
    loop._handle_requests(run, [])
    assert run.events == [("postfix", ("loss", "1.2346"))]
    run.metrics.diverged_at = lambda: 0
    with pytest.raises(DivergedError) as caught:
        loop._handle_requests(run, [])
    advice = "no checkpoint was written yet; lower optimizer.lr"
    assert str(caught.value) == f"diverged: the loss is not finite at step 0; {advice}"
    assert caught.value.reason == "the loss is not finite at step 0"


@pytest.mark.parametrize("ham", [None, object()])
@pytest.mark.parametrize("saved", [False, True])
def test_a_divergence_names_the_checkpoint_and_the_rates_to_lower(
    run: Noted, saved: bool, ham: object
) -> None:
    run.ham, path = ham, run.logger.folder / "last.pt"
    if saved:
        path.touch()
    with pytest.raises(DivergedError) as caught, loop._translate_nan_scores(run):
        raise NotFinite("the scores of fc contain nan: lower the rate")
    kept = f"the last good checkpoint is {path}" if saved else "no checkpoint was written yet"
    rates = "optimizer.lr or ham.alpha" if ham else "optimizer.lr"
    assert str(caught.value) == f"diverged: the scores of fc contain nan at step 23; {kept}; lower {rates}"


@pytest.mark.parametrize(
    ("epoch", "saved_at", "minutes", "saves"),
    [
        (2, 999.0, 15.0, True),
        (2, 999.1, 15.0, False),
        (4, 1000.0, 15.0, True),
        (2, 1000.0, 0.0, True),
        (2, 999.7, 0.004, True),
    ],
)
def test_after_an_epoch_a_checkpoint_is_due_after_a_second(
    run: Noted, epoch: int, saved_at: float, minutes: float, saves: bool
) -> None:
    run.epoch, run.saved_at, run.cfg.checkpoint.minutes = epoch, saved_at, minutes
    finish_epoch(run, [])
    line = {"epoch": epoch, "train_loss": 1.5, "top1": 50.0}
    expected = [("log", line), ("epoch end", ("train_accuracy", 0.25)), ("reset",)]
    assert run.events == expected + (["save"] if saves else [])
    assert run.history == [line] and (run.epoch, run.batch) == (epoch + 1, 0)


def test_a_signal_stops_after_an_epoch_but_the_last(run: Noted, monkeypatch: pytest.MonkeyPatch) -> None:
    run.saved_at = 1000.0
    with pytest.raises(Interrupted, match=r"^stopped by SIGUSR1 after epoch 3, step 23$"):
        finish_epoch(run, ["SIGUSR1"])
    assert run.events[-1] == "save"
    run.epoch = 4
    finish_epoch(run, ["SIGUSR1"])
    run.epoch, run.metrics.diverged_at = 2, lambda: 21
    with pytest.raises(DivergedError, match="the loss is not finite at step 21"):
        finish_epoch(run, [])
    assert run.history[-1]["epoch"] == 4, "the epoch that diverged has no line"


def test_the_line_of_an_epoch_has_the_rate_of_its_last_step(
    run: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.task.logs_statistics = True
    run.scheduler = SimpleNamespace(base_lrs=[0.5, 9.0], lr_lambdas=[lambda step: step / 10, None])
    run.sparsifier.stats = lambda: {"sparsity": 0.9}
    monkeypatch.setattr(loop, "statistics", lambda run: {"l1": 3.0})
    assert loop._epoch_line(run, 1.5, 0.25) == {
        **{"epoch": 2, "step": 23, "train_loss": 1.5, "train_top1": 25.0, "top1": 50.0, "lr": 0.5 * 2.2},
        **{"sparsity": 0.9, "l1": 3.0},
    }


def test_stop_signals_are_noted_and_their_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with catch_stop_signals() as received:
        assert received == []
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert received == ["SIGUSR1", "SIGTERM"]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_metrics_are_written_however_training_ends(run: Noted) -> None:
    with pytest.raises(KeyError), loop._write_metrics_at_end(run):
        raise KeyError
    assert run.events == [("flush",)]


@pytest.mark.parametrize("sam", [0.0, 0.5])
@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("steps", [True, False])
def test_the_order_of_a_step(monkeypatch: pytest.MonkeyPatch, sam: float, clip: float, steps: bool) -> None:
    events: list[Any] = []
    note = lambda name, value=None: lambda *_, **__: events.append(name) or value  # noqa: E731
    cfg = SimpleNamespace(sam_rho=sam, sam_ascent=loop.Ascent.per_rank, sam_freeze_bn=True, clip_norm=clip)
    cfg.sam_adaptive = False
    names = ("mask_gradients", "add_decay", "after_step")
    sparsifier = SimpleNamespace(**{name: note(name) for name in names}, after_backward=note("after", steps))
    run = SimpleNamespace(
        cfg=SimpleNamespace(optimizer=cfg),
        sparsifier=sparsifier,
        optimizer=SimpleNamespace(step=note("step"), zero_grad=note("zero")),
        scheduler=SimpleNamespace(step=note("schedule")),
        params=[torch.nn.Parameter(torch.ones(1))],
        model=torch.nn.Linear(1, 1),
        step=0,
    )
    passes: list[dict[str, bool]] = []

    def forward_backward(run: Any, batch: Any, **options: bool) -> torch.Tensor:
        passes.append(options)
        events.append("gradient")
        run.params[0].grad = torch.full((1,), 2.0)
        return torch.tensor(float(len(passes)))

    monkeypatch.setattr(loop, "forward_backward", forward_backward)
    assert train_step(run, None).item() == 1.0
    second = ["gradient", "mask_gradients"] if sam else []
    rest = [*second, "add_decay", "step", "after_step"] if steps else []
    assert events == ["gradient", "after", *rest, "schedule", "zero"]
    assert passes[0] == {"average": not sam}
    assert passes[1:] == ([{"count": False}] if sam and steps else [])
    assert run.params[0].grad.item() == pytest.approx(0.5 if clip and steps else 2.0)


@pytest.mark.parametrize(
    ("options", "synced", "counted"), [({}, True, 2), ({"average": False, "count": False}, False, 0)]
)
def test_parts_of_a_batch_are_weighted_and_averaged_over_the_ranks_once(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, bool], synced: bool, counted: int
) -> None:
    """The mean of 3 samples of loss 2 w and one of loss 6 w is 3 w."""
    weight = torch.tensor(1.0, requires_grad=True)
    syncs: list[bool] = []
    accuracies: list[tuple[str, str]] = []

    def gradient_sync(network: object, enabled: bool) -> Any:
        syncs.append(enabled)
        return nullcontext()

    monkeypatch.setattr(loop.process_group, "gradient_sync", gradient_sync)
    task = SimpleNamespace(
        microbatches=lambda batch, parts: [(2.0, 0.75), (6.0, 0.25)][:parts],
        loss=lambda network, part: (part * weight, f"logits {part:g}", f"labels {part:g}"),
    )
    run = SimpleNamespace(
        cfg=SimpleNamespace(optimizer=SimpleNamespace(accumulate=2)),
        device=torch.device("cpu"),
        network=None,
        task=task,
        metrics=SimpleNamespace(update_accuracy=lambda *pair: accuracies.append(pair)),
    )
    loss = loop.forward_backward(run, None, **options)
    assert (loss.item(), weight.grad.item(), loss.requires_grad) == (3.0, 3.0, False)
    assert syncs == [False, synced]
    assert accuracies == [("logits 2", "labels 2"), ("logits 6", "labels 6")][:counted]


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.time, "monotonic", lambda: 50.0)
    events: list[Any] = []
    monkeypatch.setattr(loop.ranks, "check_run", lambda run: events.append("compared"))
    monkeypatch.setattr(loop.checkpoint, "save", lambda folder, state: events.append((folder, state)))
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2))
    run = SimpleNamespace(
        model=model,
        ham=None,
        step=7,
        saved_at=0.0,
        metrics=SimpleNamespace(diverged_at=lambda: -1),
        logger=SimpleNamespace(folder=tmp_path, flush=lambda: events.append("flushed")),
        state_dict=lambda: {"a": 1},
    )
    loop.save(run)
    assert events == ["compared", "flushed", (tmp_path, {"a": 1})] and run.saved_at == 50.0
    with torch.no_grad():
        model[1].bias[1] = float("nan")
    with pytest.raises(DivergedError, match=r"diverged: 1\.bias is not finite at step 7; "):
        loop.save(run)
    model[0].running_var[0] = float("inf")
    with pytest.raises(DivergedError, match=r"diverged: 0\.running_var is not finite at step 7; "):
        loop.save(run)
    run.metrics.diverged_at = lambda: 6
    with pytest.raises(DivergedError, match="the loss is not finite at step 6"):
        loop.save(run)
    assert events[3:] == ["compared"] * 2


@pytest.mark.parametrize("ham", [None, SimpleNamespace(clamped_share=lambda: torch.tensor(0.25))])
def test_the_statistics_of_an_epoch(monkeypatch: pytest.MonkeyPatch, ham: Any) -> None:
    masks = SimpleNamespace(weights={"first": "w1", "second": "w2"}, masks={"first": "m1"})
    monkeypatch.setattr(loop, "l1_norm", lambda masks: {"l1": 1.0})
    monkeypatch.setattr(loop, "small_fractions", lambda masks: {"small": 2.0})
    monkeypatch.setattr(loop, "inverse_metric_at_zero", lambda weight, mask: (weight, mask))
    run = SimpleNamespace(
        epoch=3,
        ham=ham,
        flips=SimpleNamespace(on_epoch_end=lambda epoch: {"flips": epoch}),
        sparsifier=SimpleNamespace(masks=masks, counts=lambda: [("first", 1, 4), ("second", 4, 4)]),
    )
    expected = {"l1": 1.0, "small": 2.0, "flips": 4, "inverse_metric_at_zero": ("w1", "m1")}
    expected |= {"layers": {"first": 0.75, "second": 0.0}} | ({"clamped_share": 0.25} if ham else {})
    assert loop.statistics(run) == expected


@pytest.mark.parametrize(("batch", "starts"), [(0, [0, 1]), (1, [1])])
def test_training_goes_on_from_its_batch_to_its_last_epoch(
    run: Noted, monkeypatch: pytest.MonkeyPatch, batch: int, starts: list[int]
) -> None:
    """Two epochs of two steps; an epoch starts once for the sparsifier."""
    events: list[Any] = []
    run.epoch, run.batch, run.step, run.cfg.epochs, run.optimizer = 0, batch, batch, 2, "optimizer"
    run.task.batches = lambda epoch, start: range(start, 2)
    run.metrics.update_loss = lambda *step: events.append(step)
    run.logger.update_progress = lambda: events.append("progress")
    run.sparsifier = SimpleNamespace(
        on_epoch_start=lambda *arguments: events.append(arguments), on_end=lambda: events.append("end")
    )
    monkeypatch.setattr(loop, "train_step", lambda run, batch: f"loss {batch}")
    monkeypatch.setattr(loop, "_handle_requests", lambda run, received: events.append((run.step, run.batch)))

    def finish(run: Noted, received: list[str]) -> None:
        events.append("finished")
        run.epoch, run.batch = run.epoch + 1, 0

    monkeypatch.setattr(loop, "finish_epoch", finish)
    loop.train(run)
    expected: list[Any] = []
    step = batch
    for epoch in (0, 1):
        if epoch in starts:
            expected.append((epoch, "optimizer"))
        for number in range(batch if epoch == 0 else 0, 2):
            expected += [(step, f"loss {number}"), "progress", (step + 1, number + 1)]
            step += 1
        expected += ["end", "finished"] if epoch == 1 else ["finished"]
    assert events == expected and run.saved_at == 1000.0 and run.events == [("flush",)]
