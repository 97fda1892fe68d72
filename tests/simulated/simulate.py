"""Run everything on the simulated device and write what was seen, as JSON: python simulate.py FILE

In a process of its own, which registers the device with torch for good and ends without Python's shutdown.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cells import CELLS, Around, train, write_masks
from probes import DOES_NOT_WAIT, PROBES, WAITS
from recorder import Outcome, tensors_of
from runs import RUNS, GraphFiles, graph_stand_ins, run
from simulated_device import SimulatedDevice, run_and_exit


def observed(
    work: Callable[[Around], object], stand_ins: AbstractContextManager | None = None
) -> dict[str, Any]:
    """What happens in `work` on a new simulated device.

    Returns:
        error: "" or the last line of it and where; stray; updates; steps: step -> place -> host syncs in it;
        syncs: place -> all host syncs.
    """
    device, steps, error, result = SimulatedDevice(), {}, "", None

    @contextmanager
    def around(number: int) -> Iterator[None]:
        before = device.syncs.copy()
        yield
        if during := device.syncs - before:
            steps[number] = during

    try:
        with device.used(), stand_ins or nullcontext():
            result = work(around)
    except Exception as caught:
        frames = traceback.extract_tb(caught.__traceback__)
        places = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "site-packages" not in f.filename]
        error = f"{type(caught).__name__}: {caught} ({' > '.join(places)})"
    outcome = result if isinstance(result, Outcome) else Outcome(stray=_strays(result))
    return {
        "error": error,
        "stray": sorted(outcome.stray),
        "updates": sorted(outcome.updates),
        "steps": steps,
        "syncs": device.syncs,
    }


def _strays(result: object) -> set[str]:
    return {
        f"{name.lstrip('.')} on {tensor.device}"
        for name, tensor in tensors_of(result)
        if tensor.device.type == "cpu"
    }


def main(file: Path, device: torch.device) -> None:
    """Write {kind: {name: what `observed` returns}}."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        masks = Path(folder, "masks.pt")
        write_masks(masks)
        found: dict[str, dict[str, Any]] = {
            "cells": {str(c): observed(partial(train, c, masks, device)) for c in CELLS},
            "probes": {n: observed(lambda _, p=p: p(device)) for n, p in PROBES.items()},
            "waits": {
                n: observed(lambda _, w=w: [w(torch.ones(3, 2, device=device))])
                for n, w in (WAITS | DOES_NOT_WAIT).items()
            },
            "runs": {},
        }
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            for number, name in enumerate(RUNS):
                own = Path(folder, str(number))
                with GraphFiles(own):
                    found["runs"][name] = observed(partial(run, name, own, device), graph_stand_ins())
    file.write_text(json.dumps(found))


if __name__ == "__main__":
    run_and_exit(partial(main, Path(sys.argv[1])))
