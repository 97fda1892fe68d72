"""The leaves of configs/exp/node are the paper's: its code base's recipes, best (alpha, beta), cells."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from ham.data import graph_files
from ham.report import plan
from ham.run import lock
from ham.run.build import run_directory
from ham.run.config import Config, config_hash, experiments, load

ROOT = Path(__file__).resolve().parents[3]
PAPER = Path(os.environ.get("HAM_PAPER", ROOT.parent / "shared" / "paper")) / "tables.yaml"
LEAVES = [name for name in experiments() if name.startswith("node/")]
ARCHS = ("gcn", "gat", "sage")
RUNS = {  # of the code base
    **dict.fromkeys(("cora", "citeseer", "pubmed"), 5),
    **dict.fromkeys(("squirrel", "chameleon"), 10),
}
# tunedGNN's run_gnn.sh: hidden, layers, dropout, lr, decay, norm, r(esidual) p(re-linear), epochs
RECIPES = """
amazon-computer   gcn 512 3 .5 1e-3 5e-5 layer - 1000   sage 64 4 .3 1e-3 5e-5 layer - 1000   gat 64 2 .5 1e-3 5e-5 layer - 1000
amazon-photo      gcn 256 6 .5 1e-3 5e-5 layer r 1000   sage 64 6 .2 1e-3 5e-5 layer r 1000   gat 64 3 .5 1e-3 5e-5 layer r 1000
coauthor-cs       gcn 512 2 .3 1e-3 5e-4 layer r 1500   sage 512 2 .5 1e-3 5e-4 layer r 1500  gat 256 1 .3 1e-3 5e-4 layer r 1500
coauthor-physics  gcn 64 2 .3 1e-3 5e-4 layer r 1500    sage 64 2 .7 1e-3 5e-4 batch r 1500   gat 256 2 .7 1e-3 5e-4 batch r 1500
wikics            gcn 256 3 .5 1e-3 0 layer - 1000      sage 256 2 .7 1e-3 0 layer - 1000     gat 512 2 .7 1e-3 0 layer r 1000
cora              gcn 512 3 .7 1e-3 5e-4 none - 500     sage 256 3 .7 1e-3 5e-4 none - 500    gat 512 3 .2 1e-3 5e-4 none r 500
citeseer          gcn 512 2 .5 1e-3 .01 none - 500      sage 512 3 .2 1e-3 .01 none - 500     gat 256 3 .5 1e-3 .01 none r 500
pubmed            gcn 256 2 .7 5e-3 5e-4 none - 500     sage 512 4 .7 5e-3 5e-4 none - 500    gat 512 2 .5 1e-2 5e-4 none - 500
amazon-ratings    gcn 512 4 .5 1e-3 0 batch r 2500      sage 512 9 .5 1e-3 0 batch r 2500     gat 512 4 .5 1e-3 0 batch r 2500
minesweeper       gcn 64 12 .2 1e-2 0 batch r 2000      sage 64 15 .2 1e-2 0 batch r 2000     gat 64 15 .2 1e-2 0 batch r 2000
roman-empire      gcn 512 9 .5 1e-3 0 batch rp 2500     sage 256 9 .3 1e-3 0 batch p 2500     gat 512 10 .3 1e-3 0 batch rp 2500
squirrel          gcn 256 4 .7 1e-2 5e-4 batch r 500    sage 256 3 .7 1e-2 5e-4 batch r 500   gat 512 7 .5 5e-3 5e-4 batch r 500
chameleon         gcn 512 5 .2 5e-3 1e-3 none - 200     sage 256 4 .7 1e-2 1e-3 batch r 200   gat 256 2 .7 1e-2 1e-3 batch r 200
"""  # noqa: E501
SPLITS = {
    **dict.fromkeys(("cora", "citeseer", "pubmed"), ("per_class", 123)),
    **dict.fromkeys(("amazon-computer", "amazon-photo"), ("per_class", 123)),
    **dict.fromkeys(("coauthor-cs", "coauthor-physics"), ("fixed", 123)),
}


@cache
def composed(name: str) -> Config:
    return load([f"+exp={name}"])


def leaf(name: str, arch: str, method: str = "") -> str:
    return f"node/{name.replace('-', '_')}_{arch}{method}"


def recipes() -> dict[tuple[str, str], list[str]]:
    found = {}
    for name, *values in (line.split() for line in RECIPES.strip().splitlines()):
        for start in range(0, len(values), 9):
            arch, *recipe = values[start : start + 9]
            found[name, arch] = recipe
    return found


@pytest.fixture(scope="module")
def paper() -> dict[str, Any]:
    if not PAPER.is_file():
        pytest.skip(f"no transcript of the paper's tables at {PAPER}: set HAM_PAPER")
    return yaml.safe_load(PAPER.read_text())


def test_there_are_three_leaves_for_each_set_and_architecture() -> None:
    expected = {
        leaf(name, arch, method)
        for name in graph_files.SETS
        for arch in ARCHS
        for method in ("", "_ham", "_nham")
    }
    assert {*LEAVES} == expected and len(LEAVES) == 117
    assert {f"node/{path.stem}" for path in (plan.CONFIGS / "base" / "node").glob("*.yaml")} == {
        name for name in LEAVES if not name.endswith("ham")
    }


@pytest.mark.parametrize(("name", "arch"), recipes(), ids="-".join)
def test_leaves_have_the_recipes_of_the_code_base(name: str, arch: str) -> None:
    hidden, layers, dropout, lr, decay, norm, extra, epochs = recipes()[name, arch]
    cfg = composed(leaf(name, arch))
    model, optimizer = cfg.model, cfg.optimizer
    assert (model.conv, model.attention, model.norm) == (arch, "v2", norm)
    assert (model.hidden, model.layers, model.dropout) == (int(hidden), int(layers), float(dropout))
    assert (model.residual, model.pre_linear) == ("r" in extra, "p" in extra)
    assert (optimizer.lr, optimizer.weight_decay, cfg.epochs) == (float(lr), float(decay), int(epochs))
    assert type(optimizer).__name__ == "AdamConfig" and optimizer.schedule.kind == "constant"
    assert (*optimizer.betas, optimizer.eps) == (0.9, 0.999, 1e-8)
    split, seed = SPLITS.get(name, ("official", 123))
    assert (cfg.data.name, cfg.data.split, cfg.data.split_seed) == (name, split, seed)
    assert cfg.ham.select == "convs.*" and cfg.ham.mask_zero_grad and not cfg.ham.active
    for method in ("", "_ham", "_nham"):  # HAM is all that differs
        content = yaml.safe_load((plan.CONFIGS / "exp" / f"{leaf(name, arch, method)}.yaml").read_text())
        assert content["defaults"] == [{"/base": leaf(name, arch)}]
        assert set(content) == {"defaults", "cell", *(["ham"] if method else [])}
        assert set(content.get("ham", {})) in ({"alpha", "beta"}, set())


def test_alpha_and_beta_are_the_papers_in_both_directions(paper: dict[str, Any]) -> None:
    for method, table in (("_ham", "table16"), ("_nham", "table19")):
        printed = {(name, arch): tuple(v) for name, row in paper[table].items() for arch, v in row.items()}
        ours = {}
        for name, arch in recipes():
            content = yaml.safe_load((plan.CONFIGS / "exp" / f"{leaf(name, arch, method)}.yaml").read_text())
            ours[name, arch] = (content["ham"]["alpha"], content["ham"]["beta"])
        assert ours == printed
        assert all((alpha > 0) == (method == "_ham") for alpha, _ in ours.values())


@pytest.mark.parametrize("number", [14, 15, 17, 18])
def test_tables_are_the_papers_in_both_directions(number: int, paper: dict[str, Any]) -> None:
    printed, table = paper[f"table{number}"], plan.table(str(number))
    rows = {key: value for key, value in printed.items() if not key.startswith("num_")}
    names = {"gcn": "GCN", "gat": "GAT", "sage": "SAGE"}
    found: dict[str, dict[str, list[float]]] = {}
    for row in table.rows:
        arch, _, method = row.label.lower().partition("+")
        assert row.label.startswith(names[arch])
        for name, cell in zip(table.columns, row.cells, strict=True):
            found.setdefault(row.label.lower(), {})[name] = list(cell.paper)
            assert cell.exp == leaf(name, arch, f"_{method}" if method else "")
            assert cell.metric == "valid_best" and cell.seeds == tuple(range(RUNS.get(name, 3)))
    assert found == rows
    assert len(table.runs()) == sum(RUNS.get(name, 3) for name in table.columns) * len(rows)
    assert len(table.runs((0,))) == len(table.cells)


def test_cells_say_what_they_are() -> None:
    cells = experiments()
    for name in graph_files.SETS:
        for arch in ARCHS:
            for method, words in (("", ""), ("_ham", " + HAM"), ("_nham", " + nHAM")):
                assert cells[leaf(name, arch, method)].endswith(f", {name}, {arch.upper()}{words}")


def test_the_lock_file_knows_the_graphs_at_the_papers_scale_alone() -> None:
    """python scripts/lock.py writes the file."""
    for demo, known in plan.lock().items():
        assert {name for name in known if name.startswith("node/") and " " not in name} == (
            set() if demo else {*LEAVES}
        )
    checked = LEAVES[::7]
    methods = {name.rpartition("_")[2] for name in checked}
    assert methods >= {"ham", "nham"} and len(methods) > 2  # some with HAM, and some without
    for name in checked:
        run, cfg = plan.RunSpec(name, 2), composed(name)
        assert run.info == lock.info(run, cfg)
        if name.endswith("ham"):
            alpha = yaml.safe_load((plan.CONFIGS / "exp" / f"{name}.yaml").read_text())["ham"]["alpha"]
            assert cfg.ham.alpha == alpha and (alpha > 0) != name.endswith("_nham")
        assert run.folder(Path("runs")) == Path("runs") / name / "seed2"
        assert run_directory(cfg, config_hash(cfg)) == Path("runs") / name / "seed0"
