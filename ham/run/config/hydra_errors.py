"""Turn an error of Hydra or OmegaConf into one line that names the key and the cure."""

from __future__ import annotations

import difflib

from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ham.errors import one_line
from ham.experiments import CONFIGS
from ham.files import read_text

from .config_hash import flatten
from .registry import SCHEMAS
from .schema import Config


def explain_hydra(error: BaseException, parsed: list[Override]) -> str:
    """The innermost cause on one line, with the key it is about and the cure."""
    while error.__cause__ is not None and not isinstance(error, OmegaConfBaseException):
        error = error.__cause__  # OmegaConf's own error names the key; under a tracer it has a cause too
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        nearest = difflib.get_close_matches(name, error.options or [], n=3, cutoff=0.0)
        return f"unknown {group or 'configuration'} {name!r}; nearest: {', '.join(nearest)}"
    lines = str(error).strip().splitlines() or [""]
    if "raised while composing config" in lines[0]:
        return _unknown_key(next(x.split()[-1] for x in lines if x.strip().startswith("full_key")), parsed)
    message = one_line(error).rstrip(".")
    if isinstance(error, OmegaConfBaseException):
        key = getattr(error, "full_key", None) or getattr(error, "key", None) or ""
        if "not in" in message:
            return _unknown_key(str(key), parsed)
        if "Missing mandatory value" in message or "MissingMandatoryValue" in type(error).__name__:
            return f"{key} is not set: give {key}=VALUE"
        return f"{key}: {message}"
    if message.startswith("Could not override"):
        return _unknown_key(message.split("'")[1].split("@")[0], parsed)
    if message.startswith("You must specify"):
        group = message.split("'")[1]
        return f"{group} is not chosen: give {group}=NAME, or an experiment with +exp=NAME"
    return message


def _unknown_key(key: str, parsed: list[Override]) -> str:
    group = key.partition(".")[0]
    if group == "hydra":
        return f"unknown key {key}: python train.py +exp=NAME --cfg hydra shows Hydra's own keys"
    chosen = {o.key_or_group: o.value() for o in parsed}
    if group in SCHEMAS and group in chosen and key not in chosen:
        return (
            f"{group}={chosen[group]} has no {key}, which experiment {chosen.get('exp')} sets: "
            f"choose an experiment made for it (python train.py --list), or {group}= of the same kind"
        )
    known = _known_keys()
    if key in known and group in SCHEMAS:
        owners = [
            name
            for name, schema in SCHEMAS[group].items()
            if key.split(".")[1] in schema.__dataclass_fields__
        ]
        choices = " or ".join(_choices(group, owners))
        return f"{key} exists only with {group}={choices}: choose that, or omit the key"
    leaf, leaves = key.rpartition(".")[2], {name: name.rpartition(".")[2] for name in known}
    similar = [leaf] if leaf in leaves.values() else difflib.get_close_matches(leaf, {*leaves.values()}, n=1)
    nearest = [name for name, last in leaves.items() if last in similar]
    nearest = nearest or difflib.get_close_matches(key, known, n=3, cutoff=0.0)
    return f"unknown key {key}; nearest: {', '.join(dict.fromkeys(nearest))}"


def _choices(group: str, schemas: list[str]) -> list[str]:
    """The files of a group that use one of these schemas."""
    paths = sorted((CONFIGS / group).glob("*.yaml"))
    texts = {path.stem: read_text(path) for path in paths}
    return [name for name, text in texts.items() if any(f"{schema}_schema" in text for schema in schemas)]


def _known_keys() -> list[str]:
    internal = ("name", "cell", "demo", "overridden", *SCHEMAS)
    fields = flatten(OmegaConf.to_container(OmegaConf.structured(Config)))
    known = [key for key, _ in fields if key not in internal]
    for group, schemas in SCHEMAS.items():
        for schema in schemas.values():
            keys = flatten(OmegaConf.to_container(OmegaConf.structured(schema)), f"{group}.")
            known += [key for key, _ in keys if not key.startswith(f"{group}.demo")]
    return known
