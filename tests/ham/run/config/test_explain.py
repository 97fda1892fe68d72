"""Errors of Hydra and OmegaConf in one line: the key, the nearest names, and the choices that have it."""

from __future__ import annotations

import pytest

from ham.run.config import ConfigError, load
from ham.run.config.hydra_errors import _choices, _known_keys, _unknown_key, explain_hydra

LEAF = "+exp=acdc_s90"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["optimizer.lrr=1"], "unknown key optimizer.lrr; nearest: optimizer.lr"),
        (["lr=1"], "unknown key lr; nearest: optimizer.lr"),
        (["epoch=1"], "unknown key epoch; nearest: epochs"),
        (["optimizer.lr=???"], "optimizer.lr is not set: give optimizer.lr=VALUE"),
        (["epochs=many"], "epochs: Value 'many' of type 'str' could not be converted to Integer"),
        (
            ["optimizer.eps=1"],
            "optimizer.eps exists only with optimizer=adam or adamw or adamw_graphs or lora: choose that, or",
        ),
        (
            ["sparsifier=dense"],
            "sparsifier=dense has no sparsifier.sparsity, which experiment acdc_s90 sets: choose an "
            "experiment made for it (python train.py --list), or sparsifier= of the same kind",
        ),
    ],
)
def test_a_wrong_key_or_value_is_reported_with_its_cure(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([LEAF, *given])
    assert str(caught.value).startswith(message)


def test_a_key_like_no_other_brings_the_three_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ham.run.config.hydra_errors._known_keys", lambda: ["aa.x", "q.w", "aa.y", "aa.x", "aab.v"]
    )
    assert _unknown_key("aa.k9", []) == "unknown key aa.k9; nearest: aa.y, aa.x"
    assert _unknown_key("aab.k9", []) == "unknown key aab.k9; nearest: aab.v, aa.y, aa.x"
    assert _unknown_key("bb.w", []) == "unknown key bb.w; nearest: q.w"


def test_a_group_without_a_choice_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        load(["model=resnet50"])
    assert str(caught.value).endswith("=NAME, or an experiment with +exp=NAME")
    error = Exception("You must specify 'data', e.g, data=<OPTION>\nmore")
    assert explain_hydra(error, []) == "data is not chosen: give data=NAME, or an experiment with +exp=NAME"


def test_the_innermost_cause_counts_without_its_full_stop() -> None:
    inner, outer = ValueError("inner words.\nmore"), RuntimeError("outer")
    outer.__cause__ = inner
    assert explain_hydra(outer, []) == "inner words"


def test_known_keys_are_leaves_that_a_user_may_set() -> None:
    known = _known_keys()
    assert {"epochs", "optimizer.lr", "optimizer.eps", "data.root", "compute.threads", "wandb.mode"} <= {
        *known
    }
    assert not {"name", "cell", "demo", "overridden", "optimizer", "model"} & {*known}
    assert not [key for key in known if ".demo" in key]


def test_choices_are_files_that_use_one_of_the_schemas() -> None:
    assert "sgd" in _choices("optimizer", ["sgd"]) and "adamw" not in _choices("optimizer", ["sgd"])
    assert _choices("optimizer", []) == []
    both = _choices("optimizer", ["adam", "adamw"])
    assert both == sorted({*_choices("optimizer", ["adam"]), *_choices("optimizer", ["adamw"])})
