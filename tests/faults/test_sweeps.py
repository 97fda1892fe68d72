"""sweep.py: options of sbatch, results that collect.py refuses, failing disks, lost folders, silent SLURM."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import script
from sweep_files import finish, metrics, stand_in

from ham.command_line import run_command_line
from ham.files import ROOT
from ham.report.records import diverged_path, path_of
from ham.report.spec import RunSpec
from ham.sweep import archive as archive_module
from ham.sweep import commands, local, manifests, sbatch_options, status
from ham.sweep.archive import check_archive, pack
from ham.sweep.local import LocalSweep
from ham.sweep.manifests import SweepError
from ham.sweep.resources import resources
from ham.sweep.schedule import Ending, Failures, Outcome
from ham.sweep.status import RunStatus, Status, Sweeps

Sweep = Callable[..., tuple[int, str, str]]
TINY = RunSpec("dense", 0, demo="tiny")
CHOICE = ("--exp=dense", "--seeds=0")


@pytest.fixture
def binaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH without SLURM and git, for stand-ins; no committed records."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "env"):
        (folder / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("HAM_COMMIT", "c0ffee0")
    monkeypatch.setattr(status, "RESULTS", tmp_path / "results")
    return folder


@pytest.fixture
def sweeps(tmp_path: Path, binaries: Path) -> Sweeps:
    return Sweeps(tmp_path / "runs")


@pytest.fixture
def sweep(tmp_path: Path, binaries: Path, capsys: pytest.CaptureFixture[str]) -> Sweep:
    """`sweep("--table=4")`: status, stdout and stderr of sweep.py with the runs in tmp_path/runs."""

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        ended = run_command_line(script("sweep").main, [f"--runs={tmp_path / 'runs'}", *argv])
        return ended, *capsys.readouterr()

    return run


# options of sbatch

CANNOT = "cannot be given to sbatch"
NAME = "the sweep finds its jobs by their names: give --comment"
LOG = "the logs of a sweep are in .sweeps/logs of --runs: omit it"
RESTART = "HAM_MAX_RESTARTS limits how often a job restarts, 0 for never: set that"
LATER = ", or a later warning such as --signal=B:USR1@60"


def short(seconds: int) -> str:
    """The line about a time limit that this warning leaves nothing of."""
    when = f"SLURM warns a run {seconds} to {seconds + 60} s before the end, and it then saves"
    return f"leaves no time to train, since {when}: give more than {seconds + 60} s"


SHORT = short(300)
EXPORT = "must be ALL or begin with ALL, so that jobs get the sweep's own variables, got "
REFUSED = {  # arguments after --: the line
    "--job-name=X": f"--job-name {CANNOT}: {NAME}",
    "--job-name X": f"--job-name {CANNOT}: {NAME}",
    "--j=X": f"--j (--job-name) {CANNOT}: {NAME}",
    "-J X": f"-J (--job-name) {CANNOT}: {NAME}",
    "-JX": f"-J (--job-name) {CANNOT}: {NAME}",
    "-HJX": f"-J (--job-name) {CANNOT}: {NAME}",
    "--qos long -J X": f"-J (--job-name) {CANNOT}: {NAME}",
    "--array=1-3": f"--array {CANNOT}: its tasks are the runs, and HAM_ARRAY_THROTTLE limits how many run at "
    "a time: set that",
    "--out=x": f"--out (--output) {CANNOT}: {LOG}",
    "-e x": f"-e (--error) {CANNOT}: {LOG}",
    "--open-mode=truncate": f"--open-mode {CANNOT}: {LOG}",
    "--no-requeue": f"--no-requeue {CANNOT}: {RESTART}",
    "--requeue": f"--requeue {CANNOT}: {RESTART}",
    "--wrap=true": f"--wrap {CANNOT}: jobs run slurm/array.sbatch: omit it",
    "--parsable": f"--parsable {CANNOT}: the sweep gives it: omit it",
    "-W": f"-W (--wait) {CANNOT}: a sweep does not wait for its jobs, --status shows them: omit it",
    "--test": f"--test (--test-only) {CANNOT}: it submits nothing: give --dry-run instead of --submit",
    "-M far": f"-M (--clusters) {CANNOT}: squeue has to ask the same cluster: set SBATCH_CLUSTERS",
    "--uid=me": f"--uid {CANNOT}: the sweep finds jobs of its own user only: call it as that user",
    "--help": f"--help {CANNOT}: it submits nothing: call sbatch itself",
    "job.sh": "job.sh is not an option of sbatch: omit it, or write --option=VALUE",
    "--hold job.sh": "job.sh is not an option of sbatch: omit it, or write --option=VALUE",
    "-- --qos=x": "-- is not an option of sbatch: omit it, or write --option=VALUE",
    "--time=5": f"--time 5 {SHORT}{LATER}",
    "--time=2": f"--time 2 {SHORT}",
    "-t 0:06:00": f"-t (--time) 0:06:00 {SHORT}{LATER}",
    "--time-min=0-00:01": f"--time-min 0-00:01 {SHORT}",
    "--signal=B:USR1@3600 --time=60": f"--time 60 {short(3600)}{LATER}",
    "--signal=B:USR1@60 --time=2": f"--time 2 {short(60)}",
    "--export=NONE": f"--export {EXPORT}'NONE'",
    "--export HAM_DATA=/x": f"--export {EXPORT}'HAM_DATA=/x'",
    "--export-file=x": f"--export-file {CANNOT}: the sweep passes its own variables on: omit it",
    "--signal=USR1@60": "--signal must be B:USR1@SECONDS, on which runs save, got 'USR1@60'",
}


@pytest.mark.parametrize("given", REFUSED)
def test_an_option_that_a_sweep_sets_is_refused_before_anything_is_submitted(
    given: str, sweep: Sweep
) -> None:
    assert sweep(*CHOICE, "--submit", "--", *given.split()) == (2, "", f"sweep.py: {REFUSED[given]}\n")


PASSED = {  # arguments after --: those that sbatch gets, of an array that waits for task 14_1
    "": "--dependency=afterany:14_1",
    "--qos long --exclusive": "--dependency=afterany:14_1 --qos long --exclusive",
    "--time=7 -N2 --time-min=0": "--dependency=afterany:14_1 --time=7 -N2 --time-min=0",
    "--export=ALL": "--dependency=afterany:14_1 --export=ALL",
    "--export ALL,A=b": "--dependency=afterany:14_1 --export ALL,A=b",
    "--signal=B:USR1@60 -t 3": "--dependency=afterany:14_1 --signal=B:USR1@60 -t 3",
    "--part x --wait-all-nodes=1": "--dependency=afterany:14_1 --part x --wait-all-nodes=1",
    "--dependency=afterok:7": "--dependency=afterok:7,afterany:14_1",
    "--depend afterok:7 --hold": "--dependency=afterok:7,afterany:14_1 --hold",
    "-Hd7 -dsingleton": "--dependency=singleton,afterany:14_1 -H",
}


@pytest.mark.parametrize("given", PASSED)
def test_other_options_are_passed_on_and_a_dependency_is_joined(given: str) -> None:
    words = given.split()
    sbatch_options.check_options(words)
    assert sbatch_options.join_dependencies(words, ["14_1"]) == PASSED[given].split()


def test_a_dependency_is_alone_where_no_masks_are_awaited() -> None:
    words = ["-d", "afterok:7?afterok:8", "--hold"]
    assert sbatch_options.join_dependencies(words, []) == ["--dependency=afterok:7?afterok:8", "--hold"]
    line = (
        r"^--dependency=afterok:7\?afterok:8 cannot be joined with the wait for masks: separate jobs by ','$"
    )
    with pytest.raises(SweepError, match=line):
        sbatch_options.join_dependencies(words, ["14_1"])


def test_the_warning_is_that_of_the_batch_script() -> None:
    batch_script = (ROOT / "slurm" / "array.sbatch").read_text()
    assert f"#SBATCH --signal=B:USR1@{sbatch_options._WARNING}\n" in batch_script


def test_the_resources_of_a_class_are_checked_too(
    sweep: Sweep, binaries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {"squeue": "", "scontrol": "", "sbatch": "exit 1"}.items():
        stand_in(binaries, name, text)
    monkeypatch.setitem(resources()["imagenet_rn50"].sbatch, "time", 5)
    monkeypatch.setattr(commands, "has_changes", lambda: False)
    assert sweep(*CHOICE, "--submit") == (2, "", f"sweep.py: --time 5 {SHORT}{LATER}\n")


def test_a_dependency_that_cannot_be_joined_is_refused_before_anything_is_submitted(
    sweep: Sweep, sweeps: Sweeps, binaries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {"squeue": "", "scontrol": "", "sbatch": "echo 77"}.items():
        stand_in(binaries, name, text)
    monkeypatch.setattr(commands, "has_changes", lambda: False)
    choice = ("--seeds=0", "--submit", "--", "--dependency=a?b")
    status, out, err = sweep("--exp", "acdc_s90", "mask_acdc_s90", *choice)
    assert (status, out) == (2, "") and "--dependency=a?b cannot be joined" in err
    assert not list(sweeps.folder.glob("manifest-*"))
    assert sweep("--exp=dense", *choice)[0] == 0, "nothing waits for masks there"


# results that collect.py refuses

AGAIN = "move it away and run it again"
UNFIT: dict[str, tuple[Callable[[str], str], str]] = {
    "no epochs": (lambda text: "", f"it has no metrics.jsonl: {AGAIN}"),
    "an epoch fewer": (
        lambda text: text.partition("\n")[2],
        f"its metrics are not those of 100 epochs: {AGAIN}",
    ),
    "another result": (
        lambda text: text.replace("50.0", "51.0"),
        f"the last epoch of its metrics contradicts its summary: {AGAIN}",
    ),
    "half a line": (
        lambda text: text[:-5],
        f"a line of its metrics is not JSON: {AGAIN}",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_collect_refuses_is_not_done(
    case: str, sweep: Sweep, sweeps: Sweeps, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alter, reason = UNFIT[case]
    run = RunSpec("dense", 0)
    folder = finish(run, sweeps)
    (folder / "metrics.jsonl").write_text(alter(metrics(run)))
    state = sweeps.state(run)
    assert (state.kind, state.note) == (Status.STALE, f"{folder}: {reason}")
    assert sweep(*CHOICE, "--status")[0] == 0
    argv = [str(sweeps.runs), f"--results={tmp_path / 'new'}"]
    assert run_command_line(script("collect").main, argv) == 1
    assert capsys.readouterr().err == f"collect.py: left out {folder}: {reason}\n"
    folder.rename(tmp_path / "away")
    assert sweeps.state(run).kind is Status.NOT_LAUNCHED, "the cure works"


def test_a_run_that_diverged_before_is_not_done(sweeps: Sweeps) -> None:
    run = RunSpec("dense", 0)
    finish(run, sweeps)
    path = diverged_path(path_of(run, status.RESULTS))
    path.parent.mkdir(parents=True)
    path.touch()
    line = f"it diverged before, and the first outcome counts: move it away, or delete {path}"
    assert sweeps.state(run).note == f"{run.folder(sweeps.runs)}: {line}"
    path.unlink()
    assert sweeps.state(run).kind is Status.DONE, "the cure works"


# failures that the machine causes

MACHINE = {
    "train.py: cannot write last.pt: No space left on device; free space (exit status 1)": True,
    "OSError: [Errno 30] Read-only file system: 'x' (exit status 1)": True,
    "train.py: Disk quota exceeded (exit status 1)": True,
    "train.py: diverged: the loss is not finite at step 3 (exit status 1)": False,
    "RuntimeError: a defect (exit status 1)": False,
}


@pytest.mark.parametrize("reason", MACHINE)
def test_a_failure_of_the_machine_is_not_counted(reason: str, sweeps: Sweeps) -> None:
    slice_ = LocalSweep([TINY], sweeps, jobs=1, seconds=9)
    assert slice_._may_retry(TINY, Outcome(Ending.FAILED, 1, reason)) is not MACHINE[reason]
    assert Failures(sweeps).reasons(TINY) == ([] if MACHINE[reason] else [reason])


def test_a_failure_that_cannot_be_counted_ends_no_sweep(sweeps: Sweeps) -> None:
    (sweeps.folder / "failures.json").mkdir(parents=True)
    slice_ = LocalSweep([TINY], sweeps, jobs=1, seconds=9)
    assert slice_._may_retry(TINY, Outcome(Ending.FAILED, 1, "a defect")) is False


@pytest.mark.parametrize(
    ("number", "status"),
    [(errno.ENOSPC, 1), (errno.EROFS, 1), (errno.ESTALE, 1), (errno.EACCES, 2), (errno.EISDIR, 2)],
)
def test_a_log_that_cannot_be_opened_is_a_failure_with_its_status(
    number: int, status: int, sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = sweeps.local_log(TINY)

    def fail(path: Path, _: str) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(local, "open_text", fail)
    outcome = LocalSweep([TINY], sweeps, jobs=1)._train(TINY, None)
    assert (outcome.ending, outcome.status) == (Ending.FAILED, status)
    assert outcome.reason.startswith(f"{log} cannot be read or written ({os.strerror(number)}): ")


def test_an_empty_log_on_a_full_disk_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    log.touch()
    assert manifests.last_log_line(log) == f"{log} is empty"
    monkeypatch.setattr(manifests.os, "statvfs", lambda _: SimpleNamespace(f_bavail=0))
    assert manifests.last_log_line(log) == f"{log} is empty (No space left on device): free space"
    assert (
        manifests.last_log_line(log, 9) == f"it added nothing to {log} (No space left on device): free space"
    )


# folders that are removed meanwhile


@pytest.mark.parametrize("removed", ["runs/.sweeps", "runs"])
@pytest.mark.parametrize(("ended", "ending"), [(1, Ending.FAILED), (85, Ending.STOPPED), (0, Ending.DONE)])
def test_a_folder_that_is_removed_while_a_run_trains_ends_no_other(
    removed: str, ended: int, ending: Ending, sweeps: Sweeps, tmp_path: Path
) -> None:
    def remove(argv: list[str], log: Path) -> int:
        shutil.rmtree(tmp_path / removed)
        return ended

    class Worker:
        run = staticmethod(remove)

    sweep, log = LocalSweep([TINY], sweeps, jobs=1), sweeps.local_log(TINY)
    reason = f"{log} was removed (No such file or directory): start the same command again (exit status 1)"
    expected = Outcome(ending, ended, reason if ending is Ending.FAILED else "")
    for _ in range(2):  # the next run finds the folder again
        assert sweep._train(TINY, Worker()) == expected


# a SLURM that does not answer, and logs of jobs

DOWN = "echo 'squeue: error: no controller' >&2; exit 1"
REQUEUED = "slurmstepd: error: *** JOB 5 ON n0 CANCELLED AT 2026-01-01T00:00:00 DUE TO JOB REQUEUE ***"
LOGS: dict[str, tuple[str | None, RunStatus, RunStatus]] = {  # its log: the state, and that without an answer
    "requeued": (
        REQUEUED,
        RunStatus(Status.NOT_LAUNCHED, "it was requeued, and its job is gone"),
        RunStatus(Status.QUEUED, "it was requeued, and SLURM does not answer"),
    ),
    "requeueing": (
        "2026-01-01 00:00:00  slurm: saved; requeueing 5_1",
        RunStatus(Status.NOT_LAUNCHED, "it was requeued, and its job is gone"),
        RunStatus(Status.QUEUED, "it was requeued, and SLURM does not answer"),
    ),
    "canceled": (
        REQUEUED.partition(" DUE")[0],
        *(RunStatus(Status.FAILED, REQUEUED.partition(" DUE")[0]),) * 2,
    ),
    "no log": (
        None,
        RunStatus(Status.FAILED, "ended before it started"),
        RunStatus(Status.QUEUED, "it was submitted, and SLURM does not answer"),
    ),
    "moved away": (
        "sparsity     0.0\nrun          /runs/dense-tiny/seed0",
        *(RunStatus(Status.NOT_LAUNCHED, "it finished, but its summary.json is missing or damaged"),) * 2,
    ),
}


@pytest.mark.parametrize("case", LOGS)
def test_the_log_of_a_job_is_read_as_what_it_says(case: str, sweeps: Sweeps) -> None:
    text, known, unknown = LOGS[case]
    manifest = sweeps.write([TINY])
    if text is not None:
        sweeps.log(manifests.manifest_hash(manifest), 1).write_text(f"epoch 1/2\n{text}\n")
    assert sweeps.state(TINY) == known
    sweeps.is_queue_silent = True
    silent = sweeps.state(TINY)
    cure = f": if no job is left, delete {sweeps.folder}/manifest-*.txt"
    assert replace(silent, note=silent.note.removesuffix(cure)) == unknown
    manifest.unlink()
    del sweeps.launched
    assert not sweeps.state(TINY).is_active, "the cure works"


def test_a_local_sweep_says_that_slurm_does_not_answer_and_leaves_it_what_it_may_have(
    sweep: Sweep, sweeps: Sweeps, binaries: Path
) -> None:
    choice = (*CHOICE, "--demo=tiny", "--local")
    sweeps.write([TINY])
    stand_in(binaries, "squeue", DOWN)
    left = "1 run left to other processes or SLURM: repeat this command when they have ended\n"
    line = "sweep.py: queued and running runs are unknown: squeue failed: error: no controller\n"
    assert sweep(*choice) == (85, "1 queued\n" * 2 + left, line)


def test_a_local_sweep_that_submitted_nothing_says_nothing_of_slurm(
    sweep: Sweep, binaries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalSweep, "run", lambda self: 0)
    monkeypatch.setattr(commands, "has_changes", lambda: False)
    stand_in(binaries, "squeue", DOWN)
    assert sweep(*CHOICE, "--demo=tiny", "--local") == (0, "1 not launched\n" * 2, "")


def test_what_waits_for_a_run_that_another_process_has_finished_meanwhile_is_left(
    sweep: Sweep, sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = RunSpec("acdc_s90", 0, demo="tiny")
    monkeypatch.setattr(Sweeps, "is_locked", lambda self, run: run == source)

    def end(self: LocalSweep) -> int:
        finish(source, sweeps)
        return 0

    monkeypatch.setattr(LocalSweep, "run", end)
    argv = ("--exp=mask_acdc_s90", "--seeds=0", "--demo=tiny", "--local")
    left = "1 run left to other processes or SLURM: repeat this command when they have ended\n"
    assert sweep(*argv)[:2] == (85, f"1 running, 1 not launched\n1 done, 1 not launched\n{left}")


# --pack and --runs


def archive(*members: tuple[str, int]) -> bytes:
    """A .tar.gz of empty files with these names and times."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as file:
        for name, when in members:
            member = tarfile.TarInfo(name)
            member.mtime = when
            file.addfile(member)
    return content.getvalue()


def test_pack_names_finished_runs_that_lack_a_file(sweep: Sweep, sweeps: Sweeps, tmp_path: Path) -> None:
    folder = finish(TINY, sweeps)
    file = tmp_path / "runs.tar.gz"
    line = f"sweep.py: {folder} is not packed: No such file or directory\n"
    assert sweep(*CHOICE, "--demo=tiny", "--local", f"--pack={file}") == (0, "1 done\n" * 2, line)
    with tarfile.open(file) as content:
        assert content.getnames() == []


def test_a_sweep_packs_at_most_every_minute_and_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, packed = [1000.0], list[float]()

    def pack(*_: object) -> None:
        packed.append(now[0])
        now[0] += seconds

    monkeypatch.setattr(archive_module, "pack", pack)
    monkeypatch.setattr(archive_module.time, "monotonic", lambda: now[0])
    packer, seconds = archive_module.Packer([TINY], tmp_path, tmp_path / "a"), 1.0
    for now[0] in (1000.0, 1030.0, 1060.9, 1061.0, 1100.0):
        packer.pack_sometimes()
    seconds = 9.0  # 10 times as long passes until the next one
    for now[0] in (1130.0, 1200.0, 1228.9, 1229.0):
        packer.pack_sometimes()
    packer.pack_now()
    assert packed == [1000.0, 1061.0, 1130.0, 1229.0, 1238.0]


FOREIGN = {
    "text": b"a thesis\n",
    "empty": b"",
    "another archive": archive(("notes.txt", 0)),
    "one of tar": archive(("dense/seed0/summary.json", 1700000000)),
    "half": archive(("dense/seed0/summary.json", 0))[:20],
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_pack_replaces_no_file_of_others(content: bytes, sweep: Sweep, tmp_path: Path) -> None:
    file = tmp_path / "out.tar.gz"
    file.write_bytes(content)
    line = f"sweep.py: --pack {file} is not an archive of sweep.py: give another name, or remove it\n"
    assert sweep(*CHOICE, "--demo=tiny", "--local", f"--pack={file}") == (2, "", line)
    assert file.read_bytes() == content


@pytest.mark.parametrize("finished", [False, True])
def test_pack_replaces_its_own_archive(finished: bool, sweeps: Sweeps, tmp_path: Path) -> None:
    file = tmp_path / "out.tar.gz"
    if finished:
        folder = finish(TINY, sweeps)
        (folder / "provenance.json").write_text('{"argv": []}')
        (folder / "config.yaml").touch()
    pack([TINY], sweeps.runs, file, pytest.fail)
    with tarfile.open(file) as content:
        assert len(content.getnames()) == (4 if finished else 0)
    check_archive(file)


@pytest.mark.parametrize("mode", ["--dry-run", "--local", "--status", "--submit"])
def test_a_loop_of_links_is_no_folder_of_runs(mode: str, sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to("runs")
    line = f"sweep.py: {tmp_path}/runs is not a folder: choose other --runs\n"
    assert sweep(*CHOICE, mode) == (2, "", line)
