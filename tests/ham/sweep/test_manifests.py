"""Names of manifests and logs, and the last lines of a log."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from sweep_files import DEPENDENT, SOURCE

from ham.report.spec import RunSpec
from ham.sweep.manifests import SweepError, last_log_line, last_log_lines, log_end, manifest_hash
from ham.sweep.status import Sweeps


def test_a_manifest_has_12_digits_of_its_hash_and_nobody_may_write_it(sweeps: Sweeps) -> None:
    content = "".join(f"{' '.join(run.argv)} runs_dir={sweeps.runs}\n" for run in (SOURCE, DEPENDENT))
    path = sweeps.write([SOURCE, DEPENDENT])
    digest = sha256(content.encode()).hexdigest()[:12]
    assert path == sweeps.runs / ".sweeps" / f"manifest-{digest}.txt" and manifest_hash(path) == digest
    assert path.read_text() == content and path.stat().st_mode & 0o777 == 0o444
    assert sweeps.manifests() == {digest: content.splitlines()}
    assert sweeps.launched == {
        line: [sweeps.runs / ".sweeps" / "logs" / f"{digest}-{task}.log"]
        for task, line in enumerate(content.splitlines(), start=1)
    }


def test_a_line_of_two_manifests_may_have_two_logs(sweeps: Sweeps) -> None:
    names = sorted(manifest_hash(sweeps.write(runs)) for runs in ([SOURCE], [SOURCE, DEPENDENT]))
    assert sweeps.launched[sweeps.line(SOURCE)] == [sweeps.log(name, 1) for name in names]


def test_a_local_log_is_named_by_run_and_seed(sweeps: Sweeps) -> None:
    log = sweeps.local_log(RunSpec("node/cora_gcn", 3))
    assert log == sweeps.runs / ".sweeps" / "logs" / "local-node-cora_gcn-seed3.log"


@pytest.mark.parametrize("name", ["a\\b", "a${b", "a\nb"])
def test_a_name_that_slurm_interprets_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SweepError, match="choose other --runs"):
        Sweeps(tmp_path / name)
    assert Sweeps(tmp_path / "a$b{c}").runs == tmp_path / "a$b{c}"


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SweepError, match=f"^{tmp_path}/file is not a folder: choose other --runs$"):
        Sweeps(tmp_path / "file" / "runs")


def test_the_last_lines_leave_out_bars_and_echoes_of_srun(tmp_path: Path) -> None:
    log = tmp_path / "log"
    echo = "srun: error: n0: task 0: Exited with exit code 1"
    log.write_text(f"one\r\ntwo\n\n  3%| 1/20 [00:00<00:01] three\n{'x' * 300}\n{echo}\n")
    assert last_log_lines(log, 3) == ["two", "three", "x" * 200]
    assert last_log_lines(log, 9) == ["one", "two", "three", "x" * 200]
    assert last_log_line(log, 5) == "x" * 200
    log.write_text(f"{echo}\n")
    assert last_log_line(log) == echo, "better than nothing"
    assert last_log_line(log, 100) == f"it added nothing to {log}"
    log.write_text("\n 1/20 [00:00<00:01]\n")
    assert last_log_line(log) == f"{log} is empty"


def test_the_end_of_a_log_is_its_last_64_kib_after_a_position(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"a" * 10 + b"b" * 65534 + b"\xff\n")
    assert log_end(log) == "b" * 65534 + "\ufffd\n"
    assert log_end(log, 20) == log_end(log, 0)[10:]
    log.write_text("abc")
    assert (log_end(log), log_end(log, 1)) == ("abc", "bc")
