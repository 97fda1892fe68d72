"""The life cycle of a sparsifier: what it starts with, what its state holds, and what it says too early."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from pruning import ACDC, Dense, OneShotMagnitude, PILoT, Product, RandomPruning, RigL, Sparsifier, Spred
from pruning.checks import NotAttachedError, SparsityWarning


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 5))


def attached(sparsifier: Sparsifier, **options: object) -> Sparsifier:
    sparsifier.attach(network(), **{"total_epochs": 3, "steps_per_epoch": 4, **options})
    return sparsifier


def sgd(sparsifier: Sparsifier, **options: object) -> torch.optim.SGD:
    return torch.optim.SGD(sparsifier.param_groups(sparsifier.model.parameters()), lr=0.1, **options)


def test_attach_keeps_what_it_is_given():
    model, sparsifier = network(), RandomPruning(0.5)
    sparsifier.attach(model, total_epochs=3, seed=7)
    assert sparsifier.model is model
    assert (sparsifier.seed, sparsifier.step, sparsifier.total_epochs) == (7, 0, 3)
    assert sparsifier.steps_per_epoch is None
    assert attached(RandomPruning(0.5)).total_steps == 12
    with pytest.raises(
        ValueError,
        match=r"^RandomPruning requires steps_per_epoch: pass attach\(\.\.\., steps_per_epoch=len\(loader",
    ):
        _ = sparsifier.total_steps


def test_masks_are_drawn_by_the_seed_0_unless_another_is_given():
    default, zero, one = (attached(RandomPruning(0.5), **o).kept() for o in ({}, {"seed": 0}, {"seed": 1}))
    assert all(torch.equal(mask, zero[name]) for name, mask in default.items())
    assert not all(torch.equal(mask, one[name]) for name, mask in default.items())


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (lambda model: [model], "list"),
        (lambda model: model.parameters(), "generator"),
        (lambda model: torch.optim.SGD(model.parameters(), lr=0.1), "SGD"),
        (lambda model: nn.Linear, "type"),
        (lambda model: None, "NoneType"),
    ],
    ids=["list", "parameters", "optimizer", "class", "none"],
)
@pytest.mark.parametrize("make", [lambda: RandomPruning(0.5), lambda: Spred(0.5), Dense])
def test_attach_names_what_is_not_a_model(make, wrong, kind):
    model, sparsifier = nn.Linear(4, 4), make()
    for others in ([], [model]):  # the two swapped
        with pytest.raises(TypeError) as error:
            sparsifier.attach(wrong(model), *others, total_epochs=1)
        assert str(error.value) == (
            f"attach needs a torch.nn.Module, got {kind}: call attach(model, ...) or attach(model, "
            "optimizer, ...), with the model itself first"
        )
    sparsifier.attach(model, total_epochs=1)


@pytest.mark.parametrize(
    ("wrong", "given"), [("product", "'product'"), (Product, "the class Product"), (1, "1")]
)
@pytest.mark.parametrize("with_optimizer", [False, True])
def test_attach_names_what_is_not_a_parameterization(wrong, given, with_optimizer):
    model = nn.Linear(4, 4)
    optimizer = [torch.optim.SGD(model.parameters(), lr=0.1)] if with_optimizer else []
    with pytest.raises(TypeError) as error:
        RandomPruning(0.5).attach(model, *optimizer, total_epochs=1, parameterization=wrong)
    assert str(error.value) == (
        f"parameterization must be an instance such as pruning.Product(), or None, got {given}"
    )


@pytest.mark.parametrize("name", ["masks", "model", "step", "anything"])
def test_before_attach_every_attribute_asks_for_it(name):
    with pytest.raises(NotAttachedError, match=r"^RigL is not attached: call attach\(model, \.\.\.\) first$"):
        getattr(RigL(0.5), name)


def test_an_unknown_attribute_is_named_and_special_ones_are_unknown():
    with pytest.raises(AttributeError, match=r"^RigL has no attribute 'mask'$") as error:
        _ = attached(RigL(0.5)).mask
    assert not isinstance(error.value, NotAttachedError)
    with pytest.raises(AttributeError, match=r"^RigL has no attribute '__wrapped__'$"):
        _ = RigL(0.5).__wrapped__


def test_the_base_class_keeps_every_weight_and_every_gradient():
    sparsifier = attached(Sparsifier())
    optimizer = sgd(sparsifier)
    for p in sparsifier.model.parameters():
        p.grad = torch.ones_like(p)
    sparsifier.initialize()
    sparsifier.on_epoch_start(0, optimizer)
    assert sparsifier.after_backward(0, optimizer) is True
    assert sparsifier.uses_gradients(0) is False
    sparsifier.add_decay()
    sparsifier.after_step()
    sparsifier.on_epoch_end(train_accuracy=0.5)
    sparsifier.on_end()
    assert all((p.grad == 1).all() for p in sparsifier.model.parameters())
    assert sparsifier.achieved_sparsity() == 0.0 and sparsifier.margins() == {}
    assert sparsifier.stats() == {"sparsity": 0.0, "kept": 44}
    for name in ("reparametrizes", "trains_factors", "changes_at_epochs", "prunes_at_end", "acts_on_epochs"):
        assert getattr(sparsifier, name) is False, name
    for name in ("has_penalty", "redraws_weights", "needs_calibration_runs"):
        assert getattr(sparsifier, name) is False, name
    assert sparsifier.depends_on == "" and sparsifier.resolve(str, resumed=False) is sparsifier
    sparsifier.check_rates(lr=1e9, momentum=0.9)


def test_new_masks_act_on_weights_and_on_the_state_of_the_optimizer():
    sparsifier = attached(Dense())
    optimizer = sgd(sparsifier, momentum=0.9)
    for p in sparsifier.model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    masks = {
        name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in sparsifier.masks.weights.items()
    }
    masks["0.weight"][0] = False
    weight = sparsifier.model[0].weight
    buffer = optimizer.state[weight]["momentum_buffer"]
    sparsifier.set_masks(masks)
    assert not weight[0].any() and weight[1:].all() and buffer.all()
    sparsifier.set_masks(masks, optimizer)
    assert not buffer[0].any() and buffer[1:].all()
    assert sparsifier.stats() == {"sparsity": 1 - 38 / 44, "kept": 38}


def test_the_state_counts_steps_once_a_hook_or_a_step_is_there():
    sparsifier = attached(RandomPruning(0.5))
    assert sparsifier.state_dict().keys() == {"masks", "active", "epoch", "target", "options"}
    sparsifier.step = 1
    assert sparsifier.state_dict()["step"] == 1
    hooked = attached(RandomPruning(0.5))
    hooked.hook(sgd(hooked))
    assert hooked.state_dict()["step"] == 0


def test_a_state_brings_masks_epoch_and_step():
    saved = attached(RandomPruning(0.5), seed=1)
    saved.on_epoch_start(2, sgd(saved))
    saved.step = 9
    state = saved.state_dict()
    assert (state["active"], state["epoch"], state["step"]) == (True, 2, 9)
    other = attached(RandomPruning(0.5), seed=2)
    other.load_state_dict(state)
    assert (other.step, other._announced_epoch) == (9, 2)
    assert all(torch.equal(mask, saved.kept()[name]) for name, mask in other.kept().items())


def test_a_state_of_an_older_version_knows_neither_epoch_nor_steps():
    sparsifier = attached(Dense(), parameterization=Product(reset_every=1))
    sparsifier.load_state_dict({"masks": {"kept": {}}})
    assert sparsifier.step == -1
    assert sparsifier.after_backward(8, sgd(sparsifier))  # every epoch counts as announced
    assert not sparsifier.masks.active


def test_a_state_whose_masks_are_gone_is_refused():
    sparsifier = attached(RandomPruning(0.5))
    state = {**sparsifier.state_dict(), "masks": {"kept": {}}}
    with pytest.raises(
        ValueError, match=r"^the state lacks the masks that it was saved with: read a checkpoint of torch"
    ):
        sparsifier.load_state_dict(state)
    sparsifier.load_state_dict({**state, "active": False})
    assert not sparsifier.masks.active
    with pytest.raises(
        ValueError, match=r"^the state was not saved by a sparsifier: pass one from sparsifier.state"
    ):
        sparsifier.load_state_dict({"kept": {}})


# loading is safe: the bytes are written in the same line
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_has_no_hook_and_checks_its_first_step(copied):
    sparsifier = attached(RandomPruning(0.5))
    hook = sparsifier.hook(sgd(sparsifier))
    sparsifier._checked_tensors = (1, ())
    other = copied(sparsifier)
    assert other._hook is None and other._checked_tensors == ()
    assert sparsifier._hook is hook and sparsifier._checked_tensors == (1, ())
    assert all(torch.equal(mask, sparsifier.kept()[name]) for name, mask in other.kept().items())
    assert copied(RandomPruning(0.5)) == RandomPruning(0.5)


def test_a_method_that_prunes_at_the_end_warns_where_the_hook_cannot_know_the_end():
    sparsifier = attached(PILoT(0.5), steps_per_epoch=None)
    with pytest.warns(SparsityWarning) as caught:
        sparsifier.hook(sgd(sparsifier))
    assert [str(warning.message) for warning in caught] == [
        "PILoT prunes at the end: attach with steps_per_epoch=..., or call sparsifier.on_end() after the "
        "last step"
    ]
    assert caught[0].filename == __file__


def test_a_method_without_a_target_has_no_sparsities():
    with pytest.raises(ValueError, match=r"^Dense has no target sparsity: omit sparsities$"):
        attached(Dense(), sparsities={"0.*": 0.5})


def test_given_masks_replace_those_of_the_method_and_leave_other_values():
    model = network()
    before = model[0].weight.detach().clone()
    sparsifier = RandomPruning(0.5)
    masks = {"0.weight": torch.ones(4, 6, dtype=torch.bool), "2.weight": torch.ones(5, 4, dtype=torch.bool)}
    masks["0.weight"][1] = False
    sparsifier.attach(model, total_epochs=1, masks=masks)
    assert torch.equal(model[0].weight[[0, 2, 3]], before[[0, 2, 3]]) and not model[0].weight[1].any()
    assert model[2].weight.all()
    with pytest.raises(
        ValueError, match=r"^ACDC computes its masks during training; masks= is not supported: pass masks to "
    ):
        ACDC(0.5).attach(network(), total_epochs=3, masks=masks)


def test_the_first_counts_of_a_model_are_those_of_its_weights():
    sparsifier = attached(OneShotMagnitude(0.5))
    with torch.no_grad():
        sparsifier.model[0].weight[0, :2] = 0.0
    assert list(sparsifier.counts()) == [("0.weight", 22, 24), ("2.weight", 20, 20)]
    assert sparsifier.achieved_sparsity() == pytest.approx(2 / 44)
    assert all(mask.all() for mask in sparsifier.kept().values())


def test_counts_of_a_model_without_values_are_refused():
    sparsifier = OneShotMagnitude(0.5)
    sparsifier.attach(network().to("meta"), total_epochs=1, steps_per_epoch=1)
    with pytest.raises(RuntimeError) as error:
        list(sparsifier.counts())
    assert str(error.value) == ("0.weight is on the meta device and has no values: call model.to_empty first")


def test_a_failed_attach_gives_the_model_and_the_sparsifier_their_attributes_back():
    model, sparsifier = network(), Dense()
    before, kinds = dict(model.named_parameters()), [type(module) for module in model.modules()]
    model[2].weight.data = model[0].weight.data.flatten()[:20].view(5, 4)  # in one memory: refused at the end
    with pytest.raises(ValueError, match=r"^0\.weight and 2\.weight are two parameters in the same memory"):
        sparsifier.attach(model, total_epochs=1)
    assert vars(sparsifier) == {}
    with pytest.raises(ValueError, match=r"^include='z' matches no prunable weight"):
        sparsifier.attach(model, total_epochs=1, parameterization=Product(), include=["z"])
    assert vars(sparsifier) == {} and [type(module) for module in model.modules()] == kinds
    assert all(p is before[name] for name, p in model.named_parameters()) and len(before) == 4
