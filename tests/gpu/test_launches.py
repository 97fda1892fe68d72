"""Torch's multi-tensor kernels launch on a card as often as benchmarks/multi_tensor.py says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from dispatch_counter import DispatchCounter
from multi_tensor import CHUNK, installed_limits
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

OPERATIONS: dict[str, Callable[[list[Tensor]], object]] = {
    "add_": lambda tensors: torch._foreach_add_(tensors, [t.clone() for t in tensors]),
    "mul_": lambda tensors: torch._foreach_mul_(tensors, 0.5),
    "exp": torch._foreach_exp,
    "scalars": lambda tensors: torch._foreach_mul_(tensors, [0.5] * len(tensors)),
    "unlike": lambda tensors: torch._foreach_add_(tensors, [t.double() for t in tensors]),
}


@pytest.mark.parametrize(
    "sizes", [[10] * 200, [10] * 900, [CHUNK * 1000] * 3, [0, 5, CHUNK * 330 + 1]], ids=str
)
@pytest.mark.parametrize("name", OPERATIONS)
def test_launches_are_those_counted(name: str, sizes: list[int]):
    tensors = [torch.ones(size, device="cuda") for size in sizes]
    with DispatchCounter("cuda", installed_limits()) as counted:
        OPERATIONS[name](tensors)
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        OPERATIONS[name](tensors)
        torch.cuda.synchronize()
    kernels = [
        event.name for event in recorded.events() if event.device_type == DeviceType.CUDA and event.name
    ]
    assert len(kernels) == counted.total.launches, kernels
