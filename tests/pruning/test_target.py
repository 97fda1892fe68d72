"""Targets over all layers and of single layers, by hand: 100, 50 and 20 weights in three layers."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from pruning import (
    ACDC,
    GMP,
    SET,
    SNIP,
    STR,
    Dense,
    GraSP,
    MaskFrom,
    OneShotMagnitude,
    PILoT,
    RandomPruning,
    RigL,
    Sparsifier,
    Spred,
    SynFlow,
    checks,
)
from pruning.checks import SparsityWarning
from pruning.target import TargetSparsity

NAMES = ("0.weight", "1.weight", "2.weight")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 5), nn.Linear(5, 4))


def attached(sparsity: float = 0.5, model: nn.Module | None = None, **options: object) -> TargetSparsity:
    sparsifier = TargetSparsity(sparsity)
    sparsifier.attach(network() if model is None else model, total_epochs=2, **options)
    return sparsifier


def test_one_target_holds_for_all_layers_together_and_for_each_by_itself():
    sparsifier = attached(0.75)
    assert sparsifier.kept_target() == 42  # 170 - 127.5, rounded down
    assert sparsifier.kept_target(0.5) == 85
    assert sparsifier.kept_per_layer() == dict(zip(NAMES, (25, 12, 5), strict=True))
    assert sparsifier.kept_per_layer(0.1) == dict(zip(NAMES, (90, 45, 18), strict=True))
    assert sparsifier.shapes() == dict(zip(NAMES, ((10, 10), (5, 10), (4, 5)), strict=True))


@pytest.mark.parametrize(
    ("sparsity", "arguments", "own", "all_layers"),
    [
        (0.5, (), 10, 70),  # 120 / 2 + 50 * 0.2
        (0.5, (0.25,), 30, 120),  # half of the way: 120 * 0.75 + 50 * 0.6
        (0.5, (0.25, 1.0), 10, 100),
        (0.5, (0.25, 0.25), 40, 130),
        (0.5, (0.75,), 10, 40),  # no farther than its own sparsity
        (0.0, (), 10, 130),
        (0.0, (0.0, 0.5), 30, 150),
    ],
)
def test_a_layer_with_a_sparsity_of_its_own_is_as_far_on_its_way_as_the_others(
    sparsity, arguments, own, all_layers
):
    sparsifier = attached(sparsity, sparsities={"1.*": 0.8})
    assert sparsifier.layer_sparsities == {"1.weight": 0.8}
    assert sparsifier.kept_per_layer(*arguments)["1.weight"] == own
    assert sparsifier.kept_target(*arguments) == all_layers


@pytest.mark.parametrize(
    ("sparsity", "sparsities", "kept", "expected"),
    [
        (0.5, {"1.*": 0.8}, 170, ({"1.weight": 50}, 120)),
        (0.5, {"1.*": 0.8}, 120, ({"1.weight": 30}, 90)),  # 50 of 100 are pruned, 20 of its 40
        (0.5, {"1.*": 0.8}, 119, ({"1.weight": 29}, 90)),  # 51 of 100, 20.4 rounded up
        (0.5, {"1.*": 0.8}, 70, ({"1.weight": 10}, 60)),
        (0.5, {"1.*": 0.8}, 40, ({"1.weight": 10}, 30)),  # beyond the target the others give more
        (0.5, {"1.*": 0.8}, 4, ({"1.weight": 10}, 0)),
        # 1 of 56 is pruned, rounded up in both; the others have 100 and 1 is left over
        (0.0, {"1.*": 0.8, "2.*": 0.8}, 169, ({"1.weight": 50, "2.weight": 19}, 100)),
        (0.0, {"1.*": 0.0}, 160, ({"1.weight": 50}, 110)),  # nothing is to be pruned
    ],
)
def test_a_count_is_split_between_layers_with_and_without_own_sparsities(
    sparsity, sparsities, kept, expected
):
    assert attached(sparsity, sparsities=sparsities)._split(kept) == expected


def test_a_selection_keeps_the_largest_scores_of_each_part_in_the_order_of_the_scores():
    sparsifier = attached(0.5, sparsities={"1.*": 0.8})
    sizes = {"0.weight": (10, 10), "1.weight": (5, 10), "2.weight": (4, 5)}
    scores = {  # 0 to 99, 1000 to 1049 and 50.5 to 69.5
        "0.weight": torch.arange(100.0).view(10, 10),
        "1.weight": torch.arange(1000.0, 1050.0).view(5, 10),
        "2.weight": torch.arange(50.5, 70.5).view(4, 5),
    }
    masks = sparsifier.select(scores)
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == sizes
    assert list(masks) == list(NAMES)
    # of the 120 scores without 1.weight the 60 largest are those of at least 50.5: 49 and 20, less 9
    assert [int(mask.sum()) for mask in masks.values()] == [45, 10, 15]
    assert scores["0.weight"][masks["0.weight"]].min() == 55
    assert scores["1.weight"][masks["1.weight"]].min() == 1040
    assert scores["2.weight"][masks["2.weight"]].min() == 55.5
    layerwise = sparsifier.select(scores, {"0.weight": 1, "1.weight": 2, "2.weight": 3})
    assert [int(mask.sum()) for mask in layerwise.values()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("sparsities", "message"),
    [
        ([0.5], "sparsities must be a dict, glob -> sparsity, got list"),
        ({"3.*": 0.5}, "the glob '3.*' of sparsities matches no prunable weight"),
        ({"*": 0.5}, "sparsities matches every weight; at least one must be left for `sparsity`"),
        ({"1.*": 1.0}, "sparsity must be in [0, 1), got 1"),
        ({"1.*": 90}, "sparsity must be in [0, 1), got 90; did you mean 0.9?"),
    ],
)
def test_sparsities_that_do_not_fit_are_refused(sparsities, message):
    with pytest.raises(ValueError) as error:
        attached(sparsities=sparsities)
    assert str(error.value) == message


def test_the_first_glob_that_matches_a_layer_counts():
    sparsifier = attached(sparsities={"1.*": 0.25, "[12].*": 0.75})
    assert sparsifier.layer_sparsities == {"1.weight": 0.25, "2.weight": 0.75}


def test_a_method_without_units_takes_neither_a_granularity_nor_sparsities():
    with pytest.raises(ValueError, match=r'^STR supports only granularity="element"$'):
        STR(sparsity=0.5, granularity="2:4")
    with pytest.raises(ValueError, match=r"^STR has one target for all layers: omit sparsities$"):
        STR(sparsity=0.5).attach(network(), total_epochs=1, sparsities={"1.*": 0.5})
    assert STR(sparsity=0.5).granularity == TargetSparsity(0.5).granularity == "element"


def test_a_single_glob_is_a_list_of_one():
    assert TargetSparsity(0.5, exclude="1.*").exclude == ["1.*"]
    assert TargetSparsity(0.5).exclude == []


def test_own_sparsities_must_fit_the_units_too():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"^granularity 2:4 prunes 0.5 of each layer, got sparsity=0.6"):
        OneShotMagnitude(0.5, granularity="2:4").attach(
            model, total_epochs=1, steps_per_epoch=1, sparsities={"1.*": 0.6}
        )


def zeroed(count: int) -> nn.Sequential:
    """Two layers of 50 weights, with `count` zeros in the first."""
    model = nn.Sequential(nn.Linear(10, 5, bias=False), nn.Linear(5, 10, bias=False))
    with torch.no_grad():
        for layer in model:
            layer.weight.fill_(1.0)
        model[0].weight.view(-1)[:count] = 0.0
    return model


@pytest.mark.parametrize(("count", "warns"), [(40, False), (37, False), (35, True), (0, True)])
def test_a_model_that_misses_its_target_by_more_than_two_weights_a_layer_is_named(count, warns):
    sparsifier = attached(0.4, zeroed(count))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sparsifier.on_end()
    assert [str(warning.message) for warning in caught] == warns * [
        f"TargetSparsity ended at sparsity {count / 100:.4f}, but its target is 0.4000: no optimizer step "
        "was counted; call sparsifier.hook(optimizer) before the first one"
    ]
    assert all(warning.category is SparsityWarning for warning in caught)


@pytest.mark.parametrize(("count", "warns"), [(4850, True), (4910, False), (4990, False)])
def test_a_large_model_may_miss_its_target_by_a_point(count, warns):
    model = nn.Sequential(nn.Linear(100, 100, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0).view(-1)[:count] = 0.0
    sparsifier = attached(0.5, model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sparsifier.on_end()
    assert len(caught) == warns


ALL_STEPS = "train for the epochs and steps passed to attach(), and call after_step after each step"


@pytest.mark.parametrize(
    ("step", "steps_per_epoch", "cure"),
    [
        (0, 5, ALL_STEPS),
        (1, 5, "training ended after 1 of the 10 steps passed to attach()"),
        (9, 5, "training ended after 9 of the 10 steps passed to attach()"),
        (10, 5, ALL_STEPS),
        (3, None, ALL_STEPS),
    ],
)
def test_the_cure_of_a_missed_target_follows_from_the_steps(step, steps_per_epoch, cure):
    sparsifier = attached(0.4, zeroed(0), steps_per_epoch=steps_per_epoch)
    optimizer = torch.optim.SGD(sparsifier.model.parameters(), lr=0.1)
    sparsifier.after_backward(0, optimizer)
    sparsifier.step = step
    with pytest.warns(SparsityWarning) as caught:
        sparsifier.on_end()
    assert str(caught[0].message).endswith(f"its target is 0.4000: {cure}")


def trained_with_a_hook(sparsifier: Sparsifier, steps: int) -> Sparsifier:
    """A loop with the hook that ends with `on_end`."""
    model = nn.Sequential(nn.Linear(20, 20, bias=False))
    sparsifier.attach(model, total_epochs=2, steps_per_epoch=5)
    optimizer = torch.optim.SGD(sparsifier.param_groups(model.parameters()), lr=1e-6)
    sparsifier.hook(optimizer)
    for step in range(steps):
        if step % 5 == 0:
            sparsifier.on_epoch_start(step // 5, optimizer)
        model(torch.ones(2, 20)).sum().backward()
        optimizer.step()
    sparsifier.on_end()
    return sparsifier


@pytest.mark.parametrize(
    ("make", "steps", "cure"),
    [
        (STR, 10, "use calibrate='ramp' with initial=-8, because the sparsity that thresholds reach"),
        (STR, 7, "training ended after 7 of the 10 steps passed to attach(); or use calibrate='ramp'"),
        (partial(GMP, begin=0.0, end=1.0, interval=1), 7, "training ended after 7 of the 10 steps"),
    ],
)
def test_the_hook_and_the_loop_warn_once(make, steps, cure):
    with pytest.warns(SparsityWarning) as caught:
        trained_with_a_hook(make(0.9), steps)
    (message,) = (str(warning.message) for warning in caught if "ended at sparsity" in str(warning.message))
    assert f"its target is 0.9000: {cure}" in message


INTEGERS = [
    *((make, "interval") for make in (RigL, GMP, SET)),
    *((make, "batches") for make in (SNIP, GraSP)),
    (SynFlow, "iterations"),
    (STR, "ramp_every"),
]


@pytest.mark.parametrize(("make", "name"), INTEGERS)
@pytest.mark.parametrize("value", [1.5, 2.0, "3", None, [1]])
def test_counts_of_steps_are_integers(make, name, value):
    if make is SET and value is None:
        return  # an epoch
    with pytest.raises(ValueError, match=f"^{name} must be an integer, got "):
        make(0.5, **{name: value})


@pytest.mark.parametrize(("make", "name"), INTEGERS)
def test_counts_of_steps_are_positive(make, name):
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"^{name} must be at least 1( step)?, got {value}$"):
            make(0.5, **{name: value})
    assert getattr(make(0.5, **{name: np.int64(2)}), name) == 2


def test_a_state_belongs_to_its_method_target_and_units():
    def one(make: type[Sparsifier] = OneShotMagnitude, **options: object) -> Sparsifier:
        sparsifier = make(**{"sparsity": 0.5, **options})
        sparsifier.attach(nn.Sequential(nn.Linear(4, 4)), total_epochs=2, steps_per_epoch=1)
        return sparsifier

    state = one().state_dict()
    assert state["target"] == "OneShotMagnitude(sparsity=0.5, granularity=element)"
    one().load_state_dict(state)
    one().load_state_dict({key: value for key, value in state.items() if key != "target"})
    for other in (one(sparsity=0.25), one(granularity="2x2"), one(ACDC)):
        with pytest.raises(ValueError) as error:
            other.load_state_dict(state)
        assert str(error.value) == (
            f"the state was saved by {state['target']}, but this sparsifier is {other._target()}: create it "
            "with the same arguments"
        )


def test_units_of_several_weights_are_not_split_over_ranks(monkeypatch):
    sparsifiers = [TargetSparsity(0.5), TargetSparsity(0.5, granularity="2x2")]
    for sparsifier in sparsifiers:
        sparsifier.attach(nn.Sequential(nn.Linear(4, 4)), total_epochs=1)
    monkeypatch.setattr(checks, "is_sharded", lambda tensor: True)
    sparsifiers[0].check()
    with pytest.raises(ValueError) as error:
        sparsifiers[1].check()
    assert str(error.value) == (
        'granularity 2x2 does not work on weights that fully_shard has split: use granularity="element", or '
        "DistributedDataParallel"
    )


def test_a_granularity_is_given_by_its_name():
    with pytest.raises(TypeError):
        TargetSparsity(0.5, [], "2:4")


METHODS = {
    **{
        kind.__name__: kind for kind in (ACDC, GMP, OneShotMagnitude, PILoT, Spred, STR, SNIP, GraSP, SynFlow)
    },
    **{kind.__name__: kind for kind in (RandomPruning, RigL, SET)},
    "MaskFrom": partial(MaskFrom, source="masks.pt"),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_checks_its_target_and_its_units(method):
    make = METHODS[method]
    with pytest.raises(ValueError, match=r"^sparsity must be in \[0, 1\), got 90; did you mean 0\.9\?$"):
        make(sparsity=90)
    with pytest.raises(ValueError, match=r"^granularity must be |^(STR|MaskFrom) supports only granularity"):
        make(sparsity=0.5, granularity="4" if method not in ("STR", "MaskFrom") else "4x4")
    assert make(sparsity=0.0, exclude="a").exclude == ["a"]
    assert make(sparsity=0.5).elementwise == (method in ("STR", "MaskFrom"))


@pytest.mark.parametrize(
    ("trait", "methods"),
    [
        ("changes_at_epochs", {"ACDC", "PILoT", "Spred"}),
        ("reparametrizes", {"STR", "PILoT", "Spred"}),
        ("trains_factors", {"PILoT", "Spred"}),
        ("prunes_at_end", {"PILoT", "Spred"}),
    ],
)
def test_which_methods_need_calls_at_epochs_and_at_the_end(trait, methods):
    assert {name for name, make in METHODS.items() if getattr(make(sparsity=0.5), trait)} == methods


# whose state it is

STATEFUL = {name: kind for name, kind in METHODS.items() if name != "MaskFrom"} | {
    "Dense": lambda sparsity: Dense()
}


def fresh(method: str, sparsities: dict[str, float] | None = None, **options: object) -> Sparsifier:
    sparsifier = STATEFUL[method](0.5, **options)
    sparsifier.attach(network(), total_epochs=4, steps_per_epoch=2, sparsities=sparsities)
    return sparsifier


@pytest.mark.parametrize("method", STATEFUL)
def test_a_state_loads_into_its_own_method_only(method):
    state = fresh(method).state_dict()
    fresh(method).load_state_dict(state)
    for other in STATEFUL.keys() - {method}:
        sparsifier = fresh(other)
        before = sparsifier.kept()
        with pytest.raises(ValueError) as error:
            sparsifier.load_state_dict(state)
        this = f"but this sparsifier is {sparsifier._target()}: create it with the same arguments"
        assert str(error.value) == f"the state was saved by {state['target']}, {this}"
        assert all(torch.equal(mask, before[name]) for name, mask in sparsifier.kept().items())


@pytest.mark.parametrize(("method", "key"), [("ACDC", "stale"), ("PILoT", "schedule"), ("SET", "generator")])
def test_what_the_state_of_another_method_lacks_is_named(method, key):
    """States of earlier versions have no target."""
    state = fresh("Dense").state_dict()
    del state["target"], state["options"]
    with pytest.raises(ValueError) as error:
        fresh(method).load_state_dict(state)
    assert str(error.value) == (
        f"missing key {key!r} in the state: it was not saved by {method}; load a state that this method saved"
    )


@pytest.mark.parametrize(
    ("method", "name", "one", "other"),
    [
        ("ACDC", "revive", "stale", "zero"),
        ("ACDC", "revive", "zero", "stale"),
        ("ACDC", "scope", "global", "layerwise"),
        ("GMP", "scope", "layerwise", "global"),
        ("OneShotMagnitude", "scope", "global", "layerwise"),
        ("RandomPruning", "allocation", "erk", "uniform"),
        ("RigL", "allocation", "balanced", "erk"),
        ("SET", "allocation", "uniform", "balanced"),
        ("PILoT", "strength", 1e-4, 2e-5),
        ("STR", "calibrate", "none", "search"),
    ],
)
def test_a_state_belongs_to_the_options_that_it_depends_on(method, name, one, other):
    state = fresh(method, **{name: one}).state_dict()
    fresh(method, **{name: one}).load_state_dict(state)
    different = fresh(method, **{name: other})
    with pytest.raises(ValueError) as error:
        different.load_state_dict(state)
    assert str(error.value) == (
        f"the state was saved by {method} with {name}={one}, but this sparsifier has {name}={other}: create "
        "it with the same arguments"
    )
    different.load_state_dict(
        {**state, "options": {}}
    )  # as torch.distributed.checkpoint reads an earlier state
    different.load_state_dict({key: value for key, value in state.items() if key != "options"})


@pytest.mark.parametrize(
    ("one", "other"), [({"1.*": 0.8}, None), (None, {"1.*": 0.8}), ({"1.*": 0.8}, {"1.*": 0.7})]
)
def test_a_state_belongs_to_the_sparsities_of_single_layers(one, other):
    state = fresh("RigL", one).state_dict()
    fresh("RigL", one).load_state_dict(state)
    with pytest.raises(
        ValueError, match=r"^the state was saved by RigL with sparsities=\{.*\}, but .*=\{.*\}: create"
    ):
        fresh("RigL", other).load_state_dict(state)
