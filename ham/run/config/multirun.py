"""The jobs of `train.py -m`, checked before the first one starts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ham.experiments import CONFIGS

from .compose import is_hydra_key, load
from .errors import ConfigError


def check_jobs(overrides: Sequence[str]) -> None:
    """Raise ConfigError if -m selects no job, or a job that `check_composes` rejects.

    In that case Hydra would start no job, with its own error.
    """
    for job in _jobs(overrides):
        check_composes(job)


def check_composes(overrides: Sequence[str]) -> None:
    """Raise ConfigError on an unknown key, an unknown choice or a value of another type.

    Values out of range are not an error here: with -m they fail only their job.
    """
    try:
        load(overrides)
    except ConfigError as error:
        if error.__cause__ is None or isinstance(error.__cause__, HydraException | OmegaConfBaseException):
            raise


def parse_sweeps(overrides: Sequence[str]) -> list[Override]:
    """The parsed overrides, each of which may have several values. Raises ConfigError."""
    GlobalHydra.instance().clear()
    parsed = []
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        for text in overrides:
            try:
                parsed += parser.parse_overrides([text])
            except HydraException:
                usage = "write key=value or key=value1,value2, or see python train.py --help"
                raise ConfigError(f"{text!r} is not an override: {usage}") from None
    return parsed


def _jobs(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of the values of sweeps such as `seed=0,1` and `+exp=glob(acdc_*)`."""
    parsed = parse_sweeps(overrides)
    if any(override.get_key_element() == "hydra/sweeper" for override in parsed):  # has syntax of its own
        return []
    choices: list[list[str]] = []
    for override in parsed:
        key, text = override.get_key_element(), str(override.input_line)
        if not override.is_sweep_override():
            choices += [] if is_hydra_key(key) else [[text]]
        elif override.is_discrete_sweep():
            values = [f"{key}={value}" for value in override.sweep_string_iterator()]
            if not values:
                raise ConfigError(f"{text!r} selects no run: it has no value; see python train.py --list")
            choices.append(values)
        else:
            usage = "write key=value1,value2, range() or glob()"
            raise ConfigError(f"{text!r} is not a list of values: {usage}")
    return [list(job) for job in product(*choices)]
