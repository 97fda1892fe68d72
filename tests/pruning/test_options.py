"""Every option of every method and parameterization: wrong values are one line that names the option."""

from __future__ import annotations

from dataclasses import MISSING, fields
from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pruning
from pruning import Dense, Product, RandomPruning, RigL
from pruning.schedule import Cubic

OPTION_CLASSES = [getattr(pruning, name) for name in pruning.__all__ if name not in ("Dense", "Sparsifier")]
OPTIONS = [
    (cls, field)
    for cls in OPTION_CLASSES
    if hasattr(cls, "__dataclass_fields__") and cls is not pruning.TargetSparsity
    for field in fields(cls)
]
VALUES: list[Any] = [None, "x", nan, inf, -inf, -1, 2.5, [1], True]
FLAGS = ("reset_momentum", "redraw", "update_at_start", "carry_momentum")
NUMBERS = (
    *("scaling", "temperature", "strength", "l1_floor", "frobenius", "decay", "threshold_decay", "delta"),
    "finetune_lr",
)
RIGHT = {  # option, or class.option -> which of the above it takes
    "SET.interval": {"None"},
    "OneShotMagnitude.finetune_lr": {"None", "2.5"},
    "initial": {"-1", "2.5"},
    "exclude": {"'x'"},
    "source": {"'x'"},
    **{name: {"True"} for name in FLAGS},
    **{name: {"2.5"} for name in NUMBERS},
}
SHOWN_AS = {"schedule": "ramp", "revive_second_moment": "second moment"}


def with_option(cls: type, **options: Any) -> Any:
    """An object of the class, with what it needs besides."""
    needed = {"sparsity": 0.5, "source": "folder/"}
    given = {f.name: needed[f.name] for f in fields(cls) if f.default is MISSING and f.name in needed}
    given |= {"source": "folder/"} if cls is pruning.MaskFrom else {}
    return cls(**{**given, **options})


@pytest.mark.parametrize("wrong", VALUES, ids=repr)
@pytest.mark.parametrize(("cls", "field"), OPTIONS, ids=lambda p: getattr(p, "name", None) or p.__name__)
def test_a_wrong_value_is_one_line_with_the_options_name(cls, field, wrong) -> None:
    if repr(wrong) in RIGHT.get(f"{cls.__name__}.{field.name}", RIGHT.get(field.name, ())):
        with_option(cls, **{field.name: wrong})
        return
    with pytest.raises((ValueError, TypeError)) as error:
        with_option(cls, **{field.name: wrong})
    assert SHOWN_AS.get(field.name, field.name) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (RigL, {"sparsity": np.float32(0.5), "interval": np.int64(3), "until": np.float64(0.5)}),
        (pruning.PILoT, {"sparsity": np.float64(0.5), "delta": np.float32(1.5), "scaling": np.int32(1)}),
        (pruning.SET, {"sparsity": 0, "interval": np.int16(3)}),
        (Product, {"scaling": np.float16(2.0), "reset_every": np.int8(2)}),
    ],
)
def test_numbers_of_numpy_are_numbers(cls, options) -> None:
    made = cls(**options)
    assert made == cls(
        **{name: value.item() if name != "sparsity" else float(value) for name, value in options.items()}
    )
    assert all(type(getattr(made, name)) in (int, float) for name in options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"seed": seed}, "seed must be an integer, got") for seed in (None, "x", 2.5, nan, True)),
        *(({name: 5}, f"{name} must be a list of globs") for name in ("include", "exclude")),
        ({"include": None}, "include must be a list of globs"),
        ({"masks": [torch.ones(2)]}, "masks is a dict, name -> bool tensor, got list"),
        ({"parameterization": "product"}, r"parameterization must be an instance .*, or None, got 'product'"),
        ({"sparsities": {"weight": "x"}}, "sparsity must be a number"),
    ],
    ids=str,
)
def test_wrong_arguments_of_attach_are_one_line(options, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as error:
        RandomPruning(0.5).attach(nn.Linear(4, 4), total_epochs=1, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["begin", "end"])
@pytest.mark.parametrize("wrong", [None, "x", nan, inf])
def test_the_times_of_a_schedule_are_numbers(name, wrong) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        Cubic(0.5, **{"begin": 0.0, "end": 1.0, name: wrong})


def test_a_numpy_seed_and_globs_of_any_kind() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    sparsifier = RandomPruning(0.5, exclude="0.weight")
    sparsifier.attach(model, total_epochs=1, seed=np.int64(3), exclude=("1.*",))
    assert list(sparsifier.masks.weights) == ["2.weight"]
    Dense().attach(model, total_epochs=1, include="0.bias")
