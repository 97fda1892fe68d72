"""Write configs/lock.json: what each run of the tables and figures is, so that their scripts need no torch.

    python scripts/lock.py

Run it after a change to configs; a test compares it with what the configurations say.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from typing import Any

from omegaconf import OmegaConf
from tqdm import tqdm

from ham.report.plan import figure, figures
from ham.report.spec import CONFIGS, LOCK, RunInfo, RunSpec, configs_digest
from ham.run.config import config_hash, experiments, load
from ham.run.schema import Config

DEMOS = ("", *sorted(path.stem for path in (CONFIGS / "demo").glob("*.yaml")))


def specs(demo: str = "") -> list[RunSpec]:
    """Every experiment, and every altered one that a figure shows; graphs are not scaled down."""
    shown = [run for name in figures() for run in figure(name).points.values()]
    names = [name for name in experiments() if not (demo and name.startswith("node/"))]
    return [replace(run, demo=demo) for run in [*(RunSpec(name, 0) for name in names), *dict.fromkeys(shown)]]


def info(run: RunSpec, cfg: Config | None = None) -> RunInfo:
    """What the configuration of a run says; `cfg` spares composing it."""
    cfg = cfg or load(run.argv)
    leaf = OmegaConf.load(CONFIGS / "exp" / f"{run.exp}.yaml")
    source = getattr(cfg.sparsifier, "source", "")
    return RunInfo(
        config_hash=config_hash(cfg),
        base=next(entry["/base"] for entry in leaf.defaults if "/base" in entry),
        epochs=cfg.epochs,
        passes=2 if cfg.optimizer.sam_rho > 0 else 1,
        sparsity=getattr(cfg.sparsifier, "sparsity", 0.0),
        depends_on=source,
    )


def content() -> dict[str, dict[str, Any]]:
    """The lock file's content."""
    runs = [run for demo in DEMOS for run in specs(demo)]
    told: dict[str, dict[str, Any]] = {demo: {} for demo in DEMOS}
    with ProcessPoolExecutor() as pool:
        ends = pool.map(info, runs, chunksize=16)
        for run, known in zip(runs, tqdm(ends, total=len(runs), unit="run"), strict=True):
            told[run.demo][run.spec] = asdict(known)
    return told


def main() -> int:
    """Write the file."""
    told = {"configs": configs_digest(), **content()}
    LOCK.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
    print(f"wrote {LOCK.relative_to(CONFIGS.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
