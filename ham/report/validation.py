"""What a record keeps of a run's summary, and which summaries are valid.

`check` and `epochs` accept nothing that a reader of records would have to check again: types, ranges and
characters are those of schema.py, and the run is one of the plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from ham.experiments import is_origin

from . import plan, schema
from .odd_files import AGAIN, InvalidRecord, parse_json
from .scales import SCALES
from .spec import RunSpec, lock

PLACES = ("runs_dir", "data.root")
DEMOS = tuple(SCALES)  # scales whose runs may become records; the accuracy of tiny is meaningless

_FIELDS = (
    *("exp", "cell", "task", "demo", "overridden", "seed", "config_hash", "status", "epochs", "ranks"),
    *("graph", "graphs", "ham", "checkpoint", "answers", "metrics", "sparsity", "timing", "provenance"),
)
_PROVENANCE = (
    *("commit", "dirty", "python", "versions", "hardware", "threads", "ranks", "slurm_job", "argv"),
    *("config_hash", "resumed_from"),
)
_HARDWARE = ("cpu", "cores", "gpus")
_RESUMED = ("commit", "dirty", "hardware", "ranks")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_PATH = re.compile(r"(?<![\w.])(?:/|~/|[A-Za-z]:\\)[\w.]")  # does not match AC/DC


def record(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary without its bulk, without paths of a machine, and without unknown fields."""
    kept = {key: summary[key] for key in _FIELDS if key in summary}
    kept["sparsity"] = {key: value for key, value in summary["sparsity"].items() if key != "layers"}
    return kept | {"provenance": strip_paths(summary["provenance"])}


def divergence_record(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a diverged.json without paths of a machine, and without unknown fields."""
    kept = {key: content[key] for key in (*_FIELDS, "reason") if key in content}
    return kept | {"provenance": strip_paths(content["provenance"])}


def strip_paths(provenance: dict[str, Any]) -> dict[str, Any]:
    """A provenance without paths on its command line and without host names."""
    kept = {key: provenance[key] for key in _PROVENANCE if key in provenance}
    portable = (text for text in provenance["argv"] if text.partition("=")[0] not in PLACES)
    kept["argv"] = [text for text in portable if not _PATH.search(text)]
    return strip_hostname(kept)


def strip_hostname(provenance: dict[str, Any]) -> dict[str, Any]:
    """A provenance whose hardware has only models and counts, also in the parts that it resumed from."""
    if isinstance(hardware := provenance.get("hardware"), dict):
        provenance = provenance | {"hardware": {key: hardware[key] for key in _HARDWARE if key in hardware}}
    if isinstance(earlier := provenance.get("resumed_from"), list):
        parts = (
            {key: part[key] for key in _RESUMED if key in part} for part in earlier if isinstance(part, dict)
        )
        provenance = provenance | {"resumed_from": list(map(strip_hostname, parts))}
    return provenance


def check(summary: Any) -> RunSpec:
    """The run that a summary or a record is of.

    Raises:
        InvalidRecord: it is incomplete, of another configuration, or its code is unknown.
    """
    run = check_result(summary)
    _check_provenance(summary, record(summary))
    return run


def check_result(summary: Any) -> RunSpec:
    """`check` of a run whose code need not be known, such as one that is looked at while others run."""
    _check_identity(summary)
    if summary["status"] != "done":
        raise InvalidRecord(f"its status is {summary['status']!r}, not 'done': start it again to resume")
    run = _identify(summary)
    if problem := _result_error(summary, run):
        raise InvalidRecord(f"it is incomplete: {problem}; {AGAIN}")
    _check_configuration(summary, run)
    return run


def check_divergence(content: Any) -> RunSpec:
    """The run that a diverged.json, or its record, is of.

    Raises:
        InvalidRecord: it is incomplete, of another configuration, or its code is unknown.
    """
    _check_identity(content)
    if problem := schema.label(content.get("reason"), "reason"):
        raise InvalidRecord(f"it is incomplete: {problem}; {AGAIN}")
    if content["status"] != "diverged":
        raise InvalidRecord(f"its status is {content['status']!r}, not 'diverged': {AGAIN}")
    run = _identify(content)
    if content["config_hash"] != run.info.config_hash:
        raise InvalidRecord(f"its configuration hash differs from configs/lock.json: {AGAIN}")
    if content["epochs"] > run.info.epochs:
        raise InvalidRecord(f"it ended after {content['epochs']} of {run.info.epochs} epochs: {AGAIN}")
    _check_provenance(content, divergence_record(content))
    return run


def _check_identity(summary: Any) -> None:
    """Raise InvalidRecord unless what a finished and a diverged run share is complete."""
    if problem := schema.IDENTITY(summary, ""):
        raise InvalidRecord(f"it is incomplete: {problem}; {AGAIN}")
    count = summary["provenance"].get("ranks", 1)
    agreed = summary.get("ranks", {"world_size": 1, "agreed": True})  # older summaries of one rank have none
    is_counted = agreed == {"world_size": count, "agreed": True} and not isinstance(
        agreed["world_size"], bool
    )
    if not is_counted or agreed["agreed"] is not True:
        raise InvalidRecord(f"its ranks did not agree at the end, their weights differ: {AGAIN}")


def _check_provenance(content: dict[str, Any], kept: dict[str, Any]) -> None:
    """Raise InvalidRecord unless the code of each part is known and what is kept is free of odd values."""
    for part in (content["provenance"], *content["provenance"].get("resumed_from", [])):
        check_code(part)
    if problem := schema.odd_value(kept):
        raise InvalidRecord(f"{problem}: {AGAIN}")
    if path := next(filter(_PATH.search, _texts(kept)), None):
        raise InvalidRecord(f"it names a path of a machine ({path!r}): remove that")


def _result_error(summary: dict[str, Any], run: RunSpec) -> str:
    """The number that is missing, out of range or contradicts another one, "" if none."""
    last, best = run.info.reported
    if problem := schema.results(required_metrics(run), run.info.task == "nodes")(summary, ""):
        return problem
    if summary["metrics"][last] > summary["metrics"][best]:
        return f"{last} is above {best}"
    kept, total = (summary["sparsity"].get(key) for key in ("kept", "total"))
    if kept is not None and total and abs(1 - kept / total - summary["sparsity"]["overall"]) > 1e-6:
        return "sparsity.overall is not 1 - kept / total"
    return ""


def required_metrics(run: RunSpec) -> tuple[str, ...]:
    """The metrics in percent that a run's summary must have; that of a demo may lack a test set."""
    return run.info.reported + (() if run.demo else _shown_metrics().get(run.exp, ()))


@cache
def _shown_metrics() -> dict[str, tuple[str, ...]]:
    """Experiment -> the metrics that tables show of it; the page of a node experiment also shows the test."""
    shown: dict[str, set[str]] = {}
    for name in plan.tables():
        for cell in plan.table(name).cells:
            test = {"test_at_best"} if RunSpec(cell.exp, 0).info.task == "nodes" else set()
            shown.setdefault(cell.exp, set()).update({cell.metric}, test)
    return {exp: tuple(sorted(metrics)) for exp, metrics in shown.items()}


def _identify(summary: dict[str, Any]) -> RunSpec:
    """The run in configs/lock.json; one with overrides must be a point of a figure's or a search's grid."""
    exp, seed, demo, config_hash = (summary[key] for key in ("exp", "seed", "demo", "config_hash"))
    demo = demo or ""
    if demo not in ("", *DEMOS):
        raise InvalidRecord(
            f"it is scaled down to {demo!r}, which has no records: use +demo={' or +demo='.join(DEMOS)}"
        )
    known = lock()[demo]
    if exp not in known or " " in exp:
        raise InvalidRecord(
            f"configs/lock.json has no experiment {exp!r}: run python scripts/lock.py if it is new"
        )
    if not summary["overridden"]:
        return RunSpec(exp, seed, demo=demo)
    specs = [spec.split() for spec, info in known.items() if info.config_hash == config_hash and " " in spec]
    if not specs:
        raise InvalidRecord(
            "it has overrides on the command line and no figure, search or study has them: "
            "see train.py --list"
        )
    own, *overrides = min(specs, key=lambda spec: spec[0] != exp)
    return RunSpec(own, seed, tuple(overrides), demo)


def _check_configuration(summary: dict[str, Any], run: RunSpec) -> None:
    """Raise InvalidRecord unless configuration, length, task and masks are those of the run."""
    info, config_hash = run.info, summary["config_hash"]
    if config_hash != info.config_hash:
        raise InvalidRecord(
            f"its configuration hash differs from configs/lock.json ({config_hash[:8]}, now "
            f"{info.config_hash[:8]}): {AGAIN}"
        )
    if (
        summary["provenance"].get("config_hash", config_hash) != config_hash
        or summary["epochs"] != info.epochs
    ):
        raise InvalidRecord(f"its hash, provenance and epochs contradict each other: {AGAIN}")
    if summary.get("task", info.task) != info.task:  # older records have none
        raise InvalidRecord(f"its task is {summary['task']!r}, not {info.task!r}: {AGAIN}")
    if abs(summary["sparsity"]["target"] - info.sparsity) > 1e-9:
        raise InvalidRecord(f"its target sparsity is not the experiment's {info.sparsity:g}: {AGAIN}")
    source = run.depends_on
    if source is not None and not _is_from(source, summary["sparsity"].get("masks_from")):
        raise InvalidRecord(f"its masks are not those of the current {source}: {AGAIN}")


def _is_from(source: RunSpec, origin: Any) -> bool:
    return is_origin(origin, exp=source.exp, seed=source.seed, config_hash=source.info.config_hash)


def check_code(provenance: Any) -> None:
    """Raise InvalidRecord unless a provenance has a commit, without uncommitted changes."""
    commit = provenance.get("commit") if isinstance(provenance, dict) else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise InvalidRecord(
            f"the commit of its code is unknown: set HAM_COMMIT where git is missing, {AGAIN}"
        )
    if provenance.get("dirty") not in (False, None):  # None: no git, the commit is from $HAM_COMMIT
        raise InvalidRecord(f"its code had uncommitted changes: commit, {AGAIN}")


def epochs(content: bytes, summary: dict[str, Any], run: RunSpec) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl without the bulky `layers`.

    Args:
        content: content of the file.
        summary: summary of the same run; `check` has accepted it.
        run: the run; its last epoch must have the summary's metric.

    Raises:
        InvalidRecord: they are not the consecutive epochs of this summary.
    """
    last, _ = run.info.reported
    try:
        lines = list(map(parse_json, content.splitlines()))
    except InvalidRecord:
        raise InvalidRecord(f"a line of its metrics is not JSON: {AGAIN}") from None
    if problem := next(filter(None, map(schema.epoch_error, lines)), ""):
        raise InvalidRecord(f"its metrics are invalid ({problem}): {AGAIN}")
    if [line["epoch"] for line in lines] != list(range(summary["epochs"])):
        raise InvalidRecord(f"its metrics are not those of {summary['epochs']} epochs: {AGAIN}")
    if lines and lines[-1].get(last.removesuffix("_last")) != summary["metrics"][last]:
        raise InvalidRecord(f"the last epoch of its metrics contradicts its summary: {AGAIN}")
    return [{key: value for key, value in line.items() if key != "layers"} for line in lines]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        parts = value if isinstance(value, list) else [*value.keys(), *value.values()]
        for part in parts:
            yield from _texts(part)
