"""What a record keeps of a run's summary, and which summaries are valid."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from .scales import SCALES
from .spec import MAX_SEED, RunSpec, lock

PLACES = ("runs_dir", "data.root")
DEMOS = tuple(SCALES)  # scales whose runs may become records; the accuracy of tiny is meaningless

_FIELDS = (
    *("exp", "cell", "task", "demo", "overridden", "seed", "config_hash", "status", "epochs"),
    *("graph", "graphs", "ham", "checkpoint", "answers", "metrics", "sparsity", "timing", "provenance"),
)
_PROVENANCE = (
    *("commit", "dirty", "python", "versions", "hardware", "threads", "ranks", "slurm_job", "argv"),
    *("config_hash", "resumed_from"),
)
_HARDWARE = ("cpu", "cores", "gpus")
_RESUMED = ("commit", "dirty", "hardware", "ranks")
_TYPES = {
    **{"exp": str, "overridden": bool, "seed": int, "config_hash": str, "status": str, "epochs": int},
    "provenance": dict,
}
_RESULT_TYPES = {"metrics": dict, "sparsity": dict}
_HASH = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_PATH = re.compile(r"(?<![\w.])(?:/|~/|[A-Za-z]:\\)[\w.]")  # does not match AC/DC


class InvalidRecord(Exception):
    """A summary or file that cannot be a record; the message is one line with the cure."""


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
        InvalidRecord: it is incomplete, of another configuration than today's, or its code is unknown.
    """
    if problem := _structure_error(summary, _TYPES | _RESULT_TYPES):
        raise InvalidRecord(f"it is incomplete: {problem}; run it again")
    if summary["status"] != "done":
        raise InvalidRecord(f"its status is {summary['status']!r}, not 'done': start it again to resume")
    run = _identify(summary)
    if problem := _value_error(summary, run):
        raise InvalidRecord(f"it is incomplete: {problem}; run it again")
    _check_configuration(summary, run)
    _check_provenance(summary, record(summary))
    return run


def check_divergence(content: Any) -> RunSpec:
    """The run that a diverged.json, or its record, is of.

    Raises:
        InvalidRecord: it is incomplete, of another configuration than today's, or its code is unknown.
    """
    if problem := _structure_error(content, _TYPES | {"reason": str}):
        raise InvalidRecord(f"it is incomplete: {problem}; run it again")
    if content["status"] != "diverged":
        raise InvalidRecord(f"its status is {content['status']!r}, not 'diverged': run it again")
    run = _identify(content)
    if content["config_hash"] != run.info.config_hash:
        raise InvalidRecord("it has another configuration than today's: run it again")
    if not 0 <= content["epochs"] <= run.info.epochs:
        raise InvalidRecord(f"it ended after {content['epochs']} of {run.info.epochs} epochs: run it again")
    _check_provenance(content, divergence_record(content))
    return run


def _check_provenance(content: dict[str, Any], kept: dict[str, Any]) -> None:
    """Raise InvalidRecord unless the code of each part is known and no path of a machine is kept."""
    for part in (content["provenance"], *content["provenance"].get("resumed_from", [])):
        check_code(part)
    if path := next(filter(_PATH.search, _texts(kept)), None):
        raise InvalidRecord(f"it names a path of a machine ({path!r}): remove that")


def _structure_error(summary: Any, types: dict[str, type]) -> str:
    """The field that is missing or of a wrong type, "" if none."""
    if not isinstance(summary, dict):
        return "not a JSON object"
    for key, kind in types.items():
        if not isinstance(summary.get(key), kind) or (kind is int and isinstance(summary[key], bool)):
            return f"no {key}"
    if not _HASH.fullmatch(summary["config_hash"]):
        return "no config_hash"
    if not 0 <= summary["seed"] <= MAX_SEED:
        return f"no seed within 0 and {MAX_SEED}"
    if "demo" not in summary or not isinstance(summary["demo"], str | None):
        return "no demo"
    argv = summary["provenance"].get("argv")
    if not isinstance(argv, list) or not all(isinstance(text, str) for text in argv):
        return "no provenance.argv"
    if not isinstance(summary["provenance"].get("resumed_from", []), list):
        return "no provenance.resumed_from"
    return ""


def _value_error(summary: dict[str, Any], run: RunSpec) -> str:
    """The number that is missing, out of range or contradicts another one, "" if none."""
    last, best = run.info.reported
    bounds = [
        ("metrics", last, 100),
        ("metrics", best, 100),
        ("sparsity", "target", 1),
        ("sparsity", "overall", 1),
    ]
    for part, name, upper in bounds:
        value = summary[part].get(name)
        if not is_number(value) or not 0 <= value <= upper:
            return f"no {part}.{name} within 0 and {upper}"
    if summary["metrics"][last] > summary["metrics"][best]:
        return f"{last} is above {best}"
    kept, total = (summary["sparsity"].get(key) for key in ("kept", "total"))
    if is_number(kept) and total and abs(1 - kept / total - summary["sparsity"]["overall"]) > 1e-6:
        return "sparsity.overall is not 1 - kept / total"
    return ""


def _identify(summary: dict[str, Any]) -> RunSpec:
    """The run in configs/lock.json; an altered one must be a point of a figure's or a search's grid."""
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
            "its values were altered on the command line and no figure, search or study has them: "
            "see train.py --list"
        )
    own, *overrides = min(specs, key=lambda spec: spec[0] != exp)
    return RunSpec(own, seed, tuple(overrides), demo)


def _check_configuration(summary: dict[str, Any], run: RunSpec) -> None:
    """Raise InvalidRecord unless configuration, length, task and masks are those of the run."""
    info, config_hash = run.info, summary["config_hash"]
    if config_hash != info.config_hash:
        raise InvalidRecord(
            f"it has another configuration ({config_hash[:8]}, now {info.config_hash[:8]}): run it again"
        )
    if (
        summary["provenance"].get("config_hash", config_hash) != config_hash
        or summary["epochs"] != info.epochs
    ):
        raise InvalidRecord("its hash, provenance and epochs contradict each other: run it again")
    if summary.get("task", info.task) != info.task:  # records of before tasks have none
        raise InvalidRecord(f"its task is {summary['task']!r}, not {info.task!r}: run it again")
    if abs(summary["sparsity"]["target"] - info.sparsity) > 1e-9:
        raise InvalidRecord(f"its target sparsity is not the experiment's {info.sparsity:g}: run it again")
    source = run.depends_on
    if source is not None and not _is_from(source, summary["sparsity"].get("masks_from")):
        raise InvalidRecord(f"its masks are not those of today's {source}: run that again, then this")


def _is_from(source: RunSpec, origin: Any) -> bool:
    identity = {"exp": source.exp, "seed": source.seed, "config_hash": source.info.config_hash}
    return isinstance(origin, dict) and all(origin.get(key) == value for key, value in identity.items())


def check_code(provenance: Any) -> None:
    """Raise InvalidRecord unless a provenance has a commit, without uncommitted changes."""
    if not isinstance(provenance, dict) or not _COMMIT.fullmatch(str(provenance.get("commit"))):
        raise InvalidRecord(
            "the commit of its code is unknown: set HAM_COMMIT where git is missing and run it again"
        )
    if provenance.get("dirty") not in (False, None):  # None: no git, the commit is from $HAM_COMMIT
        raise InvalidRecord("its code had uncommitted changes: commit and run it again")


def epochs(text: str, summary: dict[str, Any], run: RunSpec) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl without the bulky `layers`.

    Args:
        text: content of the file.
        summary: of the same run; `check` has accepted it.
        run: the run; its last epoch must have the summary's metric.

    Raises:
        InvalidRecord: they are not the consecutive epochs of this summary.
    """
    last, _ = run.info.reported
    try:
        lines = [json.loads(line) for line in text.splitlines()]
    except (ValueError, RecursionError):
        raise InvalidRecord("its metrics are not JSON lines: run it again") from None
    if not all(isinstance(line, dict) for line in lines):
        raise InvalidRecord("its metrics are not JSON objects: run it again")
    if [line.get("epoch") for line in lines] != list(range(summary["epochs"])):
        raise InvalidRecord(f"its metrics are not those of {summary['epochs']} epochs: run it again")
    if lines and lines[-1].get(last.removesuffix("_last")) != summary["metrics"][last]:
        raise InvalidRecord("the last epoch of its metrics contradicts its summary: run it again")
    return [{key: value for key, value in line.items() if key != "layers"} for line in lines]


def is_number(value: Any) -> bool:
    """Is it a finite int or float? A bool is not."""
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        parts = value if isinstance(value, list) else [*value.keys(), *value.values()]
        for part in parts:
            yield from _texts(part)
