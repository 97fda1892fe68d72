"""Config -> Run: model, sparsifier, optimizer, HAM and schedule, built in the one order that works."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ham import distributed, process_group
from ham.data import derived_seed
from ham.optim import HAM, param_groups
from ham.tasks import Task
from pruning import MaskFrom, Sparsifier
from pruning.stats import SignFlips

from .config import Config, ConfigError
from .config.optimization import AdamConfig, AdamWConfig, OptimizerConfig, SGDConfig
from .config.schema import Device
from .logger import NullLogger, RunLogger
from .mask_source import load_source_masks
from .metrics import EpochMetrics
from .state import Run


def build(
    cfg: Config,
    config_hash: str,
    task: Task,
    logger: RunLogger | NullLogger,
    device: torch.device,
    *,
    resumed: bool = False,
) -> Run:
    """Model, sparsifier, optimizer, HAM, schedule: in this order.

    A `resumed` run gets its state by `load_state_dict`, its masks included.

    Raises:
        ConfigError: a value does not fit the model, such as a pattern that matches nothing, or the masks of
            another run are missing or belong to a different run than the configuration names.
    """
    if cfg.optimizer.label_smoothing > 0 and not task.smooths_labels:
        raise ConfigError(f"optimizer.label_smoothing does not apply to task {task.name}: omit it")
    stream = "model redrawn" if cfg.sparsifier.redraws_weights else "model"
    generator = torch.Generator().manual_seed(derived_seed(cfg.seed, stream))
    rank = distributed.world().rank
    torch.manual_seed(derived_seed(cfg.seed, f"training {rank}" if rank else "training"))
    lengths = dict(total_epochs=cfg.epochs, steps_per_epoch=task.steps_per_epoch)
    sparsifier, parameterization = resolve_mask_source(cfg, resumed=resumed), cfg.parameterization

    def parts() -> tuple[nn.Module, torch.optim.Optimizer, HAM | None]:
        model = task.build_model(generator)
        seed = derived_seed(cfg.seed, "sparsifier")
        sparsifier.attach(model, **lengths, seed=seed, parameterization=parameterization)
        optimizer = build_optimizer(cfg, model, sparsifier)
        return model, optimizer, build_ham(cfg, optimizer, sparsifier)

    try:
        if isinstance(sparsifier, MaskFrom) and not resumed:  # only rank 0 has to see the file
            sparsifier.loaded = distributed.from_rank_zero(lambda: load_source_masks(cfg, sparsifier))
        model, optimizer, ham = distributed.raise_on_all_ranks(parts)
    except ValueError as error:
        raise distributed.shared(ConfigError(str(error))) from error
    factor = cfg.optimizer.schedule.factor(cfg.epochs, task.steps_per_epoch)
    scheduler = LambdaLR(optimizer, factor)
    if sparsifier.uses_gradients(0):  # masks are updated at step 0, where no optimizer step is taken
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step", UserWarning)
    network = process_group.wrap_ddp(model, device)
    return Run(
        cfg=cfg,
        config_hash=config_hash,
        device=device,
        task=task,
        model=model,
        network=torch.compile(network) if cfg.compute.compile else network,
        sparsifier=sparsifier,
        optimizer=optimizer,
        ham=ham,
        scheduler=scheduler,
        logger=logger,
        flips=SignFlips(sparsifier.masks, every=cfg.flips_every),
        metrics=EpochMetrics(device),
    )


def resolve_mask_source(cfg: Config, *, resumed: bool = False) -> Sparsifier:
    """The sparsifier; a mask source that names an experiment becomes the run of it with the same seed.

    A `resumed` run has its masks in the checkpoint and no longer needs the source.
    """

    def folder_of(experiment: str) -> str:
        name = "-".join(filter(None, [experiment, cfg.demo]))
        return f"{cfg.runs_dir}/{name}/seed{cfg.seed}"

    return cfg.sparsifier.resolve(folder_of, resumed=resumed)


def run_directory(cfg: Config, config_hash: str) -> Path:
    """runs_dir/<exp>[-<demo>][-<hash>]/seed<k>; with the hash where the command line changed values."""
    name = "-".join(filter(None, [cfg.name, cfg.demo, config_hash[:8] if cfg.overridden else ""]))
    return Path(cfg.runs_dir) / name / f"seed{cfg.seed}"


def build_optimizer(cfg: Config, model: nn.Module, sparsifier: Sparsifier) -> torch.optim.Optimizer:
    """A fused optimizer of torch, with parameter groups for HAM and weight decay."""
    o = cfg.optimizer
    groups = param_groups(model, weight_decay=o.weight_decay, select=str(cfg.ham.select), decay=str(o.decay))
    for group in groups:
        group["weight_decay"] += o.matched_decay if group["ham_alpha"] is None else 0.0  # where HAM would act
    return optimizer_of(o, sparsifier.param_groups(groups))


def optimizer_of(o: OptimizerConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """A fused optimizer of torch over parameter groups. Raises ConfigError for an unknown one."""
    if isinstance(o, SGDConfig):
        return torch.optim.SGD(groups, lr=o.lr, momentum=o.momentum, nesterov=o.nesterov, fused=True)
    if isinstance(o, AdamConfig):  # before AdamWConfig, its base class
        return torch.optim.Adam(groups, lr=o.lr, betas=tuple(o.betas), eps=o.eps, fused=True)
    if isinstance(o, AdamWConfig):
        return torch.optim.AdamW(groups, lr=o.lr, betas=tuple(o.betas), eps=o.eps, fused=True)
    raise ConfigError(f"unknown optimizer {type(o).__name__}: choose one of configs/optimizer")


def build_ham(cfg: Config, optimizer: torch.optim.Optimizer, sparsifier: Sparsifier) -> HAM | None:
    """HAM with the values of the configuration; None for the base optimizer without HAM."""
    if not cfg.ham.active:
        return None
    if cfg.decouples_decay:  # HAM reads gradients without decay
        sparsifier.parameterization.decoupled_decay = True
        optimizer.register_step_post_hook(sparsifier.parameterization.remove_decay)
    return HAM(
        optimizer,
        alpha=cfg.ham.alpha,
        beta=cfg.ham.beta,
        clamp=cfg.ham.clamp,
        mask_zero_grad=cfg.ham.mask_zero_grad,
        max_weight_norm=cfg.ham.max_weight_norm or None,
        track_clamped=True,
    )


def setup_device(cfg: Config) -> torch.device:
    """The device of this rank; sets threads, precision and cudnn in this one place.

    Raises:
        ConfigError: the device is not available, or the batch does not divide over the ranks.
    """
    _check_world_size(cfg, distributed.world().size)
    cores = os.cpu_count() or 1
    if cfg.compute.threads > cores:
        raise ConfigError(f"compute.threads={cfg.compute.threads} exceeds the {cores} cores of this machine")
    if cfg.compute.threads:
        torch.set_num_threads(cfg.compute.threads)
    available = torch.cuda.is_available()
    if cfg.compute.device is Device.cuda and not available:
        raise ConfigError("compute.device=cuda, but torch finds no GPU: use compute.device=auto or cpu")
    if cfg.compute.device is Device.cpu or not available:
        if cfg.compute.sync_bn:
            raise ConfigError("compute.sync_bn=true needs GPUs: omit it on a CPU")
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    try:
        device = process_group.local_device(distributed.world())
    except ValueError as error:
        raise ConfigError(str(error)) from error
    torch.cuda.set_device(device)
    return device


def _check_world_size(cfg: Config, world_size: int) -> None:
    """Raise ConfigError unless the batch splits into equal parts, `accumulate` for each rank."""
    parts = world_size * cfg.optimizer.accumulate
    if cfg.batch_size % parts:
        nearest = max(cfg.batch_size // parts, 1) * parts
        raise ConfigError(
            f"batch_size={cfg.batch_size} does not divide into {world_size} processes x "
            f"{cfg.optimizer.accumulate} parts: use another number of processes, or batch_size={nearest}"
        )
    if (samples := cfg.batch_size // parts) < cfg.model.min_batch_size:
        raise ConfigError(
            f"BatchNorm needs {cfg.model.min_batch_size} samples at once, got {samples} on each of "
            f"{world_size} processes: start fewer processes"
        )
