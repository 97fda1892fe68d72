"""Sparsifiers on models that change after attach: tensors assigned, layers replaced, moved, frozen, copied.

Whatever happens to the model, the reported sparsity is the model's, or one line names the cure.
"""

from __future__ import annotations

import copy
import pickle

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

from pruning import ACDC, SNIP, Product, RandomPruning, RigL
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
    with pytest.raises(ValueError, match=r"^0\.weight is parametrized already: .*, or exclude it$"):
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
