"""The commands of scripts/ and benchmarks/ as modules."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


@cache
def module_at(path: str) -> ModuleType:
    """The module at a path from the repository's root, such as scripts/lock.py; loaded once."""
    file = ROOT / path
    name = path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def script(name: str) -> ModuleType:
    """The command scripts/<name>.py."""
    return module_at(f"scripts/{name}.py")


def benchmark(name: str) -> ModuleType:
    """The command benchmarks/<name>.py."""
    return module_at(f"benchmarks/{name}.py")
