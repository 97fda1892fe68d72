"""project_ makes another model's weights zero where the sparsifier's are, and changes nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pruning import ACDC, STR, Dense, Product, RandomPruning, Sparsifier
from pruning.export import plain_state_dict, remove_parametrizations_


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 16, bias=False))


def sparse(model: nn.Module, parameterization: Product | None = None) -> Sparsifier:
    sparsifier = RandomPruning(sparsity=0.7)
    sparsifier.attach(model, total_epochs=1, parameterization=parameterization)
    return sparsifier


def dense_copy(model: nn.Module) -> nn.Module:
    """The same model with every parameter moved off zero."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.25)
    return other


def frozen(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).requires_grad_(False)


def timm_ema(model: nn.Module) -> nn.Module:
    return pytest.importorskip("timm.utils").ModelEmaV3(model)


class Compiled(nn.Module):
    """Named as torch.compile's module, which takes seconds to import."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model


WRAPPERS = {
    "itself": lambda model: model,
    "frozen": frozen,
    "averaged": AveragedModel,
    "timm": timm_ema,
    "averaged in a wrapper": lambda model: AveragedModel(Wrapper(model)),
    "compiled": Compiled,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("parameterization", [None, Product(scaling=4.0)], ids=["plain", "product"])
def test_exactly_the_pruned_weights_become_zero(wrapper, parameterization):
    model = net()
    sparsifier = sparse(model, parameterization)
    other = WRAPPERS[wrapper](dense_copy(model))
    before = plain_state_dict(other)
    assert sparsifier.project_(other) is None
    after, kept = plain_state_dict(other), sparsifier.kept()
    pruned = 0
    for key, value in after.items():
        name = key.replace("_orig_mod.", "").replace("module.", "")
        mask = kept.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value, torch.where(mask, before[key], torch.zeros_like(value))), key
        pruned += int((~mask).sum())
    assert pruned == sum(int((~mask).sum()) for mask in kept.values()) > 0


def test_pruned_factors_are_those_of_the_sparsifiers_model():
    model = net()
    sparsifier = sparse(model, Product(scaling=4.0))
    other = dense_copy(model)
    sparsifier.project_(other)
    off = ~sparsifier.kept()["0.weight"]
    factors = other[0].parametrizations.weight
    assert (factors.original0[off] == 2.0).all()
    assert (factors.original1[off] == 0.0).all()


@pytest.mark.parametrize("product_in", ["model", "copy"])
def test_the_parametrization_of_the_copy_may_differ(product_in):
    model, other = net(), net(seed=1)
    sparsifier = sparse(model, Product() if product_in == "model" else None)
    if product_in == "copy":
        Dense().attach(other, total_epochs=1, parameterization=Product())
    sparsifier.project_(other)
    state = plain_state_dict(other)
    assert all(torch.equal(state[name] != 0, mask) for name, mask in sparsifier.kept().items())


def test_without_masks_nothing_changes():
    model = net()
    sparsifier = ACDC(sparsity=0.5)
    sparsifier.attach(model, total_epochs=10)
    other = dense_copy(model)
    before = plain_state_dict(other)
    sparsifier.project_(other)
    assert all(torch.equal(value, before[name]) for name, value in plain_state_dict(other).items())


def test_str_leaves_a_copy_with_thresholds_and_prunes_a_plain_one():
    model = net()
    sparsifier = STR(sparsity=0.5, initial=-3.0)
    sparsifier.attach(model, total_epochs=1)
    twin, plain = AveragedModel(model), net()
    before = [p.detach().clone() for p in twin.parameters()]
    sparsifier.project_(twin)
    assert all(torch.equal(p, old) for p, old in zip(twin.parameters(), before, strict=True))
    with torch.no_grad():
        plain[0].weight.fill_(1e-6)  # below the threshold itself: the sparsifier's model decides
    sparsifier.project_(plain)
    kept = sparsifier.kept()
    assert 0 < kept["0.weight"].sum() < kept["0.weight"].numel()
    assert torch.equal(plain[0].weight != 0, kept["0.weight"])
    assert torch.equal(plain[3].weight != 0, kept["3.weight"])


def test_both_names_of_a_tied_weight_are_pruned_where_the_copy_is_untied():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    model, other = Tied(), Tied()
    model.second.weight = model.first.weight
    sparsifier = sparse(model)
    sparsifier.project_(other)
    kept = sparsifier.kept()["first.weight"]
    assert torch.equal(other.first.weight != 0, kept)
    assert torch.equal(other.second.weight != 0, kept)


def two_names(head: nn.Module, other: nn.Module) -> nn.ModuleList:
    return nn.ModuleList([head, other])


def nested(head: nn.Module, other: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Sequential(head), nn.Sequential(nn.Identity(), other))


@pytest.mark.parametrize("parameterization", [None, Product()], ids=["plain", "product"])
@pytest.mark.parametrize("place", [two_names, nested])
@pytest.mark.parametrize("shares", [True, False])
def test_a_module_with_two_names_is_pruned_under_both(place, shares, parameterization):
    head = nn.Linear(4, 4)
    model = place(head, head)
    sparsifier = sparse(model, parameterization)
    first = nn.Linear(4, 4)
    other = place(first, first if shares else nn.Linear(4, 4))
    sparsifier.project_(AveragedModel(other))  # a copy
    assert all(bool(p.all()) for p in other.parameters())
    sparsifier.project_(other)
    [kept] = sparsifier.kept().values()
    weights = [m.weight for m in other.modules() if isinstance(m, nn.Linear)]
    assert len(weights) == 2 - shares
    assert all(torch.equal(weight != 0, kept) for weight in weights)


def replaced(index: int, layer: nn.Module) -> nn.Module:
    other = net()
    other[index] = layer
    return other


@pytest.mark.parametrize(
    ("other", "kind", "message"),
    [
        (lambda: replaced(3, nn.Flatten()), ValueError, r"no weight 3\.weight: project_ needs"),
        (lambda: replaced(3, nn.Linear(32, 4)), ValueError, r"3\.weight has the shape \(4, 32\) in the"),
        (lambda: nn.utils.parametrizations.weight_norm(net()[3]), ValueError, r"no weight 0\.weight"),
        (
            lambda: replaced(3, nn.utils.parametrizations.weight_norm(nn.Linear(32, 16))),
            ValueError,
            r"3\.weight in the other model: a weight computed by _WeightNorm cannot be masked",
        ),
        (lambda: net().state_dict(), TypeError, r"needs a torch\.nn\.Module, got OrderedDict"),
    ],
)
def test_a_copy_that_differs_is_refused_and_left_alone(other, kind, message):
    sparsifier, other = sparse(net()), other()
    before = {k: v.clone() for k, v in getattr(other, "state_dict", dict)().items()}
    with pytest.raises(kind, match=message) as error:
        sparsifier.project_(other)
    assert "\n" not in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in getattr(other, "state_dict", dict)().items())


# remove_parametrizations_


@pytest.mark.parametrize("kind", ["product", "str", "plain"])
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_the_plain_model_has_the_same_outputs_names_and_zeros(kind, trained):
    model, inputs = net(), torch.randn(2, 2, 4, 4)
    sparsifier: Sparsifier = STR(sparsity=0.5, initial=-3.0) if kind == "str" else RandomPruning(sparsity=0.7)
    sparsifier.attach(model, total_epochs=1, parameterization=Product() if kind == "product" else None)
    model(inputs).sum().backward()
    model.requires_grad_(trained).eval()
    outputs, state, kept = model(inputs), plain_state_dict(model), sparsifier.kept()
    assert remove_parametrizations_(model) is model
    assert torch.equal(model(inputs), outputs)
    plain = model.state_dict()
    assert plain.keys() == state.keys() == net().state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in plain.items())
    assert not any(torch.signbit(value[value == 0]).any() for value in plain.values())
    assert dict(model.named_parameters()).keys() == dict(net().named_parameters()).keys()
    assert {p.requires_grad for p in model.parameters()} == {trained}
    assert type(model[0]) is nn.Conv2d
    if kind != "plain":
        with pytest.raises(RuntimeError, match="no longer a parameter"):
            sparsifier.check()
        assert all(module.weight.grad is None for module in (model[0], model[3]))
    assert all(torch.equal(plain[name] != 0, mask) for name, mask in kept.items())


def test_without_gradients_the_result_is_still_trained():
    model = net()
    sparse(model, Product())
    with torch.no_grad():
        remove_parametrizations_(model)
    assert isinstance(model[0].weight, nn.Parameter)
    assert model[0].weight.requires_grad
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 2, 4, 4)).square().sum().backward()
    before: Tensor = model[0].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)


def test_what_shares_the_memory_of_the_weights_keeps_them():
    model = net()
    STR(sparsity=0.5, initial=-3.0).attach(model, total_epochs=1)
    original = model[0].parametrizations.weight.original
    before = original.detach().clone()
    remove_parametrizations_(model)
    assert torch.equal(original, before)


@pytest.mark.parametrize("parameterization", [None, Product()], ids=["plain", "product"])
def test_a_fresh_timm_model_loads_the_plain_weights(parameterization):
    timm = pytest.importorskip("timm")
    model, fresh = timm.create_model("test_resnet"), timm.create_model("test_resnet")
    sparsifier = sparse(model, parameterization)
    fresh.load_state_dict(plain_state_dict(model))
    state, inputs = fresh.state_dict(), torch.randn(1, 3, 32, 32)
    assert all(torch.equal(state[name] != 0, mask) for name, mask in sparsifier.kept().items())
    assert torch.equal(fresh.eval()(inputs), model.eval()(inputs))


def test_a_model_without_weights_is_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    sparsifier = RandomPruning(sparsity=0.5)
    sparsifier.attach(model, total_epochs=1)
    with pytest.raises(ValueError, match=r"the other model has no weight 0\.weight"):
        sparsifier.project_(nn.ReLU())
