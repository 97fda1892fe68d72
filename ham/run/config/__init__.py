"""The configuration of a run: schema, composition from configs/ with Hydra, hash, one-line errors."""

from ham.experiments import CONFIGS, choices_of, experiments

from .compose import demo_changes, demo_last, literal_path, load
from .config_hash import config_hash, flatten, from_yaml, to_plain, to_yaml
from .errors import ConfigError
from .hydra_flags import parse_flags, run_hydra
from .paths import base_of, demo_file, demos
from .registry import SCHEMAS
from .schema import Config

__all__ = [
    "CONFIGS",
    "SCHEMAS",
    "Config",
    "ConfigError",
    "base_of",
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
    "parse_flags",
    "run_hydra",
    "to_plain",
    "to_yaml",
]
