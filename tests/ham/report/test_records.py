"""What a record keeps of a run, and which summaries cannot be records."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_fixtures import GRAPH

from ham.report import records, schema, validation
from ham.report.records import InvalidRecord
from ham.report.schema import epoch_error
from ham.report.spec import PlanError, RunSpec

RUN = RunSpec("rigl_s90", 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def test_records_hold_no_path_no_host_and_no_unknown_field(
    make_summary: Callable[..., dict[str, Any]],
) -> None:
    summary = make_summary(RUN, hostname="node17")
    summary["provenance"]["hardware"]["node"] = "node17"
    before = {
        "commit": "a" * 40,
        "dirty": False,
        "hardware": {"cpu": "AMD", "node": "node17"},
        "by": "node17",
    }
    summary["provenance"] |= {
        "host": "node17",
        "resumed_from": [before],
        "argv": [*summary["provenance"]["argv"], "data.x=/srv/x"],
    }
    kept = records.record(summary)
    assert kept["provenance"]["argv"] == ["+exp=rigl_s90", "seed=1"]
    assert kept["sparsity"] == {"target": 0.9, "overall": 0.9, "masks_from": None}
    assert "node17" not in json.dumps(kept)
    assert kept["provenance"]["resumed_from"][0]["hardware"] == {"cpu": "AMD"}
    assert records.record(kept) == kept
    assert validation.check(summary) == RUN


ALTERED = {
    "incomplete: config_hash is missing or invalid": {"config_hash": None},
    "incomplete: seed is missing or invalid": {"seed": "1"},
    "incomplete: seed is not within": {"seed": -1},
    "incomplete: metrics is missing or invalid": {"metrics": [1]},
    "incomplete: metrics.top1_last is missing": {"metrics": {"top1_best": 70.0}},
    "metrics.top1_best is missing or not within 0 and 100": {
        "metrics": {"top1_last": 70.0, "top1_best": float("nan")}
    },
    "sparsity.overall is missing or not within 0 and 1": {"sparsity": {"target": 0.9, "overall": 1.5}},
    "status is 'stopped'": {"status": "stopped"},
    "differs from configs/lock.json (00000000, now": {"config_hash": "0" * 64},
    "contradict each other": {"epochs": 7},
    "overrides on the command line and no figure, search": {"overridden": True},
    "scaled down to 'tiny'": {"demo": "tiny"},
    "has no experiment 'nonsense'": {"exp": "nonsense"},
    "has no experiment 'cifar100_ham ham.alpha=0 ham.beta=0'": {"exp": "cifar100_ham ham.alpha=0 ham.beta=0"},
    "its task is 'nodes', not 'images'": {"task": "nodes"},
    "names a path of a machine ('/home/me')": {"cell": "/home/me"},
}


@pytest.mark.parametrize("reason", ALTERED)
def test_an_invalid_summary_is_one_line(reason: str, make_summary: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(InvalidRecord) as error:
        validation.check(make_summary(RUN) | ALTERED[reason])
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        ({"dirty": True}, "uncommitted changes"),
        ({"commit": None}, "commit of its code is unknown"),
        ({"resumed_from": [{"commit": "a" * 40, "dirty": True}]}, "uncommitted changes"),
        ({"resumed_from": [{"dirty": False}]}, "commit of its code is unknown"),
        ({"config_hash": "1" * 64}, "contradict each other"),
        ({"argv": "none"}, "provenance.argv is missing or invalid"),
    ],
)
def test_the_commit_of_its_code_is_known(
    info: dict[str, Any], reason: str, make_summary: Callable[..., dict[str, Any]]
) -> None:
    summary = make_summary(RUN)
    summary["provenance"] |= info
    with pytest.raises(InvalidRecord, match=reason):
        validation.check(summary)


@pytest.mark.parametrize("exp", ["rigl_s90", "node/cora_gcn", "node/cora_gcn_nham"])
def test_the_task_decides_the_metrics(exp: str, make_summary: Callable[..., dict[str, Any]]) -> None:
    """A summary of before tasks, without `task`, is as valid as one with it."""
    run = RunSpec(exp, 0)
    summary = make_summary(run)
    assert validation.check(summary) == run
    kept = records.record(summary | {"task": run.info.task})
    assert validation.check(kept) == run and kept["task"] == run.info.task
    other = {"top1_last": 1.0, "top1_best": 1.0, "valid_last": 1.0, "valid_best": 1.0}
    for name in run.info.reported:
        del other[name]
    with pytest.raises(InvalidRecord, match=r"metrics\.\w+ is missing"):
        validation.check(summary | {"metrics": other})


def test_runs_of_a_search_are_known(make_summary: Callable[..., dict[str, Any]]) -> None:
    point = RunSpec("node/cora_sage_ham", 0, ("ham.alpha=100", "ham.beta=0.1"))
    assert validation.check(make_summary(point)) == point


def test_masks_come_from_todays_source(make_summary: Callable[..., dict[str, Any]]) -> None:
    run = RunSpec("mask_str_s90", 2)
    summary = make_summary(run)
    assert validation.check(summary) == run
    for altered in ({"seed": 1}, {"exp": "acdc_s90"}, {"config_hash": "0" * 64}):
        stale = summary["sparsity"] | {"masks_from": summary["sparsity"]["masks_from"] | altered}
        with pytest.raises(InvalidRecord, match="masks are not those of the current str_s90 seed 2"):
            validation.check(summary | {"sparsity": stale})


def test_code_copied_without_git_may_name_its_commit(make_summary: Callable[..., dict[str, Any]]) -> None:
    summary = make_summary(RUN)
    summary["provenance"]["dirty"] = None
    assert validation.check(summary) == RUN


def test_an_altered_run_counts_where_a_figure_shows_it(make_summary: Callable[..., dict[str, Any]]) -> None:
    point = RunSpec("cifar100_ham", 0, ("ham.alpha=50", "ham.beta=0.001"))
    assert validation.check(make_summary(point)) == point
    assert records.path_of(point).parent.name == f"cifar100_ham-{point.info.config_hash[:8]}"
    assert records.path_of(RunSpec("dense", 2, demo="digits")).relative_to(records.RESULTS) == Path(
        "demo/dense/seed2.json"
    )


@given(
    content=JSON, key=st.sampled_from([None, "seed", "exp", "demo", "config_hash", "sparsity", "provenance"])
)
def test_any_json_is_a_record_or_invalid(
    content: Any, key: str | None, make_summary: Callable[..., dict[str, Any]]
) -> None:
    summary = content if key is None else make_summary(RUN) | {key: content}
    if key == "provenance":
        summary = make_summary(RUN)
        summary["provenance"] |= {"resumed_from": content, "dirty": content, "hardware": content}
    try:
        assert validation.check(summary).exp == RUN.exp
    except InvalidRecord as error:
        assert "\n" not in str(error)


def test_epochs_are_complete_and_without_layers(
    make_summary: Callable[..., dict[str, Any]], make_epochs: Callable[..., list[dict[str, Any]]]
) -> None:
    summary, lines = make_summary(RUN), make_epochs(RUN)
    text = "\n".join(map(json.dumps, lines))
    assert records.epochs(text.encode(), summary, RUN) == [
        {k: v for k, v in line.items() if k != "layers"} for line in lines
    ]
    for damaged in (
        text[:-5],
        text.replace('"epoch": 7,', '"epoch": 8,'),
        "",
        "[]\n",
        text.replace("75.0", "7"),
    ):
        with pytest.raises(InvalidRecord, match="its metrics"):
            records.epochs(damaged.encode(), summary, RUN)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, ""),
        ({"top1": 75, "sign_flips": None}, ""),  # None: not measured in this epoch
        ({"layers": {"conv1": 0.9}}, ""),
        ({"masks_from": {"exp": "acdc_s90", "seed": 0, "config_hash": "0" * 64}}, ""),
        ({"sign_flips": None, "top1": "75"}, "top1 is missing or not a finite number"),
        ({"top1": [75]}, "top1 is missing or not a finite number"),
        ({"top1": float("nan")}, "top1 is missing or not a finite number"),
        ({"layers": [0.9]}, "layers is missing or invalid"),
        ({"masks_from": "acdc_s90"}, "masks_from is missing or invalid"),
        ({"epoch": None}, "epoch is missing or invalid"),
    ],
)
def test_values_of_an_epoch_are_numbers_or_none(values: dict[str, Any], problem: str) -> None:
    assert epoch_error({"epoch": 0, "step": 10} | values) == problem


def test_invalid_files_are_reported(tmp_path: Path, write_record: Callable[..., Path]) -> None:
    good, stale, moved = (
        write_record(tmp_path, RunSpec(exp, 0)) for exp in ("rigl_s90", "acdc_s90", "str_s90")
    )
    stale.write_text(stale.read_text().replace(RunSpec("acdc_s90", 0).info.config_hash, "0" * 64))
    moved.rename(moved.with_name("seed5.json"))
    half = write_record(tmp_path, RunSpec("dense", 0))
    half.write_text(half.read_text()[:100])
    bulky = write_record(tmp_path, RunSpec("dense_ham", 0))
    bulky.write_text(json.dumps(json.loads(bulky.read_text()) | {"host": "node17"}))
    loaded, problems = records.read_all(results=tmp_path)
    assert {run.exp for run in loaded} == {"rigl_s90"} and loaded[RunSpec("rigl_s90", 0)].path == good
    reasons = ("differs from configs/lock.json", "half", "more than a record", "move it to")
    assert [p.count("\n") for p in problems] == [0] * 4
    for path, reason in zip((stale, half, bulky, moved.with_name("seed5.json")), reasons, strict=True):
        line = next(p for p in problems if p.startswith(str(path)))
        assert reason in line or "cannot be read" in line


@pytest.mark.parametrize("demo", ["", *records.DEMOS])
def test_committed_records_are_valid_today(demo: str) -> None:
    loaded, problems = records.read_all(demo)
    assert not problems
    for run, record in loaded.items():
        if records.stores_history(run) and (not demo or records.metrics_path(record.path).exists()):
            assert len(record.epochs()) == run.info.epochs
    known = {path.relative_to(records.RESULTS) for path in records.folder_of(demo).rglob("*.json")}
    assert known == {record.path.relative_to(records.RESULTS) for record in loaded.values()}


def test_every_sparsifier_trains_scaled_down() -> None:
    """The demo runs cover the sparse methods: above 90 % accuracy, within half a point of sparsity."""
    loaded, _ = records.read_all("digits")
    sparse = {run: record for run, record in loaded.items() if run.exp.endswith("_s90")}
    for record in sparse.values():
        assert abs(record.content["sparsity"]["overall"] - 0.9) < 0.005, record.path
        assert record.metric("top1_last") > 90, record.path
    with_all = {"random", "acdc", "rigl", "snip", "synflow", "mask_acdc", "mask_rigl", "mask_str"}
    expected = {f"{m}{c}_s90" for m in with_all for c in ("", "_sign_in", "_ham")}
    expected |= {"spred_s90", "pilot_s90", "str_s90", "str_ham_s90"}
    assert expected <= {run.exp for run in sparse}


# rules of single values

INVALID = "x is missing or invalid"


@pytest.mark.parametrize(
    ("rule", "lowest", "highest"),
    [
        (schema.number(), -1e100, 1e100),
        (schema.number(0, 100), 0, 100),
        (schema.number(0.5, 0.75), 0.5, 0.75),
        (schema.number(0), 0, 1e100),
    ],
)
def test_a_number_may_be_either_end_of_its_range(rule: schema.Rule, lowest: float, highest: float) -> None:
    for value in (lowest, highest, (lowest + highest) / 2):
        assert rule(value, "x") == ""
    end = "a finite number" if highest == 1e100 else f"within {lowest:g} and {highest:g}"
    below, above = lowest - 0.01 * max(1, abs(lowest)), highest + 0.01 * max(1, abs(highest))
    for value in (below, above, float("nan"), float("inf"), True, "1", None):
        assert rule(value, "x") == f"x is missing or not {end}"


@pytest.mark.parametrize(
    ("rule", "lowest", "highest"),
    [(schema.integer(), 0, 2**53), (schema.integer(1), 1, 2**53), (schema.integer(2, 5), 2, 5)],
)
def test_an_integer_may_be_either_end_of_its_range(rule: schema.Rule, lowest: int, highest: int) -> None:
    assert rule(lowest, "x") == rule(highest, "x") == ""
    for value in (lowest - 1, highest + 1):
        assert rule(value, "x") == f"x is not within {lowest} and {highest}"
    for value in (float(lowest), True, str(lowest), None):
        assert rule(value, "x") == INVALID


def test_a_label_has_at_most_300_characters_of_which_a_message_shows_60() -> None:
    assert schema.label("x" * 300, "cell") == schema.label("", "cell") == ""
    assert schema.label("x" * 301, "cell") == f"cell is not in plain words (it is {'x' * 60!r})"
    assert schema.label(3, "cell") == "cell is missing or invalid"


def nested(levels: int) -> Any:
    """A list in a list and so on; the innermost is empty, at this depth."""
    return [nested(levels - 1)] if levels else []


def test_values_are_at_most_20_levels_deep() -> None:
    assert schema.odd_value(nested(20)) == ""
    assert schema.odd_value(nested(21)) == "it is nested deeper than 20 levels"
    content: Any = 0
    for _ in range(20):
        content = {"x": content}
    assert schema.odd_value(content) == ""
    assert schema.odd_value({"x": content}) == "it is nested deeper than 20 levels"


@pytest.mark.parametrize("place", [lambda text: {"x": [text]}, lambda text: {text: 0}])
def test_texts_have_at_most_10000_printable_characters(place: Callable[[str], Any]) -> None:
    assert schema.odd_value(place("x" * 10_000)) == ""
    for text in ("x" * 10_001, "\n" + "x" * 100):
        assert schema.odd_value(place(text)) == (
            f"it holds a control character, or a text of over 10000 characters: {text[:60]!r}"
        )


def test_numbers_of_any_place_are_finite() -> None:
    assert schema.odd_value({"x": [1e100, -(10**100), True, None, 0]}) == ""
    for value in (float("nan"), float("-inf"), 1.01e100, 10**101):
        assert schema.odd_value({"x": [value]}) == "it holds nan, inf or a number beyond 1e100"


def test_rules_of_lists_objects_and_texts_name_the_field() -> None:
    assert schema.each(schema.integer())([0, 1], "x") == schema.each(schema.integer())([], "x") == ""
    assert schema.each(schema.integer())([0, "1"], "x") == schema.each(schema.integer())({}, "x") == INVALID
    assert schema.mapping(schema.integer())({"a": 0, "b": "1"}, "x") == "x.b is missing or invalid"
    assert schema.mapping(schema.integer())({"a": 0}, "x") == ""
    assert schema.mapping(schema.integer())([], "x") == INVALID
    assert schema.nullable(schema.integer())(None, "x") == schema.nullable(schema.integer())(1, "x") == ""
    assert schema.nullable(schema.integer())("", "x") == INVALID
    assert schema.text()("any", "x") == schema.of_type(dict)({}, "x") == ""
    assert schema.text()(1, "x") == schema.of_type(dict)([], "x") == INVALID
    rule = schema.fields({"a": schema.integer()}, {"b": schema.integer()})
    assert rule({"a": 0}, "") == rule({"a": 0, "b": 1, "c": "odd"}, "") == ""
    assert [rule(value, "x") for value in ({}, {"a": 0, "b": None}, [])] == [
        "x.a is missing or invalid",
        "x.b is missing or invalid",
        INVALID,
    ]
    assert [rule(value, "") for value in ({}, {"a": 0, "b": None}, [])] == [
        "a is missing or invalid",
        "b is missing or invalid",
        "not a JSON object",
    ]


def altered(content: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a place such as provenance.ranks."""
    key, dot, rest = place.partition(".")
    return content | {key: altered(content.get(key) or {}, rest, value) if dot else value}


@pytest.mark.parametrize(
    ("place", "good", "bad"),
    [
        ("seed", (0, 2**32 - 1), (-1, 2**32, None)),
        ("epochs", (0,), (-1, 1.0, None)),
        ("demo", (None, "digits"), (1,)),
        ("cell", (None, ""), (1,)),
        ("task", ("images",), (None,)),
        ("status", ("done",), (None,)),
        ("overridden", (True, False), (0, None)),
        ("config_hash", ("0" * 64,), ("0" * 63, "g" * 64, None)),
        ("provenance.threads", (None, 1), (0,)),
        ("provenance.ranks", (None, 1, 2**20), (0, 2**20 + 1)),
        ("provenance.hardware.cores", (None, 1), (0,)),
        ("provenance.hardware.gpus", (None, [], ["H100"]), ("H100", [1])),
        ("provenance.hardware.cpu", ("",), (None,)),
        ("provenance.dirty", (None, True), (1,)),
        ("provenance.python", (None, "3.11"), (3.11,)),
        ("provenance.versions", (None, {"torch": None}, {"torch": "2"}), ({"torch": 2}, [])),
        ("provenance.slurm_job", (None, "7"), (7,)),
        ("provenance.argv", ([],), (None, [1])),
        ("provenance.resumed_from", ([], [{}], [{"ranks": 1}]), (None, [{"ranks": 0}], [{"dirty": 1}])),
    ],
)
def test_the_identity_of_a_run_has_types_and_ranges(
    place: str, good: tuple, bad: tuple, make_summary: Callable[..., dict[str, Any]]
) -> None:
    summary = make_summary(RUN)
    for value in good:
        assert schema.IDENTITY(altered(summary, place, value), "") == "", value
    for value in bad:
        assert schema.IDENTITY(altered(summary, place, value), "").startswith(place.partition("[")[0])


@pytest.mark.parametrize(
    ("place", "good", "bad"),
    [
        ("metrics.top1_last", (0, 100), (-0.1, 100.1, None)),
        ("metrics.other", (None, -1e100), ("x", 1e101)),
        ("sparsity.target", (0, 1), (-0.01, 1.01, None)),
        ("sparsity.overall", (0, 1), (-0.01, 1.01, None)),
        ("sparsity.kept", (0,), (-1, None)),
        ("sparsity.total", (0,), (-1, None)),
        ("sparsity.masks_from", (None,), ({}, 1)),
        ("graph.nodes.valid", (1,), (0, None)),
        ("graph.metric", ("accuracy",), (None,)),
        ("graphs.graphs", ({}, {"train": 0}), ({"train": -1},)),
        ("ham", ({}, {"alpha": -1.0}), ({"alpha": None}, [])),
        ("checkpoint", ({"bytes": 0},), ({"bytes": -1},)),
        ("timing", ({"seconds": 0},), ({"seconds": -0.1},)),
        ("answers", ({"x": {"correct": 0, "questions": 1}},), ({"x": {"correct": 0, "questions": 0}},)),
        (
            "answers",
            ({"x": {"correct": 2, "questions": 2, "unanswered": 0}},),
            ({"x": {"correct": 2, "questions": 2, "unanswered": -1}},),
        ),
    ],
)
def test_results_have_types_and_ranges(
    place: str, good: tuple, bad: tuple, make_summary: Callable[..., dict[str, Any]]
) -> None:
    summary = make_summary(RUN) | {"graph": GRAPH, "graphs": {"name": "x"}}
    rule = schema.results(("top1_last",), is_node=True)
    for value in good:
        assert rule(altered(summary, place, value), "") == "", value
    for value in bad:
        assert rule(altered(summary, place, value), "").startswith(place), value


def test_only_a_node_run_needs_a_graph_and_its_number_of_validation_nodes() -> None:
    content = {"metrics": {}, "sparsity": {"target": 0, "overall": 0}}
    assert schema.results((), is_node=False)(content, "") == ""
    assert schema.results((), is_node=True)(content, "") == "graph is missing or invalid"


# summaries and what they contradict


@pytest.mark.parametrize(
    ("kept", "total", "is_valid"),
    [(100, 1000, True), (100, None, True), (None, 1000, True), (0, 0, True)]
    + [(101, 1000, False), (99, 1000, False), (900, 1000, False), (0, 1000, False)],
)
def test_the_sparsity_is_that_of_the_counts(
    kept: int | None, total: int | None, is_valid: bool, make_summary: Callable[..., dict[str, Any]]
) -> None:
    counts = {key: value for key, value in (("kept", kept), ("total", total)) if value is not None}
    summary = make_summary(RUN)
    summary["sparsity"] |= counts
    if is_valid:
        assert validation.check(summary) == RUN
    else:
        with pytest.raises(
            InvalidRecord, match=r"sparsity\.overall is not 1 - kept / total; move it away and run it again$"
        ):
            validation.check(summary)


@pytest.mark.parametrize(
    ("altered", "reason"),
    [
        (
            {"metrics": {"top1_last": 70.1, "top1_best": 70.0}},
            "top1_last is above top1_best; move it away and run it again",
        ),
        ({"sparsity": {"target": 0.8, "overall": 0.8}}, "its target sparsity is not the experiment's 0.9"),
        ({"sparsity": {"target": 0.9 + 1e-8, "overall": 0.9}}, "its target sparsity is not the experiment's"),
        (
            {"epochs": 99},
            "its hash, provenance and epochs contradict each other: move it away and run it again",
        ),
        ({"overridden": True, "config_hash": "1" * 64}, "no figure, search or study has them: see train.py"),
        ({"cell": "at /data/x"}, "it names a path of a machine ('at /data/x'): remove that"),
        ({"ham": {"~/x": 1.0}}, "it names a path of a machine ('~/x'): remove that"),
        ({"checkpoint": {"C:\\x": 1}}, "it names a path of a machine"),
    ],
)
def test_a_summary_that_contradicts_itself_or_the_plan_is_refused(
    altered: dict[str, Any], reason: str, make_summary: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(InvalidRecord) as error:
        validation.check(make_summary(RUN) | altered)
    assert reason in str(error.value)


def test_a_summary_may_end_at_its_best_and_within_rounding_of_its_target(
    make_summary: Callable[..., dict[str, Any]],
) -> None:
    summary = make_summary(RUN, metrics={"top1_last": 70.0, "top1_best": 70.0})
    summary["sparsity"]["target"] += 1e-12
    assert validation.check(summary) == RUN
    del summary["provenance"]["config_hash"]
    assert validation.check(summary) == RUN
    assert validation.check(make_summary(RUN, cell="Table 4, AC/DC + HAM")) == RUN


@pytest.mark.parametrize(
    ("altered", "reason"),
    [
        ({"epochs": 101}, "it ended after 101 of 100 epochs: move it away and run it again"),
        ({"status": "done"}, "its status is 'done', not 'diverged': move it away and run it again"),
        (
            {"config_hash": "0" * 64},
            "its configuration hash differs from configs/lock.json: move it away and run it again",
        ),
        ({"reason": None}, "it is incomplete: reason is missing or invalid; move it away and run it again"),
        ({"seed": None}, "it is incomplete: seed is missing or invalid; move it away and run it again"),
        (
            {"exp": "nonsense"},
            "configs/lock.json has no experiment 'nonsense': run python scripts/lock.py if",
        ),
        ({"reason": "in /home/x"}, "it names a path of a machine ('in /home/x')"),
        (
            {"sparsity": [float("nan")]},
            "it holds nan, inf or a number beyond 1e100: move it away and run it again",
        ),
    ],
)
def test_an_odd_divergence_is_refused(
    altered: dict[str, Any], reason: str, make_summary: Callable[..., dict[str, Any]]
) -> None:
    lost = make_summary(RUN, status="diverged", reason="the loss is inf", epochs=100)
    assert validation.check_divergence(lost) == RUN
    with pytest.raises(InvalidRecord) as error:
        validation.check_divergence(lost | altered)
    assert reason in str(error.value)
    assert validation.divergence_record(lost | {"host": "x"}).keys() == lost.keys()


def test_a_divergence_needs_code_that_is_known(make_summary: Callable[..., dict[str, Any]]) -> None:
    lost = make_summary(RUN, status="diverged", reason="the loss is inf", epochs=1)
    lost["provenance"]["dirty"] = True
    with pytest.raises(InvalidRecord, match="uncommitted changes"):
        validation.check_divergence(lost)


def test_paths_and_places_are_no_part_of_a_recorded_command_line() -> None:
    argv = ["runs_dir=x", "data.root=x", "a=/srv/x", "b=~/x", "c=AC/DC", "seed=1", "+runs_dir=x"]
    provenance = {"argv": argv, "host": "x", "hardware": {"node": "x", "cores": 2, "gpus": []}, "dirty": None}
    assert validation.strip_paths(provenance) == {
        "argv": ["c=AC/DC", "seed=1", "+runs_dir=x"],
        "hardware": {"cores": 2, "gpus": []},
        "dirty": None,
    }
    earlier = {"resumed_from": [{"hardware": {"node": "x"}, "argv": [], "ranks": 2}, "odd"]}
    assert validation.strip_hostname(earlier) == {"resumed_from": [{"hardware": {}, "ranks": 2}]}


def test_a_run_that_says_nothing_of_its_ranks_had_one(make_summary: Callable[..., dict[str, Any]]) -> None:
    summary = make_summary(RUN)
    del summary["provenance"]["ranks"]
    assert validation.check(summary) == RUN
    assert validation.check(summary | {"ranks": {"world_size": 1, "agreed": True}}) == RUN
    with pytest.raises(InvalidRecord, match="its ranks did not agree"):
        validation.check(summary | {"ranks": {"world_size": 2, "agreed": True}})


def test_masks_are_from_a_source_that_is_named(make_summary: Callable[..., dict[str, Any]]) -> None:
    summary = make_summary(RunSpec("mask_str_s90", 2))
    summary["sparsity"]["masks_from"] = None
    with pytest.raises(
        InvalidRecord, match="not those of the current str_s90 seed 2: move it away and run it again"
    ):
        validation.check(summary)


def test_the_last_epoch_is_that_of_the_summary(
    make_summary: Callable[..., dict[str, Any]], make_epochs: Callable[..., list[dict[str, Any]]]
) -> None:
    lines = make_epochs(RUN)

    def read(lines: list[dict[str, Any]], **altered: Any) -> list[dict[str, Any]]:
        text = "\n".join(map(json.dumps, lines))
        return records.epochs(text.encode(), make_summary(RUN, **altered), RUN)

    assert len(read(lines)) == 100 and read([], epochs=0) == []
    with pytest.raises(
        InvalidRecord, match=r"^its metrics are not those of 100 epochs: move it away and run it again$"
    ):
        read([*lines, lines[-1] | {"epoch": 100}])
    with pytest.raises(InvalidRecord, match=r"^the last epoch of its metrics contradicts its summary"):
        read([*lines[:-1], lines[-1] | {"top1": 74.9}])
    read([*lines[:-2], lines[-2] | {"top1": 0.0}, lines[-1]])
    with pytest.raises(
        InvalidRecord,
        match=r"^its metrics are invalid \(epoch is missing or invalid\): move it away and run it again$",
    ):
        read([{}, *lines[1:]])


def test_an_altered_run_keeps_its_experiment_where_two_have_the_configuration(
    make_summary: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = validation.lock()
    info = RUN.info
    own, other = "rigl_s90 x=1", "acdc_s90 x=1"
    for specs in ((own, other), (other, own)):
        scale = {"rigl_s90": replace(info, config_hash="1" * 64), **dict.fromkeys(specs, info)}
        monkeypatch.setattr(validation, "lock", lambda scale=scale: known | {"": scale})
        run = validation._identify(make_summary(RUN, overridden=True))
        assert run == RunSpec("rigl_s90", 1, ("x=1",))


# files of records


def test_records_are_written_with_one_space_before_each_level(
    tmp_path: Path, write_record: Callable[..., Path], make_summary: Callable[..., dict[str, Any]]
) -> None:
    lost = make_summary(RUN, status="diverged", reason="the loss is inf", epochs=1)
    paths = [write_record(tmp_path, RUN), records.write_divergence(RUN, lost, tmp_path)]
    paths.append(records.write_divergence(RUN, lost, tmp_path))  # over the first
    for path in paths:
        assert path.read_text().rstrip() == json.dumps(json.loads(path.read_text()), indent=1)
    assert records.read_diverged(results=tmp_path) == ({RUN: "the loss is inf"}, [])


def test_a_record_has_the_metrics_of_its_summary(make_summary: Callable[..., dict[str, Any]]) -> None:
    content = make_summary(RUN, metrics={"top1_last": 75, "none": None, "odd": True})
    record = records.Record(RUN, content, Path("seed1.json"))
    assert record.has("top1_last") and record.metric("top1_last") == 75.0
    assert isinstance(record.metric("top1_last"), float)
    for name in ("none", "odd", "missing"):
        assert not record.has(name)
        with pytest.raises(InvalidRecord, match=rf"^seed1\.json: metrics has no {name}$"):
            record.metric(name)


def test_the_folders_and_names_of_records() -> None:
    place = Path("results")
    folders = {"": "runs", "digits": "demo", "cifar16": "cifar16", "epochs20": "epochs20", "tiny": "tiny"}
    assert {demo: records.folder_of(demo, place) for demo in folders} == {
        demo: place / name for demo, name in folders.items()
    }
    assert records.record_path("a/b", 3, place) == place / "a" / "b" / "seed3.json"
    assert records.path_of(RUN) == records.RECORDS / "rigl_s90" / "seed1.json"
    assert records.diverged_path(Path("a/seed3.json")) == Path("a/seed3.diverged.json")
    assert records.metrics_path(Path("a/seed3.json")) == Path("a/seed3.metrics.jsonl")


def test_a_record_is_read_by_itself_where_its_path_ends_as_it_should(
    tmp_path: Path, write_record: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_record(tmp_path / "anywhere", RUN)
    assert records.read(path).run == records.read(path, tmp_path / "anywhere").run == RUN
    monkeypatch.chdir(path.parent)
    assert records.read(Path(path.name)).run == RUN
    with pytest.raises(InvalidRecord, match="it is in a wrong place: move it to "):
        records.read(path, tmp_path)
    moved = path.rename(path.with_name("seed2.json"))
    with pytest.raises(
        InvalidRecord, match=r"move it to runs/rigl_s90/seed1\.json, or remove it if that exists$"
    ):
        records.read(moved)


def test_only_the_wanted_runs_are_read_and_what_is_at_no_runs_place(
    tmp_path: Path, write_record: Callable[..., Path]
) -> None:
    write_record(tmp_path, RUN)
    write_record(tmp_path, RunSpec("acdc_s90", 0)).write_text("{")  # not wanted
    stray = tmp_path / "runs" / "mine" / "seed0.json"
    stray.parent.mkdir()
    stray.write_text("{")
    loaded, problems = records.read_runs([RUN, RunSpec("dense", 0)], results=tmp_path)
    assert list(loaded) == [RUN] and len(problems) == 1 and problems[0].startswith(f"{stray}: ")
    assert records.read_runs([RUN], results=tmp_path / "none") == ({}, [])


def test_which_runs_keep_their_epochs() -> None:
    """At the paper's scale the task says so, in a study all do, else those of a figure's curves."""
    kept = {
        RunSpec("rigl_s90", 0),
        RunSpec("rigl_s90", 0, demo="cifar16"),
        RunSpec("dense", 0, demo="digits"),
    }
    lost = {RunSpec("node/cora_gcn", 0), RunSpec("rigl_s90", 0, demo="digits")}
    assert {run for run in kept | lost if records.stores_history(run)} == kept


def test_epochs_that_contradict_their_record_make_it_invalid(
    tmp_path: Path, write_record: Callable[..., Path]
) -> None:
    path = write_record(tmp_path, RUN)
    metrics = records.metrics_path(path)
    metrics.write_text("{}\n")
    with pytest.raises(InvalidRecord, match=f"^{path}|{metrics}: its metrics are invalid"):
        records.read(path)


def test_a_lock_file_that_is_out_of_date_is_said_once(
    tmp_path: Path, write_record: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(tmp_path, RUN)

    def fail() -> None:
        raise PlanError("out of date")

    monkeypatch.setattr(records, "lock", fail)
    with pytest.raises(PlanError, match=r"^out of date$"):
        records.read_all(results=tmp_path)
