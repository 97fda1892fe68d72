"""HAM beside base steps and hooks that change p.grad: refused where HAM would read a wrong gradient."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from ham import HAM
from ham.optim.watch import _message, _version

LR, ALPHA, BETA = 0.1, 20.0, 0.1


def weight() -> nn.Parameter:
    return nn.Parameter(torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


def gradient(seed: int) -> Tensor:
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def hyp(theta: Tensor, grad: Tensor) -> Tensor:
    return theta * (-LR * (ALPHA * theta.sign() * grad + BETA)).clamp(-5, 5).exp()


class Spoiling(SGD):
    """Takes SGD's step and then does `spoil` to each parameter."""

    def __init__(self, params: list[nn.Parameter], spoil: Callable[[nn.Parameter], None]) -> None:
        super().__init__(params, lr=LR)
        self.spoil = spoil

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> object:
        loss = super().step(closure)
        for p in self.param_groups[0]["params"]:
            self.spoil(p)
        return loss


def replace(p: nn.Parameter) -> None:
    p.grad = p.grad.clone()


def delete(p: nn.Parameter) -> None:
    p.grad = None


SPOIL = {
    "in place": lambda p: p.grad.mul_(2),
    "through a view": lambda p: p.grad.view(-1)[:1].zero_(),
    "foreach": lambda p: torch._foreach_mul_([p.grad], 2.0),
    "replaced": replace,
    "deleted": delete,
}


@pytest.mark.parametrize("spoil", SPOIL.values(), ids=SPOIL.keys())
@pytest.mark.parametrize("how", ["step", "closure", "keyword closure"])
def test_a_base_step_that_changes_the_gradient_is_refused_before_ham_changes_a_weight(spoil, how):
    p = weight()
    optimizer = Spoiling([p], spoil)
    HAM(optimizer, alpha=ALPHA, beta=BETA, max_weight_norm=1e-3)
    before, p.grad = p.detach().clone(), gradient(1)

    def closure() -> float:
        p.grad = gradient(1)
        return 7.0

    arguments = {"step": ((), {}), "closure": ((closure,), {}), "keyword closure": ((), {"closure": closure})}
    args, kwargs = arguments[how]
    with pytest.raises(ValueError, match=r"Spoiling changes p.grad .*such as torch.optim.AdamW") as error:
        optimizer.step(*args, **kwargs)
    assert "\n" not in str(error.value)
    torch.testing.assert_close(p.detach(), before - LR * gradient(1), rtol=1e-15, atol=0)


def test_a_gradient_that_the_base_step_makes_is_refused():
    p = weight()

    def make(p: nn.Parameter) -> None:
        p.grad = gradient(2)

    optimizer = Spoiling([p], make)
    HAM(optimizer)
    with pytest.raises(ValueError, match=r"changes p\.grad"):
        optimizer.step()


def test_beta_alone_reads_no_gradient_and_is_not_refused():
    p = weight()
    optimizer = Spoiling([p], SPOIL["in place"])
    HAM(optimizer, alpha=0.0, beta=BETA)
    p.grad = gradient(1)
    expected = (p.detach() - LR * p.grad) * torch.tensor(-LR * BETA, dtype=torch.float64).exp()
    optimizer.step()
    torch.testing.assert_close(p.detach(), expected, rtol=1e-14, atol=0)
    optimizer.param_groups[0]["ham_alpha"] = ALPHA  # from now on the gradient counts
    with pytest.raises(ValueError, match=r"changes p\.grad"):
        optimizer.step()


@pytest.mark.parametrize(
    "change",
    [
        lambda optimizer: optimizer.zero_grad(),
        lambda optimizer: optimizer.zero_grad(set_to_none=False),
        lambda optimizer: optimizer.param_groups[0]["params"][0].grad.mul_(7),
        lambda optimizer: optimizer.param_groups[0].update(lr=LR / 10),  # as a scheduler does
    ],
    ids=["cleared", "zeroed", "multiplied", "another rate"],
)
@pytest.mark.parametrize("is_earlier", [True, False])
@pytest.mark.parametrize("alpha", [ALPHA, 0.0])
def test_ham_follows_the_base_step_before_all_other_post_hooks(change, is_earlier, alpha):
    p = weight()
    optimizer = SGD([p], lr=LR)

    def hook(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        change(optimizer)

    if is_earlier:
        optimizer.register_step_post_hook(hook)
    HAM(optimizer, alpha=alpha, beta=BETA)
    if not is_earlier:
        optimizer.register_step_post_hook(hook)
    for step in range(3):
        optimizer.param_groups[0]["lr"], p.grad = LR, gradient(step)
        base = p.detach() - LR * gradient(step)
        expected = base * (-LR * (alpha * base.sign() * gradient(step) + BETA)).clamp(-5, 5).exp()
        optimizer.step()
        torch.testing.assert_close(p.detach(), expected, rtol=1e-14, atol=0)


def test_a_step_that_clears_its_gradients_is_refused_with_beta_alone():
    p = weight()
    optimizer = Spoiling([p], SPOIL["deleted"])
    HAM(optimizer, alpha=0.0, beta=BETA)
    p.grad = gradient(1)
    with pytest.raises(ValueError, match=r"changes p\.grad"):
        optimizer.step()


def halve(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    """A user's pre-hook that edits gradients in place, like clipping."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                p.grad.mul_(0.5)


def mask_first(optimizer: Optimizer) -> None:
    """Registers a pre-hook at the front that masks gradients, with a closure after it."""
    mask = torch.ones(4, 3, dtype=torch.float64)
    mask[0] = 0

    def apply() -> None:
        for p in optimizer.param_groups[0]["params"]:
            if p.grad is not None:
                p.grad.mul_(mask)

    def hook(optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if len(args) > 1:
            return (args[0], lambda: (args[1](), apply())[0]), kwargs
        apply()
        return None

    handle = optimizer.register_step_pre_hook(hook)
    optimizer._optimizer_step_pre_hooks.move_to_end(handle.id, last=False)


REGISTRATIONS: dict[str, Callable[[Optimizer], object]] = {
    "HAM": lambda optimizer: HAM(optimizer, alpha=ALPHA, beta=BETA),
    "clip": lambda optimizer: optimizer.register_step_pre_hook(halve),
    "mask": mask_first,
}


@pytest.mark.parametrize("order", list(itertools.permutations(REGISTRATIONS)), ids="-".join)
@pytest.mark.parametrize("with_closure", [False, True], ids=["step", "closure"])
def test_hooks_that_edit_gradients_before_the_step_are_no_reason_to_refuse(order, with_closure):
    """In any order of registration, from the first step on: HAM reads what the base step reads."""
    p = weight()
    optimizer = SGD([p], lr=LR)
    for name in order:
        REGISTRATIONS[name](optimizer)
    for k in range(3):
        raw = gradient(k)

        def closure(raw: Tensor = raw) -> float:
            p.grad = raw.clone()
            return 1.0

        if not with_closure:
            p.grad = raw.clone()
        seen = raw * (1.0 if with_closure else 0.5)  # the clip hook runs before the closure
        seen[0] = 0.0
        half = p.detach() - LR * seen
        p.grad = None if with_closure else p.grad
        optimizer.step(closure) if with_closure else optimizer.step()
        torch.testing.assert_close(p.detach(), hyp(half, seen), rtol=1e-13, atol=0)


def test_a_pre_hook_registered_later_delays_the_refusal_by_one_step_at_most():
    p = weight()
    optimizer = Spoiling([p], SPOIL["in place"])
    HAM(optimizer)
    optimizer.register_step_pre_hook(halve)
    p.grad = gradient(1)
    optimizer.step()
    with pytest.raises(ValueError, match=r"changes p\.grad"):
        optimizer.step()


def test_a_marked_post_hook_changes_the_gradient_before_ham_reads_it():
    """As a sparsifier does that takes its decay out of the gradient, wherever its hook stands."""

    def restore(*args: object) -> None:
        halve(*args)

    restore.restores_gradients = True
    p = weight()
    optimizer = SGD([p], lr=LR)
    optimizer.register_step_post_hook(restore)
    HAM(optimizer, alpha=ALPHA, beta=BETA)
    handle = optimizer.register_step_post_hook(restore)
    optimizer.register_step_post_hook(restore)
    optimizer._optimizer_step_post_hooks.move_to_end(handle.id, last=False)
    for k in range(2):
        p.grad = gradient(k)
        expected = hyp(p.detach() - LR * p.grad, p.grad / 8)
        optimizer.step()
        torch.testing.assert_close(p.detach(), expected, rtol=1e-13, atol=0)


def test_a_closure_that_the_optimizer_calls_twice_counts_by_its_last_gradient():
    class Twice(SGD):
        def step(self, closure: Callable) -> object:
            closure()
            return super().step(closure)

    p, seeds = weight(), iter(range(10))

    def closure() -> int:
        seed = next(seeds)
        p.grad = gradient(seed)
        return seed

    optimizer = Twice([p], lr=LR)
    HAM(optimizer, alpha=ALPHA, beta=BETA)
    half = p.detach() - LR * gradient(1)
    assert optimizer.step(closure) == 1
    torch.testing.assert_close(p.detach(), hyp(half, gradient(1)), rtol=1e-13, atol=0)


def test_an_error_in_the_closure_leaves_the_next_step_intact():
    p = weight()
    optimizer = SGD([p], lr=LR)
    HAM(optimizer, alpha=ALPHA, beta=BETA)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    p.grad = gradient(1)
    expected = hyp(p.detach() - LR * p.grad, p.grad)
    optimizer.step()
    torch.testing.assert_close(p.detach(), expected, rtol=1e-13, atol=0)


def test_a_step_that_calls_the_step_of_its_base_class_is_followed_once():
    """torch then runs the hooks of the optimizer twice, from the first plain SGD of the process on."""

    class Nested(SGD):
        def step(self, closure: Callable | None = None) -> object:
            return super().step(closure)

    SGD([weight()], lr=LR)
    p, calls = weight(), []
    optimizer = Nested([p], lr=LR)
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    HAM(optimizer, alpha=ALPHA, beta=BETA)
    for k in range(4):
        if k == 2:
            with pytest.raises(ZeroDivisionError):
                optimizer.step(lambda: 1 / 0)
        p.grad = gradient(k)
        half = p.detach() - LR * gradient(k)
        optimizer.step()
        torch.testing.assert_close(p.detach(), hyp(half, gradient(k)), rtol=1e-13, atol=0)
    assert len(calls) == 8  # the reason; when torch mends it, drop the count of open steps


def test_remove_releases_the_gradients_of_a_step_that_failed():
    class Failing(SGD):
        def step(self, closure: Callable | None = None) -> object:
            raise ZeroDivisionError

    p = weight()
    optimizer = Failing([p], lr=LR)
    ham = HAM(optimizer, alpha=ALPHA, beta=BETA)
    p.grad = gradient(0)
    released = weakref.ref(p.grad)
    with suppress(ZeroDivisionError):
        optimizer.step()
    p.grad = None
    ham.remove()
    assert released() is None


def test_remove_takes_every_hook_away():
    optimizer = AdamW([weight()], lr=LR)
    HAM(optimizer).remove()
    assert not [name for name, value in vars(optimizer).items() if name.endswith("_hooks") and value]


@pytest.fixture
def one_rank() -> Iterator[None]:
    if torch.distributed.is_initialized():
        pytest.skip("a process group exists already")
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(os.name != "posix", reason="gloo")
@pytest.mark.parametrize("spoil", [None, "whole", "shard"])
def test_a_sharded_gradient_is_watched_too(one_rank, spoil):
    """A DTensor's version and that of its shard are counted apart: either change is seen."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    p = nn.Parameter(distribute_tensor(weight().detach(), mesh, [Shard(0)]))
    changes = {
        None: lambda p: None,
        "whole": lambda p: p.grad.mul_(2),
        "shard": lambda p: p.grad.to_local().mul_(2),
    }
    optimizer = Spoiling([p], changes[spoil])
    HAM(optimizer, alpha=ALPHA, beta=BETA)
    for k in range(2):
        p.grad = distribute_tensor(gradient(k), mesh, [Shard(0)])
        half = p.detach().to_local() - LR * gradient(k)
        if spoil:
            with pytest.raises(ValueError, match=r"changes p\.grad"):
                optimizer.step()
            torch.testing.assert_close(p.detach().to_local(), half, rtol=1e-14, atol=0)
        else:
            optimizer.step()
            torch.testing.assert_close(p.detach().to_local(), hyp(half, gradient(k)), rtol=1e-13, atol=0)


def test_torchs_own_optimizers_have_a_second_cure():
    end = "use an optimizer that does not change p.grad, such as torch.optim.AdamW"
    start = "changes p.grad in its step, and HAM reads p.grad after it: "
    assert _message(Spoiling([weight()], replace)) == f"Spoiling {start}{end}"
    assert _message(SGD([weight()], lr=LR)) == f"SGD {start}set foreach=False, or {end}"


def test_writes_to_a_gradient_are_counted():
    grad = torch.zeros(2)
    before = _version(grad)
    grad.add_(1)
    assert _version(grad) == before + 1
    assert _version(None) == 0
    with torch.inference_mode():
        assert _version(torch.zeros(2)) == 0


def test_gradients_that_another_step_hook_gives_back_are_no_loss():
    """Only where all are gone, and some were there before, is a hook in the way."""
    p, q = weight(), weight()
    optimizer = SGD([p, q], lr=LR)
    HAM(optimizer, alpha=ALPHA, beta=BETA)
    optimizer.step()  # none before
    p.grad = gradient(1)  # q has none
    expected = hyp(p.detach() - LR * p.grad, p.grad)
    optimizer.step()
    torch.testing.assert_close(p.detach(), expected, rtol=1e-13, atol=0)
