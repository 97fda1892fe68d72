"""HAM on real torch optimizers: the update itself, what it leaves alone and the traps around the hook."""

import copy
import gc
import inspect
import math
import shutil
import warnings
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.resnet import BasicBlock, conv1x1

from ham import HAM, param_groups

Shapes = Iterable[tuple[int, ...]]
TWO_WEIGHTS = ((4, 3), (5, 4))


def weights(dtype: torch.dtype = torch.float64, shapes: Shapes = TWO_WEIGHTS) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype, generator=generator)) for shape in shapes]


def set_gradients(params: list[nn.Parameter], seed: int, size: float = 0.01) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = size * torch.randn(p.shape, dtype=p.dtype, generator=generator)


def values(params: Iterable[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def all_equal(left: Iterable[Tensor], right: Iterable[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def assert_close(left: Iterable[Tensor], right: Iterable[Tensor], rtol: float) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=rtol, atol=0)


def hyp(theta: Tensor, grad: Tensor, lr: float, alpha: float, beta: float, clamp: float = 5.0) -> Tensor:
    """theta * exp(clip(-lr (alpha sign(theta) grad + beta))), literally."""
    exponent = -lr * (alpha * theta.sign() * grad + beta)
    return theta * exponent.clamp(-clamp, clamp).exp()


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)


def loss_of(model: nn.Module, seed: int) -> Tensor:
    dtype = next(model.parameters()).dtype
    x = torch.randn(12, 6, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return nn.functional.cross_entropy(model(x), torch.arange(12) % 3)


def train(model: nn.Module, optimizer: Optimizer, steps: Iterable[int]) -> None:
    for k in steps:
        optimizer.zero_grad()
        loss_of(model, k).backward()
        optimizer.step()


# --- the update


@pytest.mark.parametrize(
    ("theta", "grad", "expected"),
    [
        (0.5, 0.01, 0.301673575),  # half step .4975, exponent -.50025
        (0.5, -0.01, 0.828275344),
        (0.001, 0.01, -0.00247246371),  # the base step flips the sign, HYP* follows the new one
        (0.5, 1.0, 0.00168448675),  # clamped at -5
        (-0.02, 0.3, -14.0992501),  # clamped at +5
    ],
)
def test_worked_numbers(theta, grad, expected):
    weight = nn.Parameter(torch.full((1, 1), theta, dtype=torch.float64))
    weight.grad = torch.full((1, 1), grad, dtype=torch.float64)
    optimizer = SGD([weight], lr=0.25)
    HAM(optimizer, alpha=200.0, beta=1e-3)
    optimizer.step()
    assert weight.item() == pytest.approx(expected, rel=2e-9)


@pytest.mark.parametrize("alpha", [20.0, -20.0])
def test_first_order_limit(alpha):
    """(w_{k+1} - w_k) / lr -> -(1 + alpha |w|) g - beta w (Theorem 4.2), with an error that falls like lr."""
    errors = []
    for lr in (1e-3, 1e-4, 1e-5):
        [weight] = weights(shapes=[(5, 4)])
        set_gradients([weight], seed=1, size=0.5)
        before, optimizer = weight.detach().clone(), SGD([weight], lr=lr)
        HAM(optimizer, alpha=alpha, beta=0.3)
        optimizer.step()
        flow = -(1 + alpha * before.abs()) * weight.grad - 0.3 * before
        errors.append(((weight.detach() - before) / lr - flow).norm().item())
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)


BASES = {
    "SGD": lambda params: SGD(params, lr=0.1, weight_decay=1e-3),
    "momentum": lambda params: SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "Nesterov": lambda params: SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "SGD foreach": lambda params: SGD(params, lr=0.1, momentum=0.9, foreach=True),
    "SGD fused": lambda params: SGD(params, lr=0.1, momentum=0.9, fused=True),
    "AdamW": lambda params: AdamW(params, lr=0.01),
    "Adam": lambda params: Adam(params, lr=0.01, amsgrad=True),
    "RMSprop": lambda params: RMSprop(params, lr=0.01),
    "RMSprop momentum": lambda params: RMSprop(params, lr=0.01, momentum=0.9, centered=True),
    "NAdam": lambda params: torch.optim.NAdam(params, lr=0.01),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=0.01),
}


@pytest.mark.parametrize("base", BASES.values(), ids=BASES.keys())
def test_alpha_and_beta_zero_is_the_base_optimizer_bit_for_bit(base):
    plain, aware = network(), network()
    train(plain, base(plain.parameters()), range(20))
    optimizer = base(aware.parameters())
    HAM(optimizer, model=aware, alpha=0.0, beta=0.0)
    train(aware, optimizer, range(20))
    assert all_equal(plain.state_dict().values(), aware.state_dict().values())
    assert not all_equal(plain.parameters(), network().parameters())


def first_order_optimizers() -> Iterable[tuple[type[Optimizer], dict]]:
    """Every torch optimizer but the two that HAM refuses, in each implementation that it has."""
    for name, cls in vars(torch.optim).items():
        if not isinstance(cls, type) or name in ("Optimizer", "LBFGS", "SparseAdam"):
            continue
        accepted = inspect.signature(cls).parameters
        yield cls, {}
        for flags in ({"foreach": False}, {"foreach": True}, {"fused": True}):
            if flags.keys() <= accepted.keys():
                yield cls, flags
                if "maximize" in accepted:
                    yield cls, {**flags, "maximize": True}
                if "weight_decay" in accepted:
                    yield cls, {**flags, "weight_decay": 0.1}
    yield SGD, {"momentum": 0.9, "dampening": 0.1}
    for flags in ({"foreach": False}, {"fused": True}, {"foreach": True, "weight_decay": 0.1}):
        yield SGD, {**flags, "momentum": 0.9, "nesterov": True}
    yield RMSprop, {"momentum": 0.9, "centered": True, "foreach": True}
    yield Adam, {"amsgrad": True, "foreach": True}


def label(case: object) -> str:
    return (
        case.__name__
        if isinstance(case, type)
        else "-".join(f"{k}={v}" for k, v in case.items()) or "default"
    )


@pytest.mark.parametrize(("cls", "keywords"), list(first_order_optimizers()), ids=label)
@pytest.mark.parametrize("alpha", [200.0, 0.0])
def test_step_is_the_base_step_then_hyp_with_the_raw_gradient(cls, keywords, alpha):
    """On every torch optimizer, which must leave p.grad intact: HAM reads it after the base step."""
    aware, plain = weights(), weights()
    optimizer, base = (cls(params, lr=0.05, **keywords) for params in (aware, plain))
    HAM(optimizer, alpha=alpha, beta=0.1)
    for k in range(4):
        for params in (aware, plain):
            set_gradients(params, seed=k)
        raw = [p.grad.clone() for p in plain]
        optimizer.step()
        base.step()
        assert all_equal([p.grad for p in aware], raw)
        sign = -1 if keywords.get("maximize") else 1
        expected = [hyp(p, sign * g, 0.05, alpha, 0.1) for p, g in zip(values(plain), raw, strict=True)]
        assert_close(aware, expected, rtol=1e-13)
        assert not all_equal(aware, values(plain))
        with torch.no_grad():
            torch._foreach_copy_(plain, aware)


@pytest.mark.parametrize("when", ["attach", "step", "load"])
def test_sgd_that_overwrites_its_gradient_is_refused(when):
    params = weights()
    set_gradients(params, seed=0)
    cure = "set foreach=False or fused=True"
    spoiling = SGD(params, lr=0.1, momentum=0.9, nesterov=True, foreach=True)
    raw = [p.grad.clone() for p in params]
    if when == "attach":
        with pytest.raises(ValueError, match=cure) as error:
            HAM(spoiling)
        assert "\n" not in str(error.value)
        spoiling.step()
        assert not all_equal(
            [p.grad for p in params], raw
        )  # the reason; when torch mends it, drop the refusal
        return
    optimizer = SGD(params, lr=0.1, momentum=0.9, nesterov=True, foreach=False)
    HAM(optimizer)
    if when == "step":
        optimizer.param_groups[0]["foreach"] = True
        with pytest.raises(ValueError, match=cure):
            optimizer.step()
    else:
        with pytest.raises(ValueError, match=cure):
            optimizer.load_state_dict(spoiling.state_dict())


def tiny_resnet() -> nn.Sequential:
    torch.manual_seed(0)
    shortcut = nn.Sequential(conv1x1(8, 16, stride=2), nn.BatchNorm2d(16))
    stem = (nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    blocks = (BasicBlock(8, 8), BasicBlock(8, 16, stride=2, downsample=shortcut))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


@torch.no_grad()
def published_update_(optimizer: Optimizer, alpha: float, beta: float, max_norm: float) -> None:
    """The authors' wrapper after its base step: nonzero entries of matrices, then the norm limit on all."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.ndim >= 2:
                exponent = torch.clamp(group["lr"] * (-alpha * torch.sign(p) * p.grad - beta), -5, 5)
                p.copy_(torch.where(p != 0, p * torch.exp(exponent), p))
            if p.norm() > max_norm:
                p.mul_(max_norm / p.norm())


@pytest.mark.parametrize("max_norm", [1000.0, 2.0])
@pytest.mark.parametrize(
    ("dtype", "own_gradients", "rtol"), [(torch.float64, True, 1e-9), (torch.float32, False, 3e-6)]
)
def test_equals_the_published_update_on_a_resnet(max_norm, dtype, own_gradients, rtol):
    """The two round lr (alpha sign(w) g + beta) in a different order: a few eps of each weight in each step.

    In float32 training blows that up wherever it flips a ReLU, so there both follow the same gradients and
    the roundings of 50 steps add up, to some 3e-7 of a tensor's norm; in float64 each run has its own.
    """
    ours, theirs = tiny_resnet().to(dtype), tiny_resnet().to(dtype)
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    optimizer, base = SGD(ours.parameters(), **settings), SGD(theirs.parameters(), **settings)
    HAM(optimizer, model=ours, alpha=200.0, beta=1e-3, select="ndim2", max_weight_norm=max_norm)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        x = torch.randn(8, 3, 16, 16, dtype=dtype, generator=generator)
        y = torch.randint(10, (8,), generator=generator)
        for model in (ours, theirs) if own_gradients else (ours,):
            model.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
        if not own_gradients:
            for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
                q.grad = p.grad.clone()
        optimizer.step()
        base.step()
        published_update_(base, 200.0, 1e-3, max_norm)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (p - q).norm() <= rtol * q.norm(), name


# --- around the step: training loops


def test_closure_runs_and_its_value_passes_through():
    plain, closed = network(), network()
    optimizer, other = SGD(plain.parameters(), lr=0.1), SGD(closed.parameters(), lr=0.1)
    HAM(optimizer, model=plain)
    HAM(other, model=closed)

    def closure() -> Tensor:
        other.zero_grad()
        loss = loss_of(closed, 0)
        loss.backward()
        return loss

    expected = loss_of(plain, 0)
    expected.backward()
    optimizer.step()
    assert torch.equal(other.step(closure), expected)
    assert all_equal(plain.parameters(), closed.parameters())


SCALED = {
    "SGD": lambda params: SGD(params, lr=0.1, momentum=0.9),
    "SGD fused": lambda params: SGD(params, lr=0.1, momentum=0.9, fused=True),
    "Adam": lambda params: Adam(params, lr=0.01),
    "Adam fused": lambda params: Adam(params, lr=0.01, fused=True),
}


@pytest.mark.parametrize("base", SCALED.values(), ids=SCALED.keys())
@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("max_weight_norm", [None, 0.5])
def test_grad_scaler_changes_nothing_and_overflow_skips_the_step(base, unscale_first, max_weight_norm):
    """The scale is a power of two, so that unscaled gradients are exact. Steps 2 and 4 overflow."""
    scaled, plain = network(), network()
    optimizer, reference = base(scaled.parameters()), base(plain.parameters())
    HAM(optimizer, model=scaled, alpha=20.0, max_weight_norm=max_weight_norm)
    HAM(reference, model=plain, alpha=20.0, max_weight_norm=max_weight_norm)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for k in range(6):
        overflow = k in (2, 4)
        with torch.no_grad():
            for model in (scaled, plain):
                model[0].weight[0] = 0.0  # where 0 * inf would be nan
                model[0].weight[1] += 1.0  # over the norm limit
        before = values(scaled.parameters())
        optimizer.zero_grad()
        scaler.scale(loss_of(scaled, k) * (math.inf if overflow else 1.0)).backward()
        if unscale_first:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if overflow:
            assert all_equal(scaled.parameters(), before)
            loss_of(plain, k)  # batch statistics only
        else:
            train(plain, reference, [k])
            assert not all_equal(scaled.parameters(), before)
    assert all_equal(scaled.state_dict().values(), plain.state_dict().values())


def test_accumulated_micro_batches_give_the_gradient_of_the_batch():
    [weight] = weights(shapes=[(4, 3)])
    x = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    before, optimizer = weight.detach().clone(), SGD([weight], lr=0.1)
    HAM(optimizer, alpha=5.0, beta=0.1)
    for part in x.split(2):
        ((part @ weight.t()).square().sum() / 10).backward()
    optimizer.step()
    gradient = 2 * before @ x.t() @ x / 10
    assert_close([weight], [hyp(before - 0.1 * gradient, gradient, 0.1, 5.0, 0.1)], rtol=1e-12)


def test_clipped_gradient_is_the_one_that_ham_sees():
    params = weights()
    set_gradients(params, seed=1, size=1.0)
    before, raw = values(params), [p.grad.clone() for p in params]
    clip = 0.3 / (torch.cat([g.flatten() for g in raw]).norm() + 1e-6)
    optimizer = SGD(params, lr=0.1)
    HAM(optimizer, alpha=20.0, beta=0.1)
    nn.utils.clip_grad_norm_(params, 0.3)
    optimizer.step()
    expected = [hyp(w - 0.1 * clip * g, clip * g, 0.1, 20.0, 0.1) for w, g in zip(before, raw, strict=True)]
    assert_close(params, expected, rtol=1e-12)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_step_equals_eager_and_compiles_once_under_a_scheduler():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    results = []
    for compiled in (False, True):
        model, graphs = network(), []
        optimizer = SGD(model.parameters(), lr=torch.tensor(0.1), momentum=0.9)
        HAM(optimizer, model=model, alpha=20.0, beta=1e-2)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 10)
        step = torch.compile(optimizer.step) if compiled else optimizer.step
        for k in range(8):
            optimizer.zero_grad()
            loss_of(model, k).backward()
            step()
            scheduler.step()
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        results.append(values(model.parameters()))
    for eager, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, eager, rtol=1e-5, atol=1e-6)
    assert graphs[-1] == graphs[1] > 0  # the second step still compiles: momentum exists by then
    torch.compiler.reset()


def test_tensor_learning_rate_equals_a_float():
    runs = []
    for lr in (0.125, torch.tensor(0.125)):
        model = network()
        optimizer = SGD(model.parameters(), lr=lr, momentum=0.9)
        HAM(optimizer, model=model, alpha=20.0)
        train(model, optimizer, range(3))
        runs.append(values(model.parameters()))
    assert all_equal(*runs)


def test_groups_have_their_own_and_scheduled_values():
    params = weights(shapes=[(4, 3), (5, 4), (2, 2)])
    own = [(3.0, 0.2), (-7.0, 0.0), (0.0, 0.0)]
    groups = [{"params": [p], "ham_alpha": a, "ham_beta": b} for p, (a, b) in zip(params, own, strict=True)]
    optimizer = SGD(groups, lr=0.1)
    HAM(optimizer, alpha=200.0, beta=1e-3)
    for k in range(3):
        set_gradients(params, seed=k, size=1.0)
        optimizer.param_groups[0]["ham_alpha"] = alpha = 3.0 * (k + 1)
        half = [p.detach() - 0.1 * p.grad for p in params]
        now = [(alpha, 0.2), *own[1:]]
        expected = [hyp(h, p.grad, 0.1, *ab) for h, p, ab in zip(half, params, now, strict=True)]
        optimizer.step()
        assert_close(params, expected, rtol=1e-13)


@pytest.mark.parametrize("base", [SGD, Adam, AdamW])
@pytest.mark.parametrize("flags", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_ascent_mirrors_descent_on_the_negated_loss(base, flags):
    down, up = network(), network()
    optimizer, ascent = (
        base(down.parameters(), lr=0.05, **flags),
        base(up.parameters(), lr=0.05, maximize=True, **flags),
    )
    HAM(optimizer, model=down, alpha=20.0)
    HAM(ascent, model=up, alpha=20.0)
    for k in range(5):
        optimizer.zero_grad()
        ascent.zero_grad()
        loss_of(down, k).backward()
        (-loss_of(up, k)).backward()
        optimizer.step()
        ascent.step()
    assert all_equal(down.parameters(), up.parameters())
    assert not all_equal(down.parameters(), network().parameters())


def test_parameters_without_gradient_and_empty_groups_are_skipped():
    params = weights()
    before = values(params)
    optimizer = SGD([{"params": params}, {"params": []}], lr=0.1)
    HAM(optimizer, beta=0.5, max_weight_norm=1e-3, track_clamped=True)
    optimizer.step()
    assert all_equal(params, before)
    params[0].grad = torch.zeros_like(params[0])
    optimizer.step()
    assert torch.equal(params[1], before[1])
    assert not torch.equal(params[0], before[0])


# --- where HAM acts


NORMS = {
    "BatchNorm": (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
    "LayerNorm": (nn.Conv2d(3, 4, 3), nn.LayerNorm([4, 6, 6])),
    "GroupNorm": (nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)),
    "InstanceNorm": (nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True)),
}


def one_step(
    layers: Iterable[nn.Module], attach: Callable[[Optimizer, nn.Module], object]
) -> dict[str, float]:
    """Name -> largest change that HAM adds to the base step of SGD."""
    plain = nn.Sequential(*copy.deepcopy(list(layers)))
    aware = copy.deepcopy(plain)
    for model in (plain, aware):
        optimizer = SGD(model.parameters(), lr=0.1)
        if model is aware:
            attach(optimizer, model)
        torch.manual_seed(0)
        for p in model.parameters():
            p.grad = 0.01 * torch.randn_like(p)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1)  # biases off zero
        optimizer.step()
    pairs = zip(plain.named_parameters(), aware.parameters(), strict=True)
    return {name: (p - q).abs().max().item() for (name, p), q in pairs}


@pytest.mark.parametrize("layers", NORMS.values(), ids=NORMS.keys())
def test_model_leaves_norm_layers_out_and_takes_biases_in(layers):
    added = one_step(layers, lambda optimizer, model: HAM(optimizer, model=model))
    assert added["0.weight"] > 0
    assert added["0.bias"] > 0
    assert added["1.weight"] == added["1.bias"] == 0


@pytest.mark.parametrize(
    ("select", "touched"),
    [
        ("not_norm", {"0.weight", "0.bias"}),
        ("ndim2", {"0.weight"}),
        ("everything", {"0.weight", "0.bias", "1.weight", "1.bias"}),
        ("*.bias", {"0.bias", "1.bias"}),
        (lambda name, module, param: isinstance(module, nn.BatchNorm2d), {"1.weight", "1.bias"}),
    ],
)
def test_select_with_model(select, touched):
    added = one_step(NORMS["BatchNorm"], lambda optimizer, model: HAM(optimizer, model=model, select=select))
    assert {name for name, change in added.items() if change > 0} == touched


def test_one_dimensional_parameters_are_left_out_with_one_warning():
    def attach(optimizer: Optimizer, model: nn.Module) -> None:
        with pytest.warns(UserWarning, match="change one-dimensional parameters; pass model=") as record:
            HAM(optimizer)
        assert len(record) == 1
        assert record[0].filename == __file__

    added = one_step(NORMS["BatchNorm"], attach)
    assert {name for name, change in added.items() if change > 0} == {"0.weight"}


def test_nothing_to_guess_means_no_warning():
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HAM(SGD(model.parameters(), lr=0.1), model=model)
        HAM(SGD(param_groups(model, weight_decay=0.0), lr=0.1))
        HAM(SGD(weights(), lr=0.1))


def test_a_group_with_both_keys_uses_its_own_values_beside_one_without():
    explicit, other = weights(shapes=[(4,), (5,)])
    set_gradients([explicit, other], seed=0)
    before, optimizer = (
        values([explicit, other]),
        SGD([{"params": [explicit], "ham_alpha": 5.0, "ham_beta": 0.5}], lr=0.1),
    )
    optimizer.add_param_group({"params": [other]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        HAM(optimizer)
    half = [w - 0.1 * p.grad for w, p in zip(before, (explicit, other), strict=True)]
    optimizer.step()
    assert_close([explicit, other], [hyp(half[0], explicit.grad, 0.1, 5.0, 0.5), half[1]], rtol=1e-13)


@pytest.mark.parametrize(
    ("key", "alpha", "beta"), [("ham_alpha", 5.0, 1e-3), ("ham_beta", 200.0, 5.0)], ids=["alpha", "beta"]
)
def test_a_group_with_one_key_keeps_its_value_and_leaves_one_dimensional_parameters_out(key, alpha, beta):
    flat, matrix = weights(shapes=[(4,), (2, 3)])
    set_gradients([flat, matrix], seed=0)
    half = [p.detach() - 0.1 * p.grad for p in (flat, matrix)]
    optimizer = SGD([{"params": [flat, matrix], key: 5.0}], lr=0.1)
    with pytest.warns(UserWarning, match="change one-dimensional parameters; pass model="):
        HAM(optimizer)
    optimizer.step()
    assert_close([flat, matrix], [half[0], hyp(half[1], matrix.grad, 0.1, alpha, beta)], rtol=1e-13)


def fresh(kind: str) -> tuple[nn.Module, Optimizer]:
    model = network()
    params = param_groups(model, weight_decay=1e-4) if kind == "groups" else model.parameters()
    return model, SGD(params, lr=0.1, momentum=0.9)


def as_older_versions_saved(state: dict) -> dict:
    """An optimizer's state_dict with the key that "ham_explicit" was called before."""
    for group in state["param_groups"]:
        group["ham_chosen"] = group.pop("ham_explicit")
    return state


@pytest.mark.parametrize("kind", ["model", "groups", "neither"])
@pytest.mark.parametrize("route", ["attach, load", "load, attach", "deepcopy, attach"])
@pytest.mark.parametrize("older", [False, True], ids=["", "older"])
@pytest.mark.filterwarnings("ignore:HAM does not change one-dimensional")
def test_resumed_training_acts_on_the_same_parameters(kind, route, older):
    """Four steps equal two, then a new optimizer with the saved state and HAM again, then two more."""

    def attach(model: nn.Module, optimizer: Optimizer) -> None:
        HAM(optimizer, model=model if kind == "model" else None, alpha=20.0, beta=0.1)

    straight, optimizer = fresh(kind)
    attach(straight, optimizer)
    train(straight, optimizer, range(2))
    if route == "deepcopy, attach":
        resumed, second = copy.deepcopy((straight, optimizer))
        attach(resumed, second)
    else:
        resumed, second = fresh(kind)
        resumed.load_state_dict(straight.state_dict())
        if route == "attach, load":
            attach(resumed, second)
        state = copy.deepcopy(optimizer.state_dict())
        second.load_state_dict(as_older_versions_saved(state) if older else state)
        if route == "load, attach":
            attach(resumed, second)
    for group in second.param_groups:
        assert group["ham_explicit"] is (kind == "groups") and "ham_chosen" not in group
    train(straight, optimizer, range(2, 4))
    train(resumed, second, range(2, 4))
    assert all_equal(straight.parameters(), resumed.parameters())


def test_a_group_with_the_older_key_is_explicit_whenever_it_is_added():
    first, second, third = weights(shapes=[(4,), (5,), (6,)])
    values = {"ham_alpha": 5.0, "ham_beta": 0.5, "ham_chosen": True}
    optimizer = SGD([{"params": [first], **values}], lr=0.1)
    HAM(optimizer)  # one-dimensional, but no warning: the group has its own values
    optimizer.add_param_group({"params": [second], **values})
    optimizer.add_param_group({"params": [third]})
    set_gradients([first, second, third], seed=0)
    before = [p.detach().clone() for p in (first, second, third)]
    optimizer.step()
    half = [w - 0.1 * p.grad for w, p in zip(before, (first, second, third), strict=True)]
    stepped = [hyp(h, p.grad, 0.1, 5.0, 0.5) for h, p in zip(half, (first, second), strict=False)]
    assert_close([first, second, third], [*stepped, half[2]], rtol=1e-13)
    assert [group["ham_explicit"] for group in optimizer.param_groups] == [True, True, False]


# --- options


def test_mask_zero_grad():
    [weight] = weights(shapes=[(4, 3)])
    set_gradients([weight], seed=0)
    weight.grad[::2] = 0.0
    before, optimizer = weight.detach().clone(), SGD([weight], lr=0.1)
    HAM(optimizer, alpha=5.0, beta=0.5, mask_zero_grad=True)
    optimizer.step()
    assert torch.equal(weight[::2], before[::2])
    half = before - 0.1 * weight.grad
    assert_close([weight[1::2]], [hyp(half, weight.grad, 0.1, 5.0, 0.5)[1::2]], rtol=1e-13)


def test_max_weight_norm_rescales_every_long_tensor_norm_layers_too():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.LayerNorm(3), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([3.0, 0.0, 4.0])))
        model[1].weight.copy_(torch.tensor([0.0, 30.0, 40.0]))
        model[2].weight.fill_(0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer = SGD(model.parameters(), lr=0.1)
    HAM(optimizer, model=model, beta=0.0, max_weight_norm=1.0)
    optimizer.step()
    torch.testing.assert_close(model[0].weight.detach(), torch.diag(torch.tensor([0.6, 0.0, 0.8])))
    torch.testing.assert_close(model[1].weight.detach(), torch.tensor([0.0, 0.6, 0.8]))
    assert torch.equal(model[1].bias, torch.zeros(3))
    assert torch.equal(model[2].weight, torch.full((1, 3), 0.1))


def test_no_norm_is_limited_by_default():
    weight = nn.Parameter(torch.full((2, 2), 1e9))
    weight.grad = torch.zeros(2, 2)
    optimizer = SGD([weight], lr=0.1)
    HAM(optimizer, beta=0.0)
    optimizer.step()
    assert torch.equal(weight, torch.full((2, 2), 1e9))


@pytest.mark.parametrize("implementation", ["reference", "foreach", "fused", None])
def test_clamped_share_by_hand(implementation):
    """lr alpha |g| is 10 or .05: three of eight exponents lie at the bound; a second call starts afresh."""
    params = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(-torch.ones(1, 4))]
    optimizer = SGD(params, lr=0.1)
    ham = HAM(optimizer, alpha=500.0, beta=0.0, track_clamped=True, implementation=implementation)
    params[0].grad = torch.tensor([[0.2, 0.001], [-0.2, 0.001]])
    params[1].grad = torch.tensor([[0.001, 0.001, 0.001, 0.2]])
    assert ham.clamped_share().item() == 0
    optimizer.step()
    share = ham.clamped_share()
    assert isinstance(share, Tensor)
    assert share.shape == ()
    assert share.item() == pytest.approx(3 / 8)
    assert ham.clamped_share().item() == 0
    params[1].grad = None
    optimizer.step()
    assert ham.clamped_share().item() == pytest.approx(2 / 4)


def test_clamped_counts_travel_with_the_state():
    params = [nn.Parameter(torch.ones(1, 4))]
    params[0].grad = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    hams = []
    for _ in range(2):
        optimizer = SGD(params, lr=0.0)
        optimizer.param_groups[0]["lr"] = 0.1
        hams.append(HAM(optimizer, beta=0.0, track_clamped=True))
    hams[0].optimizer.step()
    hams[1].load_state_dict(hams[0].state_dict())
    hams[0].clamped_share()
    assert hams[1].clamped_share().item() == pytest.approx(1 / 4)


def test_counts_before_the_first_step_are_zero():
    ham = HAM(SGD(weights(), lr=0.1), track_clamped=True)
    assert ham.state_dict() == {"clamped": 0, "seen": 0} and ham.clamped_share().item() == 0
    ham.load_state_dict(ham.state_dict())
    assert ham.state_dict() == {"clamped": 0, "seen": 0} and ham.clamped_share().item() == 0


def test_clamped_share_without_counting_is_refused():
    with pytest.raises(RuntimeError, match="track_clamped=True"):
        HAM(SGD(weights(), lr=0.1)).clamped_share()


class Recorded(TorchDispatchMode):
    """Remembers the operations that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("implementation", ["reference", "foreach"])  # "fused" is of a CPU
def test_step_and_clamped_share_never_wait_for_the_device(implementation):
    """`.item()`, `bool(tensor)`, indexing by a mask and their kin all pass through one of these."""
    params = weights()
    set_gradients(params, seed=0)
    optimizer = SGD(params, lr=0.1, fused=True)
    ham = HAM(
        optimizer, track_clamped=True, mask_zero_grad=True, max_weight_norm=1.0, implementation=implementation
    )
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()  # the first step may wait, to warn of many clamped exponents
    with Recorded() as recorded:
        optimizer.step()
        ham.clamped_share()
    waiting = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "index", "masked_select"}
    assert recorded.operations
    assert not recorded.operations & waiting
    with recorded:
        bool(params[0].isnan().any())
    assert recorded.operations & waiting


# --- the optimizer stays what it was


def reachable_tensors(root: object, stop: Iterable[object]) -> list[Tensor]:
    """Tensors that the garbage collector reaches from `root`, but not through `stop`, modules or classes."""
    seen, queue, found = {id(x) for x in stop}, [root], []
    while queue:
        thing = queue.pop()
        if id(thing) in seen or inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isroutine(thing):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            found.append(thing)
        else:
            queue.extend(gc.get_referents(thing))
    return found


@pytest.mark.parametrize("base", [BASES["momentum"], BASES["AdamW"]], ids=["momentum", "AdamW"])
def test_nothing_is_kept_per_weight(base):
    plain, aware = network(), network()
    reference, optimizer = base(plain.parameters()), base(aware.parameters())
    ham = HAM(optimizer, model=aware, track_clamped=True, max_weight_norm=10.0)
    train(plain, reference, range(2))
    train(aware, optimizer, range(2))
    kept = reachable_tensors(vars(ham), stop=[optimizer])
    assert 1 <= sum(t.numel() for t in kept) <= 2  # the counts behind clamped_share()
    assert [set(s) for s in optimizer.state.values()] == [set(s) for s in reference.state.values()]
    assert vars(optimizer).keys() - vars(reference).keys() == {"_ham"}


def test_type_and_identity_do_not_change():
    optimizer = AdamW(weights(), lr=0.1)
    ham = HAM(optimizer)
    assert ham.optimizer is optimizer
    assert type(optimizer) is AdamW
    torch.optim.lr_scheduler.StepLR(optimizer, 1)


@pytest.mark.parametrize("kind", ["plain", "groups"])
def test_remove_restores_the_optimizer(kind):
    plain, aware = network(), network()
    make = (lambda m: param_groups(m, weight_decay=0.1)) if kind == "groups" else (lambda m: m.parameters())
    reference, optimizer = (AdamW(make(m), lr=0.01) for m in (plain, aware))
    ham = HAM(optimizer, model=aware)
    ham.remove()
    assert optimizer.state_dict() == reference.state_dict()
    assert optimizer.defaults == reference.defaults
    assert vars(optimizer).keys() == vars(reference).keys()
    train(plain, reference, range(3))
    train(aware, optimizer, range(3))
    assert all_equal(plain.parameters(), aware.parameters())
    HAM(optimizer, model=aware)


@pytest.mark.parametrize("cls", [SGD, RMSprop, torch.optim.ASGD])
def test_keys_travel_in_the_state_dict_and_spare_the_optimizers_own(cls):
    optimizer = cls(weights(), lr=0.1)
    own = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    HAM(optimizer, alpha=20.0, beta=0.1)
    group = optimizer.param_groups[0]
    assert {k: group[k] for k in own} == own
    assert (group["ham_alpha"], group["ham_beta"]) == (20.0, 0.1)
    group["ham_alpha"] = 7.0
    other = cls(weights(), lr=0.1)
    HAM(other)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["ham_alpha"] == 7.0
    assert other.param_groups[0]["ham_beta"] == 0.1
    assert other.state_dict() == optimizer.state_dict()


def test_state_from_before_ham_loads_and_keeps_the_present_values():
    old = SGD([{"params": [p]} for p in weights()], lr=0.5)
    optimizer = SGD([{"params": [p]} for p in weights()], lr=0.1)
    HAM(optimizer, alpha=20.0, beta=0.1)
    optimizer.param_groups[1]["ham_alpha"] = 3.0
    optimizer.load_state_dict(old.state_dict())
    assert [(g["lr"], g["ham_alpha"], g["ham_beta"]) for g in optimizer.param_groups] == [
        (0.5, 20, 0.1),
        (0.5, 3, 0.1),
    ]


def test_state_of_param_groups_from_before_ham_keeps_zero_and_fills_none():
    old = SGD(param_groups(network(), weight_decay=0.1), lr=0.5)
    assert [g["ham_alpha"] for g in old.param_groups] == [None, 0.0]
    optimizer = SGD(param_groups(network(), weight_decay=0.1), lr=0.1)
    HAM(optimizer, alpha=20.0, beta=0.1)
    optimizer.load_state_dict(old.state_dict())
    assert [(g["ham_alpha"], g["ham_beta"]) for g in optimizer.param_groups] == [(20.0, 0.1), (0.0, 0.0)]


def test_group_added_later_gets_the_defaults():
    first, second = weights()
    optimizer = SGD([first], lr=0.1)
    HAM(optimizer, alpha=20.0, beta=0.1)
    optimizer.add_param_group({"params": [second]})
    assert optimizer.defaults["ham_alpha"] == 20.0
    before = second.detach().clone()
    set_gradients([first, second], seed=0)
    optimizer.step()
    half = before - 0.1 * second.grad
    assert_close([second], [hyp(half, second.grad, 0.1, 20.0, 0.1)], rtol=1e-13)


def test_copies_of_the_optimizer_have_no_hook():
    """torch drops hooks in deepcopy: the copy takes base steps until HAM is attached to it."""
    [weight] = weights(shapes=[(4, 3)])
    optimizer = SGD([weight], lr=0.1)
    HAM(optimizer)
    twin = copy.deepcopy(optimizer)
    [copied] = twin.param_groups[0]["params"]
    before = copied.detach().clone()
    set_gradients([copied], seed=0)
    twin.step()
    assert_close([copied], [before - 0.1 * copied.grad], rtol=1e-14)
    HAM(twin)


class Accelerated(Optimizer):
    """Holds the optimizer that does the work, like the one that accelerate prepares."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict]:
        return self.optimizer.param_groups

    @property
    def state(self) -> dict:
        return self.optimizer.state

    @property
    def defaults(self) -> dict:
        return self.optimizer.defaults

    def step(self, closure: Callable | None = None) -> None:
        self.optimizer.step(closure)


def test_wrapped_optimizers_are_unwrapped():
    params = weights()
    set_gradients(params, seed=0)
    inner = SGD(params, lr=0.1)
    outer = Accelerated(Accelerated(inner))
    ham = HAM(outer, alpha=20.0, beta=0.1)
    assert ham.optimizer is inner
    half = [p.detach() - 0.1 * p.grad for p in params]
    expected = [hyp(h, p.grad, 0.1, 20.0, 0.1) for h, p in zip(half, params, strict=True)]
    outer.step()
    assert_close(params, expected, rtol=1e-13)


# --- refusals


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"beta": -1e-3}, "beta must be finite and not negative, got -0.001"),
        ({"beta": math.inf}, "beta must be finite"),
        ({"alpha": math.nan}, "alpha must be finite, got nan"),
        ({"alpha": -math.inf}, "alpha must be finite"),
        ({"clamp": 0.0}, "clamp must be positive, got 0.0"),
        ({"clamp": -5.0}, "clamp must be positive"),
        ({"clamp": math.nan}, "clamp must be positive"),
        ({"max_weight_norm": 0.0}, "max_weight_norm must be positive or None"),
        ({"model": nn.Linear(2, 2)}, "holds no parameter of this model"),
        ({"model": network(), "select": "layer9.*"}, "'layer9.*' matches no parameter"),
    ],
)
def test_bad_arguments_are_refused_and_do_not_change_the_optimizer(keywords, message):
    optimizer = SGD(weights(), lr=0.1)
    before = copy.deepcopy((optimizer.state_dict(), optimizer.defaults))
    with pytest.raises(ValueError, match=message) as error:
        HAM(optimizer, **keywords)
    assert "\n" not in str(error.value)
    assert (optimizer.state_dict(), optimizer.defaults) == before
    HAM(optimizer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_coarse_and_complex_weights_are_refused_and_do_not_change_the_optimizer(dtype):
    optimizer = SGD([*weights(), *weights(dtype)], lr=0.1)
    before = copy.deepcopy((optimizer.state_dict(), optimizer.defaults))
    with pytest.raises(ValueError, match="float32 or float64 weights, got torch") as error:
        HAM(optimizer)
    assert "\n" not in str(error.value)
    assert (optimizer.state_dict(), optimizer.defaults) == before


def test_coarse_weights_that_ham_does_not_act_on_are_fine():
    fine, coarse, plain = weights(), weights(torch.bfloat16), weights(torch.bfloat16)
    optimizer = SGD([{"params": fine}, {"params": coarse, "ham_alpha": 0.0, "ham_beta": 0.0}], lr=0.1)
    HAM(optimizer)
    reference = SGD(plain, lr=0.1)
    for params in (fine, coarse, plain):
        set_gradients(params, seed=0, size=1.0)
    optimizer.step()
    reference.step()
    assert all_equal(coarse, plain)


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = SGD(embedding.parameters(), lr=0.1)
    HAM(optimizer)
    embedding(torch.tensor([1, 2])).sum().backward()
    before = embedding.weight.detach().clone()
    with pytest.raises(ValueError, match="set sparse=False in the embedding"):
        optimizer.step()
    with pytest.raises(ValueError, match="set sparse=False in the embedding"):
        optimizer.step(lambda: None)
    assert torch.equal(embedding.weight, before)  # not even the base step was taken


@pytest.mark.parametrize("cls", [torch.optim.LBFGS, torch.optim.SparseAdam])
def test_unsuitable_optimizers_are_refused(cls):
    with pytest.raises(ValueError, match=f"not {cls.__name__}: use SGD or AdamW"):
        HAM(cls(weights(), lr=0.1))


def test_a_second_ham_is_refused():
    optimizer = SGD(weights(), lr=0.1)
    first = HAM(optimizer)
    with pytest.raises(ValueError, match=r"already attached to this optimizer: call remove\(\)"):
        HAM(Accelerated(optimizer))
    first.remove()
    HAM(optimizer)


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), None, [torch.zeros(2)]], ids=["module", "None", "list"])
def test_other_things_than_optimizers_are_refused(thing):
    with pytest.raises(TypeError, match=f"torch.optim.Optimizer, got {type(thing).__name__}"):
        HAM(thing)


def test_a_kernel_for_cuda_is_refused_before_the_first_step():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = SGD([weight], lr=0.1)
    with pytest.raises(ValueError, match="'triton' is for CUDA weights: use 'fused'"):
        HAM(optimizer, implementation="triton")
    weight.grad = torch.ones(2, 2)
    optimizer.step()  # as it was before
    assert torch.allclose(weight, torch.full((2, 2), 0.9)) and "ham_alpha" not in optimizer.param_groups[0]


def test_the_rate_of_a_group_on_which_ham_does_nothing_is_not_asked_for():
    params = [nn.Parameter(torch.ones(2, 2)) for _ in range(3)]
    settings = ({"ham_alpha": 1.0}, {"ham_beta": 1.0}, {"ham_alpha": 0.0, "ham_beta": 0.0})
    optimizer = SGD([{"params": [p], **own} for p, own in zip(params, settings, strict=True)], lr=0.1)
    asked = []
    HAM(optimizer, lr=lambda group: asked.append(group["params"][0]) or group["lr"], alpha=0.0, beta=0.0)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert {id(p) for p in asked} == {id(p) for p in params[:2]}
    torch.testing.assert_close(params[2].detach(), torch.full((2, 2), 0.9))
