"""The rules of a record: what is kept of a run's summary, and which summaries are fit for it. No torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from .spec import RunSpec, lock

PLACES = ("runs_dir", "data.root")
DEMOS = ("digits",)  # scaled-down runs that may become records; tiny ones learn nothing

_FIELDS = (
    *("exp", "cell", "demo", "overridden", "seed", "config_hash", "status", "epochs"),
    *("graph", "ham", "metrics", "sparsity", "timing", "provenance"),
)
_FACTS = (
    *("commit", "dirty", "python", "versions", "hardware", "threads", "ranks", "slurm_job", "argv"),
    *("config_hash", "resumed_from"),
)
_HARDWARE = ("cpu", "cores", "gpus")
_EARLIER = ("commit", "dirty", "hardware", "ranks")
_HASH = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_PLACE = re.compile(r"(?<![\w.])(?:/|~/|[A-Za-z]:\\)[\w.]")  # AC/DC is none
_BEST = {True: ("valid_last", "valid_best"), False: ("top1_last", "top1_best")}  # of graphs, of images


class InvalidRecord(Exception):
    """This is no record of a run; the message is one line."""


def record(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary without its bulk, without places on a machine, and without what it should not hold."""
    kept = {key: summary[key] for key in _FIELDS if key in summary}
    kept["sparsity"] = {key: value for key, value in summary["sparsity"].items() if key != "layers"}
    return kept | {"provenance": strip_paths(summary["provenance"])}


def strip_paths(provenance: dict[str, Any]) -> dict[str, Any]:
    """A provenance whose command line names no place on this machine, and which names no host."""
    kept = {key: provenance[key] for key in _FACTS if key in provenance}
    told = (text for text in provenance["argv"] if text.partition("=")[0] not in PLACES)
    kept["argv"] = [text for text in told if not _PLACE.search(text)]
    return _strip_hostname(kept)


def _strip_hostname(made: dict[str, Any]) -> dict[str, Any]:
    """Of the hardware, models and numbers alone; the same of each process that worked on the run before."""
    if isinstance(hardware := made.get("hardware"), dict):
        made = made | {"hardware": {key: hardware[key] for key in _HARDWARE if key in hardware}}
    if isinstance(earlier := made.get("resumed_from"), list):
        told = ({key: e[key] for key in _EARLIER if key in e} for e in earlier if isinstance(e, dict))
        made = made | {"resumed_from": list(map(_strip_hostname, told))}
    return made


def check(summary: Any) -> RunSpec:
    """The run that a summary or a record is of.

    Raises:
        Unfit: it is not whole, not of today's configuration, or cannot say which code made it.
    """
    if lacking := _validation_error(summary):
        raise InvalidRecord(f"it is not whole: {lacking}; run it again")
    if summary["status"] != "done":
        raise InvalidRecord(f"its status is {summary['status']!r}, not 'done': start it again to go on")
    run = _identify(summary)
    info, here = run.info, summary["config_hash"]
    if here != info.config_hash:
        raise InvalidRecord(
            f"it has another configuration ({here[:8]}, now {info.config_hash[:8]}): run it again"
        )
    if summary["provenance"].get("config_hash", here) != here or summary["epochs"] != info.epochs:
        raise InvalidRecord("its hash, provenance and epochs contradict each other: run it again")
    if abs(summary["sparsity"]["target"] - info.sparsity) > 1e-9:
        raise InvalidRecord(f"its target sparsity is not the experiment's {info.sparsity:g}: run it again")
    if (source := run.depends_on) and not _is_from(source, summary["sparsity"].get("masks_from")):
        raise InvalidRecord(f"its masks are not those of today's {source}: run that again, then this")
    for made in (summary["provenance"], *summary["provenance"].get("resumed_from", [])):
        check_code(made)
    if found := next(filter(_PLACE.search, _texts(record(summary))), None):
        raise InvalidRecord(f"it names a place on a machine ({found!r}): take that out")
    return run


def _validation_error(summary: Any) -> str:
    """What a summary lacks, "" if nothing."""
    if not isinstance(summary, dict):
        return "no JSON object"
    kinds = {"exp": str, "overridden": bool, "seed": int, "config_hash": str, "status": str, "epochs": int}
    kinds |= {"metrics": dict, "sparsity": dict, "provenance": dict}
    for key, kind in kinds.items():
        if not isinstance(summary.get(key), kind) or (kind is int and isinstance(summary[key], bool)):
            return f"no {key}"
    if not _HASH.fullmatch(summary["config_hash"]):
        return "no config_hash"
    if not 0 <= summary["seed"] < 2**32:
        return "no seed within 0 and 2^32"
    if "demo" not in summary or not isinstance(summary["demo"], str | None):
        return "no demo"
    last, best = _BEST["graph" in summary]
    bounds = (
        ("metrics", last, 100),
        ("metrics", best, 100),
        ("sparsity", "target", 1),
        ("sparsity", "overall", 1),
    )
    for part, name, most in bounds:
        value = summary[part].get(name)
        if not is_number(value) or not 0 <= value <= most:
            return f"no {part}.{name} within 0 and {most}"
    if summary["metrics"][last] > summary["metrics"][best]:
        return f"{last} is above {best}"
    kept, total = (summary["sparsity"].get(key) for key in ("kept", "total"))
    if is_number(kept) and total and abs(1 - kept / total - summary["sparsity"]["overall"]) > 1e-6:
        return "sparsity.overall is not 1 - kept / total"
    argv = summary["provenance"].get("argv")
    if not isinstance(argv, list) or not all(isinstance(text, str) for text in argv):
        return "no provenance.argv"
    if not isinstance(summary["provenance"].get("resumed_from", []), list):
        return "no provenance.resumed_from"
    return ""


def _identify(summary: dict[str, Any]) -> RunSpec:
    """The run of the plan; an altered one must be a point of a figure's grid."""
    exp, seed, demo, here = (summary[key] for key in ("exp", "seed", "demo", "config_hash"))
    demo = demo or ""
    if demo not in ("", *DEMOS):
        raise InvalidRecord(f"it is scaled down to {demo!r}, which is no result: see +demo={DEMOS[0]}")
    known = lock()[demo]
    if exp not in known or " " in exp:
        raise InvalidRecord(
            f"configs/lock.json knows no experiment {exp!r}: run python scripts/lock.py if it is new"
        )
    if not summary["overridden"]:
        return RunSpec(exp, seed, demo=demo)
    specs = [spec.split() for spec, info in known.items() if info.config_hash == here and " " in spec]
    if not specs:
        raise InvalidRecord(
            "its values were altered on the command line and no figure shows them: see train.py --list"
        )
    own, *rest = min(specs, key=lambda spec: spec[0] != exp)
    return RunSpec(own, seed, tuple(rest), demo)


def _is_from(source: RunSpec, told: Any) -> bool:
    info = {"exp": source.exp, "seed": source.seed, "config_hash": source.info.config_hash}
    return isinstance(told, dict) and all(told.get(key) == fact for key, fact in info.items())


def check_code(made: Any) -> None:
    """Raise Unfit unless a provenance names the commit that made it, without uncommitted changes."""
    if not isinstance(made, dict) or not _COMMIT.fullmatch(str(made.get("commit"))):
        raise InvalidRecord(
            "the commit of its code is unknown: set HAM_COMMIT where git knows none and run it again"
        )
    if made.get("dirty") not in (False, None):  # None: copied without git, $HAM_COMMIT told the commit
        raise InvalidRecord("its code had uncommitted changes: commit and run it again")


def epochs(text: str, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl without the bulky `layers`.

    Raises:
        Unfit: they are not the epochs of this summary, one after the other.
    """
    try:
        lines = [json.loads(line) for line in text.splitlines()]
    except (ValueError, RecursionError):
        raise InvalidRecord("its metrics are not JSON lines: run it again") from None
    if not all(isinstance(line, dict) for line in lines):
        raise InvalidRecord("its metrics are not JSON objects: run it again")
    if [line.get("epoch") for line in lines] != list(range(summary["epochs"])):
        raise InvalidRecord(f"its metrics are not those of {summary['epochs']} epochs: run it again")
    if lines and lines[-1].get("top1") != summary["metrics"]["top1_last"]:
        raise InvalidRecord("the last epoch of its metrics contradicts its summary: run it again")
    return [{key: value for key, value in line.items() if key != "layers"} for line in lines]


def is_number(value: Any) -> bool:
    """Is it a finite number (and no truth value)?"""
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
