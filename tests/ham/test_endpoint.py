"""Where rank 0 listens, from the variables of torchrun and SLURM."""

from __future__ import annotations

import hashlib

import pytest

from ham.agreement import StartError
from ham.endpoint import Endpoint, endpoint_of, first_node


def ports(run: str) -> tuple[int, ...]:
    """Sixteen ports from 20000 on, by the first 8 bytes of SHA-256."""
    digests = [hashlib.sha256(f"{run} {k}".encode()).hexdigest()[:16] for k in range(16)]
    return tuple(20000 + int(digest, 16) % 12000 for digest in digests)


def test_the_ports_of_a_step_follow_from_job_step_and_restart() -> None:
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2"}
    assert endpoint_of(step) == Endpoint("127.0.0.1", ports("7.2.0"), "7.2.0")
    again = endpoint_of(step | {"SLURM_RESTART_COUNT": "3"})
    assert (again.ports, again.run) == (ports("7.2.3"), "7.2.3")


def test_given_variables_win_over_those_of_slurm() -> None:
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2", "MASTER_PORT": "65535"}
    assert endpoint_of(step) == Endpoint("127.0.0.1", (65535,), "7.2.0")
    several = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "n[3-4]"}
    assert endpoint_of(step | several).address == "n3"
    assert endpoint_of(step | several | {"MASTER_ADDR": "host"}).address == "host"
    assert endpoint_of(step | several | {"MASTER_ADDR": ""}).address == "n3"


def test_outside_of_slurm_a_run_has_no_name() -> None:
    assert endpoint_of({"MASTER_PORT": "1", "SLURM_JOB_ID": "7"}) == Endpoint("127.0.0.1", (1,), "")


@pytest.mark.parametrize(
    ("environment", "what"),
    [
        ({}, "MASTER_PORT is missing"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT=0 is not a port"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT=65536 is not a port"),
        ({"MASTER_PORT": "no", "SLURM_STEP_ID": "1"}, "MASTER_PORT=no is not a port"),
    ],
)
def test_an_invalid_port_is_distinguished_from_a_missing_one(environment: dict[str, str], what: str) -> None:
    with pytest.raises(StartError) as caught:
        endpoint_of(environment)
    assert str(caught.value) == f"{what}: start all ranks with torchrun or srun"


def test_the_first_node_has_one_number_of_each_bracket() -> None:
    assert first_node("a[01-04,9]b[7,8],c") == "a01b7"
