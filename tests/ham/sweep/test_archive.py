"""The archive of finished runs: what is in it, what is left out, and that it names no owner."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from sweep_files import finish, summary

from ham.report.spec import RunSpec
from ham.report.validation import divergence_record, record, strip_paths
from ham.sweep.archive import pack
from ham.sweep.status import Sweeps

DONE, DIVERGED, DAMAGED, LATER, MISSING = (RunSpec("dense", seed, demo="digits") for seed in range(5))
CONFIG = "data:\n  root: /a/very/long\n    /path with spaces\n  workers: 2\nruns_dir: /home/me\nseed: 0\n"


def test_an_archive_has_the_files_of_runs_that_ended_and_names_the_damaged(
    sweeps: Sweeps, tmp_path: Path
) -> None:
    provenance = {"commit": "c0ffee0", "argv": ["+exp=dense", "runs_dir=/home/me"]}
    for run in (DONE, LATER):
        folder = finish(run, sweeps)
        (folder / "provenance.json").write_text(json.dumps(provenance))
        (folder / "config.yaml").write_text(CONFIG)
    finish(DAMAGED, sweeps)
    diverged = summary(DIVERGED, status="diverged", reason="the loss is not finite at step 3", epochs=0)
    folder = DIVERGED.folder(sweeps.runs)
    folder.mkdir(parents=True)
    (folder / "diverged.json").write_text(json.dumps(diverged))
    warnings: list[str] = []
    archive = tmp_path / "new" / "folder" / "runs.tar.gz"
    pack([DONE, DIVERGED, DAMAGED, LATER, MISSING], sweeps.runs, archive, warnings.append)

    assert warnings == [f"{DAMAGED.folder(sweeps.runs)} is not packed: No such file or directory"]
    with tarfile.open(archive) as content:
        members = content.getmembers()
        texts = {member.name: content.extractfile(member).read().decode() for member in members}
    names = ("summary.json", "provenance.json", "metrics.jsonl", "config.yaml")
    expected = [f"dense-digits/seed0/{name}" for name in names] + ["dense-digits/seed1/diverged.json"]
    assert [*texts] == expected + [f"dense-digits/seed3/{name}" for name in names]
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", 0)}
    assert json.loads(texts["dense-digits/seed0/summary.json"]) == record(summary(DONE))
    assert json.loads(texts["dense-digits/seed0/provenance.json"]) == strip_paths(provenance)
    assert json.loads(texts["dense-digits/seed1/diverged.json"]) == divergence_record(diverged)
    for name, text in texts.items():
        assert text.endswith("\n") and (not name.endswith(".json") or text.startswith('{\n "')), name
    assert texts["dense-digits/seed0/config.yaml"] == (
        "data:\n  root: ''\n  workers: 2\nruns_dir: ''\nseed: 0\n"
    )
    pack([DONE], sweeps.runs, archive, warnings.append)
    with tarfile.open(archive) as content:
        assert content.getnames() == expected[:4]
