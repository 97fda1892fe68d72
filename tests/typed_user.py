"""A user's script, for type checkers: tests/test_wheel.py checks it against the installed wheel."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ham import HAM, hyperbolic_step_, param_groups, perturbed
from pruning import ACDC, STR, Dense, MaskSet, Product, RandomPruning, RigL, Sparsifier, Spred
from pruning.allocate import kept_counts
from pruning.cost import cost
from pruning.export import plain_state_dict, remove_parametrizations_
from pruning.hook import OptimizerHook

model = nn.Linear(4, 4)
optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=1e-3)
ham: HAM = HAM(optimizer, model=model, alpha=20, beta=1e-3)
clamped: Tensor = ham.clamped_share()

acdc = ACDC(sparsity=0.9, scope="layerwise", revive="stale", revive_second_moment="zero")
methods: list[Sparsifier] = [
    acdc,
    RigL(sparsity=0.9, allocation="uniform"),
    RandomPruning(0.9, allocation="balanced"),
    STR(sparsity=0.9, calibrate="ramp", initial=-8.0),
    Spred(sparsity=0.9, factors="balanced"),
]
acdc.attach(model, total_epochs=3, parameterization=Product(reset_every=2))
acdc.parameterization.decoupled_decay = True
groups = acdc.param_groups(model.parameters())
stepping: bool = acdc.after_backward(0, optimizer)
acdc.on_epoch_end(train_accuracy=0.5)
masks: dict[str, Tensor] = acdc.kept()
mask_set: MaskSet = acdc.masks
counts: dict[str, int] = kept_counts({"weight": (4, 4)}, 0.5, "erk")
with perturbed(model.parameters(), rho=0.05):
    pass
hyperbolic_step_([model.weight], [model.weight.grad], lr=0.1, alpha=1.0, beta=0.0)
state: dict[str, Tensor] = plain_state_dict(model)

fixed = Dense()
fixed.attach(model, optimizer, total_epochs=1, include=["*.weight"], exclude=("head.*",), masks=masks)
hook: OptimizerHook = fixed.hook(optimizer)
hook.remove()
fixed.set_masks(masks, optimizer)
fixed.check(optimizer)
table: str = fixed.report(input_shape=(1, 4)) + fixed.report() + str(fixed)
fixed.project_(copy.deepcopy(model))
plain: nn.Module = remove_parametrizations_(model)
macs: float = cost(model, counts, (1, 4), include=["*.weight"]).flops

ACDC(sparsity=0.9, scope="local")  # wrong
ACDC(sparsity=0.9, revive="old")  # wrong
RigL(sparsity=0.9, allocation="er")  # wrong
STR(sparsity=0.9, calibrate="trial")  # wrong
Spred(sparsity=0.9, factors="random")  # wrong
RigL(sparsity="0.9")  # wrong
fixed.attach(model, total_epochs=1, include=7)  # wrong
fixed.set_masks([torch.ones(4, 4)])  # wrong
fixed.report(input_shape="1, 4")  # wrong
fixed.project_({"weight": model.weight})  # wrong
fixed.hook(model)  # wrong
HAM(optimizer, alpha="20")  # wrong
