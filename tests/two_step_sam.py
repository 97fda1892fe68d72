"""SAM as a popular class of optimizers has it: an optimizer around another one, in two steps or in one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class TwoStepSAM(Optimizer):
    """`first_step`, a backward pass, `second_step`; or `step(closure)`, whose closure is the second pass.

    Its groups are those of `base_optimizer`, which alone has the state of the base method.
    """

    def __init__(
        self, params: Iterable[Any], base: type[Optimizer], rho: float = 0.05, **options: Any
    ) -> None:
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def trained(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def first_step(self) -> None:
        """To the perturbed point; the gradients are cleared."""
        length = torch.cat([p.grad.flatten() for p in self.trained()]).norm()
        for p in self.trained():
            self.state[p]["start"] = p.detach().clone()
            p.add_(p.grad * (self.param_groups[0]["rho"] / (length + 1e-12)))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        """Back to the weights, then the step of the base optimizer with the gradients found meanwhile."""
        for p in self.trained():
            p.data = self.state[p]["start"]
        self.base_optimizer.step()
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> None:
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.base_optimizer.param_groups = self.param_groups


def sam_step(sam: TwoStepSAM, backward: Callable[[], None], api: str) -> None:
    """One training step with either API."""
    backward()
    if api == "closure":
        sam.step(backward)
    else:
        sam.first_step()
        backward()
        sam.second_step()
