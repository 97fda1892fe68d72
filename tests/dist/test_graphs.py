"""Graph classification on two ranks: killed and started again, it ends bit-equal to an undisturbed run.

Run as a script, this file is a rank: train.py with the numbers of graphs of a small set, killed before a step.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["model.hidden=24", "model.layers=2", "batch_size=6", "epochs=6", "compute.threads=1"]


def rank(folder: str, killed_at: str, *argv: str) -> int:
    """train.py, which takes the set in `folder` for a complete one; rank 1 ends before step `killed_at`."""
    from interrupt import interrupt
    from ogbg_files import write_ogbg

    import train
    from ham.data.ogbg import files as ogbg_files

    scratch = Path(folder, f"again{os.getpid()}")
    ogbg_files.SETS["ogbg-molhiv"] = write_ogbg(scratch, "ogbg-molhiv")
    shutil.rmtree(scratch)
    interrupt("SIGKILL", 1, int(killed_at))
    return train.main([*argv, f"data.root={folder}"])


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    sys.exit(rank(*sys.argv[1:]))

if find_spec("ogb") is None:
    pytest.skip("needs pip install -e '.[run,ogb]'", allow_module_level=True)


def test_two_ranks_killed_and_resumed_equal_undisturbed_ones(launch: Callable, tmp_path: Path) -> None:
    from ogbg_files import use_ogbg

    from ham.data import OGBG
    from ham.run.config import load
    from ham.tasks.graphs import GraphClassification

    sets = tmp_path / "sets"
    sets.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        facts = use_ogbg(patch, sets, "ogbg-molhiv")
        assert facts.parts["train"] == 12
        OGBG(name="ogbg-molhiv", root=str(sets), walk_steps=20).load_graphs()  # several ranks need the cache
        argv = ["+exp=graph/ogbg_molhiv_ham", *SMALL, "sparsifier=acdc", "sparsifier.sparsity=0.5"]
        undisturbed = launch(Path(__file__), str(sets), "-1", *argv, f"runs_dir={tmp_path}/undisturbed")
        assert undisturbed.wait() == [0, 0], "\n".join(undisturbed.said())
        argv += ["checkpoint.minutes=0"]
        killed = launch(Path(__file__), str(sets), "5", *argv, f"runs_dir={tmp_path}/killed")
        assert killed.wait() == [1, -signal.SIGKILL], "\n".join(killed.said())
        again = launch(Path(__file__), str(sets), "-1", *argv, f"runs_dir={tmp_path}/killed")
        assert again.wait() == [0, 0], "\n".join(again.said())
        folders = [next((tmp_path / name).glob("graph/*/seed0")) for name in ("undisturbed", "killed")]
        models = [torch.load(folder / "last.pt", weights_only=True)["model"] for folder in folders]
        assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
        summary = json.loads((folders[0] / "summary.json").read_text())
        assert summary["provenance"]["ranks"] == 2
        cfg = load([*argv, f"data.root={sets}"])
        task = GraphClassification.load(cfg, torch.device("cpu"), seed=0, rank=0, world_size=1)
        model = task.build_model(torch.Generator())
        model.load_state_dict(models[0])
        together = summary["metrics"]["valid_last"]  # of predictions that two ranks shared
        assert task.metric(model, "valid") == pytest.approx(together, abs=1e-9)
