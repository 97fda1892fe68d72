"""Fine-tune a language model with the Trainer of transformers, then let it answer the test questions."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ham import distributed
from ham.data import derived_seed
from ham.data.commonsense import Examples
from ham.data.commonsense_files import Question
from ham.models.causal_lm import LanguageModel, trained_weights
from ham.tasks import task_of
from ham.tasks.commonsense_answers import Score

from . import ranks, trainer_checkpoints
from .answering import Answering, accuracies
from .build import setup_device
from .c_operations import check_same_operations
from .checkpoint import CheckpointError, check_not_purged, check_owner, explain_mismatch
from .config import Config, ConfigError, to_yaml
from .logger import NullLogger, RunLogger
from .loop import DivergedError, catch_stop_signals
from .main import check_config_hash, is_finished, print_summary, report_finished
from .provenance import provenance
from .summary import agreed_ranks, identity, timing
from .trainer_checkpoints import Checkpoint

ADAPTER = "adapter"
_FULL = 2**24  # bytes; with less, a failed write is taken for a full disk


@dataclass(frozen=True)
class Inputs:
    """Inputs of a run.

    Args:
        examples: training examples and held-out examples.
        questions: task -> its questions.
        language: model and tokenizer.
    """

    examples: Examples
    questions: dict[str, list[Question]]
    language: LanguageModel


@dataclass(frozen=True)
class Training:
    """Result of the training.

    Args:
        step: step of the checkpoint that is evaluated.
        steps: number of steps that were taken.
        losses: losses of training and of the held-out examples.
    """

    step: int
    steps: int
    losses: dict[str, float]


def train_or_resume(cfg: Config, folder: Path, config_hash: str) -> dict[str, Any]:
    """Train and evaluate, or resume, the run in this directory, which only rank 0 writes.

    Returns:
        The summary of the run.

    Raises:
        ConfigError, DataError: it cannot start.
        DivergedError, Interrupted, CheckpointError, PeerLostError: it ended early.
    """
    device = setup_device(cfg)
    finished = is_finished(cfg, folder)
    inputs = None if finished else load_inputs(cfg, device)
    logger = distributed.on_rank_zero(lambda: RunLogger(folder, cfg)) or NullLogger(folder, cfg)
    try:
        if not cfg.resume:
            distributed.on_rank_zero(logger.clear)
        elif finished or is_finished(cfg, folder):
            return report_finished(cfg, logger, config_hash)
        with catch_stop_signals() as received:
            content = FineTuning(cfg, config_hash, inputs, device, logger, received).run()
        summary = distributed.from_rank_zero(lambda: _finish(cfg, config_hash, content, logger))
        return print_summary(logger, task_of(cfg.data), summary)
    finally:
        logger.close()


def load_inputs(cfg: Config, device: torch.device) -> Inputs:
    """Read the data and the model on every rank; an error on one rank is raised on all."""

    def load() -> Inputs:
        examples = cfg.data.load_examples()
        questions = {task: cfg.data.load_questions(task) for task in cfg.data.tests}
        return Inputs(examples, questions, cfg.model.load(derived_seed(cfg.seed, "model"), device))

    return distributed.raise_on_all_ranks(load)


@dataclass(frozen=True)
class FineTuning:
    """One fine-tuning run.

    Args:
        cfg: the configuration.
        config_hash: hash of the configuration.
        inputs: data, questions and model.
        device: device of this rank.
        logger: logger of this rank.
        received: names of the stop signals received so far.
    """

    cfg: Config
    config_hash: str
    inputs: Inputs
    device: torch.device
    logger: RunLogger | NullLogger
    received: list[str]

    def run(self) -> dict[str, Any]:
        """Train, or resume, and answer the questions; return its part of the summary."""
        resumed = distributed.from_rank_zero(self._prepare)
        if resumed is not None:
            resumed = self._receive(resumed)
            check = partial(check_same_operations, self.logger.folder, resumed.state, self.cfg, self.device)
            distributed.raise_on_all_ranks(check)
            with explain_mismatch(self.logger.folder):
                torch.set_num_threads(resumed.state["threads"])  # sums round as they did before
            distributed.on_rank_zero(lambda: self.logger.load_state_dict(resumed.state["logger"]))
        model, ham = self.inputs.language.model, self.cfg.ham
        answering = Answering(
            self.cfg, self.inputs.questions, self.inputs.language, self.logger, self.received
        )
        before = answering.all_tasks("before") if self.cfg.data.score_before else {}
        training = self._train(resumed)
        ranks.check_states(trained_weights(model), "after the training")
        distributed.on_rank_zero(lambda: _save_adapter(model, self.logger.folder / ADAPTER))
        after = answering.all_tasks("after")
        return {
            "ham": {"alpha": ham.alpha, "beta": ham.beta},
            "checkpoint": {"step": training.step, "steps": training.steps},
            "answers": {task: _counts(score) for task, score in after.items()},
            "metrics": training.losses | accuracies(after) | accuracies(before, "before_"),
            "sparsity": _sparsity(model),
        }

    def _prepare(self) -> Checkpoint | None:
        """The checkpoint to resume. Answers are kept: each file names its model."""
        folder, directory = self.logger.folder, self.logger.directory
        if (folder / "provenance.json").exists():
            check_config_hash(folder, directory.provenance()["config_hash"], self.config_hash)
        checkpoint = trainer_checkpoints.latest(folder / trainer_checkpoints.FOLDER, self.logger.log)
        if checkpoint is None:  # killed before its first checkpoint: nothing to resume
            check_not_purged(folder)
            (folder / "metrics.jsonl").unlink(missing_ok=True)
        else:
            self.logger.log(f"resumed at step {checkpoint.step}")
        directory.write_metadata(provenance(self.config_hash), to_yaml(self.cfg))
        return checkpoint

    def _receive(self, resumed: Checkpoint) -> Checkpoint:
        """The checkpoint in this rank's folder, which only rank 0 may see."""
        folder = self.logger.folder / trainer_checkpoints.FOLDER
        for name in filter(None, (resumed.path.name, resumed.best)):
            ranks.send_folder(folder / name)
        return replace(resumed, path=folder / resumed.path.name)

    def _train(self, resumed: Checkpoint | None) -> Training:
        """Train to the end; the model then has the adapter that is evaluated."""
        from .trainer import RunCallback, build_trainer

        _export_ranks(distributed.world())
        callback = RunCallback(self.cfg, self.config_hash, self.logger, self.received, resumed)
        folder = self.logger.folder / trainer_checkpoints.FOLDER
        try:
            trainer = build_trainer(self.cfg, self.inputs, self.device, callback, folder)
        except ValueError as error:  # a pattern of ham.select that matches nothing
            raise ConfigError(str(error)) from error
        try:
            trainer.train(resume_from_checkpoint=str(resumed.path) if resumed else None)
        except DivergedError as error:
            self._write_divergence(error.reason, callback.epochs)
            raise
        except RuntimeError as error:  # torch's and safetensors' writers name no cause
            if not distributed.world().is_main_process or not _is_full(self.logger.folder):
                raise
            reason = "the disk is full; complete ones are kept"
            raise CheckpointError(f"cannot write a checkpoint in {folder}: {reason}") from error
        finally:
            self.logger.flush()
        state, loads_best = trainer.state, trainer.args.load_best_model_at_end
        losses = {"train_loss": callback.train_loss, "valid_loss": callback.valid_loss}
        losses |= {"valid_loss_best": state.best_metric} if loads_best else {}
        known = {name: loss for name, loss in losses.items() if loss is not None}
        return Training(state.best_global_step if loads_best else state.global_step, state.global_step, known)

    def _write_divergence(self, reason: str, epochs: int) -> None:
        """Write diverged.json; `epochs` is the number of finished epochs."""
        if not distributed.world().is_main_process:
            return
        content = {
            **identity(self.cfg, self.config_hash),
            "status": "diverged",
            "reason": reason,
            "epochs": epochs,
            "provenance": self.logger.directory.provenance(),
        }
        self.logger.directory.write_divergence(content)


def _is_full(folder: Path) -> bool:
    with suppress(OSError):
        return shutil.disk_usage(folder).free < _FULL
    return False


def _export_ranks(me: distributed.World) -> None:
    """Set torchrun's variables, which accelerate reads and srun does not set."""
    if me.size > 1:
        names = {"RANK": me.rank, "WORLD_SIZE": me.size, "LOCAL_RANK": me.local_rank}
        os.environ.update({name: str(value) for name, value in names.items()})


def _counts(score: Score) -> dict[str, int]:
    return {key: value for key, value in asdict(score).items() if key != "task"}


def _sparsity(model: torch.nn.Module) -> dict[str, Any]:
    """Sparsity of the LoRA matrices."""
    trained = [p for p in model.parameters() if p.requires_grad]
    total, kept = sum(p.numel() for p in trained), sum(int(p.count_nonzero()) for p in trained)
    return {"target": 0.0, "overall": 1 - kept / total, "kept": kept, "total": total, "layers": {}}


def _save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter as PEFT does, in safetensors; a folder of this name is complete."""
    partial = folder.with_name(f"{folder.name}.partial")
    check_owner(folder.parent)
    for path in (partial, folder):
        shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(str(partial), save_embedding_layers=False)
    check_owner(folder.parent)
    partial.rename(folder)


def _finish(cfg: Config, config_hash: str, content: dict[str, Any], logger: RunLogger) -> dict[str, Any]:
    """Write the summary, which marks the run as finished."""
    summary = {
        **identity(cfg, config_hash),
        "status": "done",
        "epochs": cfg.epochs,
        **content,
        "timing": timing(logger.seconds(), content["checkpoint"]["steps"]),
        "ranks": agreed_ranks(),
        "provenance": logger.directory.provenance(),
    }
    logger.write_summary(summary)
    return summary
