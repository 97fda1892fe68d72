"""ogb is imported without what it starts and imports besides, and other code can import all of it later."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

if find_spec("ogb") is None:  # not importorskip: `import ogb` asks the network for a newer version
    pytest.skip("needs pip install -e '.[run,ogb]'", allow_module_level=True)

from ham.data import DataError
from ham.data.ogbg import score
from ham.data.ogbg.package import import_ogb

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def forget_imports() -> Iterator[None]:
    import_ogb.cache_clear()
    yield
    import_ogb.cache_clear()


def test_ogb_is_imported_without_its_thread_that_asks_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread starts where ogb can import the package outdated, here an empty one."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("ogb", "outdated")]:
        monkeypatch.delitem(sys.modules, name)
    import_ogb("utils.features")
    assert sys.modules["ogb.version"].check_outdated is None
    assert "outdated" not in sys.modules


def test_without_ogb_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("ogb.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ogb", None)
    with pytest.raises(DataError) as caught:
        score("ogbg-molhiv", torch.zeros(2, 1), torch.zeros(2, 1))
    assert str(caught.value) == "ogbg sets need ogb: pip install -e '.[run,ogb]'"


LATER = """
import sys
from ham.data.ogbg.package import import_ogb
ours = import_ogb("graphproppred")
assert not hasattr(ours, "PygGraphPropPredDataset") and "torch_geometric" not in sys.modules
assert import_ogb("graphproppred") is ours and ours.Evaluator("ogbg-molhiv").eval_metric == "rocauc"
from ogb.graphproppred import PygGraphPropPredDataset
import ogb
assert ogb.graphproppred.PygGraphPropPredDataset is PygGraphPropPredDataset
assert import_ogb("graphproppred") is ours
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torch_geometric") is None, reason="needs pip install -e '.[gnn]'")
def test_the_loaders_of_ogb_can_be_imported_later() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATER], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_ogb_without_its_loaders_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("ogb.graphproppred")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("torch_geometric")]:
        monkeypatch.delitem(sys.modules, name)
    assert not hasattr(import_ogb("graphproppred"), "PygGraphPropPredDataset")
    assert not [name for name in sys.modules if name.startswith("ogb.graphproppred")]
    assert sys.modules.get("torch_geometric", "absent") == "absent"


def test_what_other_code_has_imported_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = ModuleType("ogb.graphproppred")
    monkeypatch.setitem(sys.modules, "ogb.graphproppred", theirs)
    assert import_ogb("graphproppred") is theirs is sys.modules["ogb.graphproppred"]
