"""Run directories and archives become records; runs that are left out are reported."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import script

from ham.report import collect, grid, records, search_grid
from ham.report.spec import RunSpec
from ham.sweep.archive import pack

RUN = RunSpec("rigl_s90", 1)
COMMAND = script("collect")
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
        status = COMMAND.main([*map(str, argv), "--results", str(tmp_path / "results")])
        out, err = capsys.readouterr()
        return status, out, err.splitlines()

    return call


def test_finished_runs_become_records_with_their_epochs(tmp_path: Path, finish_run: Any, run: Any) -> None:
    finish_run(RUN), finish_run(POINT)
    (tmp_path / "runs" / "dense" / "seed0").mkdir(parents=True)  # not finished
    status, out, err = run(tmp_path / "runs")
    assert (status, err) == (0, []) and "new records: 2" in out
    altered = f"runs/cifar100_ham-{POINT.info.config_hash[:8]}/seed0"
    paths = (f"{altered}.json", f"{altered}.metrics.jsonl", "runs/rigl_s90/seed1.json")
    assert files(tmp_path / "results") == [*paths, "runs/rigl_s90/seed1.metrics.jsonl"]
    collected, problems = records.read_all(results=tmp_path / "results")
    assert set(collected) == {RUN, POINT} and not problems
    assert len(collected[RUN].epochs()) == 100 and "layers" not in collected[RUN].epochs()[0]
    assert "/home" not in collected[RUN].path.read_text()


def test_an_existing_record_is_kept(tmp_path: Path, finish_run: Any, run: Any) -> None:
    folder = finish_run(RUN)
    assert run(folder)[0] == 0
    path = tmp_path / "results" / "runs" / "rigl_s90" / "seed1.json"
    path.write_text("mine")
    status, out, err = run(tmp_path / "runs")
    assert status == 1 and "new records: 0, already recorded: 1" in out
    (line,) = err
    assert f"{path}: it cannot be read" in line and "delete it to collect this run" in line
    assert path.read_text() == "mine"


def test_a_record_that_has_all_it_needs_is_not_written_again(
    tmp_path: Path, finish_run: Any, run: Any
) -> None:
    """With epochs at the paper's scale, and without at that of the digits."""
    finish_run(RUN), finish_run(RunSpec("rigl_s90", 0, demo="digits"))
    for demo in ([], ["--demo", "digits"]):
        assert "new records: 1, already recorded: 0," in run(tmp_path / "runs", *demo)[1]
        assert "new records: 0, already recorded: 1," in run(tmp_path / "runs", *demo)[1]


def test_a_divergence_is_recorded_once_and_not_beside_a_result(
    tmp_path: Path, finish_run: Any, run: Any
) -> None:
    folder = finish_run(RUN)
    done = (folder / "summary.json").read_text()
    lost = json.loads(done) | {"status": "diverged", "reason": "the loss is inf", "epochs": 3}
    (folder / "summary.json").rename(folder / "diverged.json")
    (folder / "diverged.json").write_text(json.dumps(lost))
    assert "new records: 1, already recorded: 0," in run(folder)[1]
    path = records.diverged_path(records.path_of(RUN, tmp_path / "results"))
    content = path.read_text()
    path.write_text("mine")
    assert "new records: 0, already recorded: 1," in run(folder)[1] and path.read_text() == "mine"
    path.write_text(content)
    (folder / "summary.json").write_text(done)
    status, out, (line,) = run(folder)
    assert status == 1 and "new records: 0, already recorded: 0, left out: 1" in out
    assert line.endswith(
        f": it diverged before, and the first outcome counts: move it away, or delete {path}"
    )
    path.unlink()
    assert "new records: 1, already recorded: 0," in run(folder)[1]
    (folder / "summary.json").unlink()
    assert "new records: 0, already recorded: 1," in run(folder)[1] and not path.exists()


def test_only_folders_without_a_finished_run_are_named_as_such(
    tmp_path: Path, finish_run: Any, run: Any
) -> None:
    finish_run(RUN)
    for name in ("empty", "bare"):
        (tmp_path / name).mkdir()
    _, out, _ = run(tmp_path / "empty", tmp_path / "runs", tmp_path / "bare")
    named = [line for line in out.splitlines() if "no run has finished there" in line]
    assert [line.partition(":")[0] for line in named] == [str(tmp_path / name) for name in ("empty", "bare")]
    assert "runs that are" not in out and "search grids" not in out


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_directory_without_a_seed_in_its_name_is_of_no_seed(
    seed: int, tmp_path: Path, finish_run: Any, run: Any
) -> None:
    folder = finish_run(RunSpec("rigl_s90", seed))
    folder.rename(folder.parent / "mine")
    status, _, (line,) = run(folder.parent / "mine")
    assert status == 1
    assert line.endswith(f"its summary is of rigl_s90 seed {seed}: move it to rigl_s90/seed{seed}")


def test_a_linked_run_directory_has_the_name_of_what_the_link_leads_to(
    tmp_path: Path, finish_run: Any, run: Any
) -> None:
    (tmp_path / "link").symlink_to(finish_run(RUN))
    assert run(tmp_path / "link")[::2] == (0, [])


@pytest.mark.parametrize("limit", ["LARGEST", "LARGEST_METRICS"])
def test_a_file_of_the_largest_size_is_read_and_a_larger_one_is_not(
    limit: str, tmp_path: Path, finish_run: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finish_run(RUN)
    name = {"LARGEST": "summary.json", "LARGEST_METRICS": "metrics.jsonl"}[limit]
    size = (folder / name).stat().st_size
    monkeypatch.setattr(collect, limit, size - 1)
    status, _, (line,) = run(folder)
    assert status == 1 and f"{name} has {size} bytes, more than {size - 1}" in line
    monkeypatch.setattr(collect, limit, size)
    assert run(folder)[::2] == (0, [])


def test_a_record_without_its_epochs_gets_them(tmp_path: Path, finish_run: Any, run: Any) -> None:
    folder = finish_run(RUN)
    assert run(folder)[0] == 0
    epochs = tmp_path / "results" / "runs" / "rigl_s90" / "seed1.metrics.jsonl"
    content = epochs.read_text()
    epochs.unlink()
    assert run(folder)[0] == 0 and epochs.read_text() == content


def test_invalid_runs_are_reported_and_the_others_collected(
    tmp_path: Path, finish_run: Any, run: Any
) -> None:
    finish_run(RUN)
    dirty = finish_run(RunSpec("acdc_s90", 0))
    summary = json.loads((dirty / "summary.json").read_text())
    summary["provenance"]["dirty"] = True
    (dirty / "summary.json").write_text(json.dumps(summary))
    half = finish_run(RunSpec("acdc_s90", 1))
    (half / "summary.json").write_text((half / "summary.json").read_text()[:200])
    finish_run(RunSpec("str_s90", 0), config_hash="0" * 64)
    finish_run(RunSpec("str_s90", 1), overridden=True, config_hash="1" * 64)
    finish_run(RunSpec("str_s90", 2), status="diverged")
    finish_run(RunSpec("dense", 0, demo="tiny"))
    (finish_run(RunSpec("snip_s90", 0)) / "metrics.jsonl").unlink()
    finish_run(RunSpec("snip_s90", 1)).rename(tmp_path / "runs" / "snip_s90" / "seed7")
    status, out, err = run(tmp_path / "runs")
    assert status == 1 and "new records: 1" in out and "left out: 8" in out
    expected = {
        "acdc_s90/seed0": "uncommitted changes",
        "acdc_s90/seed1": "incomplete",
        "str_s90/seed0": "differs from configs/lock.json",
        "str_s90/seed1": "overrides on the command line",
        "str_s90/seed2": "reason is missing or invalid",
        "dense-tiny/seed0": "scaled down to 'tiny'",
        "snip_s90/seed0": "no metrics.jsonl",
        "snip_s90/seed7": "its summary is of snip_s90 seed 1",
    }
    assert len(err) == len(expected)
    for place, reason in expected.items():
        (line,) = (line for line in err if f"{place}: " in line)
        assert line.startswith("collect.py: left out ") and reason in line
    assert {r.exp for r in records.read_all(results=tmp_path / "results")[0]} == {"rigl_s90"}


def test_scaled_down_runs_have_their_own_folder_and_epochs_only_for_figures(
    tmp_path: Path, finish_run: Any, run: Any
) -> None:
    (
        finish_run(RUN),
        finish_run(RunSpec("rigl_s90", 0, demo="digits")),
        finish_run(RunSpec("random_s90", 0, demo="digits")),
    )
    status, out, _ = run(tmp_path / "runs", "--demo", "digits")
    assert status == 0 and "new records: 2" in out and "(without --demo): 1" in out
    demo = ("random_s90/seed0.json", "random_s90/seed0.metrics.jsonl", "rigl_s90/seed0.json")
    assert files(tmp_path / "results") == [f"demo/{name}" for name in demo]  # Figure 2a shows random_s90
    status, out, _ = run(tmp_path / "runs")
    assert status == 0 and "scaled down (--demo): 2" in out
    assert {r.demo for r in records.read_all(results=tmp_path / "results")[0]} == {""}


def test_runs_of_search_grids_are_counted_and_not_recorded(tmp_path: Path, run: Any) -> None:
    folder = tmp_path / "runs" / "node" / "cora_gcn_ham-1234abcd" / "seed0"
    folder.mkdir(parents=True)
    summary = {"exp": "node/cora_gcn_ham", "overridden": True, "ham": {"alpha": 1, "beta": 0}}
    (folder / "summary.json").write_text(json.dumps(summary))
    status, out, err = run(tmp_path / "runs")
    assert (status, err) == (0, []) and "new records: 0, already recorded: 0, left out: 0" in out
    assert "runs of search grids (recorded by scripts/node_grid.py): 1" in out
    (folder / "summary.json").write_text(json.dumps(summary | {"overridden": False}))  # and incomplete
    assert run(tmp_path / "runs")[0] == 1


def test_runs_of_a_search_in_graph_classification_have_records_of_their_own(
    tmp_path: Path, finish_run: Any, run: Any
) -> None:
    """Each takes hours; scripts/node_grid.py names them and leaves them out."""
    point = search_grid.run("graph/ogbg_molhiv", "ham", (10, 0.01), 2)
    metrics = {"valid_best": 82.0, "valid_last": 80.0, "test_at_best": 75.0}
    folder = finish_run(point, graphs={"name": "ogbg-molhiv"}, metrics=metrics)
    lines = [{"epoch": epoch, "valid": 80.0} for epoch in range(100)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    status, out, err = run(tmp_path / "runs")
    assert (status, err) == (0, []) and "new records: 1" in out and "search grids" not in out
    (record,) = records.read_all(results=tmp_path / "results")[0].values()
    assert record.run == point and record.path.parent.name == folder.parent.name
    (problem,) = grid.record_all(tmp_path / "runs", tmp_path / "grids")
    assert problem == (
        "graph/ogbg_molhiv: it is not of node classification: scripts/collect.py records its runs"
    )


def test_an_archive_is_read_without_being_extracted(tmp_path: Path, finish_run: Any, run: Any) -> None:
    mine = texts(finish_run(RUN))
    members = {f"rigl_s90/seed1/{name}": text for name, text in mine.items()}
    members |= {f"../seed1/{name}": text for name, text in mine.items()}
    members |= {"/etc/seed1/summary.json": mine["summary.json"], "rigl_s90/seed1/config.yaml": "a: 1"}
    members |= {"passwd/seed3/summary.json": mine["summary.json"]}  # under another name
    secret = tmp_path / "secret"
    secret.write_text(mine["summary.json"])
    path = archive(tmp_path / "cells.tar.gz", members, link=str(secret))
    status, _, err = run(path)
    assert status == 1 and len(err) == 1 and "passwd/seed3: its summary is of rigl_s90 seed 1" in err[0]
    assert files(tmp_path / "results") == [f"runs/rigl_s90/seed1{end}" for end in (".json", ".metrics.jsonl")]


def test_members_of_an_archive_are_read_up_to_the_largest_size_and_only_with_a_result(
    tmp_path: Path, finish_run: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = texts(finish_run(RUN))
    members = {f"./rigl_s90/seed1/{name}": text for name, text in mine.items()}
    members["rigl_s90/seed0/metrics.jsonl"] = "half"
    path = archive(tmp_path / "cells.tar.gz", members)
    size = len(mine["metrics.jsonl"])
    assert size > len(mine["summary.json"])
    monkeypatch.setattr(collect, "LARGEST_METRICS", size - 1)
    status, _, (line,) = run(path)
    assert status == 1 and line.endswith(
        f"{path}:rigl_s90/seed1: it has no metrics.jsonl: move it away and run it again"
    )
    monkeypatch.setattr(collect, "LARGEST_METRICS", size)
    assert run(path)[::2] == (0, [])


def test_an_archive_may_unpack_to_512_mib(
    tmp_path: Path, finish_run: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert collect._LARGEST_ARCHIVE == 512 * 1024**2
    members = {f"rigl_s90/seed1/{name}": text for name, text in texts(finish_run(RUN)).items()}
    path = archive(tmp_path / "cells.tar.gz", members)
    size = len(gzip.decompress(path.read_bytes()))
    monkeypatch.setattr(collect, "_LARGEST_ARCHIVE", size - 1)
    status, _, (line,) = run(path)
    assert status == 2
    assert line == f"collect.py: {path} is larger than an archive of runs can be: download it again"
    monkeypatch.setattr(collect, "_LARGEST_ARCHIVE", size)
    assert run(path)[::2] == (0, [])


def test_a_packed_archive_becomes_records(tmp_path: Path, finish_run: Any, run: Any) -> None:
    expected = [RunSpec("cifar100", 0), RunSpec("cifar100_sam_ham", 2)]
    for folder in map(finish_run, expected):
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "provenance.json").write_text(json.dumps(summary["provenance"]))
        (folder / "config.yaml").write_text("runs_dir: /home/me/runs\n")
    pack(expected, tmp_path / "runs", tmp_path / "out" / "cells.tar.gz", pytest.fail)
    assert run(tmp_path / "out" / "cells.tar.gz")[::2] == (0, [])
    collected, problems = records.read_all(results=tmp_path / "results")
    assert list(collected) == expected and not problems and len(collected[expected[1]].epochs()) == 150


def test_a_damaged_archive_is_one_line_and_status_2(
    tmp_path: Path, finish_run: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {f"rigl_s90/seed1/{name}": text for name, text in texts(finish_run(RUN)).items()}
    path = archive(tmp_path / "cells.tar.gz", members)
    complete = path.read_bytes()
    for content in (complete[:-20], b"", b"nothing"):
        path.write_bytes(content)
        status, _, err = run(path)
        assert status == 2 and len(err) == 1
    path.write_bytes(complete)
    monkeypatch.setattr(collect, "_LARGEST_ARCHIVE", 1000)  # a decompression bomb is not unpacked to its end
    assert run(path)[0] == 2
    status, _, (line,) = run(tmp_path / "absent")
    assert status == 2 and f"{tmp_path / 'absent'} does not exist: give a folder of runs, or cells" in line
    assert not (tmp_path / "results").exists()
    with pytest.raises(SystemExit) as wrong:
        run(path, "--demo", "tiny")
    assert wrong.value.code == 2
