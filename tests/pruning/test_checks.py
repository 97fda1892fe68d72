"""Checks of a model, an optimizer and counts by themselves: what fits, and the words for what does not."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from pruning import GMP, STR, Dense, PILoT, Product, RandomPruning
from pruning.checks import (
    NotAttachedError,
    SparsityWarning,
    check_model,
    check_separate,
    check_takes_masks,
    warn_of_empty_layers,
    warn_of_low_coverage,
)
from pruning.optimizers import check_optimizer, unwrapped
from pruning.options import check_counts
from pruning.prunable import prunable_weights
from pruning.weights import Weight


def layers(count: int = 2) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(count)))


@pytest.mark.parametrize(("total_epochs", "steps_per_epoch"), [(1, 1), (1, None), (7, 3)])
def test_positive_counts_are_accepted(total_epochs, steps_per_epoch):
    check_counts(total_epochs, steps_per_epoch)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((0, 1), "total_epochs must be positive and an integer, got 0"),
        ((None, None), "total_epochs must be positive and an integer, got None"),
        ((True, 1), "total_epochs must be positive and an integer, got True"),
        ((1, 2.0), "steps_per_epoch must be positive and an integer, got 2.0: count the calls of "),
        ((1, 0), "steps_per_epoch must be positive and an integer, got 0: count the calls of "),
        ((1, True), "steps_per_epoch must be positive and an integer, got True: count the calls of "),
    ],
)
def test_other_counts_are_refused(counts, message):
    with pytest.raises(ValueError) as error:
        check_counts(*counts)
    assert str(error.value) == message + "optimizer.step()" * message.endswith(" ")


def test_an_attribute_before_attach_is_no_attribute_and_no_state():
    error = NotAttachedError("not attached")
    assert isinstance(error, RuntimeError) and isinstance(error, AttributeError)
    assert not hasattr(Dense(), "masks")


def test_memory_is_shared_where_two_parameters_start_at_one_place():
    whole = torch.zeros(8)
    own, same, later = (nn.Parameter(part) for part in (whole[:4], whole[:4], whole[4:]))
    check_separate({"a": Weight.of(own), "b": Weight.of(later)})
    check_separate({"a": Weight.of(own, own)})
    with pytest.raises(ValueError, match=r"^a and b are two parameters in the same memory, and would "):
        check_separate({"a": Weight.of(own), "c": Weight.of(later), "b": Weight.of(same)})


@pytest.mark.parametrize("make", [lambda: torch.zeros(4, device="meta"), lambda: torch.zeros(0)])
def test_parameters_without_memory_are_separate(make):
    check_separate({name: Weight.of(nn.Parameter(make())) for name in "ab"})


def test_computed_weights_take_no_masks():
    model = layers()
    check_takes_masks(prunable_weights(model))
    nn.utils.parametrizations.weight_norm(model[1])
    with pytest.raises(ValueError) as error:
        check_takes_masks(prunable_weights(model))
    assert str(error.value) == (
        "1.weight: a weight computed by _WeightNorm cannot be masked: remove that parametrization first, or "
        "exclude it"
    )


@pytest.mark.parametrize(("biases", "percent"), [(0, None), (1, 48), (4, 44), (400, 4)])
def test_a_warning_says_if_less_than_half_of_the_parameters_is_prunable(biases, percent):
    model = layers()
    model.register_parameter("other", nn.Parameter(torch.zeros(biases)))
    weights = prunable_weights(model, exclude=["1.*"])  # 16 of 32 and the others
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_low_coverage(model, weights)
    assert [str(warning.message) for warning in caught] == [
        f"the prunable weights are {percent} % of the model's parameters, and the sparsity counts only "
        "these: include others by attach(..., include=[globs]), unless they are frozen"
        for _ in range(percent is not None)
    ]


@pytest.mark.parametrize(
    ("names", "listed"),
    [("a", "a"), ("abc", "a, b, c"), ("abcd", "a, b, c and 1 more"), ("abcde", "a, b, c and 2 more")],
)
def test_up_to_three_empty_layers_are_named(names, listed):
    with pytest.warns(SparsityWarning) as caught:
        warn_of_empty_layers(iter(names))
    assert [str(warning.message) for warning in caught] == [
        f"all weights of {listed} are pruned: lower the sparsity, exclude them, or prune layerwise"
    ]
    assert caught[0].filename == __file__


def test_no_empty_layer_is_no_reason_to_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_empty_layers([])


def test_a_weight_must_stay_a_parameter_of_its_layer_and_of_the_model():
    model = layers()
    weights = prunable_weights(model)
    check_model(model, weights)
    gone = "is no longer a parameter of the model: attach the sparsifier after the last change"
    with pytest.raises(RuntimeError, match=f"^1.weight {gone}"):
        check_model(model[:1], weights)
    moved = layers()
    moved[0].weight = model[0].weight  # in another layer
    with pytest.raises(RuntimeError, match=f"^0.weight {gone}"):
        check_model(moved, {"0.weight": weights["0.weight"]})
    model[1] = nn.Linear(4, 4)
    with pytest.raises(RuntimeError, match=f"^1.weight {gone}"):
        check_model(model, weights)
    model = layers()
    weights = prunable_weights(model)
    value = model[0].weight.detach()
    del model[0].weight
    model[0].weight = value  # a plain tensor
    with pytest.raises(RuntimeError, match=f"^0.weight {gone}"):
        check_model(model, weights)


def test_a_second_parametrization_of_a_factored_weight_is_named():
    model = layers()
    Product().attach(model, total_epochs=1)
    weights = prunable_weights(model)
    check_model(model, weights)
    nn.utils.parametrize.register_parametrization(model[1], "weight", nn.Identity())
    with pytest.raises(RuntimeError, match=r"^1.weight got another parametrization after attach: remove it"):
        check_model(model, weights)


@pytest.mark.parametrize(("trained", "named"), [(2, "c"), (1, "b and 1 more"), (0, "a and 2 more")])
def test_weights_that_the_optimizer_does_not_train_are_counted(trained, named):
    tensors = {name: nn.Parameter(torch.zeros(2)) for name in "abcd"}
    tensors["d"].requires_grad_(False)
    others = [nn.Parameter(torch.zeros(2))]
    optimizer = torch.optim.SGD([{"params": others}, {"params": list(tensors.values())[:trained]}], lr=0.1)
    with pytest.raises(ValueError) as error:
        check_optimizer(optimizer, iter(tensors.items()))
    assert str(error.value) == (
        f"the optimizer does not train {named}: create it after sparsifier.attach(model), from the model's "
        "parameters; freeze weights that should not be trained, and exclude those that another optimizer "
        "trains"
    )


def test_a_weight_with_a_sparse_gradient_is_named():
    tensors = {name: nn.Parameter(torch.zeros(2)) for name in "ab"}
    optimizer = torch.optim.SGD(tensors.values(), lr=0.1)
    tensors["a"].grad = torch.zeros(2)
    check_optimizer(optimizer, tensors.items())
    tensors["b"].grad = torch.zeros(2).to_sparse()
    with pytest.raises(
        ValueError, match=r"^b has sparse gradients, which cannot be masked: set sparse=False in"
    ):
        check_optimizer(optimizer, tensors.items())


def test_the_optimizer_inside_any_number_of_wrappers_is_found():
    class Wrapper:
        def __init__(self, optimizer: object) -> None:
            self.optimizer = optimizer

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    assert unwrapped(optimizer) is optimizer
    assert unwrapped(Wrapper(optimizer)) is optimizer
    with pytest.raises(TypeError, match=r"^hook needs a torch.optim.Optimizer, got Wrapper$"):
        unwrapped(Wrapper(None))


def test_an_optimizer_whose_step_runs_no_hooks_is_refused():
    class Own(torch.optim.Optimizer):
        def __init__(self, inner: torch.optim.Optimizer | None = None) -> None:
            self.optimizer = inner

        def step(self) -> None:
            pass

    with pytest.raises(ValueError) as error:
        unwrapped(Own())
    assert str(error.value) == (
        "Own does not run the step hooks of torch.optim.Optimizer: call after_backward, add_decay and "
        "after_step around its step"
    )
    inner = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    assert unwrapped(Own(inner)) is inner


# what every step checks


def stepped(sparsifier, **options: object) -> tuple[torch.optim.Optimizer, list[int]]:
    """An attached sparsifier's optimizer, and a list that gets an entry at each check."""
    model = layers()
    sparsifier.attach(model, **{"total_epochs": 3, "steps_per_epoch": 4, **options})
    checks: list[int] = []
    check = sparsifier.check

    def counted(optimizer: torch.optim.Optimizer) -> None:
        checks.append(1)
        check(optimizer)

    sparsifier.check = counted
    return torch.optim.SGD(sparsifier.param_groups(model.parameters()), lr=0.1), checks


def test_the_model_is_checked_again_only_where_tensors_or_the_optimizer_change():
    sparsifier = RandomPruning(0.5)
    optimizer, checks = stepped(sparsifier)
    for step in range(3):
        sparsifier.after_backward(step, optimizer)
    assert len(checks) == 1
    model = sparsifier.model
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.after_backward(3, other)
    assert len(checks) == 2
    model[1].weight = nn.Parameter(model[1].weight.detach().clone())
    with pytest.raises(ValueError, match=r"^the optimizer does not train 1.weight: create it after"):
        sparsifier.after_backward(4, other)


@pytest.mark.parametrize(
    ("announced", "step", "missing"),
    [(0, 3, None), (0, 4, 1), (1, 7, None), (1, 8, 2), (2, 99, None), (1, 99, 24), (-1, 0, 0)],
)
def test_an_epoch_must_be_announced_before_its_first_step(announced, step, missing):
    sparsifier = PILoT(0.5, strength=0.0, frobenius=0.0)
    optimizer, _ = stepped(sparsifier)
    sparsifier._announced_epoch = announced
    if missing is None:
        assert sparsifier.after_backward(step, optimizer)
        return
    small = ", or steps_per_epoch=4 is too small" if missing else ""
    with pytest.raises(RuntimeError) as error:
        sparsifier.after_backward(step, optimizer)
    assert str(error.value) == (
        "PILoT requires sparsifier.on_epoch_start(epoch, optimizer) at the start of each epoch; "
        f"it was not called for epoch {missing}{small}"
    )


def test_without_steps_per_epoch_only_the_first_epoch_is_expected():
    sparsifier = Dense()
    optimizer, _ = stepped(sparsifier, steps_per_epoch=None, parameterization=Product(reset_every=1))
    with pytest.raises(
        RuntimeError, match=r"^parameterization=Product requires .*; it was not called for epoch 0"
    ):
        sparsifier.after_backward(7, optimizer)
    sparsifier.on_epoch_start(0, optimizer)
    assert sparsifier.after_backward(7, optimizer)


def test_a_penalty_is_due_once_between_two_calls():
    sparsifier = Dense()
    optimizer, _ = stepped(sparsifier, parameterization=Product(frobenius=0.1))
    sparsifier.after_step()  # before any step
    sparsifier.after_backward(0, optimizer)
    with pytest.raises(
        RuntimeError, match=r"^parameterization=Product adds a penalty: call sparsifier.add_d"
    ):
        sparsifier.after_step()
    sparsifier.add_decay()
    sparsifier.after_step()


def test_the_names_of_a_methods_own_tensors_are_those_of_the_method():
    sparsifier = STR(0.5)
    stepped(sparsifier)
    assert [name for name, _ in sparsifier._trained_tensors()] == [
        *("0.weight", "1.weight", "STR's own parameters", "STR's own parameters")
    ]


def test_a_method_that_plans_by_steps_asks_for_them():
    with pytest.raises(ValueError) as error:
        GMP(0.5).attach(layers(), total_epochs=1)
    assert str(error.value) == "GMP requires steps_per_epoch: pass attach(..., steps_per_epoch=len(loader))"
