"""How a run starts, resumes, is found finished, and ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ham import distributed
from ham.distributed import World
from ham.run import main
from ham.run.config import Config, ConfigError, config_hash, load
from ham.run.loop import DivergedError


@pytest.fixture(scope="module")
def cfg() -> Config:
    return replace(load(["+exp=acdc_s90", "+demo=digits"]), seed=3, runs_dir="/runs")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The runs that are carried out."""
    made: list[Any] = []
    monkeypatch.setattr(main, "setup_device", lambda cfg: torch.device("cpu"))
    monkeypatch.setattr(main, "is_requeued", lambda folder: False)
    trained = lambda *arguments: made.append(arguments) or {"done": True}  # noqa: E731
    monkeypatch.setattr(main, "train_or_resume", trained)
    search = lambda *arguments: made.append(("search", *arguments)) or {"searched": True}  # noqa: E731
    monkeypatch.setattr(main.calibrate_str, "calibrate_str", search)
    return made


def test_a_run_is_carried_out_in_its_directory_by_what_trains_its_task(cfg: Config, calls: list[Any]) -> None:
    folder = Path("/runs/acdc_s90-digits/seed3")
    assert main.run_experiment(cfg) == {"done": True}
    assert calls == [(cfg, folder, config_hash(cfg))]


def test_a_search_has_runs_of_its_own(
    calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = load(["+exp=str_s90", "+demo=digits", "sparsifier.calibrate=search", f"runs_dir={tmp_path}"])
    monkeypatch.setattr(main, "print_summary", lambda logger, task, summary: summary | {"in": logger.folder})
    folder = tmp_path / "str_s90-digits-abc" / "seed0"
    monkeypatch.setattr(main, "run_directory", lambda cfg, hash_: folder)
    assert main.run_experiment(cfg) == {"searched": True, "in": folder}
    ((name, *arguments),) = calls
    assert name == "search" and arguments[0] == cfg and arguments[3] is main.train_or_resume
    assert not (folder / "lock.owner").exists()


@pytest.mark.parametrize("requeued", [True, False])
def test_a_requeued_run_is_resumed_although_it_was_to_start_again(
    cfg: Config, calls: list[Any], monkeypatch: pytest.MonkeyPatch, requeued: bool
) -> None:
    monkeypatch.setattr(main, "is_requeued", lambda folder: requeued)
    main.run_experiment(replace(cfg, resume=False))
    main.run_experiment(cfg)
    assert [call[0].resume for call in calls] == [requeued, True]


def test_a_task_of_one_process_refuses_others(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load(["+exp=node/cora_gcn"])
    monkeypatch.setattr(distributed, "world", lambda: World(0, 2))
    with pytest.raises(ConfigError) as caught:
        main.run_experiment(cfg)
    message = "task nodes trains in one process: start it without torchrun or srun --ntasks"
    assert str(caught.value) == message and caught.value.shared is True and not calls


def test_another_configuration_is_named_by_both_hashes(tmp_path: Path) -> None:
    main.check_config_hash(tmp_path, "a" * 64, "a" * 64)
    with pytest.raises(ConfigError) as caught:
        main.check_config_hash(tmp_path, "a" * 64, "b" * 64)
    assert str(caught.value) == (
        f"{tmp_path} holds a run of another configuration (aaaaaaaa, now bbbbbbbb): choose another "
        "runs_dir, or start again with resume=false"
    )


@pytest.fixture
def logger(tmp_path: Path) -> Any:
    lines: list[str] = []
    return SimpleNamespace(folder=tmp_path, log=lines.append, lines=lines, events=[])


def test_a_summary_is_described_with_its_directory(logger: Any) -> None:
    task = SimpleNamespace(describe=lambda summary: [f"a {summary['a']}", "b"])
    assert main.print_summary(logger, task, {"a": 1}) == {"a": 1}
    assert logger.lines == ["a 1", "b", f"run          {logger.folder}"]


def test_a_finished_run_is_reported_and_a_damaged_summary_named(cfg: Config, logger: Any) -> None:
    path = logger.folder / "summary.json"
    path.write_text(json.dumps({"config_hash": "h", "metrics": {}}))
    with pytest.raises(ConfigError) as caught:
        main.report_finished(cfg, logger, "h")
    assert str(caught.value).startswith(f"{path} is damaged or of another version (KeyError: ")
    assert str(caught.value).endswith(
        "delete it, and the same command writes it again from the last checkpoint"
    )
    assert logger.lines[0] == "already finished; start again with resume=false"
    with pytest.raises(ConfigError, match="holds a run of another configuration"):
        main.report_finished(cfg, logger, "g")


@pytest.mark.parametrize(
    ("resume", "written", "finished"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_a_run_is_finished_by_a_summary_that_is_to_stay(
    cfg: Config, tmp_path: Path, resume: bool, written: bool, finished: bool
) -> None:
    if written:
        (tmp_path / "summary.json").write_text(json.dumps({"config_hash": "h", "metrics": {}}))
    assert main.is_finished(replace(cfg, resume=resume), tmp_path) is finished


@pytest.mark.parametrize("rank", [0, 1])
def test_a_divergence_is_written_by_rank_0_and_raised_by_all(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    written: list[Any] = []
    directory = SimpleNamespace(write_divergence=written.append)
    run = SimpleNamespace(logger=SimpleNamespace(directory=directory))

    def train(run: Any) -> None:
        raise DivergedError("nan at step 3", "advice")

    monkeypatch.setattr(main, "train", train)
    monkeypatch.setattr(main, "summarize_divergence", lambda run, reason: reason)
    monkeypatch.setattr(distributed, "world", lambda: World(rank, 2))
    with pytest.raises(DivergedError):
        main._train(run)
    assert written == (["nan at step 3"] if rank == 0 else [])


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    logger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = [None, {"config_hash": "h"}, {}]
    logger.clear = lambda: logger.events.append("cleared")
    monkeypatch.setattr(main.checkpoint, "load", lambda folder, warn: found.pop(0))
    assert main._load_checkpoint(logger, "h") is None and logger.events == ["cleared"]
    assert main._load_checkpoint(logger, "h") == {"config_hash": "h"} and logger.events == ["cleared"]
    with pytest.raises(main.checkpoint.CheckpointError, match=r"does not fit this version \(KeyError"):
        main._load_checkpoint(logger, "h")


@pytest.fixture
def starting(cfg: Config, logger: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run of 40 epochs of 10 steps before its first step; what happens is in `events`."""
    note = lambda name: lambda *arguments: logger.events.append((name, *arguments))  # noqa: E731
    logger.directory = SimpleNamespace(write_metadata=note("metadata"))
    logger.load_state_dict, logger.start_progress = note("log"), note("progress")
    monkeypatch.setattr(main, "provenance", lambda config_hash: f"facts of {config_hash}")
    monkeypatch.setattr(main, "to_yaml", lambda cfg: "yaml")
    monkeypatch.setattr(main.ranks, "check_run", lambda run: logger.events.append("compared"))
    task = SimpleNamespace(
        steps_per_epoch=10, initialization_batches=lambda: "batches", initialization_loss="loss"
    )
    return SimpleNamespace(
        **{"cfg": cfg, "logger": logger, "task": task, "epoch": 2, "step": 23, "config_hash": "h"},
        history=[{"epoch": 0}, {"epoch": 1}],
        load_state_dict=note("state"),
        sparsifier=SimpleNamespace(initialize=note("initialize")),
        flips=SimpleNamespace(begin=note("flips")),
    )


METADATA = ("metadata", "facts of h", "yaml")


def test_a_new_run_is_pruned_at_initialization(starting: Any) -> None:
    main._start_or_restore(starting, None)
    rest = [("initialize", "batches", "loss"), ("flips",), "compared", ("progress", 400, 23)]
    assert starting.logger.events == [METADATA, *rest] and starting.logger.lines == []

    def fail(*_: Any) -> None:
        raise ValueError("too few batches")

    starting.sparsifier.initialize = fail
    with pytest.raises(ConfigError, match=r"^too few batches$") as caught:
        main._start_or_restore(starting, None)
    assert caught.value.shared is True


def test_a_resumed_run_says_where_it_goes_on(starting: Any) -> None:
    state = {"logger": {"metrics_bytes": 7}}
    main._start_or_restore(starting, state)
    events = [("state", state), ("log", {"metrics_bytes": 7}, 2), METADATA, "compared", ("progress", 400, 23)]
    assert starting.logger.events == events
    assert starting.logger.lines == ["resumed at epoch 3, step 23"]


@pytest.fixture
def flow(cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`train_or_resume` with stand-ins: `events` is what happens, `finished` the answers of `is_finished`."""
    known = SimpleNamespace(events=[], finished=[False, False], state=None, fails=False)
    note = lambda name, value=None: lambda *_, **__: known.events.append(name) or value  # noqa: E731

    class Logger:
        folder = tmp_path
        clear = staticmethod(note("clear"))
        close = staticmethod(note("close"))

    def train(run: Any) -> None:
        known.events.append("train")
        if known.fails:
            raise DivergedError("nan", "advice")

    def build(cfg: Config, *parts: Any, resumed: bool) -> Any:
        known.events.append(("build", parts[0], parts[1], resumed))
        return "run"

    monkeypatch.setattr(main, "setup_device", lambda cfg: torch.device("cpu"))
    monkeypatch.setattr(main, "is_finished", lambda cfg, folder: known.finished.pop(0))
    monkeypatch.setattr(main, "_load_task", lambda *_: known.events.append("data") or "task")
    monkeypatch.setattr(main, "RunLogger", lambda *_: Logger())
    monkeypatch.setattr(main, "report_finished", lambda *_: {"reported": True})
    monkeypatch.setattr(main, "_load_checkpoint", lambda *_: known.state)
    monkeypatch.setattr(main, "build", build)
    monkeypatch.setattr(main, "_start_or_restore", lambda run, state: known.events.append(("start", state)))
    monkeypatch.setattr(main, "_train", train)
    monkeypatch.setattr(main.ranks, "check_run", note("compare"))
    monkeypatch.setattr(main, "finish", lambda run: {"summary": run})
    monkeypatch.setattr(main, "print_summary", lambda logger, task, summary: summary | {"task": task})
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: known.events.append(("threads", threads)))
    known.run = lambda **changes: main.train_or_resume(replace(cfg, **changes), tmp_path, "hash")
    return known


def test_a_new_run_is_built_trained_compared_and_summarized(flow: Any) -> None:
    assert flow.run() == {"summary": "run", "task": str}
    rest = [("build", "hash", "task", False), ("start", None), "train", "compare", "close"]
    assert flow.events == ["data", *rest]


def test_a_resumed_run_has_the_threads_of_its_checkpoint(flow: Any) -> None:
    flow.state = {"threads": 3}
    flow.run()
    assert flow.events[1:4] == [("threads", 3), ("build", "hash", "task", True), ("start", flow.state)]
    flow.finished, flow.state = [False, False], {}
    with pytest.raises(main.checkpoint.CheckpointError, match="does not fit this version"):
        flow.run()
    assert flow.events[-1] == "close"


def test_a_checkpoint_of_other_data_is_not_resumed(flow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "_load_task", lambda *_: SimpleNamespace(data_digest="own"))
    flow.finished, flow.state = [False] * 4, {"threads": 3, "data": "own"}
    assert flow.run()["summary"] == "run"
    flow.events.clear()
    flow.state = {"threads": 3, "data": "another"}
    with pytest.raises(ConfigError, match=r"was saved with other data: restore the data set, or start again"):
        flow.run()
    assert flow.events == ["close"]


@pytest.mark.parametrize(("answers", "events"), [([True], ["close"]), ([False, True], ["data", "close"])])
def test_a_finished_run_is_reported_whoever_finished_it(
    flow: Any, answers: list[bool], events: list[str]
) -> None:
    """It reads no data, unless another process finished it meanwhile."""
    flow.finished = answers
    assert flow.run() == {"reported": True} and flow.events == events


def test_a_run_that_starts_again_is_cleared_first(flow: Any) -> None:
    assert flow.run(resume=False)["summary"] == "run"
    assert flow.events[:2] == ["data", "clear"] and flow.finished == [False]


def test_the_directory_is_released_however_training_ends(flow: Any) -> None:
    flow.fails = True
    with pytest.raises(DivergedError):
        flow.run()
    assert flow.events[-2:] == ["train", "close"]
