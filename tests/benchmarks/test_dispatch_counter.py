"""Launches, bytes and memory, worked by hand, on the CPU as the counted device."""

from __future__ import annotations

import pytest
import torch
from dispatch_counter import KERNELS, Cost, DispatchCounter, nbytes
from multi_tensor import CHUNK, LIMITS, SCALAR_LISTS, multi_tensor_launches
from torch import Tensor


def counter() -> DispatchCounter:
    return DispatchCounter("cpu")


def vectors(count: int, size: int = 10) -> list[Tensor]:
    return [torch.ones(size) for _ in range(count)]


def test_a_chain_of_three_operations():
    x = torch.ones(1000)
    with counter() as counted:
        y = x * 2  # reads x, writes y
        z = y + x  # reads both, writes z
        z.exp_()  # reads and writes z
    assert counted.total == Cost(3, 4000 + 8000 + 4000, 4000 + 4000 + 4000)
    assert counted.launches == {"mul": 1, "add": 1, "exp_": 1}


def test_views_metadata_and_allocations_are_free():
    x = torch.ones(4, 6)
    with counter() as counted:
        x.view(24), x.t(), x[1:], x.transpose(0, 1).reshape(24, 1)[:0], x.expand(3, 4, 6), x.detach()
        x.shape, x.stride(), x.is_contiguous(), torch.empty(100), torch.empty_like(x), x.unbind(), x.split(2)
    assert counted.launches == {"clone": 1}  # the reshape of a transposed tensor copies
    assert counted.total == Cost(1, 96, 96)


@pytest.mark.parametrize(
    ("operation", "read", "written"),
    [
        (lambda x: x + 1, 40, 40),
        (lambda x: x * x, 40, 40),  # one tensor, read once
        (lambda x: x.zero_(), 0, 40),
        (lambda x: x.copy_(torch.ones(()).expand(10)), 4, 40),  # an expanded tensor has one entry
        (lambda x: torch.add(x, 1, out=x), 40, 40),
        (lambda x: x.double(), 40, 80),
        (lambda x: x > 0, 40, 10),
        (lambda x: x.masked_fill_(torch.ones(10, dtype=torch.bool), 0.0), 50, 40),
        (lambda x: x.sum(), 40, 4),
        (lambda x: x.view(5, 2)[torch.tensor([1, 3])], 16 + 16, 16),  # two rows and two indices
        (lambda x: torch.zeros(5), 0, 20),
    ],
)
def test_bytes_of_the_last_operation(operation, read, written):
    x = torch.ones(10)
    before: list[Cost] = []

    class Last(DispatchCounter):
        def _add(self, name: str, cost: Cost) -> None:
            before.append(cost)
            super()._add(name, cost)

    with Last("cpu"):
        operation(x)
    costs = [cost for cost in before if cost.launches]
    assert costs[-1] == Cost(1, read, written)


def test_operations_without_an_element_do_not_launch():
    x = torch.ones(0, 3)
    with counter() as counted:
        x + 1, x.clone(), x.fill_(2.0), x.double()
        torch._foreach_add_([x], [x])
        x.sum()  # a result of one element
    assert counted.launches == {"sum": 1}


def test_other_devices_do_not_count():
    with DispatchCounter("cuda") as counted:
        torch.ones(3) + 1
    assert counted.total == Cost() and counted.live == 0


def test_a_value_is_no_launch():
    x = torch.ones(3)
    with counter() as counted:
        x[0].item()
    assert counted.total == Cost()


@pytest.mark.parametrize(
    ("sizes", "depth", "launches_12", "launches_13"),
    [
        ([10] * 200, 1, 2, 1),  # 110 + 90 tensors; one launch takes 770
        ([10] * 200, 2, 4, 1),  # 64 + 64 + 64 + 8; one takes 448
        ([10] * 500, 2, 8, 2),
        ([10] * 110, 1, 1, 1),  # exactly full
        ([10] * 111, 1, 2, 1),
        ([CHUNK * 320], 2, 1, 1),
        ([CHUNK * 320 + 1], 2, 2, 1),  # blocks of one tensor
        ([CHUNK * 200] * 3, 3, 2, 1),  # 600 blocks: 320 + 280
        ([CHUNK * 1000] * 3, 3, 10, 2),  # 3000 blocks: 9 * 320 + 120, 2240 + 760
        ([0, 0, 10, 0], 4, 1, 1),  # empty tensors take no place
        ([0] * 5, 1, 0, 0),
        ([10] * 30, 5, 1, 1),
        ([10] * 31, 5, 2, 1),
        ([CHUNK * 320 + 1] + [10] * 29, 5, 2, 1),  # the rest of the first tensor takes one of 30 places
        ([CHUNK * 320 + 1] + [10] * 30, 5, 3, 1),
    ],
)
def test_launches_of_the_multi_tensor_kernel(sizes, depth, launches_12, launches_13):
    assert multi_tensor_launches(sizes, depth, cuda=12) == launches_12
    assert multi_tensor_launches(sizes, depth, cuda=13) == launches_13


@pytest.mark.parametrize("cuda", LIMITS)
def test_a_scalar_of_each_tensor_leaves_less_room(cuda):
    most = SCALAR_LISTS[cuda]
    assert multi_tensor_launches([10] * most, 1, scalars=True, cuda=cuda) == 1
    assert multi_tensor_launches([10] * (most + 1), 1, scalars=True, cuda=cuda) == 2
    assert multi_tensor_launches([10] * (most + 1), 1, cuda=cuda) == 1


def test_multi_tensor_operations_over_200_tensors():
    one, other = vectors(200), vectors(200)
    with DispatchCounter("cpu", cuda=12) as counted:
        torch._foreach_add_(one, other)  # two lists
        torch._foreach_mul_(one, 2.0)  # one
        torch._foreach_exp(one)  # one and the results
        torch._foreach_copy_(one, other)
    assert counted.launches == {
        "_foreach_add_": 4,
        "_foreach_mul_": 2,
        "_foreach_exp": 4,
        "_foreach_copy_": 4,
    }
    assert counted.total == Cost(14, 8000 * (2 + 1 + 1 + 1), 8000 * 4)


def test_norms_clear_and_reduce_partial_results():
    tensors = vectors(200)
    with counter() as counted:
        torch._foreach_norm(tensors)
    assert counted.total == Cost(3, 8000, 800)


def test_unlike_tensors_have_a_launch_each():
    with counter() as counted:
        torch._foreach_add_(vectors(20), [t.double() for t in vectors(20)])
    assert counted.launches["_foreach_add_"] == 20
    gaps = [torch.ones(3, 8)[:, ::2] for _ in range(20)]
    with counter() as counted:
        torch._foreach_mul_(gaps, 2.0)
    assert counted.launches == {"_foreach_mul_": 20}
    columns = [torch.ones(3, 4).t() for _ in range(20)]
    with counter() as counted:
        torch._foreach_mul_(columns, [torch.ones(4, 3) for _ in columns])
    assert counted.launches["_foreach_mul_"] == 20


@pytest.mark.parametrize(("optimizer", "read", "written"), [("sgd", 12, 8), ("adamw", 16, 12)])
def test_bytes_a_weight_of_fused_optimizers(optimizer, read, written):
    weight = torch.nn.Parameter(torch.ones(1000))
    weight.grad = torch.ones(1000)
    made = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    }[optimizer]([weight])
    made.step()
    with counter() as counted:
        made.step()
    steps = 4 if optimizer == "adamw" else 0  # Adam's count of steps: added to, then read
    assert counted.total.read == 1000 * read + 2 * steps
    assert counted.total.written == 1000 * written + steps


def launch_of_a_kernel(weights: list[Tensor], grads: list[Tensor], lr: float) -> None:
    raise AssertionError("a kernel without a device")


STEPS = {"kernel": launch_of_a_kernel}


@pytest.mark.parametrize("place", ["launch_of_a_kernel", "STEPS[kernel]"])
def test_a_hand_written_kernel_is_counted_and_not_called(monkeypatch, place):
    name = f"{__name__}.{place}"
    cost = lambda weights, grads, lr: Cost(1, nbytes(weights + grads), nbytes(weights))  # noqa: E731
    monkeypatch.setitem(KERNELS, name, cost)
    call = lambda: STEPS["kernel"] if "[" in place else launch_of_a_kernel  # noqa: E731
    weights, grads = vectors(200), vectors(200)
    with counter() as counted:
        call()(weights, grads, lr=0.1)
    assert counted.total == Cost(1, 16000, 8000)
    assert counted.launches == {name: 1}
    with pytest.raises(AssertionError):  # outside it is called
        call()(weights, grads, lr=0.1)


def test_a_kernel_registered_with_torch_is_one_launch():
    @torch.library.custom_op("counter_test::scale_", mutates_args=["weights"])
    def scale_(weights: list[Tensor], grads: list[Tensor]) -> None:
        for weight, grad in zip(weights, grads, strict=True):
            weight.numpy()[...] *= grad.numpy()

    with counter() as counted:
        scale_(vectors(200), vectors(200))
    assert counted.launches["scale_"] == 1
    scaling = counted.total - Cost(400, 0, 16000)  # without the 400 vectors
    assert scaling == Cost(1, 16000, 8000)


def test_live_and_peak_memory():
    with counter() as counted:
        x = torch.ones(1000)
        y = x * 2
        z = y.view(10, 100)  # the same memory
        assert counted.live == 8000
        del y
        assert counted.live == 8000
        del z
        assert counted.live == 4000
        (x + 1).sum()
    assert counted.peak == 8004
    assert counted.live == 4000


def test_costs_add_and_subtract():
    assert Cost(1, 2, 3) + Cost(10, 20, 30) - Cost(1, 1, 1) == Cost(10, 21, 32)
