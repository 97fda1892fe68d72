"""Losses of a batch in parts, and what a batch is."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.utils.rnn import pack_sequence

from pruning.batches import check_pair, losses_in_parts

CPU = torch.device("cpu")


def losses(x: object, y: object, loss_fn: Callable, size: int, seen: list[int] | None = None) -> list[Tensor]:
    scale = torch.tensor(2.0, requires_grad=True)

    def forward(part: Tensor) -> Tensor:
        if seen is not None:
            seen.append(len(part))
        return scale * part

    return list(losses_in_parts(x, y, forward, loss_fn, size, CPU))


@pytest.mark.parametrize(
    ("count", "size", "parts"),
    [(4, 4, [4]), (5, 4, [4, 1]), (8, 4, [4, 4]), (10, 4, [4, 4, 2]), (3, 1, [1, 1, 1])],
)
def test_the_losses_of_parts_add_up_to_that_of_the_batch(count, size, parts):
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 3, generator=draw), torch.randn(count, 3, generator=draw)
    seen: list[int] = []
    found = losses(x, y, mse_loss, size, seen)
    assert seen == parts
    starts = [sum(parts[:i]) for i in range(len(parts))]
    expected = [
        (2 * x - y)[start : start + length].square().sum() / (3 * count)
        for start, length in zip(starts, parts, strict=True)
    ]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))


@pytest.mark.parametrize("kind", [tuple, list, lambda xs: dict(zip("ab", xs, strict=True))])
@pytest.mark.parametrize(("lengths", "parts"), [((10, 10), [4, 4, 2]), ((10, 9), [10]), ((9, 9), [9])])
def test_each_of_several_inputs_is_split(kind, lengths, parts):
    xs = [torch.arange(float(length), requires_grad=True) for length in lengths]
    y = torch.zeros(10)
    seen: list[int] = []

    def forward(a: Tensor, b: Tensor) -> Tensor:
        seen.append(len(a))
        assert len(b) == len(a) - (lengths[0] - lengths[1])
        return a + b[0]

    found = losses_in_parts(kind(xs), y, forward, lambda outputs, targets: outputs.mean(), 4, CPU)
    total = float(sum(found).detach())
    assert seen == parts
    if lengths == (10, 10):  # b[0] of each part is 0, 4 and 8
        assert total == pytest.approx(4.5 + (4 * 0 + 4 * 4 + 2 * 8) / 10)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.ones(6, 2), torch.ones(12)),  # another number of targets
        (torch.ones(6, 2), torch.tensor(1.0)),
        (torch.ones(6, 2), [1.0] * 6),
        (torch.tensor(3.0).expand(6), None),
    ],
    ids=["lengths", "scalar", "list", "nothing"],
)
def test_what_has_no_samples_in_common_is_one_part(x, y):
    given = []

    def loss_fn(outputs: Tensor, targets: object) -> Tensor:
        given.append(targets)
        return outputs.sum()

    [loss] = losses(x, y, loss_fn, 4)
    assert loss == 2 * x.sum() and given[0] is y


def weighted(weight: list[float]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs, labels: cross_entropy(outputs, labels, weight=torch.tensor(weight))


@pytest.mark.parametrize(
    ("count", "loss_fn", "refused"),
    [
        (8, weighted([1.0, 1.0]), False),
        (8, weighted([1.0, 5.0]), True),
        (8, weighted([1.0, 1.0001]), False),  # below 0.001 of the slope
        (8, weighted([1.0, 1.02]), True),
        (4, weighted([1.0, 5.0]), False),  # a single part
        (8, lambda outputs, labels: cross_entropy(outputs, labels, reduction="sum"), True),
    ],
    ids=["equal", "weights", "nearly equal", "slightly different", "one part", "sum"],
)
def test_a_loss_that_is_no_mean_over_samples_is_refused_after_the_second_part(count, loss_fn, refused):
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])[:count]
    found: list[Tensor] = []
    parts = losses_in_parts(x, y, lambda part: part, loss_fn, 4, CPU)
    if not refused:
        assert len(list(parts)) == count // 4
        return
    with pytest.raises(ValueError) as error:
        for loss in parts:
            found.append(loss)
    assert len(found) == 2
    assert str(error.value) == (
        "the loss of a batch is not the mean over its parts of 4 samples (for example, because of class "
        "weights): use batches of at most 4, or a loss that is the mean over samples"
    )


@pytest.mark.parametrize(
    ("loss_fn", "kind"),
    [
        (lambda outputs, targets: None, "NoneType"),
        (lambda outputs, targets: mse_loss(outputs, targets).item(), "float"),
        (lambda outputs, targets: mse_loss(outputs, targets).detach(), "one without a gradient"),
        (lambda outputs, targets: mse_loss(outputs, targets, reduction="none"), "one of shape (6, 2)"),
        (lambda outputs, targets: {"loss": mse_loss(outputs, targets)}, "dict"),
    ],
    ids=["none", "number", "detached", "vector", "dict"],
)
def test_a_loss_without_a_gradient_is_named(loss_fn, kind):
    with pytest.raises(ValueError) as error:
        losses(torch.ones(6, 2), torch.zeros(6, 2), loss_fn, 6)
    assert str(error.value) == (
        f"the loss must be a tensor with a single entry and a gradient, got {kind}: let loss_fn return the "
        "mean over the samples, computed from the outputs without item() and detach()"
    )


def test_parts_are_computed_with_gradients_and_without_autocast():
    x, y = torch.ones(2, 2), torch.ones(2, 2)
    scale = torch.tensor(3.0, requires_grad=True)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = list(losses_in_parts(x, y, lambda part: part @ (scale * torch.eye(2)), mse_loss, 1, CPU))
    assert all(loss.requires_grad and loss.dtype == torch.float32 for loss in found)


@pytest.mark.parametrize(
    "batch",
    [
        (torch.ones(2), 1),
        [torch.ones(2), "a"],
        (object(), None),
        ((torch.ones(2), torch.ones(3)), 1),
        ([torch.ones(2)], 2),
        ({"x": torch.ones(2)}, 2),
        (UserDict(x=torch.ones(2)), 2),
        (pack_sequence([torch.ones(2)]), 2),
    ],
    ids=lambda batch: f"{type(batch).__name__} of {type(batch[0]).__name__}",
)
def test_a_pair_is_inputs_and_targets(batch):
    inputs, targets = check_pair(batch)
    assert inputs is batch[0] and targets is batch[1]


@pytest.mark.parametrize(
    ("batch", "kind"),
    [
        (torch.ones(2, 2), "Tensor"),
        ({"x": 1, "y": 2}, "dict"),
        ((torch.ones(2),), "tuple of 1"),
        ([torch.ones(2)] * 3, "list of 3"),
        ((1, 2), "tuple of 2"),
        ((0.5, 2), "tuple of 2"),
        (("text", 2), "tuple of 2"),
        ((b"text", 2), "tuple of 2"),
        (([torch.ones(2), 1], 2), "tuple of 2"),
        (([], 2), "tuple of 2"),
        (((), 2), "tuple of 2"),
        (({}, 2), "tuple of 2"),
        ((range(2), 2), "tuple of 2"),
        (({"x": 1}, 2), "tuple of 2"),
        ((UserDict(x=1), 2), "tuple of 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_batches_are_named(batch, kind):
    with pytest.raises(ValueError) as error:
        check_pair(batch)
    assert str(error.value) == (
        f"batches must be pairs (inputs, targets), got {kind}: pass a generator such as ((batch['x'], "
        "batch['y']) for batch in loader)"
    )
