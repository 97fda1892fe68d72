"""Hydra's edge: command line -> composed, checked, typed `Config`. Nothing below this file knows Hydra."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from .registry import SCHEMAS
from .schema import Config, ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_DEMO_SECTIONS = ("model", "optimizer", "sparsifier")
# how and where a run is carried out, not what it computes: outside the hash, no override of the experiment
_CIRCUMSTANCES = (
    *("runs_dir", "resume", "wandb", "checkpoint"),
    *("compute.device", "compute.threads", "compute.timeout", "data.root", "data.workers"),
)
# options added after results were recorded -> the value that stands for what was done before
_LATER = {
    "optimizer.sam_ascent": "averaged",
    "optimizer.matched_decay": 0.0,
    "compute.sync_bn": False,
    "data.min_crop": 0.08,
}
_SELECTORS = ("exp", "demo", "seed")


def load(overrides: Sequence[str]) -> Config:
    """The run that a command line such as `["+exp=acdc_ham_s90", "+demo=digits", "seed=1"]` names.

    Raises:
        ConfigError: anything wrong with it, in one line that names the cure.
    """
    overrides = order(overrides)
    parsed = _parse(overrides)
    _check_choices(parsed)
    _check_demo(parsed)
    try:
        node = _compose(overrides)
        with open_dict(node):
            node.name = _value(parsed, "exp") or "custom"
            node.overridden = any(_is_override(o.key_or_group) for o in parsed)
        return OmegaConf.to_object(node)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_explain(error, parsed)) from error


def order(overrides: Sequence[str]) -> list[str]:
    """The demo goes last: of two global groups the later one wins, and explicit values beat both."""
    return sorted(overrides, key=lambda text: text.lstrip("+").startswith("demo="))


def experiments() -> dict[str, str]:
    """Name -> the paper's cell, of every leaf in configs/exp."""
    return {name: OmegaConf.load(CONFIGS / "exp" / f"{name}.yaml").get("cell", "") for name in _files("exp")}


def scaled(overrides: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """What `+demo=` changes: dotted key -> (without, with)."""
    plain = [text for text in overrides if not text.lstrip("+").startswith("demo=")]
    before, after = (
        dict(flatten(OmegaConf.to_container(_compose(order(texts)), enum_to_str=True)))
        for texts in (plain, overrides)
    )
    # a demo's own name, and what only the unscaled data set has, are no change of scale
    return {k: (before.get(k), v) for k, v in after.items() if before.get(k) != v and k != "demo"}


def to_plain(cfg: Config) -> dict[str, Any]:
    """Nested dicts, lists and scalars, enums by name."""
    return OmegaConf.to_container(OmegaConf.structured(cfg), enum_to_str=True, resolve=True)


def to_yaml(cfg: Config) -> str:
    """The run's config.yaml; `kind` names the schema of each section."""
    plain = to_plain(cfg)
    for group, schemas in SCHEMAS.items():
        name = type(getattr(cfg, group)).__name__
        plain[group] = {"kind": next(k for k, s in schemas.items() if s.__name__ == name), **plain[group]}
    return OmegaConf.to_yaml(OmegaConf.create(plain))


def from_yaml(path: Path) -> Config:
    """The run that a config.yaml of `to_yaml` is of.

    Raises:
        ConfigError: there is no such file, or it is of another version of this program.
    """
    try:
        content = OmegaConf.load(path)
        sections = {
            group: OmegaConf.merge(
                OmegaConf.structured(schemas[content[group].pop("kind")]), content.pop(group)
            )
            for group, schemas in SCHEMAS.items()
        }
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), content, sections))
    except FileNotFoundError as error:
        raise ConfigError(f"{path.parent} holds no run: there is no {path.name}") from error
    except (OmegaConfBaseException, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} does not fit this version: {_first_line(error)}") from error


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, leaf) of a nested dict."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def config_hash(cfg: Config) -> str:
    """SHA-256 over what a run computes, seed apart: equal for every seed and wherever it is carried out.

    Options that came later count only where they are not what was done before them (`_LATER`), so that
    results of earlier runs stay valid.
    """
    told = ("name", "cell", "overridden", "seed", *(f"{section}.demo" for section in _DEMO_SECTIONS))
    kinds = {name: type(getattr(cfg, name)).__name__ for name in SCHEMAS}
    science = {
        key: value
        for key, value in flatten(to_plain(cfg))
        if not _is_within(key, (*told, *_CIRCUMSTANCES)) and (key not in _LATER or _LATER[key] != value)
    }
    return hashlib.sha256(json.dumps([kinds, science], sort_keys=True).encode()).hexdigest()


def _compose(overrides: list[str]) -> DictConfig:
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        node = compose("train", overrides)
    _scale(node, _parse(overrides))
    return node


def register() -> None:
    """Tell Hydra the schemas; composing does it on its own."""
    store = ConfigStore.instance()
    store.store(name="config_schema", node=Config)
    for group, schemas in SCHEMAS.items():
        for name, node in schemas.items():
            store.store(group=group, name=f"{name}_schema", node=node)


def _scale(node: DictConfig, parsed: list[Override]) -> None:
    """A demo run takes the `demo` values of its sections; the command line beats them."""
    if not node.demo:
        return
    explicit = {o.key_or_group for o in parsed}
    for section in _DEMO_SECTIONS:
        for key, value in node[section].demo.items():
            if f"{section}.{key}" not in explicit:
                node[section][key] = value


def _parse(overrides: list[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            raise ConfigError(
                f"{text!r} is no override: write key=value, or see python train.py --help"
            ) from None
        if override.is_sweep_override():
            raise ConfigError(f"{text!r} names several runs: start them with python train.py -m")
        parsed.append(override)
    return parsed


def _check_choices(parsed: list[Override]) -> None:
    """Unknown experiments and group choices, with the nearest names."""
    if not any(o.key_or_group in ("exp", "model") for o in parsed):
        raise ConfigError("name an experiment, such as +exp=acdc_ham_s90; python train.py --list shows all")
    for override in parsed:
        group = override.key_or_group
        if override.is_delete():
            raise ConfigError(f"~{group} deletes nothing here: choose another {group}, such as {group}=none")
        if override.is_add() and group not in ("exp", "demo"):
            raise ConfigError(f"+{group} adds nothing here: write {group}={override.value()}, without a plus")
        choices = _files(group) if "." not in group else []
        if choices and override.value() not in choices:
            nearest = difflib.get_close_matches(str(override.value()), choices, n=3, cutoff=0.0)
            kind = "experiment" if group == "exp" else group
            raise ConfigError(f"unknown {kind} {override.value()!r}; nearest: {', '.join(nearest)}")
        if choices and group in ("exp", "demo") and not override.is_add():
            raise ConfigError(f"write +{group}={override.value()}, with a plus")


def _check_demo(parsed: list[Override]) -> None:
    """A demo swaps the images; a graph is no image."""
    if str(_value(parsed, "exp")).startswith("node/") and (demo := _value(parsed, "demo")):
        raise ConfigError(
            f"+demo={demo} is for images, and node experiments run on a CPU as they are: leave it out"
        )


def _files(group: str) -> list[str]:
    """Names of a group's choices, those in folders of it as folder/name."""
    place = CONFIGS / group
    return sorted(str(path.relative_to(place).with_suffix("")) for path in place.rglob("*.yaml"))


def _explain(error: Exception, parsed: list[Override]) -> str:
    """The innermost cause on one line, with the key it is about and what to do."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    if "raised while composing config" in lines[0]:
        return _explain_unknown(
            next(x.split()[-1] for x in lines if x.strip().startswith("full_key")), parsed
        )
    message = lines[0].rstrip(".")
    if isinstance(error, OmegaConfBaseException):
        key = getattr(error, "full_key", None) or getattr(error, "key", None) or ""
        if "not in" in message:
            return _explain_unknown(str(key), parsed)
        if "Missing mandatory value" in message or "MissingMandatoryValue" in type(error).__name__:
            return f"{key} is not set: give {key}=VALUE"
        return f"{key}: {message}"
    if message.startswith("Could not override"):
        return _explain_unknown(message.split("'")[1].split("@")[0], parsed)
    if message.startswith("You must specify"):
        group = message.split("'")[1]
        return f"no {group} is chosen: give {group}=NAME, or an experiment with +exp=NAME"
    return message


def _explain_unknown(key: str, parsed: list[Override]) -> str:
    group = key.partition(".")[0]
    chosen = {o.key_or_group: o.value() for o in parsed}
    if group in SCHEMAS and group in chosen and key not in chosen:
        return (
            f"{group}={chosen[group]} has no {key}, which experiment {chosen.get('exp')} sets: "
            f"take an experiment made for it (python train.py --list), or {group}= of the same kind"
        )
    known = _known_keys()
    if key in known and group in SCHEMAS:
        owners = [
            name
            for name, schema in SCHEMAS[group].items()
            if key.split(".")[1] in schema.__dataclass_fields__
        ]
        choices = " or ".join(_choices(group, owners))
        return f"{key} belongs to {group}={choices} alone: choose that, or leave it out"
    leaf, leaves = key.rpartition(".")[2], {name: name.rpartition(".")[2] for name in known}
    alike = [leaf] if leaf in leaves.values() else difflib.get_close_matches(leaf, {*leaves.values()}, n=1)
    nearest = [name for name, last in leaves.items() if last in alike]
    nearest = nearest or difflib.get_close_matches(key, known, n=3, cutoff=0.0)
    return f"unknown key {key}; nearest: {', '.join(dict.fromkeys(nearest))}"


def _choices(group: str, schemas: list[str]) -> list[str]:
    """The files of a group that are of these schemas."""
    paths = sorted((CONFIGS / group).glob("*.yaml"))
    return [path.stem for path in paths if any(f"{name}_schema" in path.read_text() for name in schemas)]


def _known_keys() -> list[str]:
    told = ("name", "cell", "demo", "overridden", *SCHEMAS)
    known = [
        key for key, _ in flatten(OmegaConf.to_container(OmegaConf.structured(Config))) if key not in told
    ]
    for group, schemas in SCHEMAS.items():
        for schema in schemas.values():
            keys = flatten(OmegaConf.to_container(OmegaConf.structured(schema)), f"{group}.")
            known += [key for key, _ in keys if not key.startswith(f"{group}.demo")]
    return known


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _value(parsed: list[Override], key: str) -> Any:
    return next((o.value() for o in parsed if o.key_or_group == key), None)


def _is_override(key: str) -> bool:
    return key not in _SELECTORS and not _is_within(key, _CIRCUMSTANCES)


def _is_within(key: str, places: Sequence[str]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)
