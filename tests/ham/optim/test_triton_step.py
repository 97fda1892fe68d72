"""What the host prepares for each launch of the Triton kernel: the table, the blocks and the options."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import torch
from torch import Tensor

tl = pytest.importorskip("triton.language", reason="triton is not installed: torch's CUDA builds have it")

from ham.optim import triton_step  # noqa: E402


class Launches:
    """Stands in for the kernel and remembers how it was launched."""

    def __init__(self) -> None:
        self.made: list[tuple[int, tuple, dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int]) -> object:
        return lambda *args, **options: self.made.append((*grid, args, options))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, tuple, dict[str, Any]]]:
    kernel = Launches()
    monkeypatch.setattr(triton_step, "_kernel", kernel)
    return kernel.made


def pairs(*sizes: int, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.ones(n, dtype=dtype) for n in sizes], [torch.ones(n, dtype=dtype) for n in sizes]


def numbers(table: Tensor) -> list[float]:
    """The three float64 numbers before the rows."""
    return [struct.unpack("d", struct.pack("q", bits))[0] for bits in table[:3].tolist()]


def rows(table: Tensor) -> list[list[int]]:
    return table[3:].view(-1, 4).tolist()


def test_a_launch_for_aligned_weights_and_one_for_the_others(launches):
    ps, gs = pairs(2 * 4096, 5, 0, 8)
    triton_step.step_(ps, gs, -0.5, -0.25, 5.0, True, None, None)
    (blocks, args, options), (other_blocks, other_args, other_options) = launches
    assert (blocks, other_blocks) == (3, 1)  # two and one of 4096 elements, and one
    table, count, *pointers = args
    assert count == 2 and all(pointer is table for pointer in pointers)  # rates, found_inf, clamped
    assert table.dtype == torch.int64 and numbers(table) == [-0.5, -0.25, 5.0]
    assert rows(table) == [
        [ps[0].data_ptr(), gs[0].data_ptr(), 8192, 0],
        [ps[3].data_ptr(), gs[3].data_ptr(), 8, 2],
    ]
    assert other_args[1] == 1 and rows(other_args[0]) == [[ps[1].data_ptr(), gs[1].data_ptr(), 5, 0]]
    same = {"DTYPE": tl.float32, "HAS_RATES": False, "MASK_ZERO_GRAD": True, "HAS_FOUND_INF": False}
    same |= {"COUNTS": False, "BLOCK": 4096, "num_warps": 8, "enable_fp_fusion": False}
    assert options == {**same, "IS_ALIGNED": True, "STEPS": 4}
    assert other_options == {**same, "IS_ALIGNED": False, "STEPS": 0}


@pytest.mark.parametrize(("count", "steps"), [(1, 0), (2, 4), (3, 4), (16, 4), (17, 8), (256, 8), (257, 12)])
def test_the_binary_search_has_enough_steps_for_all_rows(launches, count, steps):
    """In fours, so that few variants are compiled."""
    ps, gs = pairs(*[4] * count)
    triton_step.step_(ps, gs, 1.0, 1.0, 5.0, False, None, None)
    [(blocks, args, options)] = launches
    assert (blocks, args[1], options["STEPS"]) == (count, count, steps)
    assert [row[3] for row in rows(args[0])] == list(range(count))


@pytest.mark.parametrize(
    ("size", "blocks"), [(1, 1), (4095, 1), (4096, 1), (4097, 2), (3 * 4096, 3), (3 * 4096 + 1, 4)]
)
def test_blocks_are_rounded_up(launches, size, blocks):
    ps, gs = pairs(size, size)
    triton_step.step_(ps, gs, 1.0, 1.0, 5.0, False, None, None)
    [(launched, args, _)] = launches
    assert launched == 2 * blocks and [row[3] for row in rows(args[0])] == [0, blocks]


@pytest.mark.parametrize(
    ("dtype", "size", "aligned"),
    [
        (torch.float32, 4, True),
        (torch.float32, 6, False),
        (torch.float64, 6, True),
        (torch.float64, 3, False),
    ],
)
def test_sixteen_bytes_are_loaded_at_once(launches, dtype, size, aligned):
    triton_step.step_(*pairs(size, dtype=dtype), 1.0, 1.0, 5.0, False, None, None)
    [(_, _, options)] = launches
    assert options["IS_ALIGNED"] == aligned
    assert options["DTYPE"] == (tl.float32 if dtype == torch.float32 else tl.float64)


@pytest.mark.parametrize("which", ["weight", "gradient"])
def test_memory_that_begins_elsewhere_is_not_aligned(launches, which):
    whole = [torch.ones(8), torch.ones(8)]
    ps, gs = [whole[0][:4]], [whole[1][:4]]
    (ps if which == "weight" else gs)[0] = whole[which == "gradient"][1:5]
    triton_step.step_(ps, gs, 1.0, 1.0, 5.0, False, None, None)
    assert [options["IS_ALIGNED"] for _, _, options in launches] == [False]


def test_rates_and_flags_in_tensors_are_read_by_the_kernel(launches):
    a, b, found_inf, clamped = (torch.tensor(x) for x in (-0.5, -0.25, 0.0, 7))
    triton_step.step_(*pairs(4), a, b, 2.0, False, found_inf, clamped)
    [(_, (table, _, rates, flag, counts), options)] = launches
    assert rates.tolist() == [-0.5, -0.25] and numbers(table) == [0.0, 0.0, 2.0]
    assert flag.item() == 0.0 and flag is not table and counts is clamped
    names = ("HAS_RATES", "HAS_FOUND_INF", "COUNTS", "MASK_ZERO_GRAD")
    assert [options[name] for name in names] == [True, True, True, False]


def test_nothing_is_launched_without_elements(launches):
    triton_step.step_(*pairs(0, 0), 1.0, 1.0, 5.0, False, None, None)
    assert launches == []
