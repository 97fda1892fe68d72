"""Command line -> composed, checked, typed `Config`. Nothing outside this package knows Hydra."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ham.command_line import unusable
from ham.experiments import CONFIGS, choices_of
from ham.tasks import task_of

from .config_hash import DEMO_SECTIONS, NOT_HASHED, flatten, is_within
from .errors import ConfigError
from .hydra_errors import explain_hydra
from .paths import demo_file, demos
from .registry import SCHEMAS
from .schema import Config

_SELECTORS = ("exp", "demo", "seed")
"""Keys that choose the run; its other values are overrides of the experiment."""
_PATHS = (
    *("runs_dir", "data.root", "data.train", "data.val"),
    *("model.checkpoint", "model.gguf", "sparsifier.source"),
)
"""Keys whose values are paths."""
_REGISTERED: dict[tuple[str | None, str], type] = {}


def load(overrides: Sequence[str]) -> Config:
    """The configuration of a command line such as `["+exp=acdc_ham_s90", "+demo=digits", "seed=1"]`.

    Raises:
        ConfigError: the command line is wrong; one line that names the cure.
    """
    overrides = demo_last(map(literal_path, overrides))
    parsed = parse(overrides)
    _check_choices(parsed)
    try:
        return _to_config(_compose(overrides), parsed)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        _check_demo(overrides, parsed)
        raise ConfigError(explain_hydra(error, parsed)) from error


def demo_last(overrides: Iterable[str]) -> list[str]:
    """The demo goes last: of two global groups the later one wins, and explicit values beat both."""
    return sorted(overrides, key=_is_demo)


def literal_path(override: str) -> str:
    """The override with its value quoted if it is a path: Hydra's grammar gives = , [ ' and others a meaning.

    Paths with Hydra's own quotes or with an interpolation are not changed.
    """
    key, _, value = override.partition("=")
    if key not in _PATHS or not value or value[0] in "'\"" or "${" in value:
        return override
    return f"{key}={QuotedString(text=value, quote=Quote.single).with_quotes()}"


def demo_changes(overrides: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """The changes by `+demo=`: dotted key -> (value without, value with)."""
    overrides = list(map(literal_path, overrides))
    plain = [text for text in overrides if not _is_demo(text)]
    before, after = (
        dict(flatten(OmegaConf.to_container(_compose(demo_last(texts)), enum_to_str=True)))
        for texts in (plain, overrides)
    )
    # a demo's own name, and what only the full-size data set has, do not change the scale
    return {
        k: (before.get(k), v) for k, v in after.items() if before.get(k) != v and not k.startswith("demo")
    }


def register() -> None:
    """Register the schemas with Hydra, once, since it takes time; `load` does it too."""
    schemas = {(None, "config"): Config}
    schemas |= {(group, name): node for group, own in SCHEMAS.items() for name, node in own.items()}
    for (group, name), node in schemas.items():
        if _REGISTERED.get((group, name)) is not node:
            ConfigStore.instance().store(group=group, name=f"{name}_schema", node=node)
            _REGISTERED[group, name] = node


def _to_config(node: DictConfig, parsed: list[Override]) -> Config:
    with open_dict(node):
        node.name = _value(parsed, "exp") or "custom"
        node.overridden = any(_is_override(o.key_or_group) for o in parsed)
    return OmegaConf.to_object(node)


def _compose(overrides: list[str]) -> DictConfig:
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        node = compose("train", _with_demo_file(overrides))
    _scale(node, parse(overrides))
    return node


def _with_demo_file(overrides: list[str]) -> list[str]:
    """Some kinds of data have a file of their own for a demo."""
    chosen = {o.key_or_group: o.value() for o in parse(overrides)}
    if "demo" not in chosen or "exp" not in chosen:
        return overrides
    file = demo_file(chosen["demo"], chosen["exp"])
    return [f"+demo={file}" if _is_demo(text) else text for text in overrides]


def _scale(node: DictConfig, parsed: list[Override]) -> None:
    """Set the sections' values for the scale of a demo run; the command line overrides them."""
    explicit = {o.key_or_group for o in parsed}
    for section in DEMO_SECTIONS:
        for key, value in _demo_values(section, node).items():
            if f"{section}.{key}" not in explicit:
                OmegaConf.update(node, f"{section}.{key}", value, merge=True)  # a schedule is a section


def _demo_values(section: str, node: DictConfig) -> dict[str, Any]:
    """A section's values for the scale `demo_values`."""
    by_scale = OmegaConf.to_container(node[section].demo)
    for scale, values in by_scale.items():
        if not isinstance(values, dict):
            raise ConfigError(
                f"{section}.demo must map a scale to values, such as digits: {{{scale}: {values}}}"
            )
    return by_scale.get(node.demo_values, {})


def parse(overrides: Iterable[str]) -> list[Override]:
    """The parsed overrides. Raises ConfigError on one that is wrong or names several runs."""
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        if problem := unusable(text):
            raise ConfigError(f"{text!a} has {problem}: choose another name")
        try:
            override = parser.parse_override(text)
        except HydraException:
            raise ConfigError(
                f"{text!r} is not an override: write key=value, or see python train.py --help"
            ) from None
        if not override.key_or_group:
            raise ConfigError(f"{text!r} has no key: write key=value")
        if override.package is not None:
            raise ConfigError(f"{text!r} has a package: write it without @{override.package}")
        if override.is_sweep_override():
            raise ConfigError(f"{text!r} names several runs: start them with python train.py -m")
        parsed.append(override)
    return parsed


def _check_choices(parsed: list[Override]) -> None:
    """Reject unknown experiments and group choices, with the nearest names, and choices given twice."""
    if not any(o.key_or_group in ("exp", "model") for o in parsed):
        raise ConfigError("name an experiment, such as +exp=acdc_ham_s90; python train.py --list shows all")
    chosen: dict[str, Override] = {}
    for override in parsed:
        group = override.key_or_group
        if override.is_delete():
            has_none = "." not in group and "none" in choices_of(group)
            cure = f"choose another {group}, such as {group}=none" if has_none else f"set {group}=... instead"
            raise ConfigError(f"~{group} has no effect: {cure}")
        if override.is_add() and group not in ("exp", "demo"):
            raise ConfigError(f"+{group} has no effect: write {group}={override.value()}, without a plus")
        choices = demos() if group == "demo" else choices_of(group) if "." not in group else []
        if choices and override.value() in ("", None):
            examples = f"choose one of {', '.join(choices[:3])}, ..."
            cure = "python train.py --list shows all" if group == "exp" else examples
            raise ConfigError(f"{override.input_line} names nothing: {cure}")
        if choices or group in _SELECTORS:
            _check_given_once(chosen.setdefault(group, override), override)
        if choices and override.value() not in choices:
            nearest = difflib.get_close_matches(str(override.value()), choices, n=3, cutoff=0.0)
            kind = "experiment" if group == "exp" else group
            raise ConfigError(f"unknown {kind} {override.value()!r}; nearest: {', '.join(nearest)}")
        if choices and group in ("exp", "demo") and not override.is_add():
            raise ConfigError(f"write +{group}={override.value()}, with a plus")


def _check_given_once(first: Override, override: Override) -> None:
    """Reject a second choice of the same run or group, of which Hydra would take one or none."""
    if override is first:
        return
    one, other = first.input_line, override.input_line
    if one == other:
        raise ConfigError(f"{one} is given twice: give it once")
    both = f"{first.get_key_element()}={first.value()},{override.value()}"
    raise ConfigError(f"{one} and {other}: give one of them, or start both with python train.py -m {both}")


def _check_demo(overrides: list[str], parsed: list[Override]) -> None:
    """Reject `+demo` for an experiment whose task cannot be scaled down to it."""
    if not (demo := _value(parsed, "demo")):
        return
    plain = [text for text in overrides if not _is_demo(text)]
    try:
        task = task_of(_to_config(_compose(plain), parse(plain)).data)
    except (HydraException, OmegaConfBaseException, ValueError):
        return  # wrong without the demo too
    if demo not in task.demos:
        names = " or ".join(f"+demo={name}" for name in sorted(task.demos))
        cure = f"use {names}, or " if names else ""
        raise ConfigError(
            f"+demo={demo} does not scale down {task.name}, which this experiment learns: {cure}omit it"
        )


def is_hydra_key(key: str) -> bool:
    """Return True for a key of Hydra's own configuration, which no run reads."""
    return key.startswith(("hydra.", "hydra/"))


def _is_demo(text: str) -> bool:
    return text.lstrip("+").startswith("demo=")


def _value(parsed: list[Override], key: str) -> Any:
    return next((o.value() for o in parsed if o.key_or_group == key), None)


def _is_override(key: str) -> bool:
    return key not in _SELECTORS and not is_within(key, NOT_HASHED)
