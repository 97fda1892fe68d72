"""The SAM context against closed forms, alone, with HAM and over two processes."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ham import HAM, perturbed
from ham.optim import frozen_running_statistics
from ham.process_group import shutdown

LR, RHO = 0.1, 0.3


class Quadratic(nn.Module):
    """1/2 w' A w over two parameter tensors, w = (u, v): the gradient is A w."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        root = torch.randn(6, 6, dtype=torch.float64, generator=generator)
        self.register_buffer("a", root @ root.t() + torch.eye(6, dtype=torch.float64))
        self.u = nn.Parameter(torch.randn(2, 2, dtype=torch.float64, generator=generator))
        self.v = nn.Parameter(torch.randn(1, 2, dtype=torch.float64, generator=generator))

    @property
    def w(self) -> Tensor:
        return torch.cat([self.u.flatten(), self.v.flatten()])

    def forward(self) -> Tensor:
        return 0.5 * self.w @ self.a @ self.w


def gradient_of(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.detach(), b.detach(), rtol=1e-12, atol=1e-12)


def ascended(w: Tensor, g: Tensor, rho: float, adaptive: bool) -> Tensor:
    """Foret et al., Eq. 2, and its scale-invariant form, Kwon et al., Eq. 8 (without their eta)."""
    return w + rho * w**2 * g / (w * g).norm() if adaptive else w + rho * g / g.norm()


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rho", [0.0, 0.05, 2.0])
def test_closed_form_on_a_quadratic(adaptive, rho):
    model = Quadratic()
    w = model.w.detach().clone()
    model().backward()
    with perturbed(model.parameters(), rho=rho, adaptive=adaptive):
        point = ascended(w, model.a @ w, rho, adaptive)
        assert close(model.w, point)
        assert all(p.grad is None for p in model.parameters())
        model().backward()
    assert torch.equal(model.w, w)
    assert close(gradient_of(model), model.a @ point)


@pytest.mark.parametrize("rho", [1e-3, 0.05, 2.0])
def test_the_ascent_has_length_rho(rho):
    model = Quadratic()
    w = model.w.detach().clone()
    model().backward()
    with perturbed(model.parameters(), rho=rho):
        assert (model.w - w).norm().item() == pytest.approx(rho, rel=1e-9)


def test_weights_return_bit_for_bit_even_after_an_error():
    """In float32 (w + e) - e would not do, huge and tiny weights side by side even less."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(50, generator=generator) * 10.0**k) for k in (-20, -3, 0, 8)]
    for p in params:
        p.grad = torch.randn(50, generator=generator)
    before = [p.detach().clone() for p in params]
    with pytest.raises(KeyError, match="inside"), perturbed(iter(params), rho=0.5):
        assert not torch.equal(params[0], before[0])
        raise KeyError("inside")
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))


def test_weights_without_a_gradient_stay_put():
    active, idle = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    active.grad = torch.ones(3)
    with perturbed([idle, active], rho=0.5):
        assert torch.equal(idle, torch.ones(2))
        assert torch.allclose(active, 1 + torch.full((3,), 0.5 / 3**0.5))


def test_a_vanishing_gradient_moves_nothing():
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.zeros(3)
    with perturbed([weight], rho=0.5):
        assert torch.equal(weight, torch.ones(3))


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1e-6, 0.1, 300.0, 3e4])
def test_weights_of_few_bits_reach_the_perturbed_point(dtype, adaptive, size):
    """Gradients whose norm, or whose inverse, float16 cannot hold; against float64, to half a step."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter((0.5 + torch.rand(100, generator=generator)).to(dtype))
    weight.grad = (size * (1 + torch.rand(100, generator=generator))).to(dtype)
    w, g = weight.detach().double(), weight.grad.double()
    point = ascended(w, g, 0.5, adaptive) if size else w
    with perturbed([weight], rho=0.5, adaptive=adaptive):
        assert ((weight.double() - point).abs() <= 0.51 * torch.finfo(dtype).eps * point.abs()).all()
    assert torch.equal(weight.double(), w)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_parameter_that_is_given_twice_counts_once(adaptive):
    model = Quadratic()
    w = model.w.detach().clone()
    model().backward()
    point = ascended(w, model.a @ w, RHO, adaptive)
    with perturbed([*model.parameters(), model.u], rho=RHO, adaptive=adaptive):
        assert close(model.w, point)
    assert torch.equal(model.w, w)


def test_a_zero_weight_stays_zero_under_the_adaptive_ascent():
    weight = nn.Parameter(torch.tensor([0.0, 2.0]))
    weight.grad = torch.tensor([1.0, 1.0])
    with perturbed([weight], rho=0.5, adaptive=True):
        assert torch.allclose(weight, torch.tensor([0.0, 3.0]))  # .5 * 2^2 * 1 / |2 * 1|


@pytest.mark.parametrize(
    ("rho", "gradient", "message"),
    [(-0.1, torch.ones(2), "rho must not be negative, got -0.1"), (0.1, None, "run a backward pass")],
)
def test_bad_input_is_refused(rho, gradient, message):
    weight = nn.Parameter(torch.ones(2))
    weight.grad = gradient
    with pytest.raises(ValueError, match=message), perturbed([weight], rho=rho):
        pass
    assert torch.equal(weight, torch.ones(2))


def normalized() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


def updated(old: Tensor, batch: Tensor) -> Tensor:
    """BatchNorm's running mean after one batch, momentum .1."""
    return 0.9 * old + 0.1 * batch.mean(0)


@pytest.mark.parametrize("freeze", [True, False])
def test_running_statistics_are_updated_once_with_freeze_bn_and_twice_without(freeze):
    model, x = normalized(), torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    norm = model[1]
    mean = updated(torch.zeros(5), model[0](x))
    model(x).square().mean().backward()
    with perturbed(model.parameters(), rho=RHO, freeze_bn=model if freeze else None):
        mean = mean if freeze else updated(mean, model[0](x))
        model(x).square().mean().backward()
    assert norm.num_batches_tracked.item() == (1 if freeze else 2)
    assert torch.allclose(norm.running_mean, mean, atol=1e-6)
    assert norm.track_running_stats is True
    model(x)
    assert norm.num_batches_tracked.item() == (2 if freeze else 3)


def test_frozen_layers_normalize_by_the_batch_in_training_and_by_the_running_statistics_in_evaluation():
    norm, x = nn.BatchNorm1d(5), torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    norm.running_mean.fill_(3.0)
    norm.running_var.fill_(4.0)
    with frozen_running_statistics(norm):
        by_batch = (x - x.mean(0)) / (x.var(0, correction=0) + norm.eps).sqrt()
        assert torch.allclose(norm(x), by_batch, atol=1e-5)
        assert torch.allclose(norm.eval()(x), (x - 3) / 2, atol=1e-5)


class OwnNorm(nn.Module):
    """A norm of a user: by the batch in training, else by statistics that it updates in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x - self.running_mean[:, None]
        mean = x.mean((0, 2))
        self.running_mean.mul_(0.5).add_(mean.detach(), alpha=0.5)
        return x - mean[:, None]


NORMS = {
    "BatchNorm": lambda: nn.BatchNorm1d(3),
    "cumulative BatchNorm": lambda: nn.BatchNorm1d(3, momentum=None),
    "BatchNorm of batches": lambda: nn.BatchNorm1d(3, track_running_stats=False),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(3),
    "InstanceNorm": lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
    "cumulative InstanceNorm": lambda: nn.InstanceNorm1d(3, momentum=None, track_running_stats=True),
    "InstanceNorm of instances": lambda: nn.InstanceNorm1d(3),
    "own": OwnNorm,
}


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_frozen_norms_compute_what_they_compute_outside_and_keep_their_statistics(kind, training, seed):
    generator = torch.Generator().manual_seed(seed)
    x = 3 + 2 * torch.randn(5, 3, 7, generator=generator)
    model = nn.Sequential(NORMS[kind]())
    for _ in range(seed):
        model(x + 1)
    model.train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    buffers, attributes = [*model.buffers()], dict(model[0].__dict__)
    outside = copy.deepcopy(model)(x)
    with frozen_running_statistics(model):
        assert torch.equal(model(x), outside)
        assert torch.equal(model(x), outside)
        if training and kind != "own":  # which cannot know that it must not follow the batches
            by_statistics = copy.deepcopy(nn.Sequential(NORMS[kind]())).eval()
            by_statistics.load_state_dict(before)
            torch.testing.assert_close(model.eval()(x), by_statistics(x), rtol=2e-6, atol=2e-6)
            model.train()
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(one is other for one, other in zip(buffers, model.buffers(), strict=True))
    assert attributes == model[0].__dict__


def test_frozen_statistics_come_back_after_an_error_and_spare_layers_without_any():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(KeyError), frozen_running_statistics(model):
        raise KeyError
    assert [layer.track_running_stats for layer in model] == [True, False]


@pytest.mark.parametrize("adaptive", [False, True])
def test_base_step_and_hyp_both_see_the_gradient_at_the_perturbed_point(adaptive):
    alpha, beta = 3.0, 0.2
    model = Quadratic()
    w = model.w.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    HAM(optimizer, alpha=alpha, beta=beta)
    for _ in range(3):
        optimizer.zero_grad()
        model().backward()
        with perturbed(model.parameters(), rho=RHO, adaptive=adaptive):
            model().backward()
        optimizer.step()
        g = model.a @ ascended(w, model.a @ w, RHO, adaptive)
        half = w - LR * g
        w = half * (-LR * (alpha * half.sign() * g + beta)).clamp(-5, 5).exp()
        assert close(model.w, w)


# --- two processes: this file, run as a program, is one rank


def shard(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(10 + rank)
    x = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    return x, torch.randn(5, 1, dtype=torch.float64, generator=generator)


def start() -> Tensor:
    return torch.randn(1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def least_squares_gradient(w: Tensor, rank: int) -> Tensor:
    """Of mean (x w' - y)^2, by hand."""
    x, y = shard(rank)
    return 2 / len(x) * (x @ w.t() - y).t() @ x


def run_rank(rank: int, folder: Path) -> None:
    """One SAM step with the ascent per rank and one with the averaged ascent; saves what each saw."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    x, y = shard(rank)
    saved = {}
    for ascent in ("per rank", "averaged"):
        model = nn.Linear(4, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            model.weight.copy_(start())
        ddp = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=LR)
        if ascent == "per rank":
            with ddp.no_sync():
                nn.functional.mse_loss(ddp(x), y).backward()
        else:
            nn.functional.mse_loss(ddp(x), y).backward()
        with perturbed(ddp.parameters(), rho=RHO):
            saved[ascent, "perturbed"] = model.weight.detach().clone()
            nn.functional.mse_loss(ddp(x), y).backward()
        optimizer.step()
        saved[ascent, "final"] = model.weight.detach().clone()
    torch.save(saved, folder / f"rank{rank}.pt")
    shutdown()


def test_ascent_per_rank_and_averaged_over_two_ranks(tmp_path):
    command = [sys.executable, __file__]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], errors
    saved = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    own = [least_squares_gradient(start(), rank) for rank in (0, 1)]
    mean = (own[0] + own[1]) / 2
    for ascent, directions in (("per rank", own), ("averaged", [mean, mean])):
        points = [start() + RHO * g / g.norm() for g in directions]
        assert close(saved[0][ascent, "perturbed"], points[0])
        assert close(saved[1][ascent, "perturbed"], points[1])
        descent = (least_squares_gradient(points[0], 0) + least_squares_gradient(points[1], 1)) / 2
        assert close(saved[0][ascent, "final"], start() - LR * descent)
        assert torch.equal(saved[0][ascent, "final"], saved[1][ascent, "final"])
    assert not close(saved[0]["per rank", "perturbed"], saved[1]["per rank", "perturbed"])
    assert torch.equal(saved[0]["averaged", "perturbed"], saved[1]["averaged", "perturbed"])
    assert not close(saved[0]["per rank", "final"], saved[0]["averaged", "final"])


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
