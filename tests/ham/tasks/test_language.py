"""Fine-tuning of a language model: what it refuses, and its messages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ham.data.commonsense import Commonsense
from ham.models.causal_lm import TINY, CausalLM
from ham.tasks.language import LanguageModeling
from pruning import SNIP, Dense


def configured(key: str = "", value: Any = None) -> SimpleNamespace:
    """A configuration that can be trained, with one value of it changed."""
    cfg = SimpleNamespace(
        model=CausalLM(checkpoint=TINY),
        data=Commonsense(),
        sparsifier=Dense(),
        trains_factors=False,
        optimizer=SimpleNamespace(sam_rho=0.0, matched_decay=0.0, label_smoothing=0.0),
        compute=SimpleNamespace(channels_last=False, compile=False, sync_bn=False),
    )
    *path, name = key.split(".")
    part = getattr(cfg, path[0]) if path else cfg
    if name:
        setattr(part, name, value)
    return cfg


def test_a_dense_language_model_can_be_trained() -> None:
    LanguageModeling.check(configured())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", None, "data=commonsense needs model=llama1b or llama3b: use an experiment lora_..."),
        ("sparsifier", SNIP(0.5), "LoRA matrices are trained dense: use sparsifier=dense, parameteriz"),
        ("trains_factors", True, "LoRA matrices are trained dense: use sparsifier=dense, parameteriz"),
        *(
            (key, value, f"{key} does not apply to the fine-tuning of a language model: omit it")
            for key, value in {
                "optimizer.sam_rho": 0.05,
                "optimizer.matched_decay": 0.1,
                "optimizer.label_smoothing": 0.1,
                "compute.channels_last": True,
                "compute.compile": True,
                "compute.sync_bn": True,
            }.items()
        ),
        ("data.val_set_size", 0, "data.load_best=true needs held-out examples: set data.val_set_size, or"),
        ("data.image_size", 224, "a language model reads text, not images"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_cure(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        LanguageModeling.check(configured(key, value))
    assert str(caught.value).startswith(message)


def test_without_held_out_examples_the_last_checkpoint_can_be_used() -> None:
    cfg = configured("data.val_set_size", 0)
    cfg.data.load_best = False
    LanguageModeling.check(cfg)
    cfg.data.val_set_size, cfg.data.load_best = 1, True
    LanguageModeling.check(cfg)


def test_accuracies_counts_and_those_before_training_are_reported() -> None:
    summary = {
        "metrics": {"boolq": 62.5, "piqa": 100 / 3, "average": 47.9166, "before_boolq": 50.0},
        "answers": {"boolq": {"correct": 5, "questions": 8}, "piqa": {"correct": 1, "questions": 3}},
        "checkpoint": {"step": 160},
    }
    assert LanguageModeling.describe(summary) == [
        "boolq          62.50 % (5 of 8), 50.00 % before training",
        "piqa           33.33 % (1 of 3)",
        "average        47.92 %",
        "adapter      of step 160",
    ]
    summary["metrics"]["before_average"] = 40.0
    assert LanguageModeling.describe(summary)[2] == "average        47.92 %, 40.00 % before training"


def test_a_language_model_is_evaluated_once_and_its_records_keep_no_epochs() -> None:
    assert LanguageModeling.reported == ("average", "average")
    assert (LanguageModeling.trained_by, LanguageModeling.stores_history) == ("finetune", False)
    assert LanguageModeling.demos == {"smollm", "tiny"} and LanguageModeling.distributed
