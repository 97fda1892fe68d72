"""Hyperbolic Aware Minimization: an optimizer step for sparsity. torch is imported on first use of a name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .optim import HAM, hyperbolic_step_, param_groups, perturbed

__all__ = ["HAM", "hyperbolic_step_", "param_groups", "perturbed"]
__version__ = "0.6.0"


def __getattr__(name: str) -> object:
    """Load the public names on first use (PEP 562), so that ham.report and ham.sweep start without torch."""
    if name in __all__:
        return getattr(import_module(".optim", __name__), name)
    if name in ("optim", "theory"):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
