"""Where rank 0 listens for the other ranks: MASTER_ADDR and MASTER_PORT, else the ports of a SLURM step."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ham.agreement import StartError

_PORTS = range(20000, 32000)  # below the ports that Linux gives to outgoing connections
_CANDIDATES = 16


@dataclass(frozen=True)
class Endpoint:
    """Where rank 0 listens.

    Args:
        address: address of rank 0's node.
        ports: candidate ports; the first free one is used.
        run: identifies the run; another run that listens on such a port is not ours.
    """

    address: str
    ports: tuple[int, ...]
    run: str = ""


def endpoint_of(environment: Mapping[str, str]) -> Endpoint:
    """Where rank 0 listens: MASTER_ADDR and MASTER_PORT, where they are set; else as of a SLURM step.

    The ports of a step follow from job, step and restart, so that other steps use other ports.

    Raises:
        StartError: MASTER_PORT is not a port, or is missing outside of SLURM.
    """
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    in_slurm = "SLURM_STEP_ID" in environment
    run = ".".join(environment.get(name, "0") for name in names) if in_slurm else ""
    given = environment.get("MASTER_PORT")
    ports = (_port(given),) if given is not None or not in_slurm else _slurm_ports(run)
    return Endpoint(environment.get("MASTER_ADDR") or _slurm_address(environment), ports, run)


def _port(text: str | None) -> int:
    if text is None or not text.isdecimal() or not 0 < int(text) < 2**16:
        problem = " is missing" if text is None else f"={text} is not a port"
        raise StartError(f"MASTER_PORT{problem}: start all ranks with torchrun or srun")
    return int(text)


def _slurm_ports(run: str) -> tuple[int, ...]:
    digests = (hashlib.sha256(f"{run} {k}".encode()).digest() for k in range(_CANDIDATES))
    return tuple(_PORTS[int.from_bytes(digest[:8], "big") % len(_PORTS)] for digest in digests)


def _slurm_address(environment: Mapping[str, str]) -> str:
    single_node = environment.get("SLURM_STEP_NUM_NODES", "1") == "1"  # no host name has to be resolved
    return "127.0.0.1" if single_node else first_node(environment["SLURM_STEP_NODELIST"])


def first_node(nodes: str) -> str:
    """First host of a SLURM node list: "a100-[003-006,010],b1" -> "a100-003"."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", nodes).group()
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)
