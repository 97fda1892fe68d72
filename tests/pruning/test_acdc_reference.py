"""ACDC against the order of effects of IST-DASLab/ACDC, whose momentum reset depends on torch's version.

Its loop calls `zero_grad`, computes the loss, resets the momentum and only then calls `backward`. The reset
skips parameters without a gradient. Before torch 2.0 `zero_grad` left zeros and every momentum was reset;
since then it leaves None and none is.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from pruning import ACDC
from pruning.acdc import phases

EPOCHS, STEPS, SPARSITY = 12, 30, 0.75
RATES = {"lr": 0.3, "momentum": 0.3, "weight_decay": 1e-3}  # 0.3^30: no momentum outlasts a sparse phase


def start() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()


def loss(model: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    return nn.functional.cross_entropy(model(inputs), inputs[:, :3].argmax(dim=1))


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@cache
def ours(reset_momentum: bool) -> Tensor:
    model = start()
    acdc = ACDC(SPARSITY, reset_momentum=reset_momentum)
    acdc.attach(model, total_epochs=EPOCHS, steps_per_epoch=STEPS)
    optimizer = torch.optim.SGD(model.parameters(), **RATES)
    for epoch in range(EPOCHS):
        acdc.on_epoch_start(epoch, optimizer)
        for step in range(epoch * STEPS, (epoch + 1) * STEPS):
            optimizer.zero_grad()
            loss(model, step).backward()
            acdc.after_backward(step, optimizer)
            acdc.add_decay()
            optimizer.step()
            acdc.after_step()
    return weights_of(model)


@cache
def authors(set_to_none: bool) -> Tensor:
    """Their order: zero_grad, loss, reset, backward, step, mask. Pruned weights keep a decaying momentum."""
    model = start()
    optimizer = torch.optim.SGD(model.parameters(), **RATES)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    masks, order = None, phases(EPOCHS)
    for epoch in range(EPOCHS):
        reset = False
        if order[epoch] == "sparse" and masks is None:
            sizes = torch.cat([w.detach().abs().flatten() for w in matrices])
            threshold = sizes.sort().values[int(SPARSITY * len(sizes)) - 1]
            masks = [(w.detach().abs() > threshold).double() for w in matrices]
        elif order[epoch] == "dense" and masks is not None:
            masks, reset = None, True
        for step in range(epoch * STEPS, (epoch + 1) * STEPS):
            optimizer.zero_grad(set_to_none=set_to_none)
            apply(masks, matrices)
            value = loss(model, step)
            if reset:
                for p in model.parameters():
                    if p.grad is not None:
                        optimizer.state[p]["momentum_buffer"].zero_()
                reset = False
            value.backward()
            for weight, mask in zip(matrices, masks or [], strict=bool(masks)):
                weight.grad *= mask
            optimizer.step()
            apply(masks, matrices)
    return weights_of(model)


@torch.no_grad()
def apply(masks: list[Tensor] | None, matrices: list[nn.Parameter]) -> None:
    for weight, mask in zip(matrices, masks or [], strict=bool(masks)):
        weight *= mask


def test_a_reset_momentum_is_what_the_authors_code_does_before_torch_2():
    assert float((ours(reset_momentum=True) - authors(set_to_none=False)).abs().max()) < 1e-12


def test_a_kept_momentum_is_what_the_authors_code_does_since_torch_2():
    assert float((ours(reset_momentum=False) - authors(set_to_none=True)).abs().max()) < 1e-12


def test_the_reset_changes_the_result():
    difference = (authors(set_to_none=True) - authors(set_to_none=False)).abs().max()
    assert float(difference) > 1e-3
    assert float((ours(reset_momentum=True) - ours(reset_momentum=False)).abs().max()) == pytest.approx(
        float(difference), rel=1e-6
    )
