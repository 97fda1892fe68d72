"""scripts/nodes.py carries runs out and goes on; scripts/node_report.py reads them."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import graph_files as small_files
import node_grid
import node_report
import nodes
import pytest

from ham.report import grid as grid_records
from ham.report import node_runs, plan
from ham.report import spec as catalog

pytest.importorskip("torch_geometric", reason="needs pip install -e '.[gnn]'")

from ham.data import graphs
from ham.run import config


def test_there_are_as_many_seeds_as_the_paper_has_runs() -> None:
    known = node_runs.seeds()
    assert len(known) == 13
    assert {name: len(seeds) for name, seeds in known.items() if len(seeds) != 3} == {
        **dict.fromkeys(("cora", "citeseer", "pubmed"), 5),
        **dict.fromkeys(("squirrel", "chameleon"), 10),
    }


def test_the_grid_is_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--sets", "amazon-photo", "--archs", "gcn", "--seeds", "1", "--list"]
    assert nodes.main(argv) == 0
    named = capsys.readouterr().out.splitlines()
    assert named == [f"node/amazon_photo_gcn{method} seed 0" for method in ("", "_ham", "_nham")]
    assert nodes.main([*argv, "--grid"]) == 0
    grid = capsys.readouterr().out.splitlines()
    assert len(grid) == len({*grid}) == 1 + 12 + 12 + 2
    assert "node/amazon_photo_gcn_ham ham.alpha=200 ham.beta=0.1 seed 0" in grid
    assert "node/amazon_photo_gcn_nham ham.alpha=-1 ham.beta=0 seed 0" in grid
    assert "node/amazon_photo_gcn_ham ham.alpha=0 ham.beta=0.01 seed 0" in grid  # decay alone


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small graphs and runs of three epochs; returns a folder for runs."""
    small_files.write("chameleon", tmp_path / "graphs")
    small_files.small(monkeypatch, "chameleon")
    monkeypatch.setenv("HAM_DATA", str(tmp_path))
    graphs._read.cache_clear()
    whole = config.load

    def load(overrides: list[str]) -> config.Config:
        cfg = whole(overrides)
        cfg.epochs, cfg.model.hidden = 3, 8
        return cfg

    monkeypatch.setattr(config, "load", load)
    yield tmp_path / "runs"
    graphs._read.cache_clear()


def test_runs_are_carried_out_skipped_and_left_to_others(
    short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--sets", "chameleon", "--archs", "gcn", "sage", "--seeds", "2", "--runs", str(short)]
    taken = short / "node" / "chameleon_sage_ham" / "seed1"
    taken.mkdir(parents=True)
    with open(taken / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert nodes.main(argv) == 0
    stand, *out, last = capsys.readouterr().out.splitlines()
    assert stand == "12 runs: 0 done, 12 to do"
    assert len(out) == 11 and "[11/12, about 0 min left]" in out[-1]
    assert last == "1 are under way in other processes: start this again to see them done"
    done = sorted(short.rglob("summary.json"))
    assert len(done) == 11
    times = [path.stat().st_mtime_ns for path in done]
    assert nodes.main(argv) == 0  # now nobody holds the last one
    stand, line = capsys.readouterr().out.splitlines()
    assert stand == "12 runs: 11 done, 1 to do"
    assert line.startswith("node/chameleon_sage_ham seed 1: valid ")
    assert [path.stat().st_mtime_ns for path in done] == times
    first = [json.loads((path.parent / "metrics.jsonl").read_text().splitlines()[0]) for path in done]
    losses = {(path.parts[-3].split("_")[1], path.parts[-2]): set() for path in done}
    for path, line in zip(done, first, strict=True):
        losses[path.parts[-3].split("_")[1], path.parts[-2]].add(line["train_loss"])
    assert all(len(values) == 1 for values in losses.values())  # paired
    assert len({*map(tuple, losses.values())}) == 4


def test_what_has_a_committed_record_is_done_again_when_asked(
    short: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["--sets", "chameleon", "--archs", "gcn", "--seeds", "1", "--runs", str(short)]
    assert nodes.main(argv) == 0
    kept = tmp_path / "results"
    short.rename(kept)
    for path in kept.rglob("summary.json"):
        path.rename(path.parent.with_suffix(".json"))
    monkeypatch.setattr(nodes, "record_path", lambda exp, seed: kept / exp / f"seed{seed}.json")
    other = json.loads((kept / "node" / "chameleon_gcn" / "seed0.json").read_text())
    (kept / "node" / "chameleon_gcn_ham" / "seed0.json").write_text(
        json.dumps(other)
    )  # of another configuration
    capsys.readouterr()
    assert nodes.main(argv) == 0
    stand, *lines = capsys.readouterr().out.splitlines()
    assert stand == "3 runs: 0 done, 2 with a committed record (--again does these here too), 1 to do"
    assert [line.partition(":")[0] for line in lines] == ["node/chameleon_gcn_ham seed 0"]
    assert nodes.main([*argv, "--again"]) == 0
    stand, *lines = capsys.readouterr().out.splitlines()
    assert stand == "3 runs: 1 done, 2 to do" and len(lines) == 2
    (short / "node" / "chameleon_gcn" / "seed0" / "summary.json").write_text("{")  # the disk was full
    assert nodes.main([*argv, "--again"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "3 runs: 2 done, 1 to do"
    (short / "node" / "chameleon_gcn_ham" / "seed0" / "summary.json").write_text(json.dumps(other))
    assert nodes.main([*argv, "--again"]) == 2  # an older configuration's run lies there
    assert "chameleon_gcn_ham seed 0" in capsys.readouterr().err


def test_a_point_of_the_grid_that_is_the_leaf_is_that_run(short: Path) -> None:
    argv = ["--sets", "chameleon", "--archs", "gcn", "--methods", "ham", "--seeds", "1", "--grid"]
    assert nodes.main([*argv, "--runs", str(short)]) == 0
    folders = sorted(path.name for path in (short / "node").iterdir())
    assert len(folders) == 14 and folders[0] == "chameleon_gcn_ham"


def test_a_grid_is_recorded_when_it_is_whole(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (node_runs, nodes):
        monkeypatch.setattr(module, "seeds", lambda: {"chameleon": (3, 4)})
    for module in (node_grid, grid_records):  # a working tree may have changes
        monkeypatch.setattr(module, "check_code", lambda made: None)
    monkeypatch.setattr(nodes, "record_path", lambda exp, seed: tmp_path / "nothing is committed")
    told = ["--runs", str(short), "--records", str(tmp_path / "grids"), "--to", str(tmp_path / "page.md")]
    grid = ["--sets", "chameleon", "--archs", "gcn", "--grid", "--runs", str(short)]
    assert nodes.main([*grid, "--methods", "ham", "nham"]) == 0
    assert node_grid.main(told) == 2  # the base is missing
    assert (
        "chameleon_gcn: 2 of 54 runs are not done, such as node/chameleon_gcn seed 3"
        in capsys.readouterr().err
    )
    assert nodes.main(grid) == 0
    capsys.readouterr()
    assert node_grid.main(told) == 2  # three epochs are not the paper's run

    def run(exp: str, seed: int) -> SimpleNamespace:
        summary = json.loads((short / exp / "seed3" / "summary.json").read_text())
        return SimpleNamespace(info=SimpleNamespace(config_hash=summary["config_hash"]))

    monkeypatch.setattr(grid_records, "RunSpec", run)
    assert node_grid.main(told) == 0
    whole = grid_records.read(tmp_path / "grids" / "chameleon_gcn.json")
    assert "## chameleon, GCN" in (tmp_path / "page.md").read_text()
    for point in whole.points:  # every number is that of the run which it is said to be of
        name = "_".join(
            ["chameleon_gcn", *["nham" if point.alpha < 0 else "ham"] * any((point.alpha, point.beta))]
        )
        summaries = [json.loads(p.read_text()) for p in (short / "node").glob(f"{name}*/seed*/summary.json")]
        mine = [s for s in summaries if s["ham"] == {"alpha": point.alpha, "beta": point.beta}]
        mine.sort(key=lambda s: s["seed"])
        assert {s["config_hash"] for s in mine} == {point.config_hash}
        assert tuple(s["metrics"]["valid_best"] for s in mine) == point.valid
        assert tuple(s["metrics"]["test_at_best"] for s in mine) == point.test
    next((short / "node").glob("chameleon_gcn_ham-*/seed3/summary.json")).unlink()
    assert node_grid.main(told) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 54 runs are not done" in line and line.endswith("; its older record stays")


def test_missing_data_end_with_a_line_for_each_run(
    short: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HAM_DATA", str(short / "nowhere"))
    argv = ["--sets", "chameleon", "--archs", "gcn", "--seeds", "1", "--runs", str(short)]
    assert nodes.main(argv) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1  # the set's other runs lack them too


def summary(exp: str, seed: int, valid: float, test: float) -> dict:
    return {
        "config_hash": plan.RunSpec(exp, seed).info.config_hash,
        "graph": {"name": "cora", "metric": "accuracy", "nodes": {"train": 140, "valid": 500, "test": 1000}},
        "metrics": {"valid_best": valid, "test_at_best": test},
    }


def test_the_reading_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Differences 0.2, 0.4, 0.0: mean 0.2, standard deviation 0.2, t 4.303 over sqrt(3): half width 0.50."""
    runs = tmp_path / "runs"
    cells = {"node/cora_gcn": [80, 81, 82], "node/cora_gcn_ham": [80.2, 81.4, 82]}
    for exp, values in cells.items():
        for seed, value in enumerate(values):
            place = runs / exp / f"seed{seed}"
            place.mkdir(parents=True)
            (place / "summary.json").write_text(json.dumps(summary(exp, seed, value, value + 3)))
    stale = runs / "node" / "cora_gcn_ham" / "seed3"  # of another configuration
    stale.mkdir()
    (stale / "summary.json").write_text(json.dumps(summary("node/cora_gcn", 3, 99, 99)))
    torn = runs / "node" / "cora_gcn_ham" / "seed4"
    torn.mkdir()
    (torn / "summary.json").write_text('{"config_hash"')
    page = tmp_path / "page.md"
    assert node_report.main(["--runs", str(runs), "--to", str(page)]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"node_report.py: left out {torn / 'summary.json'}: it is not whole, run it again"
    ]
    base, ham = (line for line in page.read_text().splitlines() if line.startswith("| cora |"))
    assert base == "| cora | GCN | 3 of 5 | 81.00 ± 1.00 | 81.32 ± 0.30 |  |  |  |  | 84.00 ± 1.00 |  |  |"
    assert "| +0.20 [-0.30, +0.70] | +1.0 of 500 | 2 / 1 / 0 | +0.12 |" in ham
    assert "0 of 1 differences with an interval leave 0 out." in page.read_text()
    assert "Without a run: cora (GCN+nHAM, GAT, GAT+HAM, GAT+nHAM, SAGE, SAGE+HAM" in page.read_text()
    assert node_report.main(["--runs", str(runs)]) == 0  # among the runs: the committed page stays
    assert (runs / "node_reading.md").read_text() == page.read_text()
    (runs / "empty").mkdir()
    assert node_report.main(["--runs", str(runs / "empty")]) == 2
    assert node_report.main(["--runs", str(runs), "--to", "/proc/page.md"]) == 2
    with pytest.raises(SystemExit, match="2"):
        node_report.main(["--runs", str(tmp_path / "none")])
    assert "none is no folder" in capsys.readouterr().err


def test_the_committed_reading_is_that_of_the_committed_records(tmp_path: Path) -> None:
    assert node_report.main(["--to", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == node_report.TARGET.read_text()


def test_configurations_that_moved_on_are_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog.lock.cache_clear()
    monkeypatch.setattr(catalog, "configs_digest", lambda: "another")
    try:
        assert node_report.main(["--to", str(tmp_path / "page.md")]) == 2
    finally:
        catalog.lock.cache_clear()
    (line,) = capsys.readouterr().err.splitlines()
    assert "configs/ has changed since lock.json was written" in line
    assert not (tmp_path / "page.md").exists()


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        ((0, 0), 0),
        ((0, 2), 2),
        ((1, 0), 1),
        ((85, 0), 85),
        ((-signal.SIGTERM, 0), 85),
        ((-signal.SIGINT, 0), 130),
        ((-signal.SIGKILL, 0), 1),  # out of memory: no request to stop
    ],
)
def test_a_shared_sweep_ends_as_its_workers_do(
    ends: tuple[int, int], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        f"end = {[int(end) for end in ends]}[int(sys.argv[-1])]\n"
        "os.kill(os.getpid(), -end) if end < 0 else sys.exit(end)\n"
    )
    monkeypatch.setattr(nodes, "__file__", str(script))
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    try:
        assert nodes.share(["--sets", "cora"], 2) == status
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@pytest.mark.skipif(sys.platform != "linux", reason="a parent's death is told on Linux alone")
def test_workers_stop_when_whoever_shared_the_work_out_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import pathlib, sys, time, nodes\n"
        "with nodes.stoppable():\n"
        "    nodes.stop_with_parent()\n"
        "    place = pathlib.Path(__file__).with_name(sys.argv[-1])\n"
        "    try:\n"
        "        place.with_suffix('.begun').touch()\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        place.with_suffix('.ended').touch()\n"
    )
    share = f"import nodes; nodes.__file__ = {str(script)!r}; nodes.share([], 2)"
    environment = os.environ | {"PYTHONPATH": str(Path(nodes.__file__).parent)}
    parent = subprocess.Popen([sys.executable, "-c", share], env=environment)
    try:
        for stage in ("begun", "ended"):
            until = time.monotonic() + 30
            while len([*tmp_path.glob(f"*.{stage}")]) < 2:
                assert time.monotonic() < until, f"no two workers have {stage}"
                time.sleep(0.02)
            parent.kill()
    finally:
        parent.kill()
        parent.wait()
