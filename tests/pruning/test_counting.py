"""Loops that count epochs or steps in another way than a sparsifier: each is one line, before a step."""

from __future__ import annotations

import copy
import warnings

import pytest
from short_loops import attached, is_one_line, model_of, one_step, sgd, train

from pruning import ACDC, GMP, SET, STR, OneShotMagnitude, PILoT, Product, RandomPruning, RigL, Spred

ON_EPOCHS = {
    "acdc": (lambda: ACDC(0.5), None),
    "spred": (lambda: Spred(0.5), None),
    "sign_in": (lambda: RandomPruning(0.5), Product(reset_every=1)),
}


def started(kind, **options):
    make, parameterization = ON_EPOCHS[kind]
    model = model_of()
    sparsifier = attached(model, make(), parameterization=parameterization, **options)
    return model, sparsifier, sgd(model, sparsifier)


@pytest.mark.parametrize("hooked", [True, False])
@pytest.mark.parametrize(("first", "known"), [(1, 2), (3, 2), (1, None)])
@pytest.mark.parametrize("kind", ON_EPOCHS)
def test_epochs_that_are_not_counted_from_0_are_refused(kind, first, known, hooked):
    model, sparsifier, optimizer = started(kind, steps_per_epoch=known)
    if hooked:
        sparsifier.hook(optimizer)
    sparsifier.on_epoch_start(first, optimizer)
    line = rf"^epoch {first} was announced before step 0: count epochs from 0, and call sparsifier\.on_epoch"
    with pytest.raises(RuntimeError, match=line) as caught:
        if hooked:
            model(model[0].weight).sum().backward()
            optimizer.step()
        else:
            one_step(model, sparsifier, optimizer)
    assert is_one_line(caught)


@pytest.mark.parametrize("kind", ON_EPOCHS)
def test_an_epoch_that_was_skipped_later_is_refused(kind):
    model, sparsifier, optimizer = started(kind)
    train(model, sparsifier, optimizer, steps=2)
    sparsifier.on_epoch_start(3, optimizer)
    with pytest.raises(RuntimeError, match=r"^epoch 3 was announced before step 2"):
        one_step(model, sparsifier, optimizer, step=2)


def test_pilot_names_the_count_of_epochs():
    model = model_of()
    sparsifier = attached(model, PILoT(0.5))
    with pytest.raises(RuntimeError, match=r"and count epochs from 0$"):
        sparsifier.on_epoch_start(1, sgd(model, sparsifier))


@pytest.mark.parametrize("kind", ON_EPOCHS)
def test_other_loops_count_rightly(kind):
    """One that resumes, one that attaches later, and one of which GradScaler skips steps."""
    model, sparsifier, optimizer = started(kind)
    train(model, sparsifier, optimizer, steps=4)
    state, weights = copy.deepcopy(sparsifier.state_dict()), copy.deepcopy(model.state_dict())
    model, sparsifier, optimizer = started(kind)
    model.load_state_dict(weights)
    sparsifier.load_state_dict(state)
    sparsifier.on_epoch_start(2, optimizer)
    one_step(model, sparsifier, optimizer, step=4)

    for known in (2, None):
        model, sparsifier, optimizer = started(kind, steps_per_epoch=known)
        sparsifier.on_epoch_start(2, optimizer)
        one_step(model, sparsifier, optimizer, step=4)

    model, sparsifier, optimizer = started(kind, steps_per_epoch=1)
    for epoch in range(3):
        sparsifier.on_epoch_start(epoch, optimizer)
        one_step(model, sparsifier, optimizer, step=0)


BY_STEPS = {
    "rigl": lambda: RigL(0.5, interval=1),
    "set": lambda: SET(0.5, interval=1),
    "gmp": lambda: GMP(0.5),
    "one_shot": lambda: OneShotMagnitude(0.5),
    "str": lambda: STR(0.5, calibrate="ramp", initial=-3.0),
}


@pytest.mark.parametrize("method", BY_STEPS)
def test_steps_that_start_again_in_each_epoch_are_refused(method):
    model = model_of()
    sparsifier = attached(model, BY_STEPS[method]())
    optimizer = sgd(model, sparsifier)
    for step in (0, 0, 1, 3):
        one_step(model, sparsifier, optimizer, step)
    before = copy.deepcopy(sparsifier.state_dict()["masks"])
    line = r"^after_backward got step 0 after step 3: count optimizer steps over all epochs, or attach again"
    with pytest.raises(RuntimeError, match=line) as caught:
        one_step(model, sparsifier, optimizer, step=0)
    assert is_one_line(caught) and str(before) == str(sparsifier.state_dict()["masks"])
    sparsifier.load_state_dict(sparsifier.state_dict())
    one_step(model, sparsifier, optimizer, step=0)


@pytest.mark.parametrize("make", [lambda: RandomPruning(0.5), lambda: STR(0.5, initial=-3.0)])
def test_methods_that_do_not_plan_by_steps_take_any(make):
    model = model_of()
    sparsifier = attached(model, make())
    for _ in range(2):
        for step in (0, 1):
            one_step(model, sparsifier, sgd(model, sparsifier), step)


def test_the_end_of_an_epoch_is_reported_once():
    model = model_of()
    sparsifier = attached(model, PILoT(0.5))
    optimizer = sgd(model, sparsifier)
    train(model, sparsifier, optimizer, steps=4)
    strength = sparsifier.stats()["strength"]
    with pytest.raises(
        RuntimeError, match=r"^on_epoch_end was called already for epoch 1: call it"
    ) as caught:
        sparsifier.on_epoch_end(train_accuracy=0.9)
    assert is_one_line(caught) and sparsifier.stats()["strength"] == strength
    sparsifier.on_epoch_start(2, optimizer)
    sparsifier.on_epoch_end(train_accuracy=0.9)


@pytest.mark.parametrize(
    ("make", "epochs", "never"),
    [
        (lambda: RigL(0.5), 45, True),  # 90 steps
        (lambda: RigL(0.5), 66, True),  # updates end at step 99
        (lambda: RigL(0.5), 67, False),
        (lambda: RigL(0.5, update_at_start=True), 45, False),
        (lambda: RigL(0.5, interval=1, until=0.0), 45, True),
        (lambda: SET(0.5, interval=100), 50, True),
        (lambda: SET(0.5, interval=100), 51, False),
        (lambda: SET(0.5), 1, True),
        (lambda: SET(0.5), 2, False),
    ],
)
def test_masks_that_are_never_updated_are_a_warning_at_the_first_step(make, epochs, never):
    """Not at `attach`, by which also a finished run is read."""
    model = model_of()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sparsifier = attached(model, make(), total_epochs=epochs, steps_per_epoch=2)
        assert not caught
        for step in range(3):
            one_step(model, sparsifier, sgd(model), step)
    [line] = [str(warning.message) for warning in caught] or [""]
    assert line == never * (
        f"{type(sparsifier).__name__} updates its masks at none of the {2 * epochs} steps: lower interval, "
        "or use RandomPruning for fixed masks"
    )
    assert never is not any(sparsifier.is_update_step(step) for step in range(2 * epochs))
