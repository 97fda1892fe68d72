"""Torch's default device decides nothing: tensors are made where the weights or the generators are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from short_loops import X, Y, attached, model_of, sgd, train
from torch import Tensor
from torch.nn.functional import cross_entropy

from ham import HAM
from pruning import (
    ACDC,
    GMP,
    SET,
    SNIP,
    STR,
    Dense,
    GraSP,
    OneShotMagnitude,
    PILoT,
    Product,
    RandomPruning,
    RigL,
    Sparsifier,
    Spred,
    SynFlow,
)
from pruning.export import sparse_csr
from pruning.ranks import checksum

METHODS: dict[str, Callable[[], Sparsifier]] = {
    "acdc": lambda: ACDC(0.5),
    "dense": Dense,
    "gmp": lambda: GMP(0.5, interval=1),
    "grasp": lambda: GraSP(0.5, batches=1),
    "one_shot": lambda: OneShotMagnitude(0.5),
    "pilot": lambda: PILoT(0.5),
    "random": lambda: RandomPruning(0.5),
    "random 2:4": lambda: RandomPruning(0.5, granularity="2:4", allocation="uniform"),
    "random 2x2": lambda: RandomPruning(0.5, granularity="2x2"),
    "rigl": lambda: RigL(0.5, interval=1),
    "set": lambda: SET(0.5, interval=1),
    "snip": lambda: SNIP(0.5, batches=1),
    "spred": lambda: Spred(0.5),
    "str": lambda: STR(0.5, initial=-3.0),
    "synflow": lambda: SynFlow(0.5, iterations=2),
}


def trained(make: Callable[[], Sparsifier], default_device: str, **options: object) -> list[Tensor]:
    model = model_of()
    with torch.device(default_device):
        sparsifier = attached(model, make(), **options)
        optimizer = sgd(model, sparsifier)
        HAM(optimizer, alpha=1)
        sparsifier.initialize([(X, Y)], cross_entropy)
        train(model, sparsifier, optimizer)
        sparsifier.load_state_dict(sparsifier.state_dict())
        sparsifier.stats()
    return [*model.state_dict().values(), *sparsifier.kept().values()]


@pytest.mark.filterwarnings("ignore:HAM")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_as_without_it(method):
    found, expected = (trained(METHODS[method], device) for device in ("meta", "cpu"))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.filterwarnings("ignore:HAM")
def test_products_train_as_without_it():
    found, expected = (
        trained(METHODS["set"], device, parameterization=Product(reset_every=1)) for device in ("meta", "cpu")
    )
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_what_is_exported_or_compared_is_on_the_cpu():
    with torch.device("meta"):
        csr = sparse_csr({"w": torch.ones(2, 3, device="cpu")}, ["w"])
        assert csr["w.shape"].tolist() == [2, 3]
        assert int(checksum([])) == 0


def test_counts_of_clamped_exponents_begin_on_the_cpu():
    ham = HAM(sgd(model_of()), track_clamped=True, alpha=1)
    with torch.device("meta"):
        assert float(ham.clamped_share()) == 0
