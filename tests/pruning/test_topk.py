"""The search by digits, which finds the largest scores of several ranks, in a single process."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruning.shards import count_nonzero, full, local, place_like, split_of, sum_over_parts
from pruning.topk import global_topk, split_topk

DTYPES = {torch.float32: 32, torch.float64: 64, torch.float16: 16, torch.bfloat16: 16}


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    """Two tensors of any values but nan, with ties and both zeros."""
    dtype = draw(st.sampled_from(list(DTYPES)))
    width = max(DTYPES[dtype], 16)
    value = st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf")]),
        st.floats(width=width, allow_nan=False),
    )
    lists = st.lists(value, min_size=0, max_size=12)
    return {name: torch.tensor(draw(lists), dtype=torch.float64).to(dtype) for name in ("a", "b")}


@settings(max_examples=200)
@given(scores=tensors(), data=st.data())
def test_digits_find_what_sorting_finds(scores: dict[str, Tensor], data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, sum(score.numel() for score in scores.values())))
    flat = torch.cat(list(scores.values()))
    order = flat.argsort(descending=True, stable=True)  # the lower index first among equal ones
    expected = torch.zeros(len(flat), dtype=torch.bool).index_fill_(0, order[:kept], True)
    masks = split_topk(scores, kept)
    assert torch.equal(torch.cat(list(masks.values())), expected)
    assert all(torch.equal(mask, masks[name]) for name, mask in global_topk(scores, kept).items())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_integers_are_scores_too(dtype: torch.dtype) -> None:
    scores = {"a": torch.tensor([3, -7, 2**31 - 1, 0, -(2**31), 3], dtype=dtype)}
    assert split_topk(scores, 2)["a"].tolist() == [True, False, True, False, False, False]


def test_a_plain_tensor_is_its_only_part() -> None:
    tensor = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    assert local(tensor) is full(tensor) is place_like(tensor, torch.ones(2, 2)) is tensor
    assert split_of(tensor) is None
    assert count_nonzero([tensor, torch.zeros(3)]) == [2, 0]
    assert sum_over_parts([tensor.sum()], [tensor]) == [5.0]
