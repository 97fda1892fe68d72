"""Pruning by magnitude while training: gradually (GMP) and once (one-shot)."""

from __future__ import annotations

from itertools import pairwise
from math import ceil

import pytest
import torch
from torch import Tensor, nn

from pruning import GMP, OneShotMagnitude, Spred
from pruning.schedule import Cubic, Phases


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))


def attached(sparsifier, epochs: int = 10, steps: int = 4):
    sparsifier.attach(network(), total_epochs=epochs, steps_per_epoch=steps)
    return sparsifier


def train(sparsifier, steps: int = 40) -> list[dict[str, Tensor]]:
    """The masks after each step; the weights move at random."""
    optimizer = torch.optim.SGD(sparsifier.model.parameters(), lr=0.5, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    masks = []
    for step in range(steps):
        for p in sparsifier.model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        assert sparsifier.after_backward(step, optimizer)
        optimizer.step()
        sparsifier.after_step()
        masks.append(sparsifier.kept())
    return masks


def counts(masks: dict[str, Tensor]) -> list[int]:
    return [int(mask.sum()) for mask in masks.values()]


def test_updates_of_a_run():
    """From begin to end at every interval, and at the end itself."""
    gmp = attached(GMP(0.9, begin=0.25, end=0.6, interval=6))
    assert [step for step in range(40) if gmp.is_update_step(step)] == [10, 16, 22, 24]
    gmp = attached(GMP(0.9, begin=0.0, end=1.0, interval=100))
    assert [step for step in range(40) if gmp.is_update_step(step)] == [0, 39]  # the last step is 39
    gmp = attached(GMP(0.9, begin=0.5, end=0.5))
    assert [step for step in range(40) if gmp.is_update_step(step)] == [20]


def test_every_layer_has_the_sparsity_of_the_published_formula_at_each_update():
    gmp = attached(GMP(0.9, begin=0.25, end=0.75, interval=5))
    for step, masks in enumerate(train(gmp)):
        updates = min(max((step - 10) // 5, 0), 4)  # t0 = 10, dt = 5, n = 4
        sparsity = 0.9 + (0.0 - 0.9) * (1 - updates / 4) ** 3
        assert counts(masks) == [size - ceil(round(sparsity * size, 9)) for size in (200, 100)], step


def test_global_scope_ranks_all_layers_together():
    gmp = attached(GMP(0.9, begin=0.0, end=0.5, interval=10, scope="global"))
    final = train(gmp)[-1]
    assert sum(counts(final)) == 30 and counts(final) != [20, 10]
    assert gmp.achieved_sparsity() == 0.9


@pytest.mark.parametrize("scope", ["global", "layerwise"])
@pytest.mark.parametrize("schedule", ["cubic", "cosine", "linear"])
def test_a_pruned_weight_stays_pruned(scope, schedule):
    masks = train(attached(GMP(0.9, begin=0.1, end=0.8, interval=1, scope=scope, schedule=schedule)))
    for before, after in pairwise(masks):
        assert all((after[name] <= before[name]).all() for name in before)
    assert len({sum(counts(mask)) for mask in masks}) > 20


def test_at_an_update_the_smallest_magnitudes_go_before_the_step():
    gmp = attached(GMP(0.5, begin=0.0, end=0.0))
    values = {name: value.abs().clone() for name, value in gmp.masks.values().items()}
    for name, mask in train(gmp, steps=1)[0].items():
        assert values[name][mask].min() >= values[name][~mask].max()


@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_a_falling_schedule_of_ones_own_revives_nothing(scope):
    """Sparsity 0.8, then 0.2, then 0.6 asked for: 0.8 stays from the first update on."""
    wanted = {0: 0.8, 1: 0.2, 2: 0.6}
    gmp = attached(GMP(0.6, scope=scope, end=0.5, interval=10, schedule=lambda at: wanted[round(at * 4)]))
    assert [sum(counts(masks)) for masks in train(gmp)] == [60] * 40
    assert gmp.achieved_sparsity() == pytest.approx(0.8)


def test_a_schedule_of_ones_own_equals_the_built_in_one():
    own = GMP(0.9, begin=0.25, end=0.75, interval=3, schedule=Cubic(0.9, 0.25, 0.75))
    built_in = GMP(0.9, begin=0.25, end=0.75, interval=3)
    for one, other in zip(train(attached(own)), train(attached(built_in)), strict=True):
        assert counts(one) == counts(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"begin": 0.8},
            "begin and end must be fractions of the steps, 0 <= begin <= end <= 1, got 0.8 and 0.75",
        ),
        (
            {"begin": -0.5},
            "begin and end must be fractions of the steps, 0 <= begin <= end <= 1, got -0.5 and 0.75",
        ),
        ({"end": 1.5}, "begin and end must be fractions of the steps, 0 <= begin <= end <= 1, got 0 and 1.5"),
        ({"end": 30}, "begin and end must be fractions of the steps, 0 <= begin <= end <= 1, got 0 and 30"),
        ({"interval": 0}, "interval must be at least 1 step, got 0"),
        ({"schedule": "quartic"}, "ramp must be one of cubic, cosine, linear, got 'quartic'"),
        (
            {"schedule": Phases(0.8, ["sparse"])},
            "the schedule ends at 0.8, not at sparsity=0.9: set sparsity to its value at end=0.75",
        ),
    ],
)
def test_options_out_of_range_raise(options, message):
    with pytest.raises(ValueError) as caught:
        GMP(0.9, **options)
    assert str(caught.value) == message


@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_one_shot_prunes_once_by_magnitude_and_keeps_the_masks(scope):
    one_shot = attached(OneShotMagnitude(0.9, prune_at=0.3, scope=scope))
    masks = train(one_shot)
    assert [sum(counts(mask)) for mask in masks] == [300] * 12 + [30] * 28
    assert all(torch.equal(masks[12][name], mask) for name, mask in masks[-1].items())
    assert (counts(masks[-1]) == [20, 10]) == (scope == "layerwise")


@pytest.mark.parametrize(("finetune_lr", "after"), [(None, 0.5), (0.01, 0.01)])
def test_fine_tuning_has_its_own_learning_rate(finetune_lr, after):
    one_shot = attached(OneShotMagnitude(0.9, prune_at=0.5, finetune_lr=finetune_lr))
    optimizer = torch.optim.SGD(one_shot.model.parameters(), lr=0.5)
    rates = []
    for step in range(40):
        optimizer.param_groups[0]["lr"] = 0.5  # what a schedule does
        one_shot.after_backward(step, optimizer)
        rates.append(optimizer.param_groups[0]["lr"])
        assert one_shot.stats().get("lr", 0.5) == rates[-1]
    assert rates == [0.5] * 20 + [after] * 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune_at": -0.5}, "prune_at must be a fraction of the steps in [0, 1), got -0.5"),
        ({"prune_at": 1.0}, "prune_at must be a fraction of the steps in [0, 1), got 1"),
        ({"finetune_lr": 0.0}, "finetune_lr must be positive, got 0"),
        ({"scope": "local"}, "scope must be one of global, layerwise, got 'local'"),
    ],
)
def test_one_shot_options_out_of_range_raise(options, message):
    with pytest.raises(ValueError) as caught:
        OneShotMagnitude(0.9, **options)
    assert str(caught.value) == message


@pytest.mark.parametrize("make", [lambda: GMP(0.9), lambda: OneShotMagnitude(0.9)])
def test_they_plan_by_steps(make):
    with pytest.raises(ValueError, match="requires steps_per_epoch: pass attach"):
        make().attach(network(), total_epochs=1)


@pytest.mark.parametrize("kind", [OneShotMagnitude, Spred])
def test_fine_tuning_changes_a_learning_rate_that_is_a_tensor_in_place(kind):
    """A compiled or captured step reads that tensor; another object would be ignored."""
    model = network()
    at_once = {"prune_at": 0.0} if kind is OneShotMagnitude else {"finetune": 0.9}
    sparsifier = kind(0.5, finetune_lr=0.25, **at_once)
    sparsifier.attach(model, total_epochs=1, steps_per_epoch=4)
    rate = torch.tensor(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, foreach=False)
    sparsifier.on_epoch_start(0, optimizer)
    sparsifier.after_backward(0, optimizer)
    assert optimizer.param_groups[0]["lr"] is rate and rate.item() == 0.25


def test_the_defaults_of_both_methods_are_those_of_their_descriptions():
    gmp, one_shot = GMP(0.9), OneShotMagnitude(0.9)
    assert (gmp.scope, gmp.begin, gmp.end, gmp.interval) == ("layerwise", 0.0, 0.75, 100)
    assert (gmp.schedule, gmp.granularity, gmp.exclude) == ("cubic", "element", [])
    assert (one_shot.scope, one_shot.prune_at, one_shot.finetune_lr) == ("global", 0.5, None)


@pytest.mark.parametrize(
    "options", [{"begin": 0, "end": 0}, {"begin": 1, "end": 1}, {"interval": 1}], ids=str
)
def test_gmp_options_at_the_ends_of_their_ranges_are_accepted(options):
    assert vars(GMP(0.9, **options)).items() >= options.items()


def test_one_shot_may_prune_before_the_first_step_and_at_the_last_one():
    masks = train(attached(OneShotMagnitude(0.9, prune_at=0.0)), steps=2)
    assert [sum(counts(mask)) for mask in masks] == [30, 30]
    masks = train(attached(OneShotMagnitude(0.9, prune_at=0.999)))
    assert [sum(counts(mask)) for mask in masks] == [300] * 39 + [30]


def test_a_fine_tuning_rate_may_be_above_one():
    assert OneShotMagnitude(0.9, finetune_lr=0.5).finetune_lr == 0.5
    assert Spred(0.9, finetune_lr=0.5).finetune_lr == 0.5


def test_layers_of_their_own_sparsity_are_never_beyond_it():
    """A schedule of one's own may be above its end: 0.9, then 0.5."""
    gmp = GMP(0.5, end=0.5, interval=10, schedule=lambda at: 0.9 if at < 0.5 else 0.5)
    gmp.attach(network(), total_epochs=10, steps_per_epoch=4, sparsities={"0.*": 0.25})
    assert [gmp.progress_at(step) for step in (0, 10, 20)] == [1.0, 1.0, 1.0]
    assert gmp.target_sparsity_at(0) == 0.9 and gmp.target_sparsity_at(20) == 0.5


@pytest.mark.parametrize(("schedule", "halfway"), [("linear", 0.5), ("cubic", 0.875), ("cosine", 0.5)])
@pytest.mark.parametrize("sparsity", [0.0, 0.8])
def test_the_progress_of_a_ramp_is_that_of_its_sparsity(schedule, halfway, sparsity):
    gmp = attached(GMP(sparsity, begin=0.25, end=0.75, schedule=schedule))  # steps 10 to 30 of 40
    assert [gmp.progress_at(step) for step in (0, 10, 20, 30, 39)] == pytest.approx([0, 0, halfway, 1, 1])
    assert gmp.target_sparsity_at(20) == pytest.approx(sparsity * halfway)
