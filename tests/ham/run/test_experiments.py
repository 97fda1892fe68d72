"""Every leaf of configs/exp: what its name says is what it does, and it takes a real step."""

from __future__ import annotations

import copy
import json
import random
import re
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from ham.data import Digits, Loaders
from ham.models import DeiT
from ham.report import plan
from ham.report import spec as catalog
from ham.run import lock
from ham.run.build import build, run_directory
from ham.run.config import Config, config_hash, experiments, flatten, load, to_plain
from ham.run.logger import NullLogger
from ham.run.loop import train_step
from ham.tasks.images import ImageClassification
from pruning import MaskFrom
from pruning.export import save_masks

# graphs: test_node_leaves.py; language models, lora_*: test_finetune.py
EXPERIMENTS = sorted(path.stem for path in (plan.CONFIGS / "exp").glob("[!l]*.yaml"))
DISTINCT = [name for name in EXPERIMENTS if not name.endswith(("_s80", "_s95"))]
"""Without those that are another experiment at another sparsity, as a test shows."""

CELLS = {name: cell for name, cell in experiments().items() if "/" not in name and name[0] != "l"}
CPU = torch.device("cpu")

# Table 5, section 5 for HAM; the clamp of App. G.2
RESNET50 = {
    "model.depth": 50,
    "model.width": 64,
    "optimizer.lr": 0.25,
    "optimizer.weight_decay": 5e-5,
    "optimizer.momentum": 0.9,
    "optimizer.nesterov": False,
    "epochs": 100,
}
DEIT_SMALL = {
    "model.embed_dim": 384,
    "model.depth": 12,
    "model.num_heads": 6,
    "model.patch_size": 16,
    "optimizer.lr": 0.005,
    "optimizer.weight_decay": 0.1,
    "epochs": 300,
}
BOTH = {
    "batch_size": 1024,
    "optimizer.schedule.kind": "triangular",
    "optimizer.clip_norm": 0,
    "ham.clamp": 5,
    "ham.select": "not_norm",
    "data.num_classes": 1000,
    "data.image_size": 224,
}
CIFAR = {
    "model.depth": 18,
    "model.width": 64,
    "model.stem": "cifar",
    "optimizer.lr": 0.2,
    "optimizer.weight_decay": 1e-4,
    "optimizer.momentum": 0.9,
    "optimizer.nesterov": False,
    "epochs": 150,
    "batch_size": 512,
    "data.num_classes": 100,
    "data.image_size": 32,
    "data.flip": "alternating",
    "data.translate": 2,
    "compute.amp": True,
}
METHODS = {
    "mask": "MaskFrom",  # first: mask_rigl_s90 takes RigL's masks and is no RigL
    "acdc": "ACDC",
    "rigl": "RigL",
    "str": "STR",
    "random": "RandomPruning",
    "snip": "SNIP",
    "synflow": "SynFlow",
    "pilot": "PILoT",
    "spred": "Spred",
}

# what a demo may change, besides the `demo` entries of model, optimizer and sparsifier
SCALED = r"epochs|batch_size|demo|demo_values|data\..*|compute\..*"


@cache
def composed(name: str, demo: str = "") -> Config:
    return load([f"+exp={name}", *([f"+demo={demo}"] if demo else [])])


def flat(cfg: Config) -> dict[str, Any]:
    """Dotted key -> value, and the type of every section."""
    kinds = {f"type({key})": type(value).__name__ for key, value in vars(cfg).items()}
    return {**dict(flatten(to_plain(cfg))), **kinds}


def test_every_leaf_is_listed_with_its_cell() -> None:
    assert sorted(CELLS) == EXPERIMENTS
    for name, cell in CELLS.items():
        words = name.split("_")
        assert re.match(r"(Table|Figure) \d+, |control, ", cell), name
        assert ("Sign-In" in cell) == ("_sign_in" in name), name
        assert ("HAM" in cell) == ("ham" in words), name
        assert ("SAM" in cell) == ("sam" in words), name
        sparsity = re.search(r"s = ([\d.]+)", cell)
        assert (float(sparsity[1]) if sparsity else None) == named_sparsity(name), name


def named_sparsity(name: str) -> float | None:
    percent = re.search(r"_s(\d+)$", name)
    return int(percent[1]) / 100 if percent else None


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_leaves_have_the_papers_values(name: str) -> None:
    words = name.split("_")
    method = next((kind for word, kind in METHODS.items() if word in words), "Dense")
    sign_in, factored = "_sign_in" in name, "_sign_in" in name or "product" in words
    expected = {
        **BOTH,
        **(DEIT_SMALL if "deit" in words else CIFAR if "cifar100" in words else RESNET50),
        "type(model)": "DeiT" if "deit" in words else "ResNet",
        "type(optimizer)": "AdamWConfig" if "deit" in words else "SGDConfig",
        "ham.alpha": 200 if {"ham", "alpha"} & {*words} else 0,
        "ham.beta": (16e-3 if "cifar100" in words else 1e-3) if {"ham", "beta"} & {*words} else 0,
        "ham.select": "ndim2" if "ndim2" in words else "not_norm",
        "optimizer.sam_rho": 0.05 if "sam" in words else 0,
        # beta (1 - momentum): section 3.1 decays by lr beta a step, momentum sums coupled decay up
        "optimizer.matched_decay": (1.6e-3 if "cifar100" in words else 1e-4) if "matched" in words else 0,
        "type(sparsifier)": method,
        "type(parameterization)": "Product" if factored else "Plain",
        "parameterization.reset_every": (10 if sign_in else 0) if factored else None,
        "parameterization.frobenius": 5e-5 if factored else None,  # App. G.2
        "parameterization.decay": (2e-5 if "decay" in words else 0) if factored else None,  # App. F
        "sparsifier.source": f"{words[1]}_s90" if method == "MaskFrom" else None,
        "name": name,
        "cell": CELLS[name],
        "seed": 0,
        "demo": "",
        "overridden": False,
    }
    if "200ep" in words:
        expected["epochs"] = 200
    found = flat(composed(name))
    assert {key: found.get(key) for key in expected} == expected
    assert found.get("sparsifier.sparsity") == named_sparsity(name)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in DISTINCT])
def test_another_sparsity_changes_nothing_else(name: str) -> None:
    """So that its demo is that of 90 %, whose values a demo takes from the sections compared here."""
    one, other = flat(composed(name)), flat(composed(re.sub(r"_s\d+$", "_s90", name)))
    changed = {key for key in one | other if one.get(key) != other.get(key)}
    assert changed == {"name", "cell", "sparsifier.sparsity"}


def test_table_7_has_a_leaf_for_each_of_its_cells() -> None:
    """Its rows are without and with SAM, its columns (alpha, beta)."""
    cells = {}
    for name, cell in CELLS.items():
        if cell.startswith("Table 7, "):
            cfg = composed(name)
            cells[cfg.optimizer.sam_rho > 0, cfg.ham.alpha, cfg.ham.beta] = name
    columns = {(0, 0): "", (0, 16e-3): "beta_only", (200, 0): "alpha_only", (200, 16e-3): "ham"}
    assert cells == {
        (sam, *column): "_".join(filter(None, ["cifar100", "sam" if sam else "", text]))
        for sam in (False, True)
        for column, text in columns.items()
    }


@pytest.mark.parametrize("name", DISTINCT)
def test_the_demo_scales_and_changes_nothing_else(name: str) -> None:
    paper = composed(name)
    before, after = flat(paper), flat(composed(name, "digits"))
    changed = {key for key in before | after if before.get(key) != after.get(key)}
    sizes = {
        f"{part}.{key}"
        for part in ("model", "sparsifier")
        for key in getattr(paper, part).demo.get("digits", {})
    }
    assert sizes <= set(before), "the demo entries are fields of model and sparsifier"
    assert "model.depth" not in sizes or "deit" in name, "a ResNet keeps its blocks"
    free = re.compile(SCALED + r"|type\(data\)")
    assert {key for key in changed if not free.fullmatch(key)} <= sizes | {"optimizer.lr"}
    assert {"epochs", "batch_size", "type(data)"} <= changed
    assert after["type(data)"] == "Digits"
    for key in sizes:
        assert after[key] == before[key.replace(".", ".demo.digits.", 1)]
    assert after["optimizer.lr"] == paper.optimizer.demo["digits"]["lr"]


def test_tables_and_figures_show_all_experiments_and_no_others() -> None:
    shown = {run.exp for run in plan.every_run() if not run.overrides}
    assert shown == {*experiments()}  # a leaf that nothing shows is an orphan
    assert len(plan.table("4").cells) == 39 and len(plan.table("10").cells) == 18


def test_a_cell_of_a_table_says_so_in_its_leaf() -> None:
    cells = experiments()
    for name in plan.tables():
        if name.startswith("table"):
            for cell in plan.table(name).cells:
                description = cells[cell.exp]
                shared = {"table06": 3, "table10": 4, "table17": 14, "table18": 15}
                earlier = f"Table {shared[name]}, " if name in shared else ""
                assert description.startswith((f"Table {int(name[5:])}, ", earlier or "Table")), (
                    name,
                    cell.exp,
                )


@pytest.mark.parametrize("demo", lock.DEMOS)
def test_the_lock_file_says_what_the_configurations_say(demo: str) -> None:
    """python scripts/lock.py writes the file."""
    known = json.loads(catalog.LOCK.read_text())[demo]
    names = [spec for spec in known if " " not in spec] if demo else None  # tasks with a demo, see below
    specs = {run.spec: plan.RunSpec(run.exp, 0, run.overrides, demo) for run in lock.specs(demo, names)}
    assert known.keys() == specs.keys()
    altered = [spec for spec, run in specs.items() if run.overrides]
    some = random.Random(0).sample  # composing takes a tenth of a second: at lesser scales some will do
    if demo in ("", "digits"):
        looked_at = [*EXPERIMENTS, *some(altered, 4 if demo else 16)]
    else:
        looked_at = some(sorted(specs), min(12, len(specs)))
    for spec in looked_at:
        run = specs[spec]
        cfg = load(run.argv) if run.overrides else composed(run.exp, demo)
        assert known[spec] == asdict(lock.info(run, cfg)), spec
        assert run.folder(Path("runs")) == run_directory(cfg, config_hash(cfg))


def test_a_point_of_the_grid_that_has_a_name_is_that_experiment() -> None:
    """Section 5: (200, 16e-3) and (200, 1e-3) are what all other runs use."""
    for number, base, beta in (("11", "cifar100", 0.016), ("12", "dense", 0.001)):
        figure = plan.figure(number)
        assert len(figure.points) == 35 and figure.chosen == (200, beta)
        names = {point: plan.canonical(run).spec for point, run in figure.points.items()}
        assert names[0, 0] == base and names[200, beta] == f"{base}_ham"
        assert names[0, beta] == f"{base}_beta_only" and names[200, 0] == f"{base}_alpha_only"
        assert sum(" " not in name for name in names.values()) == 4


def test_masks_come_from_the_plain_runs_of_the_same_seed() -> None:
    """Table 10 draws new weights for masks that were found without HAM."""
    runs = catalog.with_sources(plan.table("10").runs((2,)))
    before = {}
    for place, run in enumerate(runs):
        if (source := run.depends_on) is not None:
            assert source.seed == 2 and runs.index(source) < place
            before.setdefault(source.exp, []).append(run.exp)
    assert before == {
        f"{m}_s90": [f"mask_{m}{column}_s90" for column in ("", "_sign_in", "_ham")]
        for m in ("acdc", "rigl", "str")
    }


# one real step


@pytest.fixture(scope="module")
def digits() -> Loaders:
    return Digits().load(batch_size=32, seed=0, device=CPU)


def small(name: str, runs: Path) -> Config:
    """The demo of an experiment on the smallest model of its family."""
    cfg = copy.deepcopy(composed(name, "digits"))
    cfg.runs_dir = str(runs)
    sizes = dict(embed_dim=16, depth=2, num_heads=2) if isinstance(cfg.model, DeiT) else dict(width=4)
    vars(cfg.model).update(sizes)
    vars(cfg.sparsifier).update({"batches": 2} if hasattr(cfg.sparsifier, "batches") else {})
    vars(cfg.sparsifier).update({"iterations": 3} if hasattr(cfg.sparsifier, "iterations") else {})
    return cfg


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, digits: Loaders) -> Path:
    """Where masks lie, as runs that are done would have left them."""
    folder = tmp_path_factory.mktemp("runs")
    cfg = small("rigl_s90", folder)
    run = build(cfg, config_hash(cfg), ImageClassification(cfg, CPU, digits), NullLogger(folder, cfg), CPU)
    for method in ("acdc", "rigl", "str"):
        place = folder / f"{method}_s90-digits" / "seed0"
        place.mkdir(parents=True)
        source = composed(f"{method}_s90", "digits")
        origin = {"exp": source.name, "seed": source.seed, "config_hash": config_hash(source)}
        save_masks(place / "masks.pt", run.sparsifier, origin)
    return folder


@pytest.mark.parametrize("name", DISTINCT)
def test_every_experiment_takes_a_real_step(
    name: str, digits: Loaders, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = small(name, runs)
    run = build(cfg, config_hash(cfg), ImageClassification(cfg, CPU, digits), NullLogger(runs, cfg), CPU)
    run.sparsifier.initialize(digits.train.batches(epoch=0), torch.nn.functional.cross_entropy)
    run.sparsifier.on_epoch_start(0, run.optimizer)
    before = [p.detach().clone() for p in run.params]
    scaled: list[bool] = []
    run.optimizer.register_step_post_hook(lambda *_: scaled.append(True))
    batch = next(iter(digits.train.batches(0)))
    assert torch.isfinite(train_step(run, batch))
    assert scaled and all(bool(torch.isfinite(p).all()) for p in run.params)
    assert any(not torch.equal(a, b) for a, b in zip(before, run.params, strict=True))
    assert (run.ham is not None) == cfg.ham.active
    if name.startswith(("mask_", "random_", "rigl_", "snip_", "synflow_")):
        assert run.sparsifier.achieved_sparsity() == pytest.approx(cfg.sparsifier.sparsity, abs=2e-3)
    assert isinstance(cfg.sparsifier, MaskFrom) == name.startswith("mask_")
