"""Parts of fine-tuning: the adapter's folder, a full disk, the variables of ranks, the summary."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ham import distributed
from ham.data import derived_seed
from ham.distributed import World
from ham.run import finetune
from ham.run.config import Config, ConfigError, load
from ham.tasks.commonsense_answers import Score


@pytest.fixture(scope="module")
def cfg() -> Config:
    return replace(load(["+exp=lora_llama1b_ham", "+demo=tiny"]), seed=3)


def test_counts_are_those_of_a_score_without_its_task() -> None:
    assert finetune._counts(Score("boolq", 3, 4, 1)) == {"correct": 3, "questions": 4, "unanswered": 1}


def test_the_sparsity_is_that_of_the_weights_that_are_trained() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1, bias=False))
    model[0].requires_grad_(False)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0, 3.0]]))
    expected = {"target": 0.0, "overall": 0.5, "kept": 1, "total": 2, "layers": {}}
    assert finetune._sparsity(model) == expected


@pytest.mark.parametrize(("free", "full"), [(2**24 - 1, True), (2**24, False)])
def test_a_disk_with_less_than_16_mib_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, full: bool
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    assert finetune._is_full(tmp_path) is full
    monkeypatch.undo()
    assert finetune._is_full(tmp_path / "missing") is False


def test_several_ranks_have_the_variables_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    for name in names:
        monkeypatch.setenv(name, "x")
    finetune._export_ranks(World(0, 1, 0))
    assert [os.environ[name] for name in names] == ["x"] * 3
    finetune._export_ranks(World(5, 8, 1))
    assert [os.environ[name] for name in names] == ["5", "8", "1"]


def test_an_adapter_replaces_the_one_before_when_it_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    for name in ("adapter", "adapter.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()

    def save_pretrained(path: str, save_embedding_layers: bool) -> None:
        assert path == str(tmp_path / "adapter.partial") and save_embedding_layers is False
        assert not Path(path).exists()
        Path(path).mkdir()
        (Path(path) / "new").touch()

    finetune._save_adapter(SimpleNamespace(save_pretrained=save_pretrained), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert [path.name for path in folder.iterdir()] == ["new"]


@pytest.fixture
def logger(tmp_path: Path) -> Any:
    events: list[Any] = []
    directory = SimpleNamespace(
        provenance=lambda: {"config_hash": "hash"},
        write_metadata=lambda *facts: events.append(facts),
        write_divergence=events.append,
    )
    return SimpleNamespace(
        **{"folder": tmp_path, "log": events.append, "directory": directory, "events": events},
        seconds=lambda: 20.0,
        write_summary=events.append,
        flush=lambda: events.append("flushed"),
    )


def make(cfg: Config, logger: Any, config_hash: str = "hash") -> finetune.FineTuning:
    inputs = SimpleNamespace(language=None)
    return finetune.FineTuning(cfg, config_hash, inputs, torch.device("cpu"), logger, [])


def test_the_summary_has_the_content_the_time_and_the_origin(cfg: Config, logger: Any) -> None:
    content = {"checkpoint": {"step": 8, "steps": 12}, "metrics": {"average": 50.0}}
    found = finetune._finish(cfg, "hash", content, logger)
    assert logger.events == [found] and found["exp"] == "lora_llama1b_ham" and found["seed"] == 3
    assert (found["status"], found["epochs"]) == ("done", cfg.epochs)
    assert found["timing"] == {"seconds": 20.0, "steps": 12, "steps_per_second": 0.6}
    assert found["ranks"] == {"world_size": 1, "agreed": True} and found["provenance"] == {
        "config_hash": "hash"
    }
    assert content.items() <= found.items()


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_writes_a_divergence(
    cfg: Config, logger: Any, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setattr(distributed, "world", lambda: World(rank, 2))
    make(cfg, logger)._write_divergence("nan at step 3", 1)
    if rank:
        assert logger.events == []
        return
    (found,) = logger.events
    expected = {
        "status": "diverged",
        "reason": "nan at step 3",
        "epochs": 1,
        "provenance": {"config_hash": "hash"},
    }
    assert expected.items() <= found.items() and found["config_hash"] == "hash"


def test_a_run_without_a_checkpoint_starts_over_and_another_goes_on(
    cfg: Config, logger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = [None, SimpleNamespace(step=5)]
    monkeypatch.setattr(finetune.trainer_checkpoints, "latest", lambda folder, log: found[0])
    monkeypatch.setattr(finetune, "provenance", lambda config_hash: config_hash)
    monkeypatch.setattr(finetune, "to_yaml", lambda cfg: "yaml")
    lines = logger.folder / "metrics.jsonl"
    lines.write_text("{}\n")
    assert make(cfg, logger)._prepare() is None and not lines.exists()
    assert make(cfg, logger)._prepare() is None
    assert logger.events == [("hash", "yaml")] * 2
    found.pop(0)
    lines.write_text("{}\n")
    assert make(cfg, logger)._prepare().step == 5 and lines.exists()
    assert logger.events[2:] == ["resumed at step 5", ("hash", "yaml")]
    (logger.folder / "provenance.json").touch()
    assert make(cfg, logger)._prepare().step == 5
    with pytest.raises(ConfigError, match="holds a run of another configuration"):
        make(cfg, logger, "other")._prepare()
    (logger.folder / "provenance.json").unlink()
    (logger.folder / ".saved").touch()
    found[0] = None
    with pytest.raises(ConfigError, match=r"the checkpoints in .* are missing"):
        make(cfg, logger)._prepare()


def test_the_checkpoint_and_the_best_one_reach_all_ranks(
    cfg: Config, logger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Path] = []
    monkeypatch.setattr(finetune.ranks, "send_folder", sent.append)
    folder = logger.folder / "checkpoints"
    for best, names in ((None, ["checkpoint-9"]), (4, ["checkpoint-9", "checkpoint-4"])):
        sent.clear()
        given = finetune.Checkpoint(Path("/rank0/checkpoint-9"), 9, {"best_step": best})
        received = make(cfg, logger)._receive(given)
        assert received.path == folder / "checkpoint-9" and received.step == 9
        assert sent == [folder / name for name in names]


@pytest.mark.parametrize("loads_best", [True, False])
def test_the_checkpoint_that_is_evaluated_is_the_best_or_the_last(
    cfg: Config, logger: Any, monkeypatch: pytest.MonkeyPatch, loads_best: bool
) -> None:
    from ham.run import trainer

    state = SimpleNamespace(best_global_step=8, global_step=12, best_metric=0.5)
    started: list[str | None] = []
    made = SimpleNamespace(
        state=state,
        args=SimpleNamespace(load_best_model_at_end=loads_best),
        train=lambda resume_from_checkpoint: started.append(resume_from_checkpoint),
    )
    monkeypatch.setattr(trainer, "build_trainer", lambda *arguments: made)
    tuning = make(cfg, logger)
    found = tuning._train(None)
    losses = {"valid_loss_best": 0.5} if loads_best else {}
    assert found == finetune.Training(8 if loads_best else 12, 12, losses)
    kept = {"losses": [], "train_loss": 2.0, "valid_loss": 3.0}
    resumed = finetune.Checkpoint(Path("/a/checkpoint-9"), 9, kept)
    assert tuning._train(resumed).losses == {"train_loss": 2.0, "valid_loss": 3.0} | losses
    assert started == [None, "/a/checkpoint-9"] and logger.events == ["flushed"] * 2


@pytest.mark.parametrize(("full", "rank"), [(True, 0), (False, 0), (True, 1)])
def test_an_unexplained_error_on_a_full_disk_is_one_of_the_disk(
    cfg: Config, logger: Any, monkeypatch: pytest.MonkeyPatch, full: bool, rank: int
) -> None:
    from ham.run import trainer

    def fail(**_: Any) -> None:
        raise RuntimeError("enforce fail")

    monkeypatch.setattr(trainer, "build_trainer", lambda *_: SimpleNamespace(train=fail))
    monkeypatch.setattr(finetune, "_is_full", lambda folder: full)
    monkeypatch.setattr(finetune, "_export_ranks", lambda me: None)
    monkeypatch.setattr(distributed, "world", lambda: World(rank, 2))
    message = (
        f"cannot write a checkpoint in {logger.folder}/checkpoints: the disk is full; complete ones are kept"
    )
    explained = full and rank == 0
    with pytest.raises(finetune.CheckpointError if explained else RuntimeError) as caught:
        make(cfg, logger)._train(None)
    assert str(caught.value) == (message if explained else "enforce fail") and logger.events == ["flushed"]

    def refuse(*_: Any) -> None:
        raise ValueError("ham.select matches nothing")

    monkeypatch.setattr(trainer, "build_trainer", refuse)
    with pytest.raises(ConfigError, match=r"^ham\.select matches nothing$"):
        make(cfg, logger)._train(None)


@pytest.mark.parametrize("score_before", [True, False])
@pytest.mark.parametrize("resumed", [True, False])
def test_a_run_answers_after_its_training_and_before_where_that_is_asked(
    cfg: Config, logger: Any, monkeypatch: pytest.MonkeyPatch, resumed: bool, score_before: bool
) -> None:
    events: list[Any] = []
    note = lambda name, value=None: lambda *arguments: events.append((name, *arguments)) or value  # noqa: E731
    scores = {"boolq": Score("boolq", 1, 2, 0)}
    model = torch.nn.Linear(2, 1)
    monkeypatch.setattr(finetune, "Answering", lambda *_: SimpleNamespace(all_tasks=note("answers", scores)))
    monkeypatch.setattr(finetune.ranks, "check_states", lambda state, where: events.append(where))
    monkeypatch.setattr(finetune, "trained_weights", lambda model: {})
    monkeypatch.setattr(finetune, "_save_adapter", lambda model, folder: events.append(folder.name))
    monkeypatch.setattr(torch, "set_num_threads", note("threads"))
    logger.load_state_dict = note("log")
    kept = finetune.Checkpoint(Path("a"), 5, {"threads": 3, "logger": {"elapsed": 1.0}})
    monkeypatch.setattr(finetune.FineTuning, "_prepare", lambda self: kept if resumed else None)
    monkeypatch.setattr(finetune.FineTuning, "_receive", lambda self, checkpoint: checkpoint)
    training = finetune.Training(8, 12, {"train_loss": 2.0})
    monkeypatch.setattr(
        finetune.FineTuning, "_train", lambda self, given: events.append(("train", given)) or training
    )
    given = replace(cfg, data=replace(cfg.data, score_before=score_before))
    inputs = SimpleNamespace(language=SimpleNamespace(model=model), questions={})
    tuning = finetune.FineTuning(given, "hash", inputs, torch.device("cpu"), logger, [])
    found = tuning.run()
    start = [("threads", 3), ("log", {"elapsed": 1.0})] if resumed else []
    before = [("answers", "before")] if score_before else []
    trained = [("train", kept if resumed else None), "after the training", "adapter", ("answers", "after")]
    assert events == start + before + trained
    accuracies = {"boolq": 50.0, "average": 50.0}
    before = {f"before_{name}": value for name, value in accuracies.items()} if score_before else {}
    assert found["metrics"] == {"train_loss": 2.0} | accuracies | before
    assert found["ham"] == {"alpha": cfg.ham.alpha, "beta": cfg.ham.beta}
    assert found["checkpoint"] == {"step": 8, "steps": 12} and found["sparsity"]["total"] == 3
    assert found["answers"] == {"boolq": {"correct": 1, "questions": 2, "unanswered": 0}}


@pytest.fixture
def flow(cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`train_or_resume` with stand-ins; what happens is in `events`."""
    known = SimpleNamespace(events=[], finished=[False, False], fails=False)
    note = lambda name, value=None: lambda *_: known.events.append(name) or value  # noqa: E731
    made = SimpleNamespace(clear=note("clear"), close=note("close"))

    def run() -> dict[str, Any]:
        known.events.append("run")
        if known.fails:
            raise ConfigError("no")
        return {}

    monkeypatch.setattr(finetune, "setup_device", lambda cfg: torch.device("cpu"))
    monkeypatch.setattr(finetune, "is_finished", lambda cfg, folder: known.finished.pop(0))
    monkeypatch.setattr(finetune, "load_inputs", note("inputs"))
    monkeypatch.setattr(finetune, "RunLogger", lambda *_: made)
    monkeypatch.setattr(finetune, "report_finished", lambda *_: {"reported": True})
    monkeypatch.setattr(finetune, "FineTuning", lambda *_: SimpleNamespace(run=run))
    monkeypatch.setattr(finetune, "_finish", note("finish", {"summary": True}))
    monkeypatch.setattr(finetune, "print_summary", lambda logger, task, summary: summary)
    known.run = lambda **changes: finetune.train_or_resume(replace(cfg, **changes), tmp_path, "hash")
    return known


def test_a_run_starts_is_found_finished_or_fails_and_releases_its_directory(flow: Any) -> None:
    assert flow.run() == {"summary": True} and flow.events == ["inputs", "run", "finish", "close"]
    for answers, events in (([True], ["close"]), ([False, True], ["inputs", "close"])):
        flow.events.clear()
        flow.finished = answers
        assert flow.run() == {"reported": True} and flow.events == events
    flow.events.clear()
    flow.finished = [False]
    assert flow.run(resume=False) == {"summary": True}
    assert flow.events == ["inputs", "clear", "run", "finish", "close"]
    flow.finished, flow.fails = [False, False], True
    with pytest.raises(ConfigError):
        flow.run()
    assert flow.events[-2:] == ["run", "close"]


def test_inputs_are_examples_questions_and_the_model_of_the_seed(
    cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(cfg.data), "load_examples", lambda self: "examples")
    monkeypatch.setattr(type(cfg.data), "load_questions", lambda self, task: f"of {task}")
    monkeypatch.setattr(type(cfg.model), "load", lambda self, seed, device: (seed, device))
    found = finetune.load_inputs(cfg, torch.device("cpu"))
    assert found.examples == "examples" and found.questions == {name: f"of {name}" for name in cfg.data.tests}
    assert found.language == (derived_seed(cfg.seed, "model"), torch.device("cpu"))
