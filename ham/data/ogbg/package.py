"""Import of modules of ogb."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from types import ModuleType

from ..base import DataError

_UNUSED = ("outdated", "torch_geometric", "dgl")
_WITH_LOADERS = "ogb.graphproppred"


@cache
def import_ogb(module: str) -> ModuleType:
    """A module of ogb, imported without the packages in `_UNUSED`.

    With `outdated`, ogb starts a thread that asks the network for a newer version; its loaders for
    torch_geometric and dgl import these, which takes seconds. ogb.graphproppred then lacks these loaders, and
    is removed from sys.modules, so that other code later imports it in full.

    Raises:
        DataError: ogb is not installed.
    """
    hidden = [name for name in _UNUSED if name not in sys.modules]
    known = set(sys.modules)
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # its import fails
    try:
        return import_module(f"ogb.{module}")
    except ImportError as error:
        raise DataError("ogbg sets need ogb: pip install -e '.[run,ogb]'") from error
    finally:
        incomplete = [name for name in sys.modules.keys() - known if name.startswith(_WITH_LOADERS)]
        for name in hidden + (incomplete if hidden else []):
            sys.modules.pop(name, None)
