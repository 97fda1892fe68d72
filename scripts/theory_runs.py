"""Simulate the data of Figures 1, 2b, 3, 4, 6, 7 and 8 on a CPU, into results/theory/*.json.

    python scripts/theory_runs.py                    # all, two minutes on one core
    python scripts/theory_runs.py --figure 6 7       # these

`scripts/figures.py --theory` draws them from these files without torch. Exit status: 0 done, 2 wrong use.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ham import theory
from ham.command_line import Parser, run_script
from ham.errors import explain
from ham.files import RESULTS, atomic_write_text
from ham.report.odd_files import check_file_target
from ham.report.plan import PlanError, figure_name
from ham.run.provenance import provenance
from ham.theory import neuron

DATA = RESULTS / "theory"
SEEDS = range(10)
STEPS = 1_000_000  # App. G.1's "10e+6", read as 1e6
LR, ALPHA = 1e-4, 1000.0
DIGITS = 6  # significant digits of the data


def metrics() -> dict[str, Any]:
    """Figure 1: the inverse metrics of Table 2, and a flow from -1 to an optimum at 1 under each."""
    theta, times = np.linspace(-1.5, 1.5, 301), np.linspace(0, 6, 241)
    strengths = {"gd": {}, "ham": {"alpha": 1.0}, "product": {"gamma": 0.05}}
    return {
        "settings": {"strengths": strengths, "start": -1.0, "optimum": 1.0, "loss": "(theta - 1)^2 / 2"},
        "theta": theta,
        "time": times,
        "inverse_metric": {kind: theory.inverse_metric(theta, kind, **s) for kind, s in strengths.items()},
        "flow": {
            kind: theory.riemannian_flow(lambda x: x - 1, np.array([-1.0]), times, kind, **s)[:, 0]
            for kind, s in strengths.items()
        },
    }


def bregman() -> dict[str, Any]:
    """Figure 2b: R_alpha(theta) / R_alpha(1) between theta^2 and |theta|."""
    theta, alphas = np.linspace(-1, 1, 201), [0.0, 1.0, 10.0, 100.0, 10000.0]
    column = theta[:, None]  # one theta per row, since bregman sums over the last axis
    values = [theory.bregman(column, a) / theory.bregman(np.ones(1), a) for a in alphas]
    return {"settings": {"alphas": alphas, "theta0": 0.0}, "theta": theta, "normalised": values}


def signs() -> dict[str, Any]:
    """Figure 3: one step with gradient 1 from each weight, and a path through zero, of HYP and HYP*."""
    lr, alpha, start, optimum, steps = 0.05, 20.0, 0.6, -1.0, 14
    theta = np.linspace(-0.1, 0.1, 401)
    paths: dict[str, list[float]] = {}
    for name, signed in (("hyp", True), ("hyp_star", False)):
        path = [np.float64(start)]
        for _ in range(steps):
            path.append(theory.ham_step(path[-1], path[-1] - optimum, lr=lr, alpha=alpha, signed=signed))
        paths[name] = path
    return {
        "settings": {
            "map": {"lr": lr, "alpha": alpha, "gradient": 1.0},
            "path": {"lr": lr, "alpha": alpha, "start": start, "optimum": optimum, "steps": steps},
        },
        "theta": theta,
        "next": {
            name: theory.ham_step(theta, np.ones_like(theta), lr=lr, alpha=alpha, signed=signed)
            for name, signed in (("hyp", True), ("hyp_star", False))
        },
        "path": paths,
    }


def quadrants() -> dict[str, Any]:
    """Figure 4: one neuron from all four sign cases, on ten data sets with balanced starts."""
    strengths = {"gd": (0.0, 0.0), "product": (1.0, 0.25), "ham": (4.0, 1.0)}
    samples, tolerance = 20, 1e-6
    times = np.concatenate([[0], np.geomspace(0.05, 200, 45)])
    paths: dict[str, list[dict[str, Any]]] = {kind: [] for kind in strengths}
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        problem = theory.Neuron.from_inputs(rng.standard_normal(samples))
        size = rng.uniform(0.2, 0.9)
        for kind, pair in strengths.items():
            for a, w in neuron.SIGN_CASES:
                path = theory.neuron_flow(problem, a * size, w * size, times, kind, pair)
                learned = bool(problem.loss(*path[-1]) < tolerance)
                paths[kind].append({"seed": seed, "case": [a, w], "learned": learned, "a_w": path})
    return {
        "settings": {"samples": samples, "time": times[-1], "strengths": strengths, "loss_below": tolerance,
                     "start": "|a| = |w| uniform in [0.2, 0.9]", "target": 1.0},
        "time": times,
        "paths": paths,
    }  # fmt: skip


def regression(*runs: tuple[str, str, float | None, float, float]) -> dict[str, Any]:
    """Figures 6 to 8: distance to the truth; a run is label, method, alpha, learning rate and start."""
    problems = [theory.regression(seed=seed) for seed in SEEDS]
    record = theory.recorded_steps(STEPS, 100)
    series = []
    for label, method, alpha, lr, start in runs:
        distances = theory.simulate(method, problems, alphas=[alpha], lrs=[lr], starts=[start], record=record)
        series.append({"label": label, "method": method, "alpha": alpha, "lr": lr, "start": start,
                       "distances": distances[:, :, 0].T})  # fmt: skip
    settings = {"dim": 100, "samples": 40, "nonzeros": 5, "seeds": list(SEEDS), "steps": STEPS}
    return {"settings": settings, "steps": record, "series": series}


def _from_wrong_signs(label: str, method: str) -> tuple[str, str, float | None, float, float]:
    return label, method, None if method == "gd" else ALPHA, LR, -1e-4


RUNS: dict[str, Callable[[], dict[str, Any]]] = {
    "figure01": metrics,
    "figure02b": bregman,
    "figure03": signs,
    "figure04": quadrants,
    "figure06": lambda: regression(
        ("GD", "gd", None, LR, 0.0),
        ("HAM", "ham", ALPHA, LR, 0.0),
        ("HAM signed", "ham_signed", ALPHA, LR, 0.0),
    ),
    "figure07": lambda: regression(
        _from_wrong_signs("HAM", "ham"),
        _from_wrong_signs("GD", "gd"),
        _from_wrong_signs("hyperbolic step alone", "hyperbolic"),
    ),
    "figure08": lambda: regression(
        *((f"HAM, j = {j}", "ham", 10.0 ** (3 + j), 10.0 ** (-4 - j), 0.0) for j in range(4))
    ),
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Simulate and write; returns the exit status."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", nargs="+", metavar="NAME", help="6, 2b, figure06, ... (default: all)")
    parser.add_argument("--to", type=Path, default=DATA, help="folder to write to (default: results/theory)")
    args = parser.parse_args(argv)
    names = list(map(figure_name, args.figure or RUNS))
    if unknown := [name for name in names if name not in RUNS]:
        known = ", ".join(RUNS)
        print(f"theory_runs.py: unknown theory figure {unknown[0]!r}: choose one of {known}", file=sys.stderr)
        return 2
    try:
        for name in names:
            check_file_target("--to", args.to / f"{name}.json")
        run(names, args.to)
    except (PlanError, OSError) as error:
        print(f"theory_runs.py: {explain(error)}", file=sys.stderr)
        return 2
    return 0


def run(names: list[str], folder: Path) -> None:
    """Simulate and write the data of these figures. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        start = time.perf_counter()
        data = RUNS[name]()
        seconds = round(time.perf_counter() - start, 2)
        record = {"figure": name, **_plain(data), "seconds": seconds, "provenance": _provenance()}
        atomic_write_text(folder / f"{name}.json", json.dumps(record) + "\n")
        print(f"{name}: {seconds} s")


def _provenance() -> dict[str, Any]:
    """Commit, versions and hardware; no host name and no path."""
    full = provenance("")
    kept = {key: full[key] for key in ("commit", "dirty", "python", "hardware")}
    return kept | {"versions": {name: metadata.version(name) for name in ("numpy", "scipy", "torch")}}


def _plain(value: Any) -> Any:
    """A value that json can write, with floats of six digits."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, bool | str | int) or value is None:
        return value
    return float(f"{value:.{DIGITS}g}")


if __name__ == "__main__":
    sys.exit(run_script(main))
