"""The jobs of `train.py -m`, checked before the first one starts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ham.experiments import CONFIGS

from .compose import load
from .errors import ConfigError


def check_jobs(overrides: Sequence[str]) -> None:
    """Raise ConfigError if a job has an unknown key, an unknown choice or a value of another type.

    In that case Hydra would start no job, with its own error. Values out of range fail only their job.
    """
    for job in _jobs(overrides):
        try:
            load(job)
        except ConfigError as error:
            if error.__cause__ is None or isinstance(
                error.__cause__, HydraException | OmegaConfBaseException
            ):
                raise


def _jobs(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of the values of sweeps such as `seed=0,1` and `+exp=glob(acdc_*)`."""
    choices = []
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        for text in overrides:
            try:
                (override,) = parser.parse_overrides([text])
            except HydraException:
                usage = "write key=value or key=value1,value2, or see python train.py --help"
                raise ConfigError(f"{text!r} is not an override: {usage}") from None
            key = override.get_key_element()
            if key == "hydra/sweeper":  # has syntax of its own
                return []
            if not override.is_sweep_override():
                choices += [] if key.startswith(("hydra.", "hydra/")) else [[text]]
            elif override.is_discrete_sweep():
                choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
            else:
                usage = "write key=value1,value2, range() or glob()"
                raise ConfigError(f"{text!r} is not a list of values: {usage}")
    return [list(job) for job in product(*choices)]
