"""The callback of the Trainer: what it logs, when it saves, stops and ends a diverged training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ham import distributed
from ham.data import derived_seed
from ham.distributed import World
from ham.run import checkpoint, ranks, trainer, trainer_checkpoints
from ham.run.config import Config, load
from ham.run.config.schema import CheckpointConfig
from ham.run.loop import DivergedError, Interrupted, Request
from ham.run.trainer import RunCallback, ham_callbacks, steps_per_epoch, training_arguments
from ham.run.trainer_checkpoints import Checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cfg() -> Config:
    """Batches of 8, two epochs."""
    made = load(["+exp=lora_llama1b_ham", "+demo=tiny"])
    return replace(made, compute=replace(made.compute, timeout=90.7), checkpoint=CheckpointConfig())


class Logger:
    """Notes what is logged."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lines, self.events, self.asks = folder, list[Any](), list[Any](), False

    def log_steps(self, line: dict[str, Any], total: int) -> None:
        self.lines.append((line, total))

    def should_log(self) -> bool:
        return self.asks

    def set_postfix(self, **values: str) -> None:
        self.events.append(values)

    def start_progress(self, *steps: int) -> None:
        self.events.append(steps)

    def update_progress(self) -> None:
        self.events.append("step")

    def flush(self) -> None:
        self.events.append("flush")

    def state_dict(self) -> dict[str, int]:
        return {"metrics_bytes": 7}


@pytest.fixture
def make(cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunCallback]:
    """`make()`: the callback of a run, 1000 seconds after the start of the clock."""
    monkeypatch.setattr(trainer.time, "monotonic", lambda: 1000.0)

    def build(*received: str, resumed: Checkpoint | None = None, **changes: Any) -> RunCallback:
        return RunCallback(replace(cfg, **changes), "hash", Logger(tmp_path), list(received), resumed)

    return build


def state(step: int, **values: Any) -> Any:
    """The Trainer's state in a run of 24 steps in 2 epochs."""
    known = {
        "global_step": step,
        "max_steps": 24,
        "epoch": step / 12,
        "best_global_step": None,
        "log_history": [1],
    }
    return SimpleNamespace(**known | values)


MODEL = torch.nn.Linear(2, 2)


def test_the_arguments_are_the_values_of_the_configuration(cfg: Config, tmp_path: Path) -> None:
    made = training_arguments(cfg, CPU, tmp_path, evaluates=True)
    assert (made.seed, made.data_seed) == tuple(
        derived_seed(cfg.seed, n) % 2**32 for n in ("training", "data")
    )
    assert made.output_dir == str(tmp_path) and made.use_cpu and not made.bf16 and made.ddp_timeout == 90
    assert made.per_device_eval_batch_size == made.per_device_train_batch_size == 8
    assert str(made.eval_strategy.value) == str(made.save_strategy.value) == "steps"
    assert made.load_best_model_at_end is cfg.data.load_best and made.metric_for_best_model == "eval_loss"
    disabled = (
        "greater_is_better",
        "logging_nan_inf_filter",
        "remove_unused_columns",
        "ddp_find_unused_parameters",
    )
    assert not any(getattr(made, name) for name in (*disabled, "dataloader_pin_memory"))
    assert (
        made.logging_steps == 1 and made.prediction_loss_only and made.disable_tqdm and made.report_to == []
    )
    plain = training_arguments(cfg, CPU, tmp_path, evaluates=False)
    assert plain.eval_strategy.value == "no" and plain.load_best_model_at_end is False


@pytest.mark.parametrize("held_out", [[], ["c"]])
def test_the_trainer_gets_our_optimizer_schedule_and_callbacks(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, held_out: list[str]
) -> None:
    events: list[Any] = []
    encode = lambda examples, tokenizer, cutoff_len: [(text, tokenizer, cutoff_len) for text in examples]  # noqa: E731
    made = lambda **options: SimpleNamespace(**options, remove_callback=events.append)  # noqa: E731
    monkeypatch.setattr(trainer, "encode_examples", encode)
    monkeypatch.setattr(trainer, "Trainer", made)
    monkeypatch.setattr(trainer, "ham_callbacks", lambda cfg: ["ham"])
    monkeypatch.setattr(trainer.transformers_logging, "set_verbosity_error", lambda: events.append("silent"))
    model = torch.nn.Linear(2, 2)
    inputs = SimpleNamespace(
        language=SimpleNamespace(model=model, tokenizer="tokens"),
        examples=SimpleNamespace(train=["a"] * 24, valid=held_out),
    )
    linear = replace(cfg.optimizer.schedule, warmup_steps=0)
    optimizer = replace(cfg.optimizer, schedule=linear, lr=0.5, weight_decay=0.25)
    given = replace(cfg, optimizer=optimizer, ham=replace(cfg.ham, select="everything"))
    found = trainer.build_trainer(given, inputs, CPU, "callback", tmp_path)
    assert found.model is model and found.train_dataset == [("a", "tokens", cfg.data.cutoff_len)] * 24
    assert found.eval_dataset == ([("c", "tokens", cfg.data.cutoff_len)] if held_out else None)
    assert found.callbacks == ["ham", "callback"] and found.data_collator is trainer.collate
    assert events == ["silent", trainer.PrinterCallback]
    assert (found.args.eval_strategy.value == "steps") is bool(held_out)
    built, schedule = found.optimizers
    assert type(built) is torch.optim.AdamW and {group["weight_decay"] for group in built.param_groups} <= {
        0.25,
        0.0,
    }
    assert [schedule.lr_lambdas[0](step) for step in (0, 3, 6)] == [1.0, 0.5, 0.0], "of 2 epochs of 3 steps"


@pytest.mark.parametrize(
    ("examples", "size", "accumulate", "steps"),
    [(48, 1, 1, 6), (49, 1, 1, 7), (48, 2, 1, 6), (49, 2, 2, 7), (1, 4, 2, 1), (33, 4, 1, 5)],
)
def test_an_epoch_has_a_step_for_each_batch_and_one_for_the_rest(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, examples: int, size: int, accumulate: int, steps: int
) -> None:
    monkeypatch.setattr(distributed, "world", lambda: World(0, size))
    cfg = replace(cfg, optimizer=replace(cfg.optimizer, accumulate=accumulate))
    assert steps_per_epoch(examples, cfg) == steps


def test_ham_is_attached_where_it_is_active(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "HAMCallback", lambda **options: options)
    assert ham_callbacks(replace(cfg, ham=replace(cfg.ham, alpha=0.0, beta=0.0))) == []
    values = {"alpha": 3.0, "beta": 2.0, "clamp": 4.0, "mask_zero_grad": True}
    for norm, given in ((0.0, None), (0.5, 0.5)):
        ham = replace(cfg.ham, **values, max_weight_norm=norm)
        assert ham_callbacks(replace(cfg, ham=ham)) == [values | {"max_weight_norm": given}]


def test_a_run_that_starts_anew_or_resumes_knows_its_losses(make: Callable[..., RunCallback]) -> None:
    new = make()
    assert (new.losses, new.train_loss, new.valid_loss) == ([], None, None)
    assert (new.saved_at, new.is_stopping, new.epochs) == (1000.0, False, 0)
    kept = {"losses": [1.0, 2.0], "train_loss": 3.0, "valid_loss": 4.0}
    old = make(resumed=Checkpoint(Path("x"), 4, kept))
    assert (old.losses, old.train_loss, old.valid_loss) == ([1.0, 2.0], 3.0, 4.0)


def test_training_begins_with_a_bar_and_the_best_checkpoint_of_this_folder(
    make: Callable[..., RunCallback], tmp_path: Path
) -> None:
    callback, now = make(), state(5, best_global_step=4, best_model_checkpoint="/elsewhere")
    callback.on_train_begin(SimpleNamespace(output_dir=str(tmp_path)), now, None, MODEL)
    assert callback.logger.events == [(24, 5)]
    assert now.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    other = state(5, best_model_checkpoint=None)
    callback.on_train_begin(SimpleNamespace(output_dir=str(tmp_path)), other, None, MODEL)
    assert other.best_model_checkpoint is None


@pytest.mark.parametrize(
    ("minutes", "saved_at", "received", "asked", "saves", "stops"),
    [
        (15.0, 100.0, (), False, True, False),
        (15.0, 100.1, (), False, False, False),
        (15.0, 100.1, (), True, True, False),
        (15.0, 999.0, ("SIGTERM",), False, True, True),
        (0.0, 1000.0, (), False, True, False),
    ],
)
def test_after_a_step_a_checkpoint_is_due_by_the_minute_or_by_a_signal(
    make: Callable[..., RunCallback],
    minutes: float,
    saved_at: float,
    received: tuple[str, ...],
    asked: bool,
    saves: bool,
    stops: bool,
) -> None:
    callback = make(*received, checkpoint=CheckpointConfig(minutes=minutes))
    callback.saved_at, control = saved_at, SimpleNamespace(should_save=asked)
    callback.on_step_end(None, state(23), control, MODEL)
    assert (control.should_save, callback.is_stopping, callback.epochs) == (saves, stops, 1)
    assert callback.logger.events == ["step"]


def test_the_last_step_stops_nothing_and_other_ranks_are_heard(
    make: Callable[..., RunCallback], monkeypatch: pytest.MonkeyPatch
) -> None:
    callback, control = make("SIGTERM"), SimpleNamespace(should_save=False)
    callback.on_step_end(None, state(24), control, MODEL)
    assert control.should_save and not callback.is_stopping and callback.epochs == 2
    monkeypatch.setattr(distributed, "all_reduce_or", lambda flags: flags | Request.STOP)
    callback = make()
    callback.on_step_end(None, state(3), SimpleNamespace(should_save=False), MODEL)
    assert callback.is_stopping and callback.received == []


def test_the_mean_loss_of_ten_steps_is_logged_and_that_of_the_last(make: Callable[..., RunCallback]) -> None:
    callback = make()
    for step in range(1, 25):
        now = state(step)
        callback.on_log(None, now, None, {"loss": float(step), "grad_norm": 0.5, "learning_rate": 0.25})
        assert now.log_history == []
    rest = {"grad_norm": 0.5, "lr": 0.25}
    assert callback.logger.lines == [
        ({"epoch": 0, "step": 10, "train_loss": 5.5, **rest}, 24),
        ({"epoch": 1, "step": 20, "train_loss": 15.5, **rest}, 24),
        ({"epoch": 1, "step": 24, "train_loss": 22.5, **rest}, 24),
    ]
    assert callback.losses == [] and callback.train_loss == 22.5 and callback.logger.events == []
    callback.logger.asks = True
    callback.on_log(None, state(3), None, {"loss": 1.23456, "learning_rate": 0.25})
    assert callback.logger.events == [{"loss": "1.2346"}] and callback.losses == [1.23456]
    for nothing in (None, {}, {"eval_loss": 1.0}):
        callback.on_log(None, state(10), None, nothing)
    assert len(callback.logger.lines) == 3


@pytest.mark.parametrize(("step", "epoch"), [(1, 0), (12, 0), (13, 1), (24, 1)])
def test_a_line_of_a_step_counts_the_epochs_before_it(
    make: Callable[..., RunCallback], step: int, epoch: int
) -> None:
    callback = make()
    callback.on_evaluate(None, state(step), None, {"eval_loss": 2.0})
    assert callback.logger.lines == [({"epoch": epoch, "step": step, "valid_loss": 2.0}, 24)]
    assert callback.valid_loss == 2.0


@pytest.mark.parametrize("active", [True, False])
def test_what_is_not_finite_ends_the_training(
    make: Callable[..., RunCallback], cfg: Config, active: bool
) -> None:
    values = {} if active else {"ham": replace(cfg.ham, alpha=0.0, beta=0.0)}
    callback, nan = make(**values), float("nan")
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight[0, 1] = float("inf")
    rates = "optimizer.lr or ham.alpha" if active else "optimizer.lr"
    advice = f"good checkpoints are in {callback.logger.folder / 'checkpoints'}; lower {rates}"
    for act, what in (
        (lambda: callback.on_log(None, state(7), None, {"loss": nan}), "the loss is not finite"),
        (
            lambda: callback.on_evaluate(None, state(7), None, {"eval_loss": nan}),
            "the loss on the held-out examples is not finite",
        ),
        (
            lambda: callback.on_step_end(None, state(7), SimpleNamespace(should_save=True), model),
            "1.weight is not finite",
        ),
    ):
        with pytest.raises(DivergedError) as caught:
            act()
        assert str(caught.value) == f"diverged: {what} at step 7; {advice}"
    assert callback.losses == [] and callback.logger.lines == []


@pytest.mark.parametrize("received", [(), ("SIGTERM", "SIGUSR1")])
@pytest.mark.parametrize("stopping", [False, True])
def test_a_checkpoint_is_marked_with_what_a_resumed_run_needs(
    make: Callable[..., RunCallback],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopping: bool,
    received: tuple[str, ...],
) -> None:
    done: list[Any] = []
    monkeypatch.setattr(trainer_checkpoints, "mark", lambda path, content: done.append((path, content)))
    monkeypatch.setattr(trainer_checkpoints, "rotate", done.append)
    monkeypatch.setattr(trainer, "operations_in_c", lambda cfg, device: {"HAM's step": True})
    monkeypatch.setattr(checkpoint, "check_owner", lambda folder: done.append(("owner", folder)))
    callback = make(*received)
    callback.saved_at, callback.is_stopping = 0.0, stopping
    callback.losses, callback.train_loss, callback.valid_loss = [1.0], 2.0, 3.0
    arguments = SimpleNamespace(output_dir=str(tmp_path / "checkpoints"))
    if stopping:
        name = "SIGTERM" if received else "a signal to another rank"
        with pytest.raises(Interrupted, match=f"^stopped by {name} in epoch 2, step 18$"):
            callback.on_save(arguments, state(18, best_global_step=12), None, MODEL)
    else:
        callback.on_save(arguments, state(18, best_global_step=12), None, MODEL)
    content = {
        **{"config_hash": "hash", "threads": torch.get_num_threads(), "best_step": 12, "losses": [1.0]},
        **{
            "train_loss": 2.0,
            "valid_loss": 3.0,
            "logger": {"metrics_bytes": 7},
            "c_operations": {"HAM's step": True},
        },
    }
    folder = tmp_path / "checkpoints"
    assert done == [("owner", tmp_path), (folder / "checkpoint-18", content), folder]
    assert (
        (tmp_path / ".saved").exists() and callback.saved_at == 1000.0 and callback.logger.events == ["flush"]
    )


def test_ranks_compare_the_weights_that_are_trained_and_the_optimizer(
    make: Callable[..., RunCallback], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[Any] = []
    monkeypatch.setattr(ranks, "check_states", lambda *arguments: compared.append(arguments))
    callback = make()
    model = torch.nn.ModuleDict({"module": torch.nn.Linear(2, 2, bias=False)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    callback._check_ranks(model, optimizer, 5)
    assert compared == []
    monkeypatch.setattr(distributed, "world", lambda: World(0, 2))
    callback._check_ranks(model, SimpleNamespace(optimizer=optimizer), 5)
    ((found, where),) = compared
    assert where == "in step 5" and found["step"] == 5 and found["optimizer"] == {}
    assert list(found["model"]) == ["weight"]
