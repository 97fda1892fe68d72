"""The typed configuration: defaults, bounds, and combinations that are refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from ham.run.config import Config, load, schema
from ham.run.config.optimization import AdamWConfig
from ham.run.config.schema import CheckpointConfig, ComputeConfig, Device, WandbConfig, WandbMode


@pytest.fixture(scope="module")
def cfg() -> Config:
    return load(["+exp=dense", "+demo=digits"])


def test_what_is_not_given_computes_on_any_device_in_float32_without_wandb(cfg: Config) -> None:
    assert vars(ComputeConfig()) == {
        **{"device": Device.auto, "amp": False, "channels_last": False, "compile": False},
        **{"threads": 0, "sync_bn": False, "timeout": 600.0},
    }
    assert vars(CheckpointConfig()) == {"minutes": 15.0}
    assert vars(WandbConfig()) == {"mode": WandbMode.disabled, "project": "ham"}
    sections = ("model", "data", "optimizer", "ham", "sparsifier", "parameterization")
    plain = Config(epochs=2, batch_size=8, **{name: getattr(cfg, name) for name in sections})
    rest = {name: value for name, value in vars(plain).items() if name not in sections}
    assert rest == {
        **{"epochs": 2, "batch_size": 8, "seed": 0, "runs_dir": "runs", "resume": True, "flips_every": 10},
        **{"allow_unpublished": False, "name": "custom", "cell": "", "demo": "", "demo_values": ""},
        **{"compute": ComputeConfig(), "checkpoint": CheckpointConfig(), "wandb": WandbConfig()},
        "overridden": False,
    }


@pytest.mark.parametrize(
    ("kind", "good", "bad", "message"),
    [
        (ComputeConfig, {"threads": 0}, {"threads": -1}, "compute.threads must not be negative, got -1"),
        (
            ComputeConfig,
            {"timeout": 1e-9},
            {"timeout": 0.0},
            "compute.timeout must be positive seconds, got 0",
        ),
        *(
            (
                ComputeConfig,
                {"timeout": 1e6},
                {"timeout": too_long},
                f"compute.timeout must be at most 1e+06 seconds, got {too_long:g}",
            )
            for too_long in (1000001.0, 1e300, float("inf"))
        ),
        (
            CheckpointConfig,
            {"minutes": 0.0},
            {"minutes": -0.1},
            "checkpoint.minutes must not be negative, got -0.1",
        ),
    ],
)
def test_sections_have_bounds(kind: type, good: dict[str, Any], bad: dict[str, Any], message: str) -> None:
    kind(**good)
    with pytest.raises(ValueError) as caught:
        kind(**bad)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ({"epochs": 1}, {"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 2}, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": 2**32 - 1}, {"seed": 2**32}, "seed must be from 0 to 4294967295, got 4294967296"),
        ({"seed": 0}, {"seed": -1}, "seed must be from 0 to 4294967295, got -1"),
        ({"flips_every": 1}, {"flips_every": 0}, "flips_every must be at least 1 epoch, got 0"),
        ({"runs_dir": "."}, {"runs_dir": ""}, "runs_dir must name a folder, such as runs"),
    ],
)
def test_a_run_has_bounds(cfg: Config, good: dict[str, Any], bad: dict[str, Any], message: str) -> None:
    assert replace(cfg, **good) != replace(cfg, epochs=7)
    with pytest.raises(ValueError) as caught:
        replace(cfg, **bad)
    assert str(caught.value) == message


def test_each_part_of_a_batch_is_whole_and_large_enough_for_batchnorm(cfg: Config) -> None:
    three = replace(cfg.optimizer, accumulate=3)
    assert cfg.model.min_batch_size == 2
    replace(cfg, batch_size=6, optimizer=three)
    for size, message in (
        (7, "optimizer.accumulate=3 must divide batch_size=7"),
        (3, "BatchNorm needs 2 samples at once, got 1: raise batch_size or lower optimizer.accumulate"),
    ):
        with pytest.raises(ValueError) as caught:
            replace(cfg, batch_size=size, optimizer=three)
        assert str(caught.value) == message


def options(cfg: Config, section: str, **values: Any) -> dict[str, Any]:
    return {section: replace(getattr(cfg, section), **values)}


def test_factors_and_ham_and_clipping_and_matched_decay_exclude_each_other() -> None:
    cfg = load(["+exp=acdc_sign_in_s90", "+demo=digits"])
    plain = load(["+exp=acdc_s90", "+demo=digits"])
    assert (
        cfg.trains_factors and cfg.decouples_decay and not plain.trains_factors and not plain.decouples_decay
    )
    ham, clip = options(cfg, "ham", alpha=1.0), options(cfg, "optimizer", clip_norm=0.5)
    decay = options(plain, "optimizer", matched_decay=0.5)
    replace(cfg, **ham, allow_unpublished=True)
    replace(cfg, **clip)
    replace(plain, **ham, **options(plain, "optimizer", clip_norm=0.5))
    replace(plain, **decay, **options(plain, "ham", alpha=1.0))
    for refused, words in (
        (lambda: replace(cfg, **ham), "HAM on the factors of m * w is not in the paper: use ham=none, "),
        (
            lambda: replace(cfg, **ham, **clip, allow_unpublished=True),
            "optimizer.clip_norm would clip the gradients of the factors (or thresholds) for SGD, but",
        ),
        (
            lambda: replace(cfg, **options(cfg, "optimizer", matched_decay=0.5)),
            "optimizer.matched_decay does not reach the factors of m * w: use parameterization.frobenius",
        ),
        (
            lambda: replace(plain, **decay, **options(plain, "ham", beta=0.5)),
            "optimizer.matched_decay replaces ham.beta: use ham=none, or ham.beta=0",
        ),
    ):
        with pytest.raises(ValueError) as caught:
            refused()
        assert str(caught.value).startswith(words)


def test_a_sparsifier_gets_the_rate_and_the_momentum_of_sgd(
    cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    adamw = AdamWConfig(lr=0.125)
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(type(cfg.sparsifier), "check_rates", lambda self, **rates: seen.append(rates))
    replace(cfg, **options(cfg, "optimizer", lr=0.25, momentum=0.5))
    replace(cfg, optimizer=adamw)
    assert seen == [{"lr": 0.25, "momentum": 0.5}, {"lr": 0.125, "momentum": None}]


def test_a_task_checks_the_run_that_learns_it(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Config] = []
    monkeypatch.setattr(schema, "task_of", lambda data: SimpleNamespace(check=checked.append))
    made = replace(cfg, epochs=7)
    assert checked == [made]
