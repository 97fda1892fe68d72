from __future__ import annotations

import io
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from pruning import PILoT

A = [0.8, -0.1, 0.3, 0.02]
B = [-0.5, 0.05, 0.04, -0.01]


def small_model() -> nn.Module:
    model = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), norm=nn.BatchNorm1d(2), b=nn.Linear(2, 2)))
    with torch.no_grad():
        model.a.weight.copy_(torch.tensor(A).view(2, 2))
        model.b.weight.copy_(torch.tensor(B).view(2, 2))
    return model


def attached(model: nn.Module, epochs: int = 8, **options: object) -> PILoT:
    pilot = PILoT(**{"sparsity": 0.5, **options})
    pilot.attach(model, total_epochs=epochs)
    return pilot


def values(model: nn.Module) -> list[list[float]]:
    return [[round(x, 6) for x in layer.weight.flatten().tolist()] for layer in (model.a, model.b)]


def strengths(pilot: PILoT, accuracies: list[float]) -> list[float]:
    """The strength after each epoch."""
    found = []
    for accuracy in accuracies:
        pilot.on_epoch_end(train_accuracy=accuracy)
        found.append(pilot.stats()["strength"])
    return found


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        # up, up, equal, up; in the second half only down
        ([0.1, 0.3, 0.3, 0.5, 0.6, 0.7, 0.2, 0.9], [2, 4, 2, 4, 2, 1, 0.5, 0.25]),
        # compared with the last epoch, not with the best
        ([0.5, 0.2, 0.3, 0.1], [2, 1, 2, 1]),
        ([0.4, 0.3, 0.2, 0.1, 0.0, 0.5, 0.6, 0.7], [2, 1, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625]),
        ([0.1, 0.2, 0.3, 0.4], [2, 4, 8, 16]),
        # 5 epochs: k <= 2.5
        ([0.1, 0.2, 0.3, 0.4, 0.5], [2, 4, 2, 1, 0.5]),
        ([0.1], [0.5]),
    ],
)
def test_algorithm_1_by_hand(accuracies, expected):
    total = 8 if len(accuracies) == 4 else len(accuracies)
    pilot = attached(small_model(), total, strength=1.0, delta=2.0)
    assert pilot.stats()["strength"] == 1.0
    assert strengths(pilot, accuracies) == expected


# the mean of |theta| over the eight weights is 1.82 / 8 = .2275
@pytest.mark.parametrize(("floor", "expected"), [(0.2274, [2, 4, 8]), (0.2276, [0.5, 0.25, 0.125])])
def test_below_the_floor_the_strength_falls(floor, expected):
    pilot = attached(small_model(), strength=1.0, delta=2.0, l1_floor=floor)
    assert strengths(pilot, [0.1, 0.2, 0.3]) == expected


def test_the_floor_is_inclusive_and_looks_at_the_weights_of_the_epoch():
    model = small_model()
    pilot = attached(model, strength=1.0, delta=2.0, l1_floor=0.25)
    fractions = []
    for theta in (0.25, 0.125, -0.25):
        for weight in pilot.masks.weights.values():
            weight.parameters[0].detach().fill_(1.0)
            weight.parameters[1].detach().fill_(theta)
        fractions += strengths(pilot, [0.1 * (1 + len(fractions))])
    assert fractions == [2, 1, 2]


def gradients_after_decay(pilot: PILoT) -> list[tuple[Tensor, Tensor]]:
    """(factor, what the penalty adds to its gradient) of every factor."""
    factors = [p for weight in pilot.parameterization.weights for p in weight.parameters]
    for factor in factors:
        factor.grad = torch.zeros_like(factor)
    pilot.add_decay()
    return [(factor.detach(), factor.grad) for factor in factors]


def test_the_penalty_is_of_both_squared_norms():
    """Of strength (|m|^2 + |w|^2): 2 strength (m, w), in each epoch with its own strength."""
    model = small_model()
    pilot = attached(model, strength=0.25, delta=2.0, frobenius=0.0, exclude=["b.weight"])
    for strength, accuracy in ((0.25, 0.1), (0.5, 0.2), (1.0, 0.1), (0.5, 0.3)):
        pairs = gradients_after_decay(pilot)
        assert len(pairs) == 4  # the excluded layer's too
        for factor, gradient in pairs:
            assert torch.allclose(gradient, 2 * strength * factor, rtol=1e-6, atol=0)
        pilot.on_epoch_end(train_accuracy=accuracy)


def test_the_frobenius_decay_is_added():
    pilot = attached(small_model(), strength=0.25, frobenius=0.5)
    (m, added_m), (w, added_w), *_ = gradients_after_decay(pilot)
    assert torch.allclose(added_m, 0.5 * m + 0.5 * m * w * w, rtol=1e-6)
    assert torch.allclose(added_w, 0.5 * w + 0.5 * m * w * m, rtol=1e-6)


def test_factors_start_at_the_initial_weight_with_the_scaling():
    model = small_model()
    pilot = attached(model, scaling=4.0)
    assert values(model) == [A, B]
    for weight in pilot.parameterization.weights:
        m, w = weight.parameters
        assert (m**2 - w**2).flatten().tolist() == pytest.approx([4.0] * 4)


@pytest.mark.filterwarnings("ignore:all weights of")
@pytest.mark.parametrize(
    ("options", "a", "b"),
    [
        ({}, [0.8, -0.1, 0.3, 0], [-0.5, 0, 0, 0]),
        ({"sparsity": 0.8}, [0.8, 0, 0, 0], [0, 0, 0, 0]),
        ({"sparsity": 0.0}, A, B),
        ({"exclude": ["a.weight"]}, A, [-0.5, 0.05, 0, 0]),
    ],
)
def test_the_largest_products_are_kept_at_the_end(options, a, b):
    model = small_model()
    pilot = attached(model, **options)
    for epoch in range(8):
        pilot.on_epoch_start(epoch, torch.optim.SGD(model.parameters(), lr=0.1))
        pilot.on_epoch_end(train_accuracy=0.1 * epoch)
    assert not pilot.masks.active and pilot.stats()["sparsity"] == 0
    pilot.on_end()
    assert values(model) == [a, b]
    kept, total = (b, 4) if "exclude" in options else (a + b, 8)
    assert pilot.stats()["kept"] == total - kept.count(0)
    assert pilot.achieved_sparsity() == pytest.approx(kept.count(0) / total)


@pytest.mark.filterwarnings("ignore:all weights of")
@pytest.mark.parametrize("sparsity", [0.9, 0.95, 0.123])
def test_the_target_is_met_exactly_over_all_layers(sparsity):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 14), nn.Conv2d(3, 4, 3))
    pilot = attached(model, sparsity=sparsity)
    scores = torch.cat([weight.value.abs().flatten() for weight in pilot.masks.weights.values()])
    pilot.on_end()
    total = 600 + 420 + 108
    keep = int(total - total * sparsity)
    kept = torch.cat([mask.flatten() for mask in pilot.kept().values()])
    assert pilot.stats()["kept"] == kept.sum() == keep
    assert scores[kept].min() > scores[~kept].max()


@pytest.mark.parametrize(
    ("total", "prune_at", "epoch"),
    [(8, 0.5, 4), (8, 0.75, 6), (5, 0.5, 3), (1, 0.5, None), (8, 1.0, None), (100, 0.55, 55), (100, 0.07, 7)],
)
def test_pruning_happens_at_its_epoch(total, prune_at, epoch):
    model = small_model()
    pilot = attached(model, total, prune_at=prune_at)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    active = []
    for now in range(total):
        pilot.on_epoch_start(now, optimizer)
        active.append(pilot.masks.active)
        pilot.on_epoch_end(train_accuracy=0.0)
    first = total if epoch is None else epoch
    assert active == [now >= first for now in range(total)]
    pilot.on_end()
    assert values(model) == [[0.8, -0.1, 0.3, 0], [-0.5, 0, 0, 0]]


def train_epoch(model: nn.Module, pilot: PILoT, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    pilot.on_epoch_start(epoch, optimizer)
    generator = torch.Generator().manual_seed(epoch)
    for step in range(3):
        inputs = torch.randn(16, 2, generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), (inputs[:, 0] > 0).long()).backward()
        pilot.after_backward(step, optimizer)
        pilot.add_decay()
        optimizer.step()
        pilot.after_step()
    pilot.on_epoch_end(train_accuracy=[0.5, 0.6, 0.55, 0.7, 0.8, 0.75, 0.9, 0.95][epoch])


def sgd(model: nn.Module, pilot: PILoT) -> torch.optim.Optimizer:
    groups = pilot.param_groups(model.parameters())
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.1)


def test_after_pruning_the_penalty_ends_and_pruned_weights_stay_zero():
    model = small_model()
    pilot = attached(model, strength=0.01, frobenius=0.0, prune_at=0.5)
    optimizer = sgd(model, pilot)
    for epoch in range(8):
        train_epoch(model, pilot, optimizer, epoch)
        if epoch == 4:
            kept = pilot.kept()
    assert all(not gradient.any() for _, gradient in gradients_after_decay(pilot))
    assert pilot.stats()["strength"] == 0.0
    pilot.on_end()
    for name, weight in pilot.masks.weights.items():
        assert torch.equal(pilot.kept()[name], kept[name])
        m, w = weight.parameters
        off = ~kept[name]
        assert (m[off] == 1).all() and (w[off] == 0).all() and (weight.value[kept[name]] != 0).all()
        for factor in (m, w):
            momentum = optimizer.state[factor]["momentum_buffer"]
            assert not momentum[off].any() and momentum[~off].all()


@pytest.mark.filterwarnings("ignore:all weights of")
@pytest.mark.parametrize("prune_at", [0.25, 0.75, 1.0])
@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_resumed_run_is_the_uninterrupted_one(prune_at, stop):
    def start() -> tuple[nn.Module, PILoT, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = small_model()
        pilot = attached(model, strength=0.01, delta=1.5, prune_at=prune_at)
        return model, pilot, sgd(model, pilot)

    straight = start()
    for epoch in range(8):
        train_epoch(*straight, epoch)
    first = start()
    for epoch in range(stop):
        train_epoch(*first, epoch)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    resumed = start()
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    for epoch in range(stop, 8):
        train_epoch(*resumed, epoch)
    for model, pilot, _ in (straight, resumed):
        pilot.on_end()
        assert pilot.stats()["kept"] == 4 and model is pilot.model
    assert resumed[1].stats() == straight[1].stats()
    for ours, theirs in zip(resumed[0].state_dict().values(), straight[0].state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_fraction_near_zero_is_per_tensor():
    """Below a thousandth of the tensor's largest: .0009 of 1, and .00009 and 0 of -.1."""
    model = small_model()
    pilot = attached(model)
    for weight, row in zip(
        pilot.parameterization.weights, ([1, 0.0009, -0.002, 0.5], [-0.1, 0.0009, 9e-5, 0]), strict=True
    ):
        weight.assign_(torch.tensor(row).view(2, 2))
    assert pilot.stats()["near_zero"] == 3 / 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 90}, r"sparsity must be in \[0, 1\), got 90; did you mean 0\.9"),
        ({"strength": -1.0}, "strength must not be negative, got -1"),
        ({"l1_floor": -1.0}, "l1_floor must not be negative, got -1"),
        ({"delta": 0.5}, r"delta must be at least 1, got 0\.5"),
        ({"prune_at": 0.0}, r"prune_at must be a fraction of the epochs in \(0, 1\], got 0"),
        ({"prune_at": 1.5}, r"prune_at .* got 1\.5"),
        ({"scaling": 0.0}, "scaling must be positive, got 0"),
        ({"frobenius": -1.0}, "frobenius must not be negative, got -1"),
    ],
)
def test_values_out_of_range_raise(options, message):
    with pytest.raises(ValueError, match=message):
        PILoT(**{"sparsity": 0.5, **options})


def test_the_defaults_are_those_of_the_description():
    pilot = PILoT(0.5)
    assert (pilot.strength, pilot.delta, pilot.l1_floor) == (2e-5, 1.01, 0.0)
    assert (pilot.scaling, pilot.frobenius, pilot.prune_at) == (1.0, 5e-5, 1.0)


@pytest.mark.parametrize(
    "options", [{"strength": 0.0}, {"l1_floor": 0.0}, {"delta": 1.0}, {"prune_at": 0.01}], ids=str
)
def test_values_at_the_ends_of_their_ranges_are_accepted(options):
    assert vars(PILoT(0.5, **options)).items() >= options.items()


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_accuracies_of_none_and_of_all_are_fractions(accuracy):
    pilot = attached(small_model(), strength=1.0, delta=2.0)
    assert strengths(pilot, [accuracy]) == [2.0 if accuracy else 0.5]
