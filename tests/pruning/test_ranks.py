"""What ranks compute together, with a thread for each rank in place of a process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.tensor import Replicate, Shard

from pruning import shards, topk
from pruning.ranks import assert_equal_across_ranks, checksum, is_distributed, mean_over_ranks
from pruning.shards import Split, as_numbers, count_nonzero, place_like, split_of, sum_over_parts
from pruning.topk import check_same_count, global_topk, split_topk


class Ranks:
    """Collectives between threads; `each` runs a function of the rank in all of them."""

    def __init__(self, size: int) -> None:
        self.size, self._own = size, threading.local()
        self._barrier = threading.Barrier(size)
        self._given: list[Any] = [None] * size

    def each(self, function: Callable[[int], Any]) -> list[Any]:
        def run(rank: int) -> Any:
            self._own.rank = rank
            try:
                return function(rank)
            except Exception:
                self._barrier.abort()
                raise

        with ThreadPoolExecutor(self.size) as pool:
            return [done.result() for done in [pool.submit(run, rank) for rank in range(self.size)]]

    def _exchange(self, value: Tensor) -> list[Tensor]:
        self._given[self._own.rank] = value.clone()
        self._barrier.wait(20)
        given = [tensor.clone() for tensor in self._given]
        self._barrier.wait(20)
        return given

    def all_reduce(self, tensor: Tensor, op: Any = distributed.ReduceOp.SUM, group: object = None) -> None:
        stacked = torch.stack(self._exchange(tensor))
        reduce = {
            distributed.ReduceOp.SUM: lambda: stacked.sum(0),
            distributed.ReduceOp.MIN: lambda: stacked.amin(0),
            distributed.ReduceOp.MAX: lambda: stacked.amax(0),
        }[op]
        tensor.copy_(reduce())

    def all_gather(self, parts: list[Tensor], tensor: Tensor, group: object = None) -> None:
        for part, value in zip(parts, self._exchange(tensor), strict=True):
            part.copy_(value)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """Three ranks, or as many as the test asks for."""
    group = Ranks(getattr(request, "param", 3))
    for name in ("all_reduce", "all_gather"):
        monkeypatch.setattr(distributed, name, getattr(group, name))
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: group.size)
    yield group


def test_the_mean_is_that_of_all_ranks_and_leaves_the_own_tensor(ranks):
    own = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]).t() * (rank + 1) for rank in range(3)]
    before = [tensor.clone() for tensor in own]
    means = ranks.each(lambda rank: mean_over_ranks(own[rank]))
    assert all(torch.equal(mean, torch.tensor([[2.0, 6.0], [4.0, 8.0]])) for mean in means)
    assert all(torch.equal(tensor, old) for tensor, old in zip(own, before, strict=True))


@pytest.mark.parametrize("ranks", [1], indirect=True)
def test_one_rank_is_no_group(ranks):
    assert not is_distributed()
    tensor = torch.ones(2)
    assert mean_over_ranks(tensor) is tensor
    assert_equal_across_ranks([tensor == 1], "the masks")


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_masks_that_differ_on_one_rank_raise_on_every_rank(ranks, odd):
    equal = [torch.tensor([True, False]), torch.tensor([[True]])]
    other = [torch.tensor([False, True]), torch.tensor([[True]])]
    assert ranks.each(lambda rank: assert_equal_across_ranks(equal, "the masks")) == [None] * 3
    assert is_distributed()

    def raised(rank: int) -> str:
        with pytest.raises(RuntimeError) as error:
            assert_equal_across_ranks(
                other if rank == odd else equal, "the masks", device=torch.device("cpu")
            )
        return str(error.value)

    assert set(ranks.each(raised)) == {
        "the masks differ between ranks: give every rank the same seed and weights, and average gradients"
    }


def test_a_checksum_depends_on_every_position_and_on_the_order_of_tensors():
    def of(*rows: list[int]) -> int:
        return int(checksum(torch.tensor(row, dtype=torch.bool) for row in rows))

    one = [of([a, b, c]) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    two = [of([a, b], [c, d]) for a in (0, 1) for b in (0, 1) for c in (0, 1) for d in (0, 1)]
    assert len(set(one)) == 8 and len(set(two)) == 16
    assert checksum([]) == 0 and checksum([]).dtype == torch.int64
    assert of([1, 0, 1, 1]) == int(checksum([torch.tensor([[True, False], [True, True]])]))
    assert of([0, 0]) == 0


# tensors whose rows are split


class Rows:
    """A stand-in for a DTensor: this rank's rows, and how they are split."""

    def __init__(
        self, part: Tensor, placements: tuple = (Shard(0),), shape: tuple[int, ...] = (4, 2)
    ) -> None:
        self.part, self.placements, self.shape = part, placements, shape
        self.device = torch.device("cpu")
        self.device_mesh = SimpleNamespace(
            get_group=lambda axis: f"group {axis}", get_local_rank=lambda axis: 1, size=lambda axis: 3
        )

    def to_local(self) -> Tensor:
        return self.part


def test_how_a_tensor_is_split():
    part = torch.zeros(2, 2)
    assert split_of(part) is None
    assert split_of(Rows(part)) == Split("group 0", 1, 3)
    assert split_of(Rows(part, (Replicate(), Shard(0)))) == Split("group 1", 1, 3)
    assert split_of(Rows(part, (Replicate(),))) is None
    for placements in ((Shard(1),), (Shard(0), Shard(0))):
        with pytest.raises(ValueError) as error:
            split_of(Rows(part, placements))
        assert str(error.value) == (
            f"a weight of [4, 2] has the placements {placements}: masks need weights that only fully_shard "
            "splits, along their first dimension"
        )


@pytest.mark.parametrize(
    ("rows", "parts"), [(6, [2, 2, 2]), (5, [2, 2, 1]), (4, [2, 2, 0]), (1, [1, 0, 0]), (0, [0, 0, 0])]
)
def test_a_tensor_is_cut_into_chunks_of_equal_size(monkeypatch, rows, parts):
    monkeypatch.setattr(shards, "sharded_like", lambda part, reference: part)
    whole = torch.arange(2.0 * rows).view(rows, 2)
    found = []
    for rank in range(3):
        monkeypatch.setattr(shards, "split_of", lambda tensor, rank=rank: Split("group", rank, 3))
        found.append(place_like(whole, Rows(whole)))
    assert [len(part) for part in found] == parts
    assert torch.equal(torch.cat(found), whole)
    monkeypatch.setattr(shards, "split_of", lambda tensor: None)
    assert torch.equal(place_like(whole, Rows(whole)), whole)


def test_only_values_of_split_tensors_are_summed(ranks, monkeypatch):
    split = Rows(torch.zeros(1))
    values = ranks.each(
        lambda rank: sum_over_parts(
            [torch.tensor(value + rank) for value in (1, 10, 100)], [split, torch.zeros(1), split]
        )
    )
    assert [[int(value) for value in one] for one in values] == [[6, 10, 303], [6, 11, 303], [6, 12, 303]]


def test_numbers_come_back_in_their_order():
    assert as_numbers([torch.tensor(3), torch.tensor(1), torch.tensor(2)]) == [3, 1, 2]
    assert as_numbers([]) == []
    assert count_nonzero([torch.tensor([0.0, -1.0, 2.0]), torch.zeros(2), torch.ones(1)]) == [2, 0, 1]


# the largest scores of all ranks


def split_search(ranks: Ranks, monkeypatch, scores: dict[str, Tensor], whole: str, kept: int) -> None:
    """The masks of all ranks together are those of one process that holds all rows."""
    own: dict[int, Split] = {rank: Split("group", rank, ranks.size) for rank in range(ranks.size)}
    parts: dict[int, dict[str, Tensor]] = {}
    splits: dict[int, Split | None] = {}  # id of a part -> how it is split
    for rank in range(ranks.size):
        parts[rank] = {}
        for name, score in scores.items():
            chunks = [*score.chunk(ranks.size), *[score[:0]] * ranks.size]
            part = score.clone() if name in whole else chunks[rank].clone()
            parts[rank][name] = part
            splits[id(part)] = None if name in whole else own[rank]
    monkeypatch.setattr(topk, "split_of", lambda tensor: splits[id(tensor)])
    found = ranks.each(lambda rank: split_topk(parts[rank], kept))
    for name, mask in global_topk(scores, kept).items():
        masks = [one[name] for one in found]
        assert torch.equal(masks[0] if name in whole else torch.cat(masks), mask), (name, kept)
        assert name not in whole or all(torch.equal(one, mask) for one in masks)


@pytest.mark.parametrize("ranks", [2, 3], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("whole", ["", "b", "ac"])
def test_ranks_find_the_largest_scores_together(ranks, monkeypatch, dtype, whole):
    """With many ties, which go to the tensor that comes first and then to the lower row."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"a": (4, 2), "b": (7, 3), "c": (1, 5)}
    values = {name: torch.randint(-3, 4, shape, generator=draw) for name, shape in shapes.items()}
    scores = {
        name: (value if dtype is torch.int64 else value / 2).to(dtype) for name, value in values.items()
    }
    for kept in range(0, 35, 6):
        split_search(ranks, monkeypatch, scores, whole, kept)
    split_search(ranks, monkeypatch, scores, whole, 34)


def test_ranks_find_large_and_small_scores_of_either_sign(ranks, monkeypatch):
    draw = torch.Generator().manual_seed(1)
    exponents = torch.randint(-30, 30, (9, 4), generator=draw)
    scores = {
        "a": torch.randn(9, 4, generator=draw) * 10.0**exponents,
        "b": torch.randn(3, 2, generator=draw),
    }
    for kept in (1, 7, 20, 41, 42):
        split_search(ranks, monkeypatch, scores, set(), kept)


@pytest.mark.parametrize(("counts", "refused"), [((5, 5, 5), False), ((5, 7, 4), True), ((5, 5, 6), True)])
def test_all_ranks_must_keep_as_many(ranks, monkeypatch, counts, refused):
    monkeypatch.setattr(topk, "split_of", lambda tensor: Split("group", 0, 3))

    def checked(rank: int) -> str:
        try:
            check_same_count(iter([torch.zeros(2)]), counts[rank])
        except ValueError as error:
            return str(error)
        return ""

    line = (
        f"`kept` differs between ranks ({min(counts)} to {max(counts)}): count the "
        "entries of DTensors by pruning.shards.count_nonzero"
    )
    assert ranks.each(checked) == [line if refused else ""] * 3


def test_a_single_process_may_keep_any_count():
    check_same_count([torch.zeros(2)], 7)


def test_weights_over_different_groups_are_refused(monkeypatch):
    groups = iter(("one", "other"))
    monkeypatch.setattr(topk, "split_of", lambda tensor: Split(next(groups), 0, 2))
    with pytest.raises(
        ValueError, match=r"^the weights are sharded over different groups of ranks: call fully_"
    ):
        split_topk({"a": torch.zeros(2), "b": torch.zeros(2)}, 1)


def test_a_split_tensor_in_the_layout_of_another_is_returned_itself(monkeypatch):
    one, other = Rows(torch.zeros(2, 2)), Rows(torch.ones(2, 2))
    other.device_mesh = one.device_mesh
    assert place_like(one, other) is one
    whole = torch.arange(8.0).view(4, 2)
    one.full_tensor = lambda: whole
    assert torch.equal(place_like(one, torch.zeros(4, 2)), whole)
    monkeypatch.setattr(shards, "sharded_like", lambda part, reference: part)
    for changed in ({"placements": (Replicate(), Shard(0))}, {"device_mesh": Rows(whole).device_mesh}):
        different = Rows(torch.ones(2, 2))
        vars(different).update({"device_mesh": one.device_mesh, **changed})
        assert torch.equal(place_like(one, different), whole[2:4])  # the second of three parts
