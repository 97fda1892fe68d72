"""The choices of a configuration: group -> name -> dataclass, registered beside each class."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import ham.data
import ham.models
import pruning
from ham.data.base import DATASETS
from ham.models.base import MODELS
from pruning.base import SPARSIFIERS
from pruning.parameterization import PARAMETERIZATIONS

from .optimization import AdamConfig, AdamWConfig, HamConfig, SGDConfig


def _import_modules(package: ModuleType) -> None:
    """Import every module of a package, so that the classes in it register themselves."""
    for module in iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")


def _with_demo(schema: type) -> type:
    """The schema with a field `demo` for the values of demo runs, which the library's classes do not have."""
    demo = ("demo", dict[str, Any], field(default_factory=dict, kw_only=True))
    return make_dataclass(schema.__name__, [demo], bases=(schema,))


for _package in (pruning, ham.data, ham.models):
    _import_modules(_package)

SCHEMAS: dict[str, dict[str, type]] = {
    "model": MODELS,
    "data": DATASETS,
    "optimizer": {"sgd": SGDConfig, "adamw": AdamWConfig, "adam": AdamConfig},
    "ham": {"ham": HamConfig},
    "sparsifier": {name: _with_demo(schema) for name, schema in SPARSIFIERS.items()},
    "parameterization": PARAMETERIZATIONS,
}
