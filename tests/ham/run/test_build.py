"""The parts of a run from its configuration: optimizer, HAM, device, mask source, directory."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ham import process_group
from ham.data import derived_seed
from ham.distributed import World
from ham.run import build as module
from ham.run.build import _check_world_size, build_ham, build_optimizer, optimizer_of, setup_device
from ham.run.config import Config, ConfigError, load
from ham.run.config.optimization import AdamConfig, AdamWConfig, OptimizerConfig, SGDConfig
from ham.run.config.schema import ComputeConfig, Device
from ham.run.logger import NullLogger

SMALL = ("+demo=digits", "model.width=4")


@pytest.fixture(scope="module")
def cfg() -> Config:
    return load(["+exp=dense", "+demo=digits"])


def groups() -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(torch.ones(2))], "weight_decay": 0.25}]


def test_an_optimizer_of_torch_has_the_values_of_its_configuration() -> None:
    betas = (0.5, 0.75)
    made = optimizer_of(SGDConfig(lr=0.5, momentum=0.25, nesterov=True), groups())
    assert type(made) is torch.optim.SGD
    known = made.param_groups[0]
    assert (known["lr"], known["momentum"], known["nesterov"], known["fused"]) == (0.5, 0.25, True, True)
    for kind, expected in ((AdamConfig, torch.optim.Adam), (AdamWConfig, torch.optim.AdamW)):
        made = optimizer_of(kind(lr=0.5, betas=betas, eps=1e-3), groups())
        known = made.param_groups[0]
        assert type(made) is expected and known["fused"] is True
        assert (known["lr"], known["betas"], known["eps"], known["weight_decay"]) == (0.5, betas, 1e-3, 0.25)
    message = r"^unknown optimizer OptimizerConfig: choose one of configs/optimizer$"
    with pytest.raises(ConfigError, match=message):
        optimizer_of(OptimizerConfig(lr=0.5), groups())


def test_matched_decay_is_added_where_ham_would_act(cfg: Config) -> None:
    optimizer = replace(cfg.optimizer, weight_decay=0.25, matched_decay=0.5)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    made = build_optimizer(
        replace(cfg, optimizer=optimizer), model, SimpleNamespace(param_groups=lambda groups: groups)
    )
    decays = {id(p): group["weight_decay"] for group in made.param_groups for p in group["params"]}
    assert [decays[id(p)] for p in model.parameters()] == [0.75, 0.75, 0.25, 0.25]


@pytest.mark.parametrize(("norm", "given"), [(0.0, None), (0.5, 0.5)])
def test_ham_has_the_values_of_its_configuration(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, norm: float, given: float | None
) -> None:
    optimizer, plain = object(), SimpleNamespace()
    monkeypatch.setattr(module, "HAM", lambda *arguments, **options: (arguments, options))
    values = {"alpha": 3.0, "beta": 2.0, "clamp": 4.0, "mask_zero_grad": True}
    ham = replace(cfg.ham, **values, max_weight_norm=norm)
    options = values | {"max_weight_norm": given, "track_clamped": True}
    assert build_ham(replace(cfg, ham=ham), optimizer, plain) == ((optimizer,), options)
    assert build_ham(cfg, optimizer, plain) is None and not cfg.ham.active


def test_ham_reads_gradients_without_the_decay_of_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load(["+exp=acdc_sign_in_s90", "+demo=digits"])
    cfg = replace(cfg, ham=replace(cfg.ham, alpha=1.0), allow_unpublished=True)
    events: list[str] = []
    parameterization = SimpleNamespace(
        decoupled_decay=False, remove_decay=lambda *_: events.append("removed")
    )
    optimizer = optimizer_of(SGDConfig(lr=0.5), groups())
    monkeypatch.setattr(module, "HAM", lambda *_, **__: "ham")
    assert build_ham(cfg, optimizer, SimpleNamespace(parameterization=parameterization)) == "ham"
    assert parameterization.decoupled_decay is True
    optimizer.step()
    assert events == ["removed"]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`gpus(True)`: torch finds one, as cuda:1; what is set of torch, in a dict."""
    known: dict[str, Any] = {}
    monkeypatch.setattr(torch, "set_num_threads", lambda n: known.update(threads=n))
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: known.update(precision=name))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: known.update(device=device))
    monkeypatch.setattr(process_group, "local_device", lambda me: torch.device("cuda", 1))
    monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace(benchmark=False))

    def find(available: bool) -> dict[str, Any]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        return known

    return find


@pytest.mark.parametrize(
    ("device", "available", "found"),
    [
        (Device.auto, False, "cpu"),
        (Device.auto, True, "cuda:1"),
        (Device.cpu, True, "cpu"),
        (Device.cuda, True, "cuda:1"),
        (Device.cuda, False, None),
    ],
)
def test_a_run_computes_on_the_configured_device(
    cfg: Config, gpus: Any, device: Device, available: bool, found: str | None
) -> None:
    known, cfg = gpus(available), replace(cfg, compute=ComputeConfig(device=device))
    if found is None:
        with pytest.raises(
            ConfigError, match=r"^compute\.device=cuda, but torch finds no GPU: use compute\."
        ):
            setup_device(cfg)
        return
    assert setup_device(cfg) == torch.device(found)
    gpu = {"precision": "high", "device": torch.device("cuda:1")}
    assert known == (gpu if found == "cuda:1" else {})
    assert torch.backends.cudnn.benchmark is (found == "cuda:1")


def test_threads_are_set_where_they_are_given_and_are_no_more_than_cores(
    cfg: Config, gpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = gpus(False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    setup_device(replace(cfg, compute=ComputeConfig(threads=4)))
    assert known == {"threads": 4}
    with pytest.raises(ConfigError, match=r"^compute\.threads=5 exceeds the 4 cores of this machine$"):
        setup_device(replace(cfg, compute=ComputeConfig(threads=5)))
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    setup_device(replace(cfg, compute=ComputeConfig(threads=1)))
    with pytest.raises(ConfigError, match="exceeds the 1 cores"):
        setup_device(replace(cfg, compute=ComputeConfig(threads=2)))


def test_batchnorm_over_ranks_needs_gpus(cfg: Config, gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = replace(cfg, compute=ComputeConfig(sync_bn=True))
    gpus(True)
    assert setup_device(cfg).type == "cuda"
    gpus(False)
    with pytest.raises(ConfigError, match=r"^compute\.sync_bn=true needs GPUs: omit it on a CPU$"):
        setup_device(cfg)

    def fail(me: object) -> None:
        raise ValueError("too few GPUs")

    monkeypatch.setattr(process_group, "local_device", fail)
    gpus(True)
    with pytest.raises(ConfigError, match=r"^too few GPUs$"):
        setup_device(cfg)


@pytest.mark.parametrize(
    ("size", "accumulate", "batch", "nearest"),
    [(3, 1, 64, 63), (2, 3, 63, 60), (5, 1, 4, 5), (2, 4, 64, None), (1, 1, 5, None), (2, 2, 8, None)],
)
def test_a_batch_divides_over_the_ranks_and_their_parts(
    cfg: Config, size: int, accumulate: int, batch: int, nearest: int | None
) -> None:
    optimizer = SimpleNamespace(accumulate=accumulate)
    made = SimpleNamespace(batch_size=batch, optimizer=optimizer, model=SimpleNamespace(min_batch_size=2))
    if nearest is None:
        return _check_world_size(made, size)
    with pytest.raises(ConfigError) as caught:
        _check_world_size(made, size)
    assert str(caught.value) == (
        f"batch_size={batch} does not divide into {size} processes x {accumulate} parts: use another number "
        f"of processes, or batch_size={nearest}"
    )


def test_each_part_of_a_rank_is_large_enough_for_batchnorm() -> None:
    model = SimpleNamespace(min_batch_size=2)
    made = SimpleNamespace(batch_size=8, optimizer=SimpleNamespace(accumulate=2), model=model)
    _check_world_size(made, 2)
    with pytest.raises(ConfigError) as caught:
        _check_world_size(made, 4)
    message = "BatchNorm needs 2 samples at once, got 1 on each of 4 processes: start fewer processes"
    assert str(caught.value) == message


def task_of_three_steps(cfg: Config, **values: Any) -> Any:
    """The digits with 3 steps an epoch; `generators` has what models were drawn with."""
    generators: list[torch.Generator] = []

    def build_model(generator: torch.Generator) -> nn.Module:
        generators.append(generator)
        return cfg.model.build(num_classes=10, image_size=8)

    known = {"name": "images", "smooths_labels": True, "steps_per_epoch": 3, "build_model": build_model}
    return SimpleNamespace(**known | {"generators": generators} | values)


def built(cfg: Config, task: Any, **options: bool) -> Any:
    cpu = torch.device("cpu")
    return module.build(cfg, "hash", task, NullLogger(Path("none"), cfg), cpu, **options)


@pytest.mark.parametrize(("rank", "stream"), [(0, "training"), (2, "training 2")])
def test_each_random_stream_follows_from_the_seed(
    monkeypatch: pytest.MonkeyPatch, rank: int, stream: str
) -> None:
    cfg = load(["+exp=dense", *SMALL])
    schedule = replace(cfg.optimizer.schedule, warmup=0.0)
    cfg = replace(cfg, seed=5, epochs=4, optimizer=replace(cfg.optimizer, schedule=schedule))
    monkeypatch.setattr(module.distributed, "world", lambda: World(rank, 1))
    task = task_of_three_steps(cfg)
    run = built(cfg, task)
    assert task.generators[0].initial_seed() == derived_seed(5, "model")
    assert torch.initial_seed() == derived_seed(5, stream)
    assert run.network is run.model and run.ham is None and run.config_hash == "hash"
    factor = run.scheduler.lr_lambdas[0]
    assert [factor(step) for step in (0, 6, 12)] == [1.0, 0.5, 0.0]
    assert run.flips is not None and run.metrics.means() == (0.0, 0.0)


@pytest.mark.parametrize("at_start", [True, False])
def test_a_first_step_without_the_optimizer_is_no_warning(at_start: bool) -> None:
    cfg = load(["+exp=rigl_s90", *SMALL])
    cfg = replace(cfg, sparsifier=replace(cfg.sparsifier, update_at_start=at_start))
    with warnings.catch_warnings():
        warnings.resetwarnings()
        built(cfg, task_of_three_steps(cfg))
        found = [text for _, text, *_ in warnings.filters if text and "lr_scheduler" in text.pattern]
    assert bool(found) is at_start


@pytest.mark.parametrize("resumed", [True, False])
def test_masks_are_read_at_the_start_alone(monkeypatch: pytest.MonkeyPatch, resumed: bool) -> None:
    cfg = load(["+exp=mask_acdc_s90", *SMALL, "runs_dir=/runs"])
    asked: list[object] = []

    def load_masks(source: object) -> None:
        asked.append(source)
        raise ValueError("no masks")

    monkeypatch.setattr(module, "load_source_masks", lambda cfg, sparsifier: load_masks(sparsifier.source))
    if resumed:
        built(cfg, task_of_three_steps(cfg), resumed=True)
        assert asked == []
        return
    with pytest.raises(ConfigError, match=r"^no masks$") as caught:
        built(cfg, task_of_three_steps(cfg))
    assert caught.value.shared is True and asked == ["/runs/acdc_s90-digits/seed0"]


def test_a_task_that_smooths_no_labels_refuses_it() -> None:
    plain = load(["+exp=dense", *SMALL])
    cfg = replace(plain, optimizer=replace(plain.optimizer, label_smoothing=0.1))
    built(cfg, task_of_three_steps(cfg))
    with pytest.raises(
        ConfigError, match=r"^optimizer\.label_smoothing does not apply to task other: omit it"
    ):
        built(cfg, task_of_three_steps(cfg, name="other", smooths_labels=False))
    built(plain, task_of_three_steps(plain, smooths_labels=False))


def test_a_directory_is_named_by_experiment_scale_and_changes() -> None:
    cfg = replace(load(["+exp=dense", *SMALL]), seed=5, runs_dir="/runs", overridden=False)
    assert str(module.run_directory(cfg, "0123456789")) == "/runs/dense-digits/seed5"
    changed = replace(cfg, overridden=True, demo="")
    assert str(module.run_directory(changed, "0123456789")) == "/runs/dense-01234567/seed5"
