"""The configuration as plain values, its hash, and the file that holds it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from ham.run.config import ConfigError, config_hash, flatten, from_yaml, load, to_plain, to_yaml
from ham.run.config.config_hash import _HASH_DEFAULTS, NOT_HASHED, is_within

LEAF = ["+exp=acdc_ham_s90", "+demo=digits"]


def test_nested_values_are_flattened_to_dotted_keys() -> None:
    tree = {"a": 1, "b": {"c": [2], "d": {"e": None}}, "f": {}}
    assert list(flatten(tree)) == [("a", 1), ("b.c", [2]), ("b.d.e", None)]
    assert list(flatten({"c": 1}, "b.")) == [("b.c", 1)]


def test_a_key_is_within_a_section_by_its_dots() -> None:
    assert is_within("a.b", ["a"]) and is_within("a.b", ["x", "a.b"]) and is_within("a.b.c", ["a.b"])
    assert not is_within("ab", ["a"]) and not is_within("a", ["a.b"]) and not is_within("a", [])


def test_the_hash_is_sha256_of_the_kinds_and_the_values_that_decide_a_result() -> None:
    cfg = load(LEAF)
    left_out = (*NOT_HASHED, "name", "cell", "overridden", "seed", "demo_values")
    left_out += ("model.demo", "optimizer.demo", "sparsifier.demo")
    values = {
        key: value
        for key, value in flatten(to_plain(cfg))
        if not any(key == name or key.startswith(f"{name}.") for name in left_out)
    }
    values = {k: v for k, v in values.items() if _HASH_DEFAULTS.get(k, "nothing") != v}
    sections = ("model", "data", "optimizer", "ham", "sparsifier", "parameterization")
    kinds = {name: type(getattr(cfg, name)).__name__ for name in sections}
    text = json.dumps([kinds, values], sort_keys=True)
    assert config_hash(cfg) == hashlib.sha256(text.encode()).hexdigest()


def test_options_that_came_later_have_the_behavior_of_before() -> None:
    assert {
        **{
            "optimizer.sam_ascent": "averaged",
            "optimizer.matched_decay": 0.0,
            "optimizer.label_smoothing": 0.0,
        },
        **dict.fromkeys(f"optimizer.schedule.{name}" for name in ("milestones", "gamma", "warmup_steps")),
        **{"optimizer.schedule.until": 1.0, "optimizer.schedule.per_epoch": False, "compute.sync_bn": False},
        **{"data.min_crop": 0.08, "data.per_class": 0, "data.validation_per_class": 0},
        **{"sparsifier.granularity": "element", "sparsifier.update_at_start": False},
    } == _HASH_DEFAULTS


@pytest.mark.parametrize("section", ["epochs", "batch_size", "flips_every", "allow_unpublished"])
def test_another_value_is_another_hash(section: str) -> None:
    cfg = load(LEAF)
    assert config_hash(replace(cfg, **{section: getattr(cfg, section) + 1})) != config_hash(cfg)
    assert config_hash(replace(cfg, seed=5, runs_dir="x", resume=False)) == config_hash(cfg)


def test_the_file_names_the_kind_of_each_section_first(tmp_path: Path) -> None:
    cfg = load([*LEAF, "seed=3"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(cfg))
    assert (
        "optimizer:\n  kind: sgd\n" in path.read_text() and "sparsifier:\n  kind: acdc\n" in path.read_text()
    )
    assert from_yaml(path) == cfg


def test_a_missing_an_unreadable_and_a_damaged_file_are_distinguished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    with pytest.raises(ConfigError, match=f"^{tmp_path} is not a run directory: config.yaml is missing$"):
        from_yaml(path)
    cure = "; restore it, or train the run again with resume=false"
    path.write_text("epochs: 1\n")
    with pytest.raises(ConfigError) as caught:
        from_yaml(path)
    assert str(caught.value).startswith(f"{path} is damaged or does not fit this version: ")
    assert str(caught.value).endswith(cure) and caught.value.__cause__ is not None
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError) as caught:
        from_yaml(path)
    assert str(caught.value) == f"{path} cannot be read: Is a directory; move it away and {cure[2:]}"
