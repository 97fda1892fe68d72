"""Sparsifiers on weights that FSDP2 splits over two ranks: the masks and weights of one process.

Run as a script this file is one of the two ranks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from sharded_training import CASES, EPOCHS, Case, Training, given_masks, network, train, whole
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.functional import cross_entropy

from ham import distributed, process_group
from pruning import ACDC, SNIP, STR, Product, RandomPruning, SynFlow
from pruning.checkpoint import load_distributed
from pruning.export import load_masks, plain_state_dict, save_masks
from pruning.topk import global_topk
from pruning.stats import l1_norm

RANKS = 2
SAVED_AFTER = 3  # epochs: the next one is dense, with stale values to return
RESUMED = {name: Case(name, "adamw", "before") for name in ("acdc_layerwise", "rigl")}


def tied_scores() -> list[tuple[dict[str, Tensor], list[int]]]:
    """Scores with many ties, of either sign, in several dtypes, and some counts to keep of them."""
    generator = torch.Generator().manual_seed(3)
    cases = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for spread in (2, 9, 10_000):
            shapes = {"a": (5, 3), "b": (1, 4), "c": (2, 2, 3), "plain": (3, 3)}
            drawn = {n: torch.randint(-spread, spread, s, generator=generator) for n, s in shapes.items()}
            scores = {n: (s.to(dtype) / 3).masked_fill_(s == 1, -0.0) for n, s in drawn.items()}
            cases.append((scores, [0, 1, 5, 13, 20, 27, 39, 40]))
    return cases


def topk_on_ranks(mesh: Any) -> list[dict[str, Tensor]]:
    results = []
    for scores, counts in tied_scores():
        split = {n: s if n == "plain" else distribute_tensor(s, mesh, [Shard(0)]) for n, s in scores.items()}
        results += [{n: whole(m) for n, m in global_topk(split, kept).items()} for kept in counts]
    return results


def complaint(act: Callable[[], object]) -> str:
    try:
        act()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def sharded(mesh: Any, **options: Any) -> nn.Sequential:
    model = network()
    fully_shard(model, mesh=mesh, **options)
    return model


def complaints(mesh: Any, rank: int) -> dict[str, str]:
    """What each use says that cannot work."""

    def after_attach(sparsifier: Any, **options: Any) -> None:
        model = network()
        sparsifier.attach(model, total_epochs=1, steps_per_epoch=10, **options)
        fully_shard(model, mesh=mesh)
        sparsifier.check()

    def initialize(sparsifier: Any) -> None:
        sparsifier.attach(sharded(mesh), total_epochs=1)
        sparsifier.initialize([(torch.randn(2, 8).double(), torch.tensor([0, 1]))], cross_entropy)

    def attach(sparsifier: Any, model: nn.Module, **options: Any) -> None:
        sparsifier.attach(model, total_epochs=2, steps_per_epoch=1, **options)

    def diverged() -> None:
        weight = distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)])
        if rank == 1:
            weight.to_local()[0, 0] = torch.nan
        global_topk({"w": weight}, 3)

    def count_parts() -> None:
        weight = distribute_tensor(torch.ones(3, 2), mesh, [Shard(0)])
        global_topk({"w": weight}, int(weight.count_nonzero()))

    def sideways() -> None:
        global_topk({"w": distribute_tensor(torch.ones(4, 2), mesh, [Shard(1)])}, 3)

    return {
        "STR": complaint(lambda: attach(STR(0.5), sharded(mesh))),
        "STR later": complaint(lambda: after_attach(STR(0.5))),
        "Product": complaint(lambda: attach(ACDC(0.5), sharded(mesh), parameterization=Product())),
        "Product later": complaint(lambda: after_attach(ACDC(0.5), parameterization=Product())),
        "SNIP": complaint(lambda: initialize(SNIP(0.5, batches=1))),
        "SynFlow": complaint(lambda: initialize(SynFlow(0.5))),
        "seeds": complaint(lambda: RandomPruning(0.5).attach(sharded(mesh), total_epochs=1, seed=rank)),
        "nan": complaint(diverged),
        "counts": complaint(count_parts),
        "columns": complaint(sideways),
        "FSDP1": complaint(
            lambda: attach(
                ACDC(0.5),
                FullyShardedDataParallel(network(), device_id=torch.device("cpu"), use_orig_params=True),
            )
        ),
    }


def save(training: Training, folder: Path) -> None:
    model, optimizer = get_state_dict(training.model, training.optimizer)
    state = {"model": model, "optimizer": optimizer, "sparsifier": training.sparsifier.state_dict()}
    dcp.save(state, checkpoint_id=folder)


def resume(
    name: str, folder: Path, masks: Path, shard: Callable = lambda model: None
) -> list[dict[str, Any]]:
    """Restore a checkpoint of `save` and train the remaining epochs."""
    training = Training(RESUMED[name], masks, shard)
    model, optimizer = get_state_dict(training.model, training.optimizer)
    dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=folder)
    set_state_dict(training.model, training.optimizer, model_state_dict=model, optim_state_dict=optimizer)
    load_distributed(training.sparsifier, folder)
    return [training.epoch(epoch) for epoch in range(SAVED_AFTER, EPOCHS)]


def interrupted(name: str, folder: Path, masks: Path, shard: Callable) -> list[dict[str, Any]]:
    training = Training(RESUMED[name], masks, shard)
    for epoch in range(SAVED_AFTER):
        training.epoch(epoch)
    save(training, folder / name)
    if name == "acdc_layerwise":
        save_masks(folder / "shards.pt", training.sparsifier, {"of": "shards"})
        state = plain_state_dict(training.model)
        if distributed.world().rank == 0:
            torch.save((state, l1_norm(training.sparsifier.masks)), folder / "plain.pt")
        else:
            l1_norm(training.sparsifier.masks)
    return resume(name, folder / name, masks, shard)


def main(folder: Path) -> None:
    """One of the ranks."""
    torch.set_num_threads(1)
    process_group.init_distributed({}, timeout=60)
    rank = distributed.world().rank
    mesh = init_device_mesh("cpu", (RANKS,))
    hybrid = init_device_mesh("cpu", (RANKS, 1), mesh_dim_names=("replicate", "shard"))
    shards: dict[str, Callable] = {
        "before": lambda model: fully_shard(model, mesh=mesh),
        "after": lambda model: [fully_shard(part, mesh=mesh) for part in (model[0], model)],
        "partly": lambda model: fully_shard(model[0], mesh=mesh),
        "hybrid": lambda model: fully_shard(model, mesh=hybrid),
    }
    masks = folder / "masks.pt"
    report = {
        "trained": {str(case): train(case, masks, shards[case.order]) for case in CASES},
        "topk": topk_on_ranks(mesh),
        "complaints": complaints(mesh, rank),
        "resumed": {name: interrupted(name, folder, masks, shards["before"]) for name in RESUMED},
    }
    torch.save(report, folder / f"rank{rank}.pt")
    process_group.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, launch: Callable) -> Path:
    """Where the ranks have written what they came to."""
    folder = tmp_path_factory.mktemp("sharded")
    torch.save({"masks": given_masks(), "margins": {}, "origin": {}}, folder / "masks.pt")
    pair = launch(Path(__file__), str(folder))
    assert pair.wait() == [0, 0], "\n".join(pair.said())
    return folder


@pytest.fixture(scope="module")
def reports(folder: Path) -> list[dict[str, Any]]:
    """What each rank came to."""
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        for key in ("counts", "of_masks", "stats", "sparsity"):
            assert one[key] == other[key], key
        assert all(torch.equal(one["kept"][name], mask) for name, mask in other["kept"].items())
        for key in ("weights", "moments"):
            assert one[key].keys() == other[key].keys()
            for name, tensor in other[key].items():
                assert torch.allclose(one[key][name], tensor, rtol=1e-10, atol=1e-12), name
                assert torch.equal(one[key][name] == 0, tensor == 0), name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_split_weights_are_masked_and_trained_as_those_of_one_process(
    case: Case, reports: list, folder: Path
) -> None:
    expected = train(case, folder / "masks.pt")
    for report in reports:
        assert_same(report["trained"][str(case)], expected)
    assert case.method == "dense" or len({epoch["sparsity"] for epoch in expected} | {0.0}) > 1
    real = [1 - sum(n for _, n, _ in e["counts"]) / sum(t for _, _, t in e["counts"]) for e in expected]
    assert [epoch["sparsity"] for epoch in expected] == real


def test_the_largest_scores_are_found_over_all_ranks_with_ties_by_position(reports: list) -> None:
    expected = [global_topk(scores, kept) for scores, counts in tied_scores() for kept in counts]
    for report in reports:
        for found, masks in zip(report["topk"], expected, strict=True):
            assert all(torch.equal(found[name], mask) for name, mask in masks.items())


COMPLAINTS = {
    "STR": "ValueError: STR replaces parameters, and fully_shard has split these",
    "STR later": "ValueError: STR replaces parameters, and fully_shard has split these",
    "Product": "ValueError: parameterization=Product replaces parameters, and fully_shard has split these",
    "Product later": "ValueError: parameterization=Product replaces parameters, and fully_shard has",
    "SNIP": "ValueError: SNIP scores entire weights, and fully_shard has split these: call attach and initialize",
    "SynFlow": "ValueError: SynFlow scores entire weights, and fully_shard has split these: call attach and",
    "seeds": "RuntimeError: the masks differ between ranks: give every rank the same seed",
    "nan": "NotFinite: the scores of w contain nan",
    "counts": "ValueError: `kept` differs between ranks (2 to 4): count the",
    "columns": "ValueError: a weight of [4, 2] has the placements (Shard(dim=1),): masks need weights that",
    "FSDP1": "ValueError: FullyShardedDataParallel flattens weights, which cannot be masked: use fully_shard",
}


@pytest.mark.parametrize("use", COMPLAINTS)
def test_what_cannot_work_is_refused_on_all_ranks_in_one_line(use: str, reports: list) -> None:
    for report in reports:
        assert report["complaints"][use].startswith(COMPLAINTS[use])
        assert "\n" not in report["complaints"][use]


@pytest.mark.parametrize("name", RESUMED)
def test_a_distributed_checkpoint_continues_on_two_ranks_and_in_one_process(
    name: str, reports: list, folder: Path
) -> None:
    expected = train(RESUMED[name], folder / "masks.pt")[SAVED_AFTER:]
    for report in reports:
        assert_same(report["resumed"][name], expected)
    assert_same(resume(name, folder / name, folder / "masks.pt"), expected)


def test_a_state_without_the_masks_that_were_on_is_refused(folder: Path) -> None:
    sparsifier = Training(RESUMED["acdc_layerwise"], folder / "masks.pt").sparsifier
    state = {"sparsifier": sparsifier.state_dict()}
    dcp.load(state, checkpoint_id=folder / "acdc_layerwise")  # fills nothing: the state has no masks yet
    with pytest.raises(ValueError, match="read a checkpoint of torch.distributed.checkpoint by pruning"):
        sparsifier.load_state_dict(state["sparsifier"])
    with pytest.raises(ValueError, match="has no 'masks': save"):
        load_distributed(sparsifier, folder / "acdc_layerwise", key="masks")


def test_exported_masks_and_weights_are_gathered(reports: list, folder: Path) -> None:
    saved = reports[0]["trained"]["acdc_layerwise-adamw-before"][SAVED_AFTER - 1]
    masks, _, origin = load_masks(folder / "shards.pt")
    plain, norms = torch.load(folder / "plain.pt", weights_only=True)
    assert origin == {"of": "shards"}
    assert all(torch.equal(mask, saved["kept"][name]) for name, mask in masks.items())
    assert all(torch.equal(plain[name], weight) for name, weight in saved["weights"].items())
    total = sum(float(saved["weights"][name].abs().sum()) for name in masks)
    assert norms["l1_sum"] == pytest.approx(total, rel=1e-12)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
