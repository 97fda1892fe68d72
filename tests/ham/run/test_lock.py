"""The facts of runs for reports and sweeps, and the text that holds them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ham.report.spec import RunSpec
from ham.run import lock as module
from ham.run.config import config_hash, load
from ham.run.lock import info, lock_text, specs, tasks, with_overrides


@pytest.mark.parametrize(
    ("exp", "facts"),
    [
        ("dense_sam", ("images", "imagenet_rn50", 100, 2, 0.0, "")),
        ("mask_acdc_s90", ("images", "imagenet_rn50", 100, 1, 0.9, "acdc_s90")),
    ],
)
def test_the_facts_of_a_run(exp: str, facts: tuple) -> None:
    found = info(RunSpec(exp, 3))
    assert (found.task, found.base, found.epochs, found.passes, found.sparsity, found.depends_on) == facts
    assert found.config_hash == config_hash(load([f"+exp={exp}"]))


def test_given_facts_are_not_composed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = replace(load(["+exp=dense"]), epochs=7)
    monkeypatch.setattr(module, "load", lambda argv: pytest.fail("composed"))
    assert info(RunSpec("dense", 0), cfg).epochs == 7


def test_altered_numbers_keep_their_kind() -> None:
    cfg = load(["+exp=cifar100_ham"])
    made = with_overrides(cfg, RunSpec("cifar100_ham", 0, ("ham.beta=1", "data.validation_per_class=50")))
    assert made.ham.beta == 1.0 and isinstance(made.ham.beta, float)
    assert made.data.validation_per_class == 50 and isinstance(made.data.validation_per_class, int)
    assert made.optimizer == cfg.optimizer and with_overrides(cfg, RunSpec("cifar100_ham", 0)) == cfg


def test_experiments_come_first_and_searches_at_the_papers_scale_alone() -> None:
    every = specs()
    assert len(every) == len({*every}) and {run.demo for run in every} == {""}
    plain = [run for run in every if not run.overrides]
    assert every[: len(plain)] == plain and {run.seed for run in plain} == {0}
    altered = [run for run in every if run.exp == "node/cora_sage_ham" and run.overrides]
    assert altered and not [
        run for run in specs("cifar16") if run.exp == "node/cora_sage_ham" and run.overrides
    ]
    few = specs("digits", ["dense", "acdc_s90"])
    assert few[:2] == [RunSpec(name, 0, demo="digits") for name in ("dense", "acdc_s90")]
    assert {run.exp for run in few} == {"dense", "acdc_s90"}
    studied = [run for run in specs("cifar16", ["cifar100_ham"]) if run.overrides]
    assert any("data.validation_per_class=50" in run.overrides for run in studied)


def test_the_text_has_sections_in_order_and_a_line_for_each_run() -> None:
    content = {"b": {"y": {"d": 1, "c": [2]}, "x": "é"}, "a": 1, "c": {}}
    assert module._to_text(content) == (
        '{\n "a": 1,\n "b": {\n  "x": "\\u00e9",\n  "y": {"c": [2], "d": 1}\n },\n "c": {\n\n }\n}\n'
    )


def test_a_demo_has_the_experiments_whose_task_has_its_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [RunSpec("dense", 0), RunSpec("node/cora_gcn", 0), RunSpec("graph/ogbg_molhiv_ham", 0)]

    def specs(demo: str = "", names: list[str] | None = None) -> list[RunSpec]:
        return [replace(run, demo=demo) for run in chosen if names is None or run.exp in names]

    kinds = {"dense": "images", "node/cora_gcn": "nodes", "graph/ogbg_molhiv_ham": "graphs"}
    monkeypatch.setattr(module, "specs", specs)
    monkeypatch.setattr(module, "_facts", lambda runs: ((run.spec, {"task": kinds[run.exp]}) for run in runs))
    monkeypatch.setattr(module, "configs_digest", lambda: "digest")
    content = json.loads(lock_text())
    assert {*content} == {"configs", "tasks", "", *module.DEMOS} and content["configs"] == "digest"
    found = {demo: [*content[demo]] for demo in module.DEMOS}
    assert found[""] == sorted(run.exp for run in chosen)
    assert found["digits"] == ["dense"] and found["epochs20"] == ["graph/ogbg_molhiv_ham"]
    assert content["tasks"] == tasks()
    assert content["tasks"]["images"] == {"reported": ["top1_last", "top1_best"], "stores_history": True}


def test_the_runs_of_an_experiment_are_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[list[str]] = []
    original = module.load
    monkeypatch.setattr(module, "load", lambda argv: composed.append(argv) or original(argv))
    runs = [RunSpec("cifar100_ham", 0, ("ham.beta=0.5",)), RunSpec("cifar100_ham", 0)]
    first, second = module._infos(runs)
    assert composed == [["+exp=cifar100_ham", "seed=0"]] and first.config_hash != second.config_hash


def test_facts_follow_the_order_of_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def map(self, call: object, groups: object, chunksize: int) -> list:
            return [call(group) for group in groups]

    fact = info(RunSpec("dense", 0))
    monkeypatch.setattr(module, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(module, "_infos", lambda runs: [replace(fact, epochs=len(run.spec)) for run in runs])
    runs = [RunSpec("b", 0), RunSpec("a", 0), RunSpec("b", 0, ("x=1",))]
    facts = list(module._facts(runs))
    assert [(spec, known["epochs"]) for spec, known in facts] == [("b", 1), ("b x=1", 5), ("a", 1)]
