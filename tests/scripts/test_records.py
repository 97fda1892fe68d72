"""scripts/records.py: what is committed of a run, and what is refused."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import records


def summary(**altered: Any) -> dict[str, Any]:
    argv = ["+exp=rigl_s90", "runs_dir=/home/me/runs", "data.root=/data", "seed=1"]
    facts = {"exp": "rigl_s90", "seed": 1, "demo": None, "overridden": False}
    facts |= {"sparsity": {"overall": 0.9, "layers": {"a": 1}}, "provenance": {"argv": argv}}
    return facts | altered


def archive(path: Path, **members: dict[str, Any]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text := json.dumps(content).encode())
            file.addfile(member, io.BytesIO(text))
    return path


def test_records_tell_no_place() -> None:
    kept = records.record(summary())
    assert kept["provenance"]["argv"] == ["+exp=rigl_s90", "seed=1"]
    assert kept["sparsity"] == {"overall": 0.9}


def test_an_archive_becomes_records_and_leaves_those_that_are_there(tmp_path: Path) -> None:
    names = ("rigl_s90/seed1/summary.json", "../seed1/summary.json", "rigl_s90/seed1/metrics.jsonl")
    path = archive(tmp_path / "cells.tar.gz", **dict.fromkeys(names, summary()))
    into = tmp_path / "runs"
    assert records.keep(path, into) == [into / "rigl_s90" / "seed1.json"]
    assert json.loads((into / "rigl_s90" / "seed1.json").read_text()) == records.record(summary())
    assert sorted(p.name for p in tmp_path.rglob("*.json")) == ["seed1.json"]  # nothing outside
    assert records.keep(path, into) == []


@pytest.mark.parametrize("altered", [{"demo": "digits"}, {"overridden": True}])
def test_scaled_down_and_altered_runs_are_no_records(altered: dict[str, Any], tmp_path: Path) -> None:
    path = archive(tmp_path / "cells.tar.gz", **{"rigl_s90/seed1/summary.json": summary(**altered)})
    with pytest.raises(ValueError, match="rigl_s90 scaled down or altered"):
        records.keep(path, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_committed_records_are_of_todays_configuration_and_say_what_made_them() -> None:
    from ham.run.config import config_hash, load

    for path in sorted(records.RECORDS.glob("*/seed*.json")):
        kept = json.loads(path.read_text())
        assert records.record_path(kept["exp"], kept["seed"]) == path
        assert kept["status"] == "done" and not kept["demo"] and not kept["overridden"]
        assert kept["provenance"]["commit"] and not kept["provenance"]["dirty"], path
        current = config_hash(load([f"+exp={kept['exp']}"]))
        assert kept["config_hash"] == current, f"{path} was made with another configuration: run it again"


def test_a_damaged_archive_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "RECORDS", tmp_path / "results" / "runs")
    path = archive(tmp_path / "cells.tar.gz", **{"rigl_s90/seed1/summary.json": summary()})
    for content in (path.read_bytes()[:-20], b"", b"nothing"):
        path.write_bytes(content)
        assert records.main([str(path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert records.main([str(tmp_path / "absent")]) == 2
