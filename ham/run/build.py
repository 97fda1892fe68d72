"""Config -> Run: everything a training loop needs, made in the one order that works."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ham.data import Loaders, derived_seed
from ham.models import ResNet, build_model
from ham.optim import HAM, cosine, param_groups, triangular
from pruning import MaskFrom, Sparsifier
from pruning.stats import SignFlips

from . import distributed
from .optimization import AdamConfig, AdamWConfig, Schedule, SGDConfig
from .record import Record, Silence
from .schema import Config, ConfigError, Device
from .tally import Tally


@dataclass
class Run:
    """One training run and where it stands: `step` iterations are done, `batch` of them in `epoch`.

    `model` is the bare network, `network` what computes: compiled, and averaging gradients over the ranks.
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
    record: Record | Silence
    flips: SignFlips
    tally: Tally
    epoch: int = 0
    batch: int = 0
    step: int = 0
    saved_at: float = 0.0

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
        """Everything that decides how the run goes on, on every rank: a collective."""
        cuda = self.device.type == "cuda"
        return {
            "config_hash": self.identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "sparsifier": self.sparsifier.state_dict(),
            "ham": self.ham.state_dict() if self.ham else {},
            "record": self.record.state_dict(),
            "flips": self.flips.state_dict(),
            "tally": self.tally.state_dict(),
            "progress": {name: getattr(self, name) for name in ("epoch", "batch", "step")},
            "rng": {
                "cpu": distributed.stacked(torch.get_rng_state()),
                "cuda": distributed.stacked(torch.cuda.get_rng_state()) if cuda else None,
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
        self.tally.load_state_dict(state["tally"])
        for name, value in state["progress"].items():
            setattr(self, name, value)
        self._load_rng(state["rng"])

    def _load_rng(self, streams: dict[str, Tensor | None]) -> None:
        """Each rank's own random stream; one that the checkpoint does not know begins a new one."""
        rank = distributed.world().rank
        if rank >= len(streams["cpu"]):
            torch.manual_seed(derived_seed(self.cfg.seed, f"training {rank} from {self.step}"))
            return
        torch.set_rng_state(streams["cpu"][rank].clone())  # a view has the first rank's storage
        if self.device.type == "cuda" and streams["cuda"] is not None:
            torch.cuda.set_rng_state(streams["cuda"][rank].clone())


def build(
    cfg: Config,
    identity: str,
    loaders: Loaders,
    record: Record | Silence,
    device: torch.device,
    *,
    resumed: bool = False,
) -> Run:
    """Model, sparsifier, optimizer, HAM, schedule: in this order.

    A `resumed` run gets its state by `load_state_dict`, its masks included.

    Raises:
        ConfigError: a value that only shows itself against the model, such as a pattern that matches nothing.
    """
    steps = len(loaders.train)
    redrawn = isinstance(cfg.sparsifier, MaskFrom) and cfg.sparsifier.redraw
    stream = "model redrawn" if redrawn else "model"
    generator = torch.Generator().manual_seed(derived_seed(cfg.seed, stream))
    rank = distributed.world().rank
    torch.manual_seed(derived_seed(cfg.seed, f"training {rank}" if rank else "training"))
    layout = torch.channels_last if cfg.compute.channels_last else torch.preserve_format
    sizes = dict(num_classes=cfg.data.num_classes, image_size=cfg.data.image_size)
    lengths = dict(total_epochs=cfg.epochs, steps_per_epoch=steps)
    sparsifier, parameterization = locate_masks(cfg, resumed=resumed), cfg.parameterization
    try:
        model = build_model(cfg.model, **sizes, generator=generator).to(device, memory_format=layout)
        if cfg.compute.sync_bn:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        seed = derived_seed(cfg.seed, "sparsifier")
        sparsifier.attach(model, **lengths, seed=seed, parameterization=parameterization)
        optimizer = build_optimizer(cfg, model, sparsifier)
        ham = build_ham(cfg, optimizer, sparsifier)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    scheduler = LambdaLR(optimizer, build_schedule(cfg, cfg.epochs * steps))
    network = distributed.wrap(model, device)
    network = torch.compile(network) if cfg.compute.compile else network
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
        Tally(device),
    )


def locate_masks(cfg: Config, *, resumed: bool = False) -> Sparsifier:
    """The sparsifier; a mask source that names an experiment becomes the run of it with the same seed.

    A `resumed` run has its masks in the checkpoint and needs the source no more.
    """
    sparsifier = cfg.sparsifier
    if isinstance(sparsifier, MaskFrom) and resumed:
        sparsifier = replace(sparsifier)
        sparsifier.resumed = True
        return sparsifier
    if isinstance(sparsifier, MaskFrom) and "/" not in sparsifier.source:
        folder = "-".join(filter(None, [sparsifier.source, cfg.demo]))
        return replace(sparsifier, source=f"{cfg.runs_dir}/{folder}/seed{cfg.seed}")
    return sparsifier


def build_optimizer(cfg: Config, model: nn.Module, sparsifier: Sparsifier) -> torch.optim.Optimizer:
    """An optimizer of torch, fused, on groups that tell where HAM and weight decay act."""
    o = cfg.optimizer
    groups = param_groups(model, weight_decay=o.weight_decay, select=str(cfg.ham.select), decay=str(o.decay))
    for group in groups:
        group["weight_decay"] += o.matched_decay if group["ham_alpha"] is None else 0.0  # where HAM would act
    groups = sparsifier.param_groups(groups)
    if isinstance(o, SGDConfig):
        return torch.optim.SGD(groups, lr=o.lr, momentum=o.momentum, nesterov=o.nesterov, fused=True)
    if isinstance(o, AdamConfig):  # first: its fields are AdamW's
        return torch.optim.Adam(groups, lr=o.lr, betas=tuple(o.betas), eps=o.eps, fused=True)
    if isinstance(o, AdamWConfig):
        return torch.optim.AdamW(groups, lr=o.lr, betas=tuple(o.betas), eps=o.eps, fused=True)
    raise ConfigError(f"{type(o).__name__} is no optimizer: choose one of configs/optimizer")


def build_ham(cfg: Config, optimizer: torch.optim.Optimizer, sparsifier: Sparsifier) -> HAM | None:
    """HAM as the config says, or None for the base optimizer alone."""
    if not cfg.ham.active:
        return None
    if cfg.decay_apart:  # HAM sees gradients without it: its hook is made after this one
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
    if s.kind is Schedule.constant:
        return lambda step: 1.0
    try:
        if s.kind is Schedule.triangular:
            return triangular(total_steps, **({} if s.warmup is None else {"warmup": s.warmup}), **start)
        return cosine(total_steps, **({} if s.warmup is None else {"warmup": s.warmup}), **start)
    except ValueError as error:
        raise ConfigError(f"optimizer.schedule: {error}") from error


def choose_device(cfg: Config) -> torch.device:
    """The device of this rank, its numerics set in this one place.

    Raises:
        ConfigError: it is not to be had, or the batch does not divide over the ranks.
    """
    _check_ranks(cfg, distributed.world().size)
    cores = os.cpu_count() or 1
    if cfg.compute.threads > cores:
        raise ConfigError(f"compute.threads={cfg.compute.threads} exceeds the {cores} cores of this machine")
    if cfg.compute.threads:
        torch.set_num_threads(cfg.compute.threads)
    available = torch.cuda.is_available()
    if cfg.compute.device is Device.cuda and not available:
        raise ConfigError("compute.device=cuda, but torch sees no GPU here: use compute.device=auto or cpu")
    if cfg.compute.device is Device.cpu or not available:
        if cfg.compute.sync_bn:
            raise ConfigError("compute.sync_bn=true needs GPUs: leave it out on a CPU")
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    device = distributed.gpu(distributed.world())
    torch.cuda.set_device(device)
    return device


def _check_ranks(cfg: Config, ranks: int) -> None:
    """The batch is that of all ranks together: each needs the same share, in `accumulate` equal parts."""
    pieces = ranks * cfg.optimizer.accumulate
    if cfg.batch_size % pieces:
        nearest = max(cfg.batch_size // pieces, 1) * pieces
        raise ConfigError(
            f"batch_size={cfg.batch_size} does not divide into {ranks} processes x "
            f"{cfg.optimizer.accumulate} parts: take another number of processes, or batch_size={nearest}"
        )
    if cfg.batch_size == pieces and isinstance(cfg.model, ResNet):
        raise ConfigError(
            f"BatchNorm needs 2 images at once, got 1 on each of {ranks} processes: start fewer of them"
        )
