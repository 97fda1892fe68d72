"""Methods that prune at initialization, on models with several inputs and on batches in one piece."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from pruning import SNIP, GraSP, Product, Sparsifier, SynFlow

SAMPLES = 150  # more than SNIP and GraSP take at once

KINDS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda one, two: (one, two),
    "list": lambda one, two: [one, two],
    "dict": lambda one, two: {"two": two, "one": one},
    "mapping": lambda one, two: UserDict(one=one, two=two),  # as transformers' BatchEncoding
}
METHODS: dict[str, Callable[[], Sparsifier]] = {
    "snip": lambda: SNIP(0.5, batches=1),
    "grasp": lambda: GraSP(0.5, batches=1, temperature=1.0),
    "synflow": lambda: SynFlow(0.5, iterations=3),
}


class Joined(nn.Module):
    """One input of width 5."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(3, 6), nn.Linear(2, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.a(x[:, :3]) + self.b(x[:, 3:])).tanh())


class Separate(Joined):
    """The same, with inputs of widths 3 and 2."""

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        return super().forward(torch.cat([one, two], dim=1))


def kept(model: nn.Module, make: Callable[[], Sparsifier], inputs: Any, **options: Any) -> Tensor:
    sparsifier = make()
    sparsifier.attach(model.double(), total_epochs=1, **options)
    labels = torch.randint(3, (SAMPLES,), generator=torch.Generator().manual_seed(1))
    sparsifier.initialize([(inputs, labels)], cross_entropy)
    return torch.cat([mask.flatten() for mask in sparsifier.kept().values()])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factored", [False, True])
def test_masks_are_those_of_one_joined_input(kind, method, factored):
    x = torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"parameterization": Product()} if factored else {}
    expected = kept(Joined(), METHODS[method], x, **options)
    assert torch.equal(
        kept(Separate(), METHODS[method], KINDS[kind](x[:, :3], x[:, 3:]), **options), expected
    )
    assert int(expected.sum()) == 24  # of 18 + 12 + 18


@pytest.mark.parametrize("kind", KINDS)
def test_synflow_names_an_input_of_integers(kind):
    inputs = KINDS[kind](torch.ones(SAMPLES, 3), torch.ones(SAMPLES, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^SynFlow feeds ones .* inputs, got torch\.int64: choose SNIP"):
        kept(Separate(), METHODS["synflow"], inputs)


def test_a_packed_sequence_is_one_input():
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(2, 4), nn.Linear(4, 3)

        def forward(self, x: PackedSequence) -> Tensor:
            return self.head(self.lstm(x)[1][0][0])

    lengths = [3, 1, 2] * (SAMPLES // 3)
    inputs = pack_sequence([torch.ones(n, 2, dtype=torch.float64) for n in lengths], enforce_sorted=False)
    assert 0 < kept(Reader(), METHODS["snip"], inputs).sum() < 16 * 6 + 12


class TimeMajor(nn.Module):
    """A recurrent network on inputs [T, N, 2]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.RNN(2, 4), nn.Linear(4, 3)
        self.lengths: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.lengths.append(len(x))
        return self.head(self.rnn(x)[0])


@pytest.mark.parametrize("make", [METHODS["snip"], METHODS["grasp"]])
def test_targets_in_a_tuple_keep_a_batch_in_one_piece(make):
    model, sparsifier = TimeMajor(), make()
    sparsifier.attach(model, total_epochs=1)
    batch = torch.randn(SAMPLES, 1, 2), (torch.zeros(SAMPLES, 1, dtype=torch.long),)
    sparsifier.initialize([batch], lambda outputs, targets: cross_entropy(outputs.mT, *targets))
    assert set(model.lengths) == {SAMPLES}
