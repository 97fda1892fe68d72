"""scripts/collect.py: run directories and archives become records, and what is left out is named."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import collect
import pytest
from study import Cell, Study, pack

from ham.report import records
from ham.report.spec import RunSpec

RUN = RunSpec("rigl_s90", 1)
POINT = RunSpec("cifar100_ham", 0, ("ham.alpha=50", "ham.beta=0.001"))


def archive(path: Path, members: dict[str, str], *, link: str = "") -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content := text.encode())
            file.addfile(member, io.BytesIO(content))
        if link:
            member = tarfile.TarInfo("acdc_s90/seed0/summary.json")
            member.type, member.linkname = tarfile.SYMTYPE, link
            file.addfile(member)
    return path


def texts(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in ("summary.json", "metrics.jsonl")}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, list[str]]]:
    """`run(source, ...)`: exit status, stdout, lines of stderr; records go to tmp_path/results."""

    def call(*argv: object) -> tuple[int, str, list[str]]:
        capsys.readouterr()
        status = collect.main([*map(str, argv), "--results", str(tmp_path / "results")])
        told = capsys.readouterr()
        return status, told.out, told.err.splitlines()

    return call


def test_finished_runs_become_records_with_their_epochs(tmp_path: Path, finish: Any, run: Any) -> None:
    finish(RUN), finish(POINT)
    (tmp_path / "runs" / "dense" / "seed0").mkdir(parents=True)  # not finished
    status, out, err = run(tmp_path / "runs")
    assert (status, err) == (0, []) and "new records: 2" in out
    altered = f"runs/cifar100_ham-{POINT.info.config_hash[:8]}/seed0"
    paths = (f"{altered}.json", f"{altered}.metrics.jsonl", "runs/rigl_s90/seed1.json")
    assert files(tmp_path / "results") == [*paths, "runs/rigl_s90/seed1.metrics.jsonl"]
    found, problems = records.read_all(results=tmp_path / "results")
    assert set(found) == {RUN, POINT} and not problems
    assert len(found[RUN].epochs()) == 100 and "layers" not in found[RUN].epochs()[0]
    assert "/home" not in found[RUN].path.read_text()


def test_a_record_that_is_there_stays(tmp_path: Path, finish: Any, run: Any) -> None:
    folder = finish(RUN)
    assert run(folder)[0] == 0
    path = tmp_path / "results" / "runs" / "rigl_s90" / "seed1.json"
    path.write_text("mine")
    status, out, err = run(tmp_path / "runs")
    assert (status, err) == (0, []) and "new records: 0, there before: 1" in out
    assert f"{path}: it cannot be read" in out and "delete it to collect this run" in out
    assert path.read_text() == "mine"


def test_a_record_without_its_epochs_gets_them(tmp_path: Path, finish: Any, run: Any) -> None:
    folder = finish(RUN)
    assert run(folder)[0] == 0
    epochs = tmp_path / "results" / "runs" / "rigl_s90" / "seed1.metrics.jsonl"
    content = epochs.read_text()
    epochs.unlink()
    assert run(folder)[0] == 0 and epochs.read_text() == content


def test_what_is_left_out_is_named_and_the_rest_collected(tmp_path: Path, finish: Any, run: Any) -> None:
    finish(RUN)
    dirty = finish(RunSpec("acdc_s90", 0))
    summary = json.loads((dirty / "summary.json").read_text())
    summary["provenance"]["dirty"] = True
    (dirty / "summary.json").write_text(json.dumps(summary))
    half = finish(RunSpec("acdc_s90", 1))
    (half / "summary.json").write_text((half / "summary.json").read_text()[:200])
    finish(RunSpec("str_s90", 0), config_hash="0" * 64)
    finish(RunSpec("str_s90", 1), overridden=True, config_hash="1" * 64)
    finish(RunSpec("str_s90", 2), status="diverged")
    finish(RunSpec("dense", 0, demo="tiny"))
    (finish(RunSpec("snip_s90", 0)) / "metrics.jsonl").unlink()
    finish(RunSpec("snip_s90", 1)).rename(tmp_path / "runs" / "snip_s90" / "seed7")
    status, out, err = run(tmp_path / "runs")
    assert status == 1 and "new records: 1" in out and "left out: 8" in out
    expected = {
        "acdc_s90/seed0": "uncommitted changes",
        "acdc_s90/seed1": "not whole",
        "str_s90/seed0": "another configuration",
        "str_s90/seed1": "altered on the command line",
        "str_s90/seed2": "'diverged'",
        "dense-tiny/seed0": "scaled down to 'tiny'",
        "snip_s90/seed0": "no metrics.jsonl",
        "snip_s90/seed7": "it says that it is snip_s90 seed 1",
    }
    assert len(err) == len(expected)
    for place, reason in expected.items():
        (line,) = (line for line in err if f"{place}: " in line)
        assert line.startswith("collect.py: left out ") and reason in line
    assert {r.exp for r in records.read_all(results=tmp_path / "results")[0]} == {"rigl_s90"}


def test_scaled_down_runs_go_elsewhere_and_only_figures_have_their_epochs(
    tmp_path: Path, finish: Any, run: Any
) -> None:
    (
        finish(RUN),
        finish(RunSpec("rigl_s90", 0, demo="digits")),
        finish(RunSpec("random_s90", 0, demo="digits")),
    )
    status, out, _ = run(tmp_path / "runs", "--demo", "digits")
    assert status == 0 and "new records: 2" in out and "(without --demo): 1" in out
    demo = ("random_s90/seed0.json", "random_s90/seed0.metrics.jsonl", "rigl_s90/seed0.json")
    assert files(tmp_path / "results") == [f"demo/{name}" for name in demo]  # Figure 2a shows random_s90
    status, out, _ = run(tmp_path / "runs")
    assert status == 0 and "scaled down (--demo): 2" in out
    assert {r.demo for r in records.read_all(results=tmp_path / "results")[0]} == {""}


def test_points_of_a_node_grid_are_counted_and_left_alone(tmp_path: Path, run: Any) -> None:
    folder = tmp_path / "runs" / "node" / "cora_gcn_ham-1234abcd" / "seed0"
    folder.mkdir(parents=True)
    summary = {"exp": "node/cora_gcn_ham", "overridden": True, "ham": {"alpha": 1, "beta": 0}}
    (folder / "summary.json").write_text(json.dumps(summary))
    status, out, err = run(tmp_path / "runs")
    assert (status, err) == (0, []) and "new records: 0, there before: 0, left out: 0" in out
    assert "node runs with altered values (scripts/node_grid.py records grids): 1" in out
    (folder / "summary.json").write_text(json.dumps(summary | {"overridden": False}))  # no record either
    assert run(tmp_path / "runs")[0] == 1


def test_an_archive_is_read_and_nothing_of_it_lands_elsewhere(tmp_path: Path, finish: Any, run: Any) -> None:
    mine = texts(finish(RUN))
    members = {f"rigl_s90/seed1/{name}": text for name, text in mine.items()}
    members |= {f"../seed1/{name}": text for name, text in mine.items()}
    members |= {"/etc/seed1/summary.json": mine["summary.json"], "rigl_s90/seed1/config.yaml": "a: 1"}
    members |= {"passwd/seed3/summary.json": mine["summary.json"]}  # says another name
    secret = tmp_path / "secret"
    secret.write_text(mine["summary.json"])
    path = archive(tmp_path / "cells.tar.gz", members, link=str(secret))
    status, _, err = run(path)
    assert status == 1 and len(err) == 1 and "passwd/seed3: it says that it is rigl_s90 seed 1" in err[0]
    assert files(tmp_path / "results") == [f"runs/rigl_s90/seed1{end}" for end in (".json", ".metrics.jsonl")]


def test_what_benchmarks_gpu_brings_back_becomes_records(tmp_path: Path, finish: Any, run: Any) -> None:
    wanted = [RunSpec("cifar100", 0), RunSpec("cifar100_sam_ham", 2)]
    for folder in map(finish, wanted):
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "provenance.json").write_text(json.dumps(summary["provenance"]))
        (folder / "config.yaml").write_text("runs_dir: /home/me/runs\n")
    cells = tuple(Cell(r.exp, r.seed) for r in wanted)
    pack(Study(cells, tmp_path / "runs", epochs=150, root=tmp_path), tmp_path / "out")
    assert run(tmp_path / "out" / "cells.tar.gz")[::2] == (0, [])
    found, problems = records.read_all(results=tmp_path / "results")
    assert list(found) == wanted and not problems and len(found[wanted[1]].epochs()) == 150


def test_a_damaged_archive_is_one_line_and_status_2(
    tmp_path: Path, finish: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {f"rigl_s90/seed1/{name}": text for name, text in texts(finish(RUN)).items()}
    path = archive(tmp_path / "cells.tar.gz", members)
    whole = path.read_bytes()
    for content in (whole[:-20], b"", b"nothing"):
        path.write_bytes(content)
        status, _, err = run(path)
        assert status == 2 and len(err) == 1
    path.write_bytes(whole)
    monkeypatch.setattr(collect, "_LARGEST_ARCHIVE", 1000)  # a bomb is not unpacked to its end
    assert run(path)[0] == 2
    assert run(tmp_path / "absent")[0] == 2
    assert not (tmp_path / "results").exists()
    with pytest.raises(SystemExit) as wrong:
        run(path, "--demo", "tiny")
    assert wrong.value.code == 2
