"""The configuration of a run: schema, composition from configs/ with Hydra, hash, one-line errors."""

from ham.experiments import CONFIGS, choices_of, experiments

from .compose import demo_changes, demo_last, literal_path, load, register
from .config_hash import config_hash, flatten, from_yaml, to_plain, to_yaml
from .errors import ConfigError
from .multirun import check_jobs
from .paths import base_of, demo_file, demos
from .registry import SCHEMAS
from .schema import Config

__all__ = [
    "CONFIGS",
    "SCHEMAS",
    "Config",
    "ConfigError",
    "base_of",
    "check_jobs",
    "choices_of",
    "config_hash",
    "demo_changes",
    "demo_file",
    "demo_last",
    "demos",
    "experiments",
    "flatten",
    "from_yaml",
    "literal_path",
    "load",
    "register",
    "to_plain",
    "to_yaml",
]
