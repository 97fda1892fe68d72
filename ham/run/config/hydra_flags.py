"""Command lines with Hydra's flags: -m starts several runs, --cfg, --info and --hydra-help print."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import chdir, nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from ham.command_line import Parser
from ham.errors import one_line
from ham.experiments import CONFIGS

from .compose import demo_last, is_hydra_key, literal_path, parse, register
from .errors import ConfigError
from .hydra_errors import explain_hydra
from .multirun import check_composes, check_jobs, parse_sweeps

_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


class _Parser(Parser):
    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"{message}; see python train.py --help")


def parse_flags(argv: list[str]) -> Namespace:
    """The values of Hydra's flags, and all other words as `overrides`.

    Raises:
        ConfigError: a flag is unknown, lacks its value, or does not go with the others.
    """
    parser = _Parser(prog="train.py", add_help=False, allow_abbrev=False)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("-m", "--multirun", action="store_true")
    modes.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
    modes.add_argument("-i", "--info", nargs="?", const="all", choices=_INFO)
    modes.add_argument("--hydra-help", action="store_true")
    parser.add_argument("-p", "--package")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("overrides", nargs="*")
    flags, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        raise ConfigError(f"unknown flag {unknown[0].partition('=')[0]}; see python train.py --help")
    for name in ("package", "resolve"):
        if getattr(flags, name) and not flags.cfg:
            raise ConfigError(f"--{name} changes what --cfg prints: add --cfg job, or omit it")
    return flags


def run_hydra(flags: Namespace, job: Callable[[list[str]], object]) -> None:
    """Start the runs of -m, or print what another flag asks for.

    Args:
        flags: what `parse_flags` returned.
        job: function that executes the command line of one run; called in the current folder, whatever
            hydra.job.chdir is.

    Raises:
        ConfigError: Hydra cannot compose the configuration or start the runs.
    """
    words, overrides = _words(flags)
    failures = []
    start = Path.cwd()
    register()

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
    def run_job(_: object) -> None:
        try:
            with chdir(start):
                job(list(HydraConfig.get().overrides.task))
        except Exception as error:
            failures.append(error)
            raise

    sys.argv[1:] = words
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    printed = StringIO()
    try:
        with redirect_stderr(printed) if flags.package else nullcontext():
            run_job()
    except SystemExit as end:
        if flags.multirun:  # of a job
            raise
        if end.code:
            reason = printed.getvalue().strip()
            raise ConfigError(f"{reason}: give -p a section of it, such as optimizer") from None
    except Exception as error:
        if failures:
            raise
        raise ConfigError(_explain(error, overrides)) from error


def _words(flags: Namespace) -> tuple[list[str], list[Override]]:
    """The words for Hydra, and the overrides among them. Raises ConfigError."""
    if flags.hydra_help:
        return ["--hydra-help"], []
    given = demo_last(flags.overrides)
    if flags.multirun:
        texts = [text if "," in text or "(" in text else literal_path(text) for text in given]
        check_jobs(texts)
        return ["-m", *texts], parse_sweeps(texts)
    texts = list(map(literal_path, given))
    if flags.info:
        return [f"--info={flags.info}", *texts], parse(texts)
    check_composes(texts)
    options = [f"--package={flags.package}"] * bool(flags.package) + ["--resolve"] * flags.resolve
    return [f"--cfg={flags.cfg}", *options, *texts], parse(texts)


def _explain(error: Exception, overrides: list[Override]) -> str:
    """One line about an error of Hydra; values of Hydra's own keys are the most likely cause."""
    own = [str(o.input_line) for o in overrides if is_hydra_key(o.key_or_group)]
    cure = f"correct or omit {' and '.join(own)}" if own else ""
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        message = f"{error.filename or 'a folder of Hydra'} cannot be read or written ({one_line(error)})"
        return f"{message}; {cure or 'choose another runs_dir'}"
    return "; ".join(filter(None, [explain_hydra(error, overrides), cure]))
