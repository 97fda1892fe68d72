"""The losses of every step of a short AC/DC + HAM run, against a committed file.

`python tests/ham/run/test_golden.py` writes the file again: do so, and say why in the commit, only when a
change of the numbers is meant or torch's version in constraints.txt moves.

The run computes in float64. In float32 a difference in the last bit grows about tenfold a step, so that
processors with other vector units part ways at the fifth step; in float64 they agree to 1e-8 over the whole
run, and a change of the method still shows.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ham.run.config import load
from ham.run.main import run_experiment
from ham.run.metrics import EpochMetrics
from ham.tasks.images import ImageClassification

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "acdc_ham_s90.json"
RUN = [
    "+exp=acdc_ham_s90",
    "+demo=digits",
    "model.width=8",
    "model.layers=[1,1,1,1]",
    "epochs=8",
    "batch_size=256",
    "optimizer.lr=0.03",
    "compute.threads=1",
]


def losses_of_the_run(folder: Path) -> list[float]:
    """Loss before each step, in float64 from the images on."""
    losses: list[float] = []
    update_loss = EpochMetrics.update_loss

    def record(metrics: EpochMetrics, number: int, loss: Tensor) -> None:
        losses.append(float(loss))
        update_loss(metrics, number, loss)

    def forward(task: ImageClassification, network: nn.Module, images: Tensor) -> Tensor:
        return network(images.double())

    torch.set_default_dtype(torch.float64)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(EpochMetrics, "update_loss", record)
            patch.setattr(ImageClassification, "forward", forward)
            run_experiment(load([*RUN, f"runs_dir={folder}"]))
    finally:
        torch.set_default_dtype(torch.float32)
    return losses


def version() -> str:
    return torch.__version__.partition("+")[0]


def test_losses_are_the_committed_ones(tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    if golden["torch"] != version():
        pytest.skip(f"the committed losses are of torch {golden['torch']}, this is {version()}")
    assert golden["run"] == RUN
    losses = losses_of_the_run(tmp_path)
    assert len(losses) == 8 * (1437 // 256)
    assert losses == pytest.approx(golden["losses"], rel=1e-4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        found = losses_of_the_run(Path(scratch))
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({"torch": version(), "run": RUN, "losses": found}, indent=1) + "\n")
    print(f"{len(found)} losses written to {GOLDEN}")
