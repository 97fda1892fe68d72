"""HAM on SAM as an optimizer around another one, in two steps or with a closure."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from two_step_sam import TwoStepSAM, sam_step

from ham import HAM

LR, RHO = 0.02, 0.3


@pytest.mark.parametrize("api", ["two steps", "closure"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("alpha", "beta"), [(3.0, 0.2), (-3.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize(
    "wrap", [lambda sam: sam, lambda sam: SimpleNamespace(optimizer=sam)], ids=["", "wrapped"]
)
def test_ham_acts_once_in_a_sam_that_holds_its_base_optimizer(api, momentum, alpha, beta, wrap):
    """With the gradient at the perturbed point, after the weights are back, against the formula."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    a = root @ root.t() + torch.eye(6, dtype=torch.float64)
    model = nn.Linear(6, 1, bias=False, dtype=torch.float64)
    w, moving = model.weight.detach()[0].clone(), torch.zeros(6, dtype=torch.float64)
    sam = TwoStepSAM(model.parameters(), torch.optim.SGD, rho=RHO, lr=LR, momentum=momentum)
    ham = HAM(wrap(sam), model=model, alpha=alpha, beta=beta)
    assert ham.optimizer is sam.base_optimizer
    for _ in range(4):
        sam_step(sam, lambda: (0.5 * model.weight[0] @ a @ model.weight[0]).backward(), api)
        g = a @ (w + RHO * a @ w / (a @ w).norm())
        moving = momentum * moving + g
        half = w - LR * moving
        w = half * (-LR * (alpha * half.sign() * g + beta)).clamp(-5, 5).exp()
        torch.testing.assert_close(model.weight.detach()[0], w, rtol=1e-9, atol=1e-12)


def test_a_base_optimizer_of_other_parameters_is_not_followed():
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD([p], lr=LR)
    optimizer.base_optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1))])
    assert HAM(optimizer).optimizer is optimizer


def test_a_state_is_loaded_after_a_group_was_added_to_sam():
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    sam = TwoStepSAM(model.parameters(), torch.optim.SGD, rho=RHO, lr=LR, momentum=0.9)
    HAM(sam, model=nn.ModuleList([model, other]), alpha=3.0, beta=0.2)
    sam.add_param_group({"params": list(other.parameters())})
    sam.load_state_dict(sam.state_dict())
    for group in sam.param_groups:
        assert (group["ham_alpha"], group["ham_beta"], group["ham_explicit"]) == (3.0, 0.2, False)
