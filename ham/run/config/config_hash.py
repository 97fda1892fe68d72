"""The configuration as plain values, as config.yaml, and its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ham.errors import one_line
from ham.files import open_text

from .errors import ConfigError
from .registry import SCHEMAS
from .schema import Config

DEMO_SECTIONS = ("model", "optimizer", "sparsifier")
"""Sections with values of their own for a demo run."""

NOT_HASHED = (
    *("runs_dir", "resume", "wandb", "checkpoint"),
    *("compute.device", "compute.threads", "compute.timeout", "data.root", "data.workers"),
)
"""Keys that do not affect the result: outside the hash, and not an override of the experiment."""

_HASH_DEFAULTS = {
    "optimizer.sam_ascent": "averaged",
    "optimizer.matched_decay": 0.0,
    "optimizer.label_smoothing": 0.0,
    "optimizer.schedule.milestones": None,
    "optimizer.schedule.gamma": None,
    "optimizer.schedule.warmup_steps": None,
    "optimizer.schedule.until": 1.0,
    "optimizer.schedule.per_epoch": False,
    "compute.sync_bn": False,
    "data.min_crop": 0.08,
    "data.per_class": 0,
    "data.validation_per_class": 0,
    "sparsifier.granularity": "element",
    "sparsifier.update_at_start": False,
}
"""Options added after results were recorded -> the value that equals the earlier behavior."""

_LABELS = (
    *("name", "cell", "overridden", "seed", "demo_values"),
    *(f"{section}.demo" for section in DEMO_SECTIONS),
)


def config_hash(cfg: Config) -> str:
    """SHA-256 of the keys that affect the result, without the seed: equal for all seeds and machines.

    Options added after records existed enter the hash only when they differ from the earlier behavior
    (`_HASH_DEFAULTS`), so that committed records stay valid.
    """
    kinds = {name: type(getattr(cfg, name)).__name__ for name in SCHEMAS}
    hashed = {
        key: value
        for key, value in flatten(to_plain(cfg))
        if not is_within(key, (*_LABELS, *NOT_HASHED))
        and (key not in _HASH_DEFAULTS or _HASH_DEFAULTS[key] != value)
    }
    return hashlib.sha256(json.dumps([kinds, hashed], sort_keys=True).encode()).hexdigest()


def to_plain(cfg: Config) -> dict[str, Any]:
    """Nested dicts, lists and scalars; enums by name."""
    return OmegaConf.to_container(OmegaConf.structured(cfg), enum_to_str=True, resolve=True)


_CONTENT_ERRORS = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


def to_yaml(cfg: Config) -> str:
    """The text of the run's config.yaml; `kind` names the schema of each section."""
    plain = to_plain(cfg)
    for group, schemas in SCHEMAS.items():
        name = type(getattr(cfg, group)).__name__
        plain[group] = {"kind": next(k for k, s in schemas.items() if s.__name__ == name), **plain[group]}
    return OmegaConf.to_yaml(OmegaConf.create(plain))


def from_yaml(path: Path) -> Config:
    """The configuration in a config.yaml that `to_yaml` wrote.

    Raises:
        ConfigError: the file is missing, damaged or was written by another version of this program.
    """
    try:
        with open_text(path) as file:
            content = OmegaConf.load(file)
        sections = {
            group: OmegaConf.merge(
                OmegaConf.structured(schemas[content[group].pop("kind")]), content.pop(group)
            )
            for group, schemas in SCHEMAS.items()
        }
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), content, sections))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"{path.parent} is not a run directory: {path.name} is missing") from error
    except (*_CONTENT_ERRORS, OmegaConfBaseException, YAMLError, OSError) as error:
        is_damaged = getattr(error, "errno", None) is None
        problem = "is damaged or does not fit this version" if is_damaged else "cannot be read"
        cure = "restore it, or train the run again with resume=false"
        if isinstance(error, IsADirectoryError):
            cure = f"move it away and {cure}"
        raise ConfigError(f"{path} {problem}: {one_line(error)}; {cure}") from error


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, leaf) of a nested dict."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def is_within(key: str, sections: Sequence[str]) -> bool:
    """Return True if a dotted key is one of `sections`, or below one of them."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)
