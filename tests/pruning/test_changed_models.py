"""Sparsifiers on models that change after attach: tensors assigned, layers replaced, moved, frozen, copied.

Whatever happens to the model, the reported sparsity is the model's, or one line names the cure.
"""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from contract import METHODS
from short_loops import (
    PARAMETRIZING,
    X,
    Y,
    attached,
    model_of,
    one_step,
    sgd,
    train,
    zeros_in,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations, parametrize, prune

from pruning import ACDC, SNIP, Dense, Product, RandomPruning, RigL, SparsityWarning
from pruning.export import plain_state_dict


def test_tensors_assigned_before_the_optimizer_is_created_are_masked():
    model = model_of()
    sparsifier = attached(model)
    model.load_state_dict(model_of(1).state_dict(), assign=True)
    assert sparsifier.achieved_sparsity() == 0.0  # of dense weights, before the first step
    train(model, sparsifier, sgd(model))
    assert sparsifier.achieved_sparsity() == zeros_in(model) == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("steps", [0, 2])
def test_tensors_assigned_after_the_optimizer_was_created_are_missed_at_the_next_step(steps):
    model = model_of()
    sparsifier, optimizer = attached(model), sgd(model)
    train(model, sparsifier, optimizer, steps)
    model.load_state_dict(model_of(1).state_dict(), assign=True)
    with pytest.raises(ValueError, match=r"optimizer does not train 0\.weight and 1 more: create it after"):
        one_step(model, sparsifier, optimizer)


def test_dense_weights_loaded_in_mid_training_are_reported_until_the_next_step_masks_them():
    model = model_of()
    sparsifier = attached(model)
    optimizer = sgd(model)
    model.load_state_dict(model_of(1).state_dict())
    assert sparsifier.achieved_sparsity() == zeros_in(model) == 0.0
    one_step(model, sparsifier, optimizer)
    assert sparsifier.achieved_sparsity() == zeros_in(model) > 0.7


@pytest.mark.parametrize("hooked", ["weight_norm", "prune"])
def test_a_weight_that_a_hook_computes_is_refused(hooked):
    model = model_of()
    if hooked == "prune":
        prune.l1_unstructured(model[0], "weight", 0.1)
    else:
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(model[0])
    with pytest.raises(
        ValueError, match=r"^0\.weight is not a parameter .*remove_weight_norm, prune\.remove"
    ):
        attached(model)


def test_a_parametrized_weight_is_refused():
    model = model_of()
    parametrizations.weight_norm(model[0])
    with pytest.raises(ValueError, match=r"^0\.weight: .* remove that parametrization first, or exclude it$"):
        attached(model)
    with pytest.raises(ValueError, match=r"^0\.weight is already parametrized: .*, or exclude 0\.weight$"):
        attached(model, parameterization=Product())


@pytest.mark.parametrize("change", ["prune", "weight_norm", "replace"])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_layer_changed_after_attach_ends_the_training_and_the_report(change, steps):
    model = model_of()
    sparsifier, optimizer = attached(model), sgd(model)
    train(model, sparsifier, optimizer, steps)
    if change == "prune":
        prune.l1_unstructured(model[0], "weight", 0.1)
    elif change == "weight_norm":
        parametrizations.weight_norm(model[0])
    else:
        model[0] = nn.Linear(8, 8)
    line = r"^0\.weight is no longer a parameter of the model: attach the sparsifier after the last change"
    for act in (
        sparsifier.achieved_sparsity,
        sparsifier.stats,
        lambda: sparsifier.set_masks(sparsifier.kept()),
        lambda: sparsifier.on_epoch_start(1, optimizer),
    ):
        with pytest.raises(RuntimeError, match=line):
            act()


class _Shift(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + 1.0


@pytest.mark.parametrize("kind", ["product", "str", "pilot"])
def test_a_second_parametrization_ends_the_report(kind):
    """Zeros of m * w are then not those of the layer."""
    sparsifier, parameterization = PARAMETRIZING[kind]()
    model = model_of()
    attached(model, sparsifier, parameterization=parameterization)
    parametrize.register_parametrization(model[0], "weight", _Shift(), unsafe=True)
    with pytest.raises(RuntimeError, match=r"^0\.weight got another parametrization after attach: remove it"):
        sparsifier.achieved_sparsity()


@pytest.mark.parametrize("kind", PARAMETRIZING)
def test_parametrizations_removed_after_attach_end_the_report(kind):
    sparsifier, parameterization = PARAMETRIZING[kind]()
    model = model_of()
    attached(model, sparsifier, parameterization=parameterization)
    parametrize.remove_parametrizations(model[0], "weight")
    with pytest.raises(RuntimeError, match=r"^0\.weight is no longer a parameter of the model"):
        sparsifier.achieved_sparsity()


@pytest.mark.parametrize("method", ["random_erk", "acdc_stale", "rigl", "str", "pilot", "spred"])
def test_a_model_moved_to_float64_after_attach_trains_on(method, tmp_path):
    model = model_of()
    sparsifier = attached(model, METHODS[method].make(tmp_path), total_epochs=8, steps_per_epoch=1)
    optimizer = sgd(model.double(), sparsifier)
    for epoch in range(8):
        sparsifier.on_epoch_start(epoch, optimizer)
        one_step(model, sparsifier, optimizer, epoch)
        sparsifier.on_epoch_end(train_accuracy=0.5)
    sparsifier.on_end()
    assert all(p.dtype is torch.float64 for p in model.parameters())
    assert sparsifier.achieved_sparsity() == zeros_in(model)
    assert method == "str" or sparsifier.achieved_sparsity() > 0.75


@pytest.mark.parametrize("make", [lambda: RandomPruning(0.5), lambda: RigL(0.5)], ids=["random", "rigl"])
def test_masks_made_on_the_meta_device_are_refused_once_there_are_values(make):
    with torch.device("meta"):
        model = model_of()
    sparsifier = attached(model, make())
    with pytest.raises(RuntimeError, match=r"^0\.weight is on the meta device and has no values: call model"):
        sparsifier.achieved_sparsity()
    model.to_empty(device="cpu")
    with pytest.raises(RuntimeError, match=r"made on the meta device .*: attach the sparsifier after model"):
        one_step(model, sparsifier, sgd(model))


def test_a_method_that_prunes_later_may_be_attached_on_the_meta_device():
    with torch.device("meta"):
        model = model_of()
    sparsifier = attached(model, ACDC(0.75))
    model.to_empty(device="cpu").load_state_dict(model_of().state_dict())
    train(model, sparsifier, sgd(model))
    assert sparsifier.achieved_sparsity() == zeros_in(model) == 0.75


def test_a_weight_frozen_after_attach_stays_masked():
    model = model_of()
    sparsifier, optimizer = attached(model), sgd(model)
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    train(model, sparsifier, optimizer)
    assert torch.equal(model[0].weight, before)
    assert sparsifier.achieved_sparsity() == zeros_in(model) > 0.7
    later = attached(model_of(), SNIP(0.5, batches=1))
    later.model[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"^0\.weight is frozen .*: freeze it before attach, or exclude it$"):
        later.initialize([(X, Y)], cross_entropy)


@pytest.mark.parametrize("kind", ["plain", *PARAMETRIZING])
def test_a_compiled_model_is_attached_to_and_trained(kind):
    make = PARAMETRIZING.get(kind, lambda: (RandomPruning(0.5), None))
    (sparsifier, parameterization), (reference, other) = make(), make()
    plain = model_of()
    attached(plain, reference, parameterization=other)
    train(plain, reference, sgd(plain, reference))
    inner = model_of()
    compiled = torch.compile(inner, backend="eager")
    attached(compiled, sparsifier, parameterization=parameterization)
    train(compiled, sparsifier, sgd(compiled, sparsifier))
    assert list(sparsifier.kept()) == ["0.weight", "2.weight"]
    assert sparsifier.achieved_sparsity() == zeros_in(inner) == reference.achieved_sparsity()
    torch.testing.assert_close(plain_state_dict(inner), plain_state_dict(plain))


@pytest.mark.parametrize("copied", ["deepcopy", "pickle"])
def test_a_copy_of_model_and_sparsifier_is_trained_apart_from_the_original(copied):
    model = model_of()
    sparsifier = attached(model)
    hook = sparsifier.hook(optimizer := sgd(model))
    twins = (model, sparsifier)
    written = pickle.dumps(twins)
    # loading is safe: the bytes were written above
    model2, copy2 = copy.deepcopy(twins) if copied == "deepcopy" else pickle.loads(written)
    before = plain_state_dict(model)
    train(model2, copy2, sgd(model2))  # by explicit calls: the hook stays with the original
    assert all(torch.equal(value, before[name]) for name, value in plain_state_dict(model).items())
    assert copy2.achieved_sparsity() == zeros_in(model2) == sparsifier.achieved_sparsity()
    model2[0].weight.data.fill_(1.0)
    assert copy2.achieved_sparsity() == zeros_in(model2) < sparsifier.achieved_sparsity()
    cross_entropy(model(X), Y).backward()
    optimizer.step()
    assert sparsifier.step == 1 and sparsifier._hook is hook


# sharing that changes after attach

CURE = "tie weights before attach, and attach after the last change of the model's layers"


def tied_model(seed: int = 0, tied: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 4))
    if tied:
        model[2].weight = model[0].weight
    return model


def assign_all(model: nn.Sequential) -> None:
    model.load_state_dict(tied_model(1, tied=False).state_dict(), assign=True)


def replace_first(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def replace_second(model: nn.Sequential) -> None:
    model[2].weight = nn.Parameter(model[2].weight.detach().clone())


def every_check(model: nn.Module, sparsifier: object, optimizer: object) -> list:
    """Calls that a loop may make next; each of them must raise."""
    return [
        lambda: one_step(model, sparsifier, optimizer, 2),
        lambda: sparsifier.on_epoch_start(1, optimizer),
        lambda: sparsifier.check(optimizer),
        sparsifier.achieved_sparsity,
        sparsifier.report,
        sparsifier.on_end,
        lambda: sparsifier.set_masks(sparsifier.kept()),
    ]


@pytest.mark.parametrize("change", [assign_all, replace_first, replace_second])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("new_optimizer", [False, True])
def test_weights_untied_after_attach_are_reported(change, steps, new_optimizer):
    model = tied_model()
    sparsifier, optimizer = attached(model), sgd(model)
    train(model, sparsifier, optimizer, steps)
    change(model)
    optimizer = sgd(model) if new_optimizer else optimizer
    for act in every_check(model, sparsifier, optimizer):
        with pytest.raises(RuntimeError) as error:
            act()
        assert str(error.value) == (
            f"2.weight no longer shares the parameter of 0.weight, and has no mask: {CURE}"
        )


@pytest.mark.parametrize("steps", [0, 2])
def test_weights_tied_after_attach_are_reported(steps):
    model = tied_model(tied=False)
    sparsifier, optimizer = attached(model), sgd(model)
    train(model, sparsifier, optimizer, steps)
    model[2].weight = model[0].weight
    for act in every_check(model, sparsifier, optimizer):
        with pytest.raises(
            RuntimeError, match=f"^0.weight and 2.weight became one parameter with two .*{CURE}$"
        ):
            act()


def test_an_embedding_tied_after_attach_is_reported():
    """It would be pruned, which only `include` asks for."""
    model = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8, bias=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SparsityWarning)
        sparsifier = attached(model)
    model[0].weight = model[1].weight
    line = f"^0.weight shares the parameter of 1.weight since attach: {CURE}$"
    with pytest.raises(RuntimeError, match=line):
        sparsifier.on_epoch_start(0, sgd(model))


@pytest.mark.parametrize("copied", [False, True])
def test_weights_that_stay_tied_train_on_through_moves_copies_and_assignments(copied):
    model = tied_model()
    sparsifier = attached(model)
    if copied:
        model, sparsifier = copy.deepcopy((model, sparsifier))
    model.double()
    one = nn.Parameter(torch.randn(8, 8, dtype=torch.float64))
    model[0].weight = model[2].weight = one  # tied again, to another parameter
    train(model, sparsifier, sgd(model))
    kept = torch.cat([mask.flatten() for mask in sparsifier.kept().values()])
    assert sparsifier.achieved_sparsity() == 1 - int(kept.sum()) / kept.numel() > 0.7
    assert torch.equal(model[2].weight != 0, sparsifier.kept()["0.weight"])
    model[2] = nn.Identity()  # the second place may go
    train(model, sparsifier, sgd(model))


def test_two_parameters_in_one_memory_are_reported_after_attach_too():
    """load_state_dict(assign=True) makes them of a state that one tensor is in twice."""
    model = tied_model(tied=False)
    sparsifier = attached(model)
    model.load_state_dict(tied_model().state_dict(), assign=True)
    with pytest.raises(ValueError, match=r"^0\.weight and 2\.weight are two parameters in the same memory"):
        one_step(model, sparsifier, sgd(model))


@pytest.mark.parametrize("way", ["appended", "thawed"])
@pytest.mark.parametrize("act", ["on_epoch_start", "check", "hook", "on_end"])
def test_a_layer_that_is_new_after_attach_is_reported_once(way, act):
    model = tied_model()
    model[3].requires_grad_(way == "appended")
    sparsifier = attached(model, Dense() if act == "on_end" else RandomPruning(0.75))
    if act == "on_end":
        sparsifier.set_masks(sparsifier.kept())
    if way == "appended":
        model.append(nn.Linear(4, 4)).append(nn.Linear(4, 4))
    model[3].requires_grad_(True)
    optimizer = sgd(model)
    acts = {
        "on_epoch_start": lambda: sparsifier.on_epoch_start(0, optimizer),
        "check": sparsifier.check,
        "hook": lambda: sparsifier.hook(optimizer),
        "on_end": sparsifier.on_end,
    }
    with pytest.warns(SparsityWarning) as caught:
        acts[act]()
    which, be, they, them = ("3.weight", "is", "it stays", "it")
    if way == "appended":
        which, be, they, them = ("4.weight and 1 more", "are", "they stay", "them")
    assert [str(warning.message) for warning in caught] == [
        f"{which} joined the model after attach or {be} no longer frozen: {they} dense, and the sparsity "
        f"does not count {them}; attach after the last change of the model's layers, or exclude {them}"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsifier.check(optimizer)
        sparsifier.on_epoch_start(1, optimizer)


@pytest.mark.parametrize("kind", ["plain", *PARAMETRIZING])
def test_layers_that_were_left_out_or_have_no_prunable_weight_are_no_news(kind):
    sparsifier, parameterization = PARAMETRIZING.get(kind, lambda: (RandomPruning(0.5), None))()
    sparsifier.exclude = ["3.*"]
    model = tied_model(tied=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attached(model, sparsifier, exclude=["2.*"], parameterization=parameterization)
        model.append(nn.BatchNorm1d(4)).append(nn.Embedding(4, 4)).append(
            nn.Linear(4, 4).requires_grad_(False)
        )
        sparsifier.check()
        dense = attached(tied_model(), Dense())
        dense.model.append(nn.Linear(4, 4))
        dense.check()
