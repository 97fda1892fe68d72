from __future__ import annotations

import io
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from pruning import Spred
from pruning.product import rebalance


def network() -> nn.Sequential:
    layers = OrderedDict(a=nn.Linear(4, 20), norm=nn.BatchNorm1d(20), tanh=nn.Tanh(), b=nn.Linear(20, 3))
    return nn.Sequential(layers)


def attached(model: nn.Module, epochs: int = 10, seed: int = 0, **options: object) -> Spred:
    spred = Spred(**{"sparsity": 0.5, **options})
    spred.attach(model, total_epochs=epochs, seed=seed)
    return spred


def factors(spred: Spred) -> list[Tensor]:
    return [p for weight in spred.parameterization.weights for p in weight.parameters]


def train_step(model: nn.Module, spred: Spred, optimizer: torch.optim.Optimizer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(16, 4, generator=generator)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), (inputs[:, 0] > 0).long()).backward()
    spred.after_backward(step, optimizer)
    spred.add_decay()
    optimizer.step()
    spred.after_step()


# The penalty.


def ista(design: Tensor, targets: Tensor, penalty: float, steps: int = 5_000) -> Tensor:
    """The minimum of |design theta - targets|^2 / 2 + penalty |theta|_1 (Daubechies et al., 2004)."""
    rate = 1 / torch.linalg.matrix_norm(design, 2) ** 2
    theta = torch.zeros(design.shape[1], dtype=design.dtype)
    for _ in range(steps):
        theta = theta - rate * design.T @ (design @ theta - targets)
        theta = theta.sign() * (theta.abs() - rate * penalty).clamp(min=0)
    return theta


def descend(design: Tensor, targets: Tensor, spred: Spred, model: nn.Module, steps: int) -> Tensor:
    """Gradient descent with spred on |design theta - targets|^2 / 2."""
    optimizer = torch.optim.SGD(spred.param_groups(model.parameters()), lr=0.05)
    spred.on_epoch_start(0, optimizer)
    for step in range(steps):
        optimizer.zero_grad()
        ((model(design).flatten() - targets).square().sum() / 2).backward()
        spred.after_backward(step, optimizer)
        spred.add_decay()
        optimizer.step()
        spred.after_step()
    return spred.masks.weights["weight"].value.flatten()


def line(size: int, decay: float, **options: object) -> tuple[nn.Module, Spred]:
    model = nn.Linear(size, 1, bias=False).double()
    return model, attached(model, decay=decay, **options)


CURVATURE = torch.tensor([1.0, 1.0, 0.5, 2.0, 2.0, 1.0, 1.5], dtype=torch.float64)
CENTER = torch.tensor([1.0, -0.8, 2.0, -0.5, 0.1, 0.1, -0.05], dtype=torch.float64)


@pytest.mark.parametrize(("decay", "start"), [(0.4, "independent"), (0.25, "balanced")])
def test_a_diagonal_lasso_is_soft_thresholded_at_decay(decay, start):
    """sum h (theta - c)^2 / 2 + decay |theta|: theta = sign(c) max(|c| - decay / h, 0).

    The penalty decay / 2 (m^2 + w^2) of coupled weight decay is least at |m| = |w|: decay |theta|.
    """
    expected = CENTER.sign() * (CENTER.abs() - decay / CURVATURE).clamp(min=0)
    design = CURVATURE.sqrt().diag()
    assert (expected != 0).sum() == 4
    assert torch.allclose(ista(design, design @ CENTER, decay), expected, atol=1e-12)
    torch.manual_seed(0)
    model, spred = line(7, decay, factors=start)
    theta = descend(design, design @ CENTER, spred, model, 2500)
    assert theta.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    m, w = (factor.detach().abs().flatten() for factor in factors(spred))
    assert m.tolist() == pytest.approx(w.tolist(), abs=1e-4)


def test_a_correlated_lasso_is_the_ista_solution():
    generator = torch.Generator().manual_seed(3)
    design = torch.randn(12, 6, generator=generator, dtype=torch.float64) / 3
    targets = design @ torch.tensor([1.0, -2.0, 0.0, 0.0, 0.5, 0.0], dtype=torch.float64)
    targets += 0.1 * torch.randn(12, generator=generator, dtype=torch.float64)
    expected = ista(design, targets, 0.3)
    assert 0 < (expected == 0).sum() < 6
    model, spred = line(6, 0.3)
    assert descend(design, targets, spred, model, 3000).tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_every_factor_is_decayed_and_nothing_else():
    model = network()
    spred = attached(model, decay=0.25, exclude=["a.weight"])
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    spred.add_decay()
    own = factors(spred)
    assert len(own) == 4
    for p in model.parameters():
        decayed = any(p is factor for factor in own)
        assert torch.equal(p.grad, 0.25 * p if decayed else torch.zeros_like(p))


# The start.


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [(nn.Linear(64, 50), 64), (nn.Conv2d(8, 40, 3), 72), (nn.Conv2d(16, 64, 3, groups=2), 72)],
    ids=["linear", "conv", "grouped"],
)
def test_independent_factors_are_uniform_within_the_default_bounds(layer, fan_in):
    """kaiming_uniform(a = sqrt 5): the gain is sqrt(2 / 6), the bound sqrt(3) gain / sqrt(fan) = fan^-1/2."""
    spred = attached(layer)
    m, w = (factor.detach().flatten() * fan_in**0.5 for factor in factors(spred))
    for factor in (m, w):
        assert 0.99 < factor.abs().max() <= 1 + 1e-6
        assert factor.mean().abs() < 4 / (3 * factor.numel()) ** 0.5
        assert factor.square().mean().item() == pytest.approx(1 / 3, rel=0.06)
    assert torch.corrcoef(torch.stack([m, w]))[0, 1].abs() < 4 / m.numel() ** 0.5


def test_independent_factors_depend_only_on_the_seed():
    def start(global_seed: int, seed: int) -> list[Tensor]:
        torch.manual_seed(global_seed)
        return factors(attached(network(), seed=seed))

    one, same, other = start(1, seed=5), start(2, seed=5), start(1, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    model = network()
    state = torch.get_rng_state()
    attached(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_channels_last_factors_are_the_same_draws():
    plain = factors(attached(nn.Conv2d(3, 4, 3), seed=5))
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    for ours, theirs in zip(factors(attached(model, seed=5)), plain, strict=True):
        assert torch.equal(ours, theirs) and ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("padding", [0.0, 0.25])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize(("padding_idx", "row"), [(0, 0), (-1, 4)])
def test_the_row_of_an_embedding_that_is_never_trained_is_not_drawn(kind, padding_idx, row, padding):
    layer = kind(5, 3, padding_idx=padding_idx)
    with torch.no_grad():
        layer.weight[row] = padding
    initial = layer.weight.detach().clone()
    spred = Spred(0.5)
    spred.attach(layer, total_epochs=1, include=["weight"])
    assert layer.weight[row].tolist() == [padding] * 3
    assert (layer.weight[row - 1] != initial[row - 1]).all()
    m, w = (factor[row] for factor in factors(spred))
    expected = rebalance(initial[row], 1.0)  # such as the (1, 0) of a pruned weight
    assert torch.equal(m, expected[0]) and torch.equal(w, expected[1])


def test_balanced_factors_are_of_the_initial_weight():
    model = network()
    theta = [layer.weight.detach().clone() for layer in (model.a, model.b)]
    spred = attached(model, factors="balanced")
    for weight, before in zip(spred.parameterization.weights, theta, strict=True):
        for ours, expected in zip(weight.parameters, rebalance(before, 1.0), strict=True):
            assert torch.equal(ours, expected)


# Pruning and fine-tuning.


@pytest.mark.parametrize(
    ("total", "finetune", "epoch"),
    [
        (10, 0.3, 7),
        (20, 0.1, 18),
        (100, 0.1, 90),
        (10, 0.9, 1),
        (10, 0.0, None),
        (8, 0.25, 6),
        (100, 0.29, 71),
        (10, 0.27, 7),  # rounded, neither down
        (10, 0.22, 8),  # nor up
    ],
)
def test_pruning_happens_where_fine_tuning_begins(total, finetune, epoch):
    model = network()
    spred = attached(model, total, finetune=finetune)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scores = torch.cat([weight.value.abs().flatten() for weight in spred.masks.weights.values()])
    active = []
    for now in range(total):
        spred.on_epoch_start(now, optimizer)
        active.append(spred.masks.active)
    first = total if epoch is None else epoch
    assert active == [now >= first for now in range(total)]
    spred.on_end()
    kept = torch.cat([mask.flatten() for mask in spred.kept().values()])
    assert spred.stats()["kept"] == kept.sum() == 70
    assert scores[kept].min() > scores[~kept].max()


@pytest.mark.filterwarnings("ignore:all weights of")
@pytest.mark.parametrize(("sparsity", "kept"), [(0.9, 14), (0.95, 7), (0.0, 140), (0.999, 0), (0.33, 93)])
def test_the_count_is_exact(sparsity, kept):
    """Of the 80 + 60 weights over all layers together."""
    spred = attached(network(), sparsity=sparsity)
    spred.on_end()
    assert spred.stats()["kept"] == kept
    assert sum(int(value.count_nonzero()) for value in spred.masks.values().values()) == kept


def test_excluded_weights_are_not_pruned_and_do_not_count():
    model = network()
    spred = attached(model, exclude=["a.weight"], sparsity=0.75)
    spred.on_end()
    assert model.a.weight.all()
    assert list(spred.counts()) == [("b.weight", 15, 60)]


SCHEDULERS = {
    "step": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.9),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40),
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [0.3, 0.5], total_steps=40, cycle_momentum=False
    ),
    "lambda": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_fine_tuning_has_its_own_learning_rate_whatever_the_schedule_says(scheduler):
    """Seen in the steps themselves: a step of plain SGD is the learning rate times the gradient."""
    torch.manual_seed(0)
    model = network()
    spred = attached(model, finetune=0.3, finetune_lr=0.0123, decay=0.01)
    norm = list(model.norm.parameters())
    others = [p for p in model.parameters() if not any(p is q for q in norm)]
    groups = spred.param_groups([{"params": others, "lr": 0.1}, {"params": norm, "lr": 0.2}])
    assert len(groups) == 3
    groups = [{**groups[0], "params": [p for g in groups[:2] for p in g["params"]]}, groups[2]]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    schedule, overruled = SCHEDULERS[scheduler](optimizer), 0
    for epoch in range(10):
        spred.on_epoch_start(epoch, optimizer)
        for step in range(4):
            scheduled = [group["lr"] for group in optimizer.param_groups]
            before = {p: p.detach().clone() for p in model.parameters()}
            train_step(model, spred, optimizer, step)
            for group, lr in zip(optimizer.param_groups, scheduled, strict=True):
                rate = 0.0123 if epoch >= 7 else lr
                for p in group["params"]:
                    assert p.grad.any()
                    assert torch.allclose(p, before[p] - rate * p.grad, rtol=1e-5, atol=1e-7)
            schedule.step()
            overruled += epoch >= 7 and optimizer.param_groups[0]["lr"] != 0.0123
    assert overruled
    assert spred.stats()["lr"] == 0.0123


def test_decay_ends_and_pruned_weights_stay_zero_while_fine_tuning():
    torch.manual_seed(0)
    model = network()
    spred = attached(model, decay=0.05, finetune=0.5, finetune_lr=0.05)
    optimizer = torch.optim.SGD(
        spred.param_groups(model.parameters()), lr=0.1, momentum=0.9, weight_decay=0.1
    )
    for epoch in range(10):
        spred.on_epoch_start(epoch, optimizer)
        assert ("lr" in spred.stats()) == (epoch >= 5)
        for step in range(3):
            train_step(model, spred, optimizer, step)
    for name, weight in spred.masks.weights.items():
        pruned, (m, w) = ~spred.masks.masks[name], weight.parameters
        assert pruned.any()
        assert (m[pruned] == 1).all() and not w[pruned].view(torch.int32).any()
        assert not weight.value[pruned].view(torch.int32).any()
        for factor in (m, w):
            assert not optimizer.state[factor]["momentum_buffer"][pruned].any()
    for factor in factors(spred):
        factor.grad = torch.zeros_like(factor)
    spred.add_decay()
    assert not any(factor.grad.any() for factor in factors(spred))


def test_a_decay_of_zero_adds_nothing():
    model = network()
    spred = attached(model, decay=0.0)
    assert not spred.has_penalty
    for factor in factors(spred):
        factor.grad = torch.zeros_like(factor)
    spred.add_decay()
    assert not any(factor.grad.any() for factor in factors(spred))


@pytest.mark.parametrize("stop", [3, 5, 8])
def test_a_resumed_run_is_the_uninterrupted_one(stop):
    def start() -> tuple[nn.Module, Spred, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = network()
        spred = attached(model, decay=0.01, finetune=0.5, finetune_lr=0.02)
        groups = spred.param_groups(model.parameters())
        return model, spred, torch.optim.SGD(groups, lr=0.1, momentum=0.9)

    def train(model: nn.Module, spred: Spred, optimizer: torch.optim.Optimizer, epochs: range) -> None:
        for epoch in epochs:
            spred.on_epoch_start(epoch, optimizer)
            for step in range(3):
                train_step(model, spred, optimizer, step)

    straight, first, resumed = start(), start(), start()
    train(*straight, range(10))
    train(*first, range(stop))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*resumed, range(stop, 10))
    assert straight[1].masks.active and resumed[1].stats() == straight[1].stats()
    for ours, theirs in zip(resumed[0].state_dict().values(), straight[0].state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1"),
        ({"decay": -1.0}, "decay must not be negative, got -1"),
        ({"finetune": 1.0}, r"finetune must be a fraction of the epochs in \[0, 1\), got 1"),
        ({"finetune": -0.1}, r"finetune .* got -0\.1"),
        ({"finetune_lr": 0.0}, "finetune_lr must be positive, got 0"),
        ({"factors": "random"}, "factors must be one of independent, balanced, got 'random'"),
    ],
)
def test_values_out_of_range_raise(options, message):
    with pytest.raises(ValueError, match=message):
        Spred(**{"sparsity": 0.5, **options})


def test_the_defaults_are_those_of_the_authors():
    spred = Spred(0.5)
    assert (spred.decay, spred.factors, spred.finetune, spred.finetune_lr) == (1e-5, "independent", 0.1, 1e-4)


@pytest.mark.parametrize("options", [{"decay": 0.0}, {"finetune": 0.0}, {"finetune_lr": 1e-9}], ids=str)
def test_values_at_the_ends_of_their_ranges_are_accepted(options):
    assert vars(Spred(0.5, **options)).items() >= options.items()
