"""Two processes train the contract under DistributedDataParallel; what each had is compared here.

They write digests of it, and tensors only where a test looks into them. Run as a script this file is one of
the two processes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import CASES as CONTRACT
from contract import EPOCHS, GLOBAL, METHODS, STEPS, Case, Training, digits, network, write_masks
from extent import ALL
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from ham.process_group import shutdown
from pruning import ACDC, RandomPruning, RigL
from pruning.ranks import checksum

TESTS = Path(__file__).resolve().parents[1]
RANKS = 2
RESUME_AFTER = 8
"""Before an update of RigL and of SET, and before PILoT and spred prune."""

OPTIMIZERS = ("sgd", "nesterov", "adamw", "sam")
pytestmark = pytest.mark.timeout(1800)


def is_trained(case: Case) -> bool:
    """Is this one of the cells that are trained by default? HAM_TESTS=all trains every one.

    In each of its cells (plain or product, with or without HAM) a method meets one optimizer, in each cell
    another one, so that each cell meets each optimizer with some method. Methods with a parameterization of
    their own, which have one or two cells, meet two optimizers in each. Two of the four cells are enough
    where the masks never change and for the brief rows.
    """
    cell = case.product + 2 * case.ham
    if ALL or case.rule.brief:
        return ALL or cell == 3 or case.optimizer == "sam"
    if case.rule.fixed and cell in (1, 2):
        return False
    place = list(METHODS).index(case.method) + cell
    return (OPTIMIZERS.index(case.optimizer) - place) % (4 if case.rule.plain else 2) == 0


CASES = {
    str(case): case
    for case in (
        *filter(is_trained, CONTRACT),
        # ascent per rank: no_sync around the first backward pass, so that RigL's gradients are local
        *(Case("rigl", factored, "sam_per_rank", ham) for factored, ham in product((False, True), repeat=2)),
    )
}


def train(case: Case, masks: Path, rank: int) -> dict[str, Any]:
    """Masks and weights of this rank, in an uninterrupted run and in one resumed from inside it."""
    data = digits(rank, RANKS)
    training = Training(case, masks, data=data, wrap=DistributedDataParallel)
    straight, started = [look(training)], training.kept()
    saved: list[bytes | None] = [None]
    for event, number in training.steps():
        if event != "perturbed":
            straight.append(look(training))
        if number == RESUME_AFTER and event == "stepped":
            saved, at = [training.save() if rank == 0 else None], len(straight)
    distributed.broadcast_object_list(saved)
    resumed = Training(case, masks, data=data, saved=saved[0], wrap=DistributedDataParallel, seed=1)
    rest = [look(resumed) for event, _ in resumed.steps(RESUME_AFTER + 1) if event != "perturbed"]
    local = digest({"gradient": local_gradient(training)})
    return {"straight": straight, "at": at, "rest": rest, "started": started, "local": local}


def look(training: Training) -> dict[str, Any]:
    kept = training.kept()
    return {
        "kept": digest(kept),
        "on": {name: int(mask.sum()) for name, mask in kept.items()},
        "checksum": int(checksum(kept.values())),
        "parameters": digest(dict(training.model.named_parameters())),
    }


def digest(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> hash of the tensor's bytes; finite tensors of equal shapes with equal hashes are equal."""
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    arrays = {name: tensor.detach().contiguous().numpy() for name, tensor in tensors.items()}
    return {name: hashlib.blake2b(array, digest_size=8).hexdigest() for name, array in arrays.items()}


def local_gradient(training: Training) -> Tensor:
    """Of the bare model on this rank's first batch: what DistributedDataParallel would average."""
    images, classes = training.data[0]
    parameters = list(training.model.parameters())
    gradients = torch.autograd.grad(cross_entropy(training.model(images), classes), parameters)
    return torch.cat([g.flatten() for g in gradients])


def rigl_on_opposite_gradients(rank: int) -> dict[str, Tensor]:
    """One update of eight weights, the fifth with local gradients +5 and -5, so that their mean is 0."""
    model = nn.Linear(8, 1, bias=False)
    rigl = RigL(0.5, allocation="uniform", interval=1, drop_fraction=0.6, until=1.0)
    rigl.attach(model, total_epochs=1, steps_per_epoch=100)
    rigl.load_state_dict({"masks": {"kept": {"weight": torch.tensor([[True] * 4 + [False] * 4])}}})
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ddp = DistributedDataParallel(model)
    with ddp.no_sync():  # d/dweight is the input
        ddp(torch.tensor([[0.0, 0.0, 0.0, 0.0, (5.0, -5.0)[rank], 1.0, 0.5, 0.0]])).sum().backward()
    local = model.weight.grad.clone()
    assert not rigl.after_backward(1, optimizer)
    return {"local": local, "kept": rigl.kept()["weight"]}


def complaint(act: Callable[[], None]) -> str:
    try:
        act()
    except RuntimeError as error:
        return str(error)
    return "none"


def disagree_on_seeds(rank: int) -> None:
    RandomPruning(0.5).attach(network(0), total_epochs=1, seed=rank)


def disagree_on_weights(rank: int) -> None:
    sparsifier, model = ACDC(0.5), network(rank)
    sparsifier.attach(model, total_epochs=EPOCHS)
    sparsifier.on_epoch_start(EPOCHS - 1, torch.optim.SGD(model.parameters(), lr=0.1))


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=(folder / "rendezvous").as_uri(),
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(minutes=5),
    )
    trained = {}
    for name, case in CASES.items():
        print(f"rank {rank} trains {name}", file=sys.stderr, flush=True)
        trained[name] = train(case, folder / "masks.pt", rank)
    report = {
        "trained": trained,
        "opposite": rigl_on_opposite_gradients(rank),
        "seeds": complaint(lambda: disagree_on_seeds(rank)),
        "weights": complaint(lambda: disagree_on_weights(rank)),
    }
    torch.save(report, folder / f"rank{rank}.pt")
    shutdown()


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> list[dict[str, Any]]:
    """What the ranks have written. Fails with their tracebacks if one fails."""
    folder = tmp_path_factory.mktemp("ranks")
    write_masks(folder / "masks.pt")
    logs = [folder / f"rank{rank}.log" for rank in range(RANKS)]
    processes = []
    try:
        for rank, log in enumerate(logs):
            command = [sys.executable, __file__, str(rank), str(folder)]
            path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
            with log.open("w") as file:
                processes.append(subprocess.Popen(command, stdout=file, stderr=file, env=environment))
        for process in processes:  # where one fails, gloo ends the other one
            process.wait()
        if any(process.returncode != 0 for process in processes):
            pytest.fail("\n".join(log.read_text() for log in logs), pytrace=False)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("name", CASES)
def test_masks_are_the_same_on_both_ranks_at_all_times(reports, name):
    one, other = (moments(report, name) for report in reports)
    assert len(one) == len(other) > EPOCHS * STEPS
    for mine, yours in zip(one, other, strict=True):
        assert mine["kept"] == yours["kept"]
        assert mine["checksum"] == yours["checksum"]


@pytest.mark.parametrize("name", CASES)
def test_weights_are_the_same_on_both_ranks_at_all_times(reports, name):
    one, other = (moments(report, name) for report in reports)
    for mine, yours in zip(one, other, strict=True):
        assert mine["parameters"] == yours["parameters"]
    assert len({report["trained"][name]["local"]["gradient"] for report in reports}) == RANKS


@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize("name", CASES)
def test_both_ranks_resume_from_what_the_first_has_saved(reports, name, rank):
    run = reports[rank]["trained"][name]
    resumed = run["straight"][run["at"] :]
    assert len(resumed) == len(run["rest"]) > 2 * STEPS
    for first, second in zip(resumed, run["rest"], strict=True):
        assert first["kept"] == second["kept"]
        assert first["parameters"] == second["parameters"]


@pytest.mark.parametrize("name", CASES)
def test_the_masks_are_those_of_the_method(reports, name):
    rule, on = CASES[name].rule, moments(reports[0], name)[-1]["on"]
    if rule.phases[-1] != "t":
        assert (on if isinstance(rule.kept, dict) else sum(on.values())) == rule.kept


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.rule.fixed])
def test_other_masks_have_other_checksums(reports, name):
    seen = {}
    for moment in moments(reports[0], name):
        seen.setdefault(tuple(moment["kept"].values()), set()).add(moment["checksum"])
    assert all(len(checksums) == 1 for checksums in seen.values())
    assert len(set.union(*seen.values())) == len(seen) >= (1 if name.startswith("dense") else 2)


def test_snip_scores_the_batches_of_both_ranks_together(reports):
    model = network(0).double().eval()
    weights = [getattr(model, name).weight for name in ("conv1", "conv2", "fc")]
    batches = [batch for rank in range(RANKS) for batch in digits(rank, RANKS)[:2]]
    loss = sum(cross_entropy(model(images.double()), classes) for images, classes in batches)
    gradients = torch.autograd.grad(loss, weights)
    scores = torch.cat([(g * w).abs().flatten() for g, w in zip(gradients, weights, strict=True)])
    name = next(name for name, case in CASES.items() if case.method == "snip" and not case.product)
    started = reports[0]["trained"][name]["started"]
    kept = torch.cat([mask.flatten() for mask in started.values()])
    assert int(kept.sum()) == GLOBAL
    assert scores[kept].min() > scores[~kept].max() * (1 - 1e-4)


def test_rigl_grows_by_the_mean_gradient_where_nobody_else_averages(reports):
    one, other = (report["opposite"] for report in reports)
    # dropped are 2 and 1, grown 1 and .5; the mean of the absolute values, or one rank's, would grow the 5
    expected = torch.tensor([[True, True, False, False, False, True, True, False]])
    assert (one["local"][0, 4], other["local"][0, 4]) == (5, -5)
    assert torch.equal(one["kept"], expected)
    assert torch.equal(other["kept"], expected)


@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize("reason", ["seeds", "weights"])
def test_different_masks_raise_on_both_ranks(reports, reason, rank):
    assert reports[rank][reason] == (
        "the masks differ between ranks: give every rank the same seed and weights, and average gradients"
    )


def moments(report: dict[str, Any], name: str) -> list[dict[str, Any]]:
    run = report["trained"][name]
    return run["straight"] + run["rest"]


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
