"""scripts/sweep.py: what is selected, what is missing, what it will cost; wrong use in one line."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from study_files import PLAN, all_tuned
from sweep_files import commit, finish

from ham.files import ROOT
from ham.report import plan
from ham.report.spec import RunSpec
from ham.sweep import archive, commands
from ham.sweep import resources as classes
from ham.sweep.commands import RUNS, Options
from ham.sweep.manifests import SweepError
from ham.sweep.selection import Selection, in_local_order, paper_seeds
from ham.sweep.status import Sweeps

SCRIPT = ROOT / "scripts" / "sweep.py"
Sweep = Callable[..., tuple[int, str, str]]


def test_table_4_is_39_cells_of_three_seeds(sweep: Sweep) -> None:
    status, out, _ = sweep("--table=4", "--dry-run")
    assert status == 0
    assert re.search(r"table04 +39 cells x 3 seeds: 117 not launched", out)
    line = next(line for line in out.splitlines() if line.startswith("imagenet_rn50"))
    assert re.match(r"imagenet_rn50 +117 +[\d,]+ +[\d.]+ .*--gpus-per-node=a100:4 .*--time=24:00:00", line)
    assert sweep("--table=4") == sweep("--table=table04", "--dry-run")


def test_table_10_needs_the_masks_of_nine_runs(sweep: Sweep) -> None:
    _, out, _ = sweep("--table=10")
    assert "18 cells x 3 seeds: 54 not launched" in out
    assert "9 more runs: 9 not launched" in out
    assert "waiting for masks: 27 runs, for those of 9 runs" in out
    assert re.search(r"total +63 ", out)


def test_runs_that_tables_share_exist_once(sweep: Sweep) -> None:
    _, out, _ = sweep("--table=4", "--table=10")
    # the random masks of Table 10 and its sources are cells of Table 4
    assert re.search(rf"total +{117 + 54 - 9} ", out) and "more runs" not in out
    assert re.search(rf"total +{len(plan.every_run())} ", sweep("--all")[1])


def test_gpu_hours_count_passes_and_epochs() -> None:
    asks = classes.resources()["imagenet_rn50"]
    dense, sam = asks.gpu_hours(RunSpec("dense", 0)), asks.gpu_hours(RunSpec("dense_sam", 0))
    assert dense == pytest.approx(100 * 1281167 / asks.images_per_second / 3600)
    assert sam == pytest.approx(2 * dense)


def test_every_base_has_resources_and_headers_warn_in_time() -> None:
    shown = {classes.resource_class(run) for run in plan.every_run()}
    assert shown | {"demo", "cifar16", "smollm", "epochs20"} == set(classes.resources())
    runs = [RunSpec(f"graph/ogbg_{name}_ham", 0) for name in ("ppa", "molhiv")]
    assert [classes.resource_class(run) for run in runs] == ["ogbg_ppa", "ogbg_molhiv"]
    assert classes.resource_class(replace(runs[0], demo="epochs20")) == "epochs20"
    for script in sorted((ROOT / "slurm").glob("*.sbatch")):
        assert int(re.search(r"^#SBATCH --signal=B:USR1@(\d+)$", script.read_text(), re.M)[1]) >= 120
        assert "#SBATCH --requeue\n#SBATCH --open-mode=append\n" in script.read_text()


RESOURCES = (ROOT / "slurm" / "resources.yaml").read_text()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("demo: [", "slurm/resources.yaml, line"),
        ("", "slurm/resources.yaml has no entries"),
        ("demo: 4", "slurm/resources.yaml: demo must be a mapping"),
        (RESOURCES.replace("disk_gb", "disk"), "imagenet_rn50 has an unknown key 'disk'"),
        (RESOURCES.replace("  disk_gb: 1.4\n", ""), "imagenet_rn50 has no disk_gb"),
        (RESOURCES.replace("disk_gb: 1.4", "disk_gb: much"), "imagenet_rn50: disk_gb must be a number"),
    ],
)
def test_an_error_in_the_resources_is_one_line(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, complaint: str
) -> None:
    (tmp_path / "resources.yaml").write_text(content)
    monkeypatch.setattr(classes, "SLURM", tmp_path)
    classes.resources.cache_clear()
    status, _, err = sweep("--table=4")
    classes.resources.cache_clear()
    assert status == 2 and err.count("\n") == 1 and complaint in err


@pytest.mark.parametrize("mode", ["--dry-run", "--submit", "--local", "--status"])
def test_a_file_in_the_place_of_the_runs_is_one_line(sweep: Sweep, tmp_path: Path, mode: str) -> None:
    (tmp_path / "runs").touch()
    assert sweep("--table=4", mode) == (
        2,
        "",
        f"sweep.py: {tmp_path}/runs is not a folder: choose other --runs\n",
    )


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--all", f"--runs={tmp_path}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    err = process.stderr.read().decode()
    assert process.wait() == 141 and "BrokenPipe" not in err and "Traceback" not in err


@pytest.mark.parametrize("script", [*(ROOT / "slurm").glob("*.s*"), *(ROOT / "tests" / "slurm").glob("*.sh")])
def test_scripts_are_bash(script: Path) -> None:
    subprocess.run(["/bin/bash", "-n", str(script)], check=True)


def test_torch_is_not_imported() -> None:
    code = "import sys, sweep; sweep.main(['--all', '--grid', '*']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ("--table=44", "unknown table 'table44': choose one of"),
        ("--figure=99", "unknown figure"),
        ("", "nothing is selected: give --table N"),
        ("--table=4 --jobs=0", "--jobs must be at least 1, got 0"),
        ("--table=4 --jobs=-3", "--jobs must be at least 1, got -3"),
        ("--table=4 --jobs=nan", "--jobs: invalid int value: 'nan'"),
        ("--table=4 --jobs=1e99", "--jobs: invalid int value: '1e99'"),
        ("--table=4 --seeds=4294967296", "--seeds must be from 0 to 4294967295, got 4294967296"),
        ("--table=4 --seeds -1", "--seeds must be from 0 to 4294967295, got -1"),
        ("--table=4 --seeds 0 nan", "--seeds: invalid int value: 'nan'"),
        ("--table=4 --seeds 1e99", "--seeds: invalid int value: '1e99'"),
        ("--table=4 --demo=huge", "invalid choice: 'huge'"),
        ("--table=4 --submit --local", "not allowed with argument"),
        ("--table=4 --only=nothing", "no selected experiment contains nothing"),
        ("--table=4 --submit", "SLURM is not available (squeue is not on the PATH): use --local"),
        ("--table=4 -- --qos=long", "give them with --submit"),
        ("--exp=node/coora_gcn", "unknown experiment 'node/coora_gcn'; nearest: node/cora_gcn"),
        ("--exp=node/cora_gcn --demo=digits", "unknown experiment at demo=digits 'node/cora_gcn'"),
        (
            "--grid=node/cora_gcn_ham",
            "unknown experiment with a search over (alpha, beta) 'node/cora_gcn_ham'",
        ),
        ("--grid=node/cora_gcn --demo=digits", "omit --demo"),
        ("--table=4 --seconds=9", "give --local"),
        ("--table=4 --jobs=2", "--jobs is the number of runs side by side on this machine: give --local"),
        ("--table=4 --only=", "--only is empty, which matches all names"),
        ("--table=4 --runs=", "argument --runs: the path is empty"),
        *(
            (f"--table=4 --local --seconds={value}", f"--seconds must be finite and above 0, got {value}")
            for value in ("0", "-1", "nan", "inf", "-inf")
        ),
        ("--table=4 --local --seconds=soon", "--seconds: invalid float value: 'soon'"),
    ],
)
def test_wrong_use_is_one_line(sweep: Sweep, argv: str, complaint: str) -> None:
    status, out, err = sweep(*argv.split())
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("sweep.py: ") and complaint in err


@pytest.mark.parametrize("name", ["a\\b", "a${b}", "a\nb", "a\tb", "a\udce9b", "a\x7fb"])
def test_a_folder_that_slurm_or_a_configuration_cannot_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SweepError, match="choose other --runs") as caught:
        Sweeps(tmp_path / name)
    assert str(caught.value).isprintable()


# what is selected


def test_experiments_have_the_seeds_of_the_paper(sweep: Sweep) -> None:
    assert (
        "4 cells x 5 seeds: 20 not launched"
        in sweep("--exp", "node/cora_gcn*", "acdc_s90", "--seeds 0 1 2 3 4")[1]
    )
    assert "3 cells x 10 seeds: 30 not launched" in sweep("--exp node/squirrel_gcn*", "--brief")[1]
    seeds = {exp: len(own) for exp, own in paper_seeds().items() if exp.startswith("node/")}
    assert len(seeds) == 117 and set(seeds.values()) == {3, 5, 10}
    assert {exp.split("_")[0] for exp, own in seeds.items() if own != 3} == {
        f"node/{name}" for name in ("cora", "citeseer", "pubmed", "squirrel", "chameleon")
    }


def test_cells_with_other_numbers_of_seeds_are_counted_in_runs(sweep: Sweep) -> None:
    _, out, _ = sweep("--exp node/cora_gcn node/squirrel_gcn", "--brief")
    assert "2 cells with 15 runs: 15 not launched" in out


@pytest.mark.parametrize("mode", ["--dry-run", "--status"])
def test_a_folder_of_runs_that_does_not_exist_is_said(mode: str, sweep: Sweep, tmp_path: Path) -> None:
    line = f"sweep.py: --runs {tmp_path / 'runs'} does not exist: only records count\n"
    assert line in sweep("--table=12", mode)[2]
    (tmp_path / "runs").mkdir()
    assert line not in sweep("--table=12", mode)[2]


def test_a_search_is_that_of_the_paper(sweep: Sweep, tmp_path: Path) -> None:
    selection = Selection(grids=["node/amazon_photo_gcn"], seeds=(0,))
    grid = selection.runs(Sweeps(tmp_path / "runs"))["node/amazon_photo_gcn (search)"]
    names = list(map(str, grid))
    assert len(names) == len({*names}) == len({run.name for run in grid}) == 1 + 12 + 12 + 2
    assert names[0] == "node/amazon_photo_gcn seed 0"
    assert "node/amazon_photo_gcn_ham ham.alpha=1 ham.beta=0.1 seed 0" in names
    assert "node/amazon_photo_gcn_nham ham.alpha=-1 ham.beta=0 seed 0" in names
    assert "node/amazon_photo_gcn_ham ham.alpha=0 ham.beta=0.01 seed 0" in names  # decay alone
    assert "node/amazon_photo_gcn_ham seed 0" in names  # the published pair is the experiment itself
    assert "27 cells x 3 seeds: 81 not launched" in sweep("--grid node/amazon_photo_gcn")[1]
    assert "node/cora_sage_nham ham.alpha=-1 ham.beta=0" in sweep("--grid node/cora_s*")[1]


def test_table_12_is_estimated_set_by_set(sweep: Sweep) -> None:
    """GPU hours: epochs times training graphs over the graphs per second of slurm/resources.yaml."""
    _, out, _ = sweep("--table=12", "--dry-run")
    assert re.search(r"table12 +8 cells x 3 seeds: 24 not launched", out)
    graphs = {"ppa": 400 * 78200, "molpcba": 100 * 350343, "molhiv": 100 * 32901, "code2": 30 * 407976}
    for name, count in graphs.items():
        hours = 6 * count / classes.resources()[f"ogbg_{name}"].images_per_second / 3600
        assert re.search(rf"^ogbg_{name} +6 +{hours:,.0f} ", out, re.MULTILINE)
    assert "assumed in slurm/resources.yaml" in out


def test_a_search_in_graph_classification_has_no_negative_alpha(sweep: Sweep) -> None:
    _, out, _ = sweep("--grid=graph/ogbg_molhiv")
    assert "15 cells x 3 seeds: 45 not launched" in out and "alpha=-" not in out
    assert "graph/ogbg_molhiv_ham ham.alpha=1 ham.beta=0 " in out
    assert "graph/ogbg_molhiv_ham ham.alpha=0 ham.beta=0.1 " in out  # decay alone
    assert "ham.alpha=200 ham.beta=0.1 " not in out  # the published pair is the experiment itself
    status, _, err = sweep("--grid=graph/ogbg_molhiv", "--demo=epochs20")
    assert status == 2 and err == "sweep.py: searches have no demo=epochs20: omit --demo\n"


def test_runs_that_are_compared_follow_each_other_on_one_machine(tmp_path: Path) -> None:
    selection = Selection(tables=["14"], seeds=(0, 1), only=["gcn"])
    chosen = [run for runs in selection.runs(Sweeps(tmp_path / "runs")).values() for run in runs]
    ordered = in_local_order(chosen)
    assert [(run.exp, run.seed) for run in ordered[:4]] == [
        *((f"node/cora_gcn{method}", 0) for method in ("", "_ham")),
        *((f"node/citeseer_gcn{method}", 0) for method in ("", "_ham")),
    ]
    assert [run.seed for run in ordered] == sorted(run.seed for run in chosen) and {*ordered} == {*chosen}


def test_missing_runs_are_named_with_their_seeds(sweep: Sweep, sweeps: Sweeps) -> None:
    finish(RunSpec("acdc_ham_s90", 1), sweeps)
    sweeps.write([RunSpec("acdc_s90", 2)])
    choice = ("--table=4", "--only", "acdc_s90", "acdc_ham_s90")
    lines = sweep(*choice)[1].splitlines()
    assert [" ".join(line.split()) for line in lines[1:5]] == [
        "acdc_s90 seed 2 failed ended before it started",
        "acdc_s90 seeds 0 1 not launched",
        "acdc_ham_s90 seeds 0 2 not launched",
        "",
    ]
    brief = sweep(*choice, "--brief")[1].splitlines()
    assert brief[0] == lines[0] and brief[1:] == lines[4:]


def test_again_counts_run_directories_alone(sweep: Sweep, sweeps: Sweeps) -> None:
    commit(RunSpec("dense", 0))
    finish(RunSpec("dense", 1), sweeps)
    assert "2 done, 1 not launched" in sweep("--exp dense", "--seeds 0 1 2")[1]
    assert "1 done, 2 not launched" in sweep("--exp dense", "--seeds 0 1 2", "--again")[1]


# modes, without processes


def test_options_are_off_unless_they_are_given(tmp_path: Path) -> None:
    off = dict.fromkeys(("brief", "allow_dirty", "again"), False) | dict.fromkeys(
        ("seconds", "archive", "html")
    )
    assert vars(Options("status", tmp_path)) == off | {
        "mode": "status",
        "runs": tmp_path,
        "jobs": 1,
        "extra": (),
    }
    assert RUNS == ROOT / "runs"


@pytest.mark.parametrize("option", [{"archive": Path("a.tar.gz")}, {"seconds": 0.5}, {"jobs": 2}])
def test_options_of_local_runs_are_refused_elsewhere(tmp_path: Path, option: dict) -> None:
    Options("local", tmp_path, **option)
    with pytest.raises(SweepError, match=r"give --local$"):
        Options("submit", tmp_path, **option)


@pytest.fixture
def local_sweep(monkeypatch: pytest.MonkeyPatch) -> dict:
    """No run starts: what LocalSweep is given, and the exit status that it returns."""
    seen: dict = {"status": 0}

    class Stand:
        def __init__(self, todo: list[RunSpec], sweeps: Sweeps, **options: object) -> None:
            seen.update(options, todo=todo)

        def run(self) -> int:
            seen["after_run"]()
            return seen["status"]

        def busy(self) -> list[RunSpec]:
            return seen.get("busy", [])

    monkeypatch.setattr(commands, "LocalSweep", Stand)
    monkeypatch.setattr(commands, "has_changes", lambda: False)
    return seen


@pytest.mark.parametrize("ended", [0, 1, 2, 85, 130])
def test_a_sweep_that_was_stopped_says_how_to_resume(sweep: Sweep, local_sweep: dict, ended: int) -> None:
    local_sweep["status"] = ended
    status, out, err = sweep("--exp dense", "--seeds 0 1", "--demo tiny", "--local", "--jobs 3")
    assert (status, out) == (ended, "2 not launched\n" * 2)
    stopped = "sweep.py: stopped; start the same command again to resume\n"
    assert err == (stopped if ended in (85, 130) else "")
    assert local_sweep["jobs"] == 3 and local_sweep["seconds"] is None
    assert local_sweep["todo"] == [RunSpec("dense", seed, demo="tiny") for seed in (0, 1)]


def test_an_archive_that_cannot_be_written_ends_no_run(
    sweep: Sweep, local_sweep: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "pack", fail)
    choice = ("--exp dense", "--seeds 0", "--demo tiny", "--local")
    status, _, err = sweep(*choice, "--pack a.tar.gz")
    assert (status, err) == (0, "sweep.py: cannot pack a.tar.gz: No space left on device\n" * 2)
    assert sweep(*choice)[2] == ""


def test_a_run_that_was_busy_and_is_not_done_is_left_to_others(sweep: Sweep, local_sweep: dict) -> None:
    local_sweep["busy"] = [RunSpec("dense", 0, demo="tiny")]
    left = "1 run left to other processes or SLURM: repeat this command when they have ended\n"
    choice = ("--exp dense", "--seeds 0 1", "--demo tiny", "--local")
    assert sweep(*choice) == (85, "2 not launched\n" * 2 + left, "")


def test_the_time_limit_of_local_runs_counts_from_the_start_of_the_command(
    sweep: Sweep, local_sweep: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    for now, left in ((103.0, 7.0), (110.0, 0.001), (200.0, 0.001)):
        times = iter([100.0, now])
        monkeypatch.setattr(commands.time, "monotonic", lambda times=times: next(times))
        sweep("--exp dense", "--seeds 0", "--demo tiny", "--local", "--seconds 10")
        assert local_sweep["seconds"] == left


def test_runs_of_an_active_source_are_not_started_here(
    sweep: Sweep, sweeps: Sweeps, local_sweep: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunSpec("acdc_s90", 0, demo="tiny").folder(sweeps.runs)
    monkeypatch.setattr(Sweeps, "is_locked", lambda self, run: run.folder(self.runs) == folder)
    sweep("--exp mask_acdc_s90 acdc_s90 dense", "--seeds 0", "--demo tiny", "--local")
    assert [run.exp for run in local_sweep["todo"]] == ["dense"]


@pytest.mark.parametrize("option", ["", "--allow-dirty"])
@pytest.mark.parametrize("scale", ["", "--demo digits", "--demo tiny"])
def test_uncommitted_code_is_refused_named_or_no_matter_by_scale(
    sweep: Sweep, local_sweep: dict, monkeypatch: pytest.MonkeyPatch, scale: str, option: str
) -> None:
    monkeypatch.setattr(commands, "has_changes", lambda: True)
    status, _, err = sweep("--exp dense", "--seeds 9", "--local", scale, option)
    reason = "sweep.py: runs of uncommitted code cannot become records: commit first"
    expected = {
        "": (2, f"{reason}, or give --allow-dirty\n"),
        "--demo digits": (0, f"{reason} (--allow-dirty counts them as done)\n"),
        "--demo tiny": (0, ""),
    }
    assert (status, err) == ((0, "") if option else expected[scale])


def test_code_whose_changes_git_cannot_list_needs_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "unknown_commit", lambda: "")
    monkeypatch.setattr(commands, "has_changes", lambda: None)
    monkeypatch.setenv("HAM_COMMIT", "c0ffee0")
    assert commands.uncommitted() == ""
    monkeypatch.delenv("HAM_COMMIT")
    assert commands.uncommitted().startswith("git cannot tell whether the code has changes: ")
    monkeypatch.setattr(commands, "unknown_commit", lambda: "git is gone")
    assert commands.uncommitted() == "git is gone"


def test_a_dry_run_names_what_it_would_launch_and_ends_with_0(sweep: Sweep, sweeps: Sweeps) -> None:
    sweeps.write([RunSpec("dense", 0, demo="tiny")])
    finish(RunSpec("dense", 1, demo="tiny"), sweeps, config_hash="0" * 64)
    status, out, err = sweep("--exp dense", "--seeds 0 1 2", "--demo tiny")
    assert status == 0 and " failed  ended" in out and "seed 2  not launched" in out
    assert " stale " not in out and "dense seed 1 (tiny) is stale: " in err
    assert sweep("--exp dense", "--seeds 0 1 2", "--demo tiny", "--status")[0] == 1
    assert " stale " in sweep("--exp dense", "--seeds 0 1 2", "--demo tiny", "--status")[1]
    brief = sweep("--exp dense", "--seeds 0 1 2", "--demo tiny", "--status", "--brief")[1]
    assert len(brief.splitlines()) == 1


# the choice of runs


def test_seeds_out_of_range_name_the_first_wrong_one() -> None:
    Selection(exps=["dense"], seeds=(0, 4294967295))
    with pytest.raises(SweepError, match=r"^--seeds must be from 0 to 4294967295, got 4294967296$"):
        Selection(exps=["dense"], seeds=(1, 4294967296, -1))


@pytest.mark.parametrize("kind", ["tables", "figures", "exps", "grids"])
def test_each_kind_of_selection_is_enough_and_none_goes_with_a_study(kind: str) -> None:
    Selection(**{kind: ["4"]})
    with pytest.raises(SweepError, match=r"^--study selects its runs and their scale"):
        Selection(study="cifar16", **{kind: ["4"]})
    with pytest.raises(SweepError, match=r"^nothing is selected"):
        Selection(seeds=(1,), only=["gcn"])


def test_an_unknown_experiment_brings_the_three_nearest(sweep: Sweep) -> None:
    _, _, err = sweep("--exp", "densee_ham")
    names = err.strip().partition("nearest: ")[2].split(", ")
    assert len(names) == 3 and names[0] == "dense_ham"


def test_patterns_select_each_experiment_once_in_the_order_given(sweeps: Sweeps) -> None:
    chosen = Selection(exps=["dense_h*", "dense", "dense*"], seeds=(3, 1)).runs(sweeps)["experiments"]
    names = list(dict.fromkeys(run.exp for run in chosen))
    assert names[0].startswith("dense_h") and names.count("dense") == 1
    assert [run.seed for run in chosen] == [3] * len(names) + [1] * len(names)
    (run,) = Selection(exps=["acdc_ham_s90"], demo="tiny", only=["ham"], seeds=(2,)).runs(sweeps)[
        "experiments"
    ]
    assert run == RunSpec("acdc_ham_s90", 2, demo="tiny")


def test_an_experiment_that_no_table_shows_has_seed_0(
    sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ham.sweep.selection.paper_seeds", dict)
    assert Selection(exps=["dense"]).runs(sweeps) == {"experiments": [RunSpec("dense", 0)]}


def test_of_a_study_its_seeds_are_kept_beside_tuning(sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = dict.fromkeys(PLAN.tuned_arms, PLAN.tuning.rates[1])
    known = all_tuned(rates)
    monkeypatch.setattr("ham.sweep.selection.outcomes", lambda plan, sweeps: known)
    parts = Selection(study="cifar16", seeds=(2,), only=["nothing"]).runs(sweeps)
    assert list(parts) == ["tuning", "study cifar16"]
    assert {run.seed for run in parts["tuning"]} == {PLAN.tuning.seed} and parts["study cifar16"] == []
    assert {run.seed for run in Selection(study="cifar16", seeds=(2,)).runs(sweeps)["study cifar16"]} == {2}
    everything = Selection(study="cifar16")
    runs = everything.runs(sweeps)["study cifar16"]
    assert {run.seed for run in runs} == set(range(10))
    assert everything.in_local_order(runs) == runs != Selection(exps=["dense"]).in_local_order(runs)
