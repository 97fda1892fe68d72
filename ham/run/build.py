"""Config -> Run: everything a training loop needs, made in the one order that works."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ham.data import Loaders, derived_seed
from ham.models import build_model
from ham.optim import HAM, cosine, param_groups, triangular
from pruning import MaskFrom, Sparsifier
from pruning.stats import SignFlips

from .record import Record
from .schema import AdamWConfig, Config, ConfigError, Device, Schedule, SGDConfig


@dataclass
class Run:
    """One training run and where it stands: `step` iterations are done, `batch` of them in `epoch`.

    `right` of `seen` training images of the epoch were classified right.
    """

    cfg: Config
    identity: str
    device: torch.device
    model: nn.Module
    network: nn.Module
    loaders: Loaders
    sparsifier: Sparsifier
    optimizer: torch.optim.Optimizer
    ham: HAM | None
    scheduler: LambdaLR
    record: Record
    flips: SignFlips
    right: Tensor
    seen: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0

    @property
    def params(self) -> list[nn.Parameter]:
        """All trained parameters."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] -> float32 logits [N, classes]."""
        if self.cfg.compute.channels_last:
            images = images.to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cfg.compute.amp):
            logits = self.network(images)
        return logits.float()

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the run goes on."""
        return {
            "config_hash": self.identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "sparsifier": self.sparsifier.state_dict(),
            "ham": self.ham.state_dict() if self.ham else {},
            "record": self.record.state_dict(),
            "flips": self.flips.state_dict(),
            "right": self.right,
            "progress": {name: getattr(self, name) for name in ("epoch", "batch", "step", "seen")},
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            },
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.model.load_state_dict(state["model"])
        fused = [group.get("fused") for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, value in zip(self.optimizer.param_groups, fused, strict=True):
            group["fused"] = value  # of this device, not of the one the checkpoint was written on
        self.scheduler.load_state_dict(state["scheduler"])
        self.sparsifier.load_state_dict(state["sparsifier"])
        if self.ham:
            self.ham.load_state_dict(state["ham"])
        self.record.load_state_dict(state["record"])
        self.flips.load_state_dict(state["flips"])
        self.right.copy_(state["right"])
        for name, value in state["progress"].items():
            setattr(self, name, value)
        torch.set_rng_state(state["rng"]["cpu"])
        if self.device.type == "cuda" and state["rng"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["rng"]["cuda"])


def build(cfg: Config, identity: str, loaders: Loaders, record: Record, device: torch.device) -> Run:
    """Model, sparsifier, optimizer, HAM, schedule: in this order.

    Raises:
        ConfigError: a value that only shows itself against the model, such as a pattern that matches nothing.
    """
    steps = len(loaders.train)
    redrawn = isinstance(cfg.sparsifier, MaskFrom) and cfg.sparsifier.redraw
    stream = "model redrawn" if redrawn else "model"
    generator = torch.Generator().manual_seed(derived_seed(cfg.seed, stream))
    torch.manual_seed(derived_seed(cfg.seed, "training"))
    layout = torch.channels_last if cfg.compute.channels_last else torch.preserve_format
    sizes = dict(num_classes=cfg.data.num_classes, image_size=cfg.data.image_size)
    lengths = dict(total_epochs=cfg.epochs, steps_per_epoch=steps)
    sparsifier, parameterization = locate_masks(cfg), cfg.parameterization
    try:
        model = build_model(cfg.model, **sizes, generator=generator).to(device, memory_format=layout)
        seed = derived_seed(cfg.seed, "sparsifier")
        sparsifier.attach(model, **lengths, seed=seed, parameterization=parameterization)
        optimizer = build_optimizer(cfg, model, sparsifier)
        ham = build_ham(cfg, optimizer, sparsifier)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    scheduler = LambdaLR(optimizer, build_schedule(cfg, cfg.epochs * steps))
    network = torch.compile(model) if cfg.compute.compile else model
    return Run(
        cfg,
        identity,
        device,
        model,
        network,
        loaders,
        sparsifier,
        optimizer,
        ham,
        scheduler,
        record,
        SignFlips(sparsifier.masks, every=cfg.flips_every),
        right=torch.zeros((), dtype=torch.int64, device=device),
    )


def locate_masks(cfg: Config) -> Sparsifier:
    """The sparsifier; a mask source that names an experiment becomes the run of it with the same seed."""
    sparsifier = cfg.sparsifier
    if isinstance(sparsifier, MaskFrom) and "/" not in sparsifier.source:
        folder = "-".join(filter(None, [sparsifier.source, cfg.demo]))
        return replace(sparsifier, source=f"{cfg.runs_dir}/{folder}/seed{cfg.seed}")
    return sparsifier


def build_optimizer(cfg: Config, model: nn.Module, sparsifier: Sparsifier) -> torch.optim.Optimizer:
    """An optimizer of torch, fused, on groups that tell where HAM and weight decay act."""
    o = cfg.optimizer
    groups = param_groups(model, weight_decay=o.weight_decay, select=str(cfg.ham.select), decay=str(o.decay))
    groups = sparsifier.param_groups(groups)
    if isinstance(o, SGDConfig):
        return torch.optim.SGD(groups, lr=o.lr, momentum=o.momentum, nesterov=o.nesterov, fused=True)
    if isinstance(o, AdamWConfig):
        return torch.optim.AdamW(groups, lr=o.lr, betas=tuple(o.betas), eps=o.eps, fused=True)
    raise ConfigError(f"{type(o).__name__} is no optimizer: choose one of configs/optimizer")


def build_ham(cfg: Config, optimizer: torch.optim.Optimizer, sparsifier: Sparsifier) -> HAM | None:
    """HAM as the config says, or None for the base optimizer alone."""
    if not cfg.ham.active:
        return None
    if cfg.factored:  # HAM sees gradients without decay: its hook is made after this one
        sparsifier.parameterization.separate_decay = True
        optimizer.register_step_post_hook(lambda *_: sparsifier.parameterization.remove_decay())
    return HAM(
        optimizer,
        alpha=cfg.ham.alpha,
        beta=cfg.ham.beta,
        clamp=cfg.ham.clamp,
        mask_zero_grad=cfg.ham.mask_zero_grad,
        max_weight_norm=cfg.ham.max_weight_norm or None,
        track_clamped=True,
    )


def build_schedule(cfg: Config, total_steps: int) -> Any:
    """Factor per step, by `optimizer.schedule`; null stands for the schedule's own default."""
    s = cfg.optimizer.schedule
    start = {} if s.start is None else {"start": s.start}
    try:
        if s.kind is Schedule.triangular:
            return triangular(total_steps, **({} if s.warmup is None else {"warmup": s.warmup}), **start)
        return cosine(total_steps, **({} if s.warmup is None else {"warmup": s.warmup}), **start)
    except ValueError as error:
        raise ConfigError(f"optimizer.schedule: {error}") from error


def choose_device(cfg: Config) -> torch.device:
    """The device of the run, its numerics set in this one place."""
    cores = os.cpu_count() or 1
    if cfg.compute.threads > cores:
        raise ConfigError(f"compute.threads={cfg.compute.threads} exceeds the {cores} cores of this machine")
    if cfg.compute.threads:
        torch.set_num_threads(cfg.compute.threads)
    available = torch.cuda.is_available()
    if cfg.compute.device is Device.cuda and not available:
        raise ConfigError("compute.device=cuda, but torch sees no GPU here: use compute.device=auto or cpu")
    if cfg.compute.device is Device.cpu or not available:
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda")
