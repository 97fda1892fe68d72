"""What a command line composes to: the paper's settings, scaled-down copies, hashes, run directories."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ham.run.build import resolve_mask_source, run_directory
from ham.run.config import Config, ConfigError, compose, config_hash, from_yaml, load, to_yaml

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "exp").glob("*.yaml"))
LEAF = "+exp=acdc_ham_s90"


def flat(cfg: Config) -> dict[str, Any]:
    """Dotted key -> value, enums by name, and the type of every section."""

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            yield prefix, value.name if isinstance(value, Enum) else value

    kinds = {f"type({key})": type(value).__name__ for key, value in vars(cfg).items()}
    return {**dict(walk("", asdict(cfg))), **kinds}


def identity(*overrides: str) -> str:
    return config_hash(load([LEAF, *overrides]))


@pytest.mark.parametrize("demo", ["digits", "tiny", "cifar16"])
def test_a_demo_takes_the_values_that_its_sections_have_for_its_scale(demo: str) -> None:
    scale = "digits" if demo == "tiny" else demo
    for leaf in ("acdc_ham_s90", "deit_ham", "rigl_s90", "pilot_s90", "spred_s90", "cifar100_sam_ham"):
        cfg = load([f"+exp={leaf}", f"+demo={demo}"])
        for section in (cfg.model, cfg.optimizer, cfg.sparsifier):
            for key, value in section.demo.get(scale, {}).items():
                assert getattr(section, key) == value, (leaf, key)


def test_cifar16_keeps_the_experiment_and_scales_its_images_and_network() -> None:
    for leaf in ("cifar100_ham", "dense_sam_ham", "acdc_ham_s90", "random_sign_in_s90", "mask_rigl_ham_s90"):
        plain, cfg = load([f"+exp={leaf}"]), load([f"+exp={leaf}", "+demo=cifar16"])
        assert (cfg.epochs, cfg.batch_size, cfg.data.image_size, cfg.data.per_class) == (30, 128, 16, 200)
        assert (cfg.model.depth, cfg.model.width, cfg.model.layers) == (18, 16, [])
        assert cfg.ham == plain.ham and cfg.parameterization == plain.parameterization
        assert cfg.optimizer == replace(plain.optimizer, lr=0.05)
        assert cfg.sparsifier == plain.sparsifier


def test_values_of_a_demo_without_a_scale_are_refused() -> None:
    node = OmegaConf.create({"demo_values": "digits", "model": {"demo": {"width": 8}}})
    cure = r"model.demo must map a scale to values, such as digits: \{width: 8\}"
    with pytest.raises(ConfigError, match=cure):
        compose._demo_values("model", node)


def test_the_demo_wins_wherever_it_stands_and_explicit_values_beat_it() -> None:
    demo = flat(load([LEAF, "+demo=digits"]))
    assert flat(load(["+demo=digits", LEAF])) == demo
    explicit = {
        "epochs": demo["epochs"] + 1,
        "batch_size": demo["batch_size"] + 1,
        "model.width": demo["model.width"] + 1,
        "optimizer.lr": demo["optimizer.lr"] * 2,
        "compute.amp": not demo["compute.amp"],
    }
    texts = [f"{key}={value}" for key, value in explicit.items()]
    for order in ([*texts, "+demo=digits", LEAF], [LEAF, "+demo=digits", *texts]):
        found = flat(load(order))
        changed = {key: value for key, value in found.items() if demo.get(key) != value}
        assert changed == {**explicit, "overridden": True}


@pytest.mark.parametrize(
    "circumstance",
    [
        ["seed=7"],
        ["runs_dir=/elsewhere"],
        ["resume=false"],
        ["wandb.mode=offline", "wandb.project=mine"],
        ["checkpoint.minutes=1"],
        ["data.root=/elsewhere", "data.workers=3"],
        ["compute.threads=3"],
        ["compute.device=cpu"],
        ["ham.alpha=2e2"],
    ],
    ids=" ".join,
)
def test_the_hash_leaves_out_how_and_where(circumstance: list[str]) -> None:
    assert identity(*circumstance) == identity()


def test_every_other_value_has_a_hash_of_its_own() -> None:
    variants = [
        [],
        ["ham.alpha=100"],
        ["ham.beta=0"],
        ["ham.mask_zero_grad=true"],
        ["sparsifier.sparsity=0.8"],
        ["sparsifier.revive=stale"],
        ["optimizer.lr=0.1"],
        ["optimizer.schedule.warmup=0.1"],
        ["optimizer.sam_rho=0.05"],
        ["model.init=torchvision"],
        ["model=resnet18"],
        ["epochs=99"],
        ["batch_size=512"],
        ["compute.amp=false"],
        ["compute.channels_last=false"],
        ["data.image_size=160"],
        ["+demo=digits"],
    ]
    hashes = [identity(*variant) for variant in variants] + [config_hash(load(["+exp=acdc_s90"]))]
    assert len(set(hashes)) == len(hashes)


def test_the_hash_of_a_recorded_experiment_stays_what_it_was() -> None:
    """Records of finished runs hold it. A new option belongs into `_HASH_DEFAULTS` of config_hash.py."""
    assert identity() == "60967a9ba8cc0d46a33c22630cac43d79ec1a1befe441596db0c2efbd535360f"
    as_before = ("optimizer.sam_ascent=averaged", "compute.sync_bn=false", "optimizer.matched_decay=0")
    assert identity(*as_before, "data.min_crop=0.08") == identity()
    assert identity("optimizer.label_smoothing=0", "optimizer.schedule.until=1") == identity()
    later = ("optimizer.sam_ascent=per_rank", "compute.sync_bn=true", "data.min_crop=0.5")
    later += ("optimizer.label_smoothing=0.1", "optimizer.schedule.until=0.9")
    assert len({identity(), *(identity(text) for text in later)}) == 6
    assert config_hash(load(["+exp=dense_matched_decay"])) != config_hash(load(["+exp=dense"]))


@pytest.mark.parametrize(
    ("overrides", "folder"),
    [
        ([], "acdc_ham_s90/seed0"),
        (["seed=3"], "acdc_ham_s90/seed3"),
        (["+demo=digits"], "acdc_ham_s90-digits/seed0"),
        (["resume=false", "wandb.mode=offline", "checkpoint.minutes=1"], "acdc_ham_s90/seed0"),
        (["compute.threads=2", "compute.device=cpu", "data.root=/a"], "acdc_ham_s90/seed0"),
        (["ham.alpha=100"], "acdc_ham_s90-HASH/seed0"),
        (["ham.alpha=100", "seed=2"], "acdc_ham_s90-HASH/seed2"),
        (["+demo=digits", "epochs=3"], "acdc_ham_s90-digits-HASH/seed0"),
        (["ham=none"], "acdc_ham_s90-HASH/seed0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_run_directories(overrides: list[str], folder: str) -> None:
    for runs_dir, given in (("runs", []), ("/some/where", ["runs_dir=/some/where"])):
        cfg = load([LEAF, *overrides, *given])
        expected = folder.replace("HASH", config_hash(cfg)[:8])
        assert str(run_directory(cfg, config_hash(cfg))) == f"{runs_dir}/{expected}"


@pytest.mark.parametrize("name", ["deit_acdc_ham_s50", "rigl_sign_in_s90", "mask_str_ham_s90", "dense_sam"])
def test_the_written_configuration_reads_back(name: str, tmp_path: Path) -> None:
    changes = ["optimizer.eps=1e-7"] if name.startswith("deit") else ["optimizer.momentum=0.8"]
    cfg = load([f"+exp={name}", "+demo=digits", "seed=3", *changes])
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert from_yaml(tmp_path / "config.yaml") == cfg
    assert config_hash(from_yaml(tmp_path / "config.yaml")) == config_hash(cfg)
    found = OmegaConf.load(tmp_path / "config.yaml")
    for key, value in flat(cfg).items():
        if not key.startswith("type("):
            read = OmegaConf.select(found, key)
            assert (tuple(read) if isinstance(value, tuple) else read) == value, key


def test_a_written_configuration_of_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with pytest.raises(ConfigError, match=r"is not a run directory: config.yaml is missing$"):
        from_yaml(path)
    written = to_yaml(load(["+exp=rigl_s90"]))
    for old, new in (
        ("kind: rigl", "kind: unheard_of"),
        ("interval: 100", "intervall: 100"),
        ("epochs: 100", "epochs: many"),
    ):
        path.write_text(written.replace(old, new))
        with pytest.raises(ConfigError, match="does not fit this version: ") as error:
            from_yaml(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+exp=random_sign_in_s90", "ham=imagenet"], "allow_unpublished=true"),
        (["+exp=pilot_s90", "ham=imagenet"], "allow_unpublished=true"),
        (["+exp=dense_ham", "parameterization=product"], "allow_unpublished=true"),
        (
            ["+exp=acdc_sign_in_s90", "ham=imagenet", "allow_unpublished=true", "optimizer.clip_norm=1"],
            "optimizer.clip_norm would clip",
        ),
        (
            ["+exp=pilot_s90", "ham=imagenet", "allow_unpublished=true", "optimizer.clip_norm=1"],
            "optimizer.clip_norm would clip",
        ),
        (["+exp=str_s90", "sparsifier.calibrate=none", "sparsifier.threshold_decay=0.02"], "calibrate=ramp"),
        (["+exp=random_s90", "sparsifier.sparsity=90"], "did you mean 0.9"),
        (["+exp=rigl_s90", "sparsifier.interval=0"], "interval must be at least 1"),
        (["+exp=rigl_s90", "sparsifier.allocation=erdos"], "sparsifier.allocation"),
        (["+exp=acdc_sign_in_s90", "parameterization.scaling=0"], "scaling must be positive"),
        (["+exp=acdc_sign_in_s90", "parameterization.reset_until=10"], "fraction of the epochs"),
        (["+exp=acdc_s90", "parameterization.scaling=2"], "parameterization=product"),
        (["+exp=mask_rigl_s90", "sparsifier.source=''"], "MaskFrom requires source="),
        (["+exp=random_s90", "parameterization=signin"], "sign_in"),
        (["+exp=dense", "flips_every=0"], "flips_every"),
        (["+exp=random_sign_in_s90", "optimizer.matched_decay=1e-4"], "parameterization.frobenius"),
        (["+exp=dense_ham", "optimizer.matched_decay=1e-4"], "replaces ham.beta"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_impossible_sparsifiers_are_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        load(overrides)
    assert "\n" not in str(error.value)


def test_unpublished_combinations_can_be_allowed() -> None:
    cfg = load(["+exp=random_sign_in_s90", "ham=imagenet", "allow_unpublished=true"])
    assert cfg.ham.active and cfg.trains_factors


@pytest.mark.parametrize("name", ["acdc_sign_in_s90", "acdc_ham_s90"])
def test_factors_or_ham_alone_can_be_clipped(name: str) -> None:
    assert load([f"+exp={name}", "optimizer.clip_norm=1"]).optimizer.clip_norm == 1


def test_a_mask_source_is_the_experiments_run_of_the_same_seed_and_scale() -> None:
    given = ["+exp=mask_rigl_ham_s90", "seed=3", "runs_dir=/some/where"]
    assert resolve_mask_source(load(given)).source == "/some/where/rigl_s90/seed3"
    assert resolve_mask_source(load([*given, "+demo=digits"])).source == "/some/where/rigl_s90-digits/seed3"
    assert resolve_mask_source(load([*given, "sparsifier.source=./mine.pt"])).source == "./mine.pt"


def test_a_key_of_another_choice_names_choices_that_can_be_made() -> None:
    with pytest.raises(
        ConfigError, match=r"data\.workers exists only with data=imagenet or imagenet_folder: "
    ):
        load([LEAF, "+demo=digits", "data.workers=0"])
    assert load([LEAF, "data=imagenet_folder", "data.workers=0"]).data.workers == 0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.lrr=1", "unknown key optimizer.lrr"),
        ("epochs=many", "epochs: Value 'many'"),
        ("ham.select=nothing", "ham.select: Invalid value 'nothing'"),
        ("optimizer.lr=???", "optimizer.lr is not set: give optimizer.lr=VALUE"),
        ("optimizer.betas=[0.9]", "optimizer.betas exists only with optimizer="),
        ("optimizer.lr=-1", "optimizer.lr must be positive, got -1"),
    ],
)
def test_messages_name_the_key_under_a_tracer_too(override: str, words: str) -> None:
    """OmegaConf's errors have causes there, as in coverage and debuggers."""
    before = sys.gettrace()
    sys.settrace(lambda *_: None)
    try:
        with pytest.raises(ConfigError) as caught:
            load(["+exp=acdc_s90", override])
    finally:
        sys.settrace(before)
    assert str(caught.value).startswith(words)
