from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pruning import ACDC, Dense, PILoT, Plain, Product, RandomPruning, Sparsifier, Spred
from pruning.export import plain_state_dict
from pruning.parameterization import rebalance_
from pruning.weights import ProductWeight


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = OrderedDict(conv=nn.Conv2d(2, 4, 3), norm=nn.BatchNorm2d(4), relu=nn.ReLU(), flat=nn.Flatten())
    return nn.Sequential(OrderedDict(**layers, a=nn.Linear(16, 8), tanh=nn.Tanh(), b=nn.Linear(8, 3)))


WEIGHTS = ["conv.weight", "a.weight", "b.weight"]


def attached(
    model: nn.Module, sparsifier: Sparsifier | None = None, epochs: int = 10, **options
) -> Sparsifier:
    sparsifier = sparsifier or Dense()
    sparsifier.attach(model, total_epochs=epochs, parameterization=Product(**options))
    return sparsifier


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(16, 2, 4, 4, generator=generator)
    return inputs, (inputs[:, 0, 0, 0] > 0).long() + (inputs[:, 0, 1, 1] > 0).long()


def train_step(model: nn.Module, sparsifier: Sparsifier, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    inputs, targets = batch(step)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    sparsifier.after_backward(step, optimizer)
    sparsifier.add_decay()
    optimizer.step()
    sparsifier.after_step()


def bits(tensor: Tensor) -> list[int]:
    return tensor.detach().contiguous().view(torch.int32).flatten().tolist()


# Splitting the weights.


def test_only_the_prunable_weights_double():
    model = network()
    before = {name: p.numel() for name, p in model.named_parameters()}
    attached(model)
    after = {name: p.numel() for name, p in model.named_parameters()}
    assert sum(after.values()) == sum(before.values()) + sum(before[name] for name in WEIGHTS)
    for name in before.keys() - set(WEIGHTS):
        assert after.pop(name) == before[name]
    assert len(after) == 2 * len(WEIGHTS)


@pytest.mark.parametrize("scaling", [1.0, 0.25, 4.0])
def test_the_model_computes_what_it_did_and_starts_in_balance(scaling):
    model, plain = network(), network()
    sparsifier = attached(model, scaling=scaling)
    for weight, name in zip(sparsifier.parameterization.weights, WEIGHTS, strict=True):
        m, w = (p.detach() for p in weight.parameters)
        assert torch.allclose(m * w, plain.get_parameter(name), rtol=1e-6, atol=0)
        assert torch.allclose(m**2 - w**2, torch.tensor(scaling), rtol=1e-6, atol=0)
    assert torch.allclose(model(batch(0)[0]), plain(batch(0)[0]), rtol=1e-5, atol=1e-6)


def test_shared_weights_are_refused_before_anything_changes():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match=r"^2\.weight shares its weight with 0\.weight: untie them first$"):
        attached(model)
    assert not any(parametrize.is_parametrized(layer) for layer in model)


@pytest.mark.parametrize(
    "again",
    [lambda model: attached(model), lambda model: PILoT(sparsity=0.5).attach(model, total_epochs=2)],
    ids=["product", "pilot"],
)
def test_attaching_twice_is_refused(again):
    model = network()
    attached(model)
    with pytest.raises(
        ValueError,
        match=r"^conv\.weight is already parametrized: attach only once .*, or exclude conv\.weight$",
    ):
        again(model)


def test_a_frozen_layer_stays_plain():
    model = network()
    model.a.weight.requires_grad_(False)
    sparsifier = attached(model)
    assert len(sparsifier.parameterization.weights) == 2
    assert not parametrize.is_parametrized(model.a)


def test_excluded_weights_are_factored_and_decayed_too():
    model = network()
    sparsifier = attached(model, ACDC(sparsity=0.5, exclude=["a.weight"]), decay=0.5, frobenius=0.0)
    m, w = model.a.parametrizations.weight.parameters()
    for factor in (m, w):
        factor.grad = torch.zeros_like(factor)
    sparsifier.add_decay()
    assert list(sparsifier.masks.weights) == ["conv.weight", "b.weight"]
    assert torch.equal(m.grad, 0.5 * m) and torch.equal(w.grad, 0.5 * w)
    assert sparsifier.parameterization.weight_decays()[m] == 0.0


# The penalties.


@pytest.mark.parametrize(("frobenius", "decay"), [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2), (0.0, 0.0)])
def test_the_decay_is_the_gradient_of_its_penalties(frobenius, decay):
    """frobenius / 2 |m w|^2 + decay / 2 (|m|^2 + |w|^2), by autograd, added to what is there."""
    model = network().double()
    sparsifier = attached(model, frobenius=frobenius, decay=decay)
    expected = []
    for weight in sparsifier.parameterization.weights:
        m, w = weight.parameters
        with torch.no_grad():
            m.normal_()
            w.normal_()
        penalty = frobenius / 2 * (m * w).square().sum() + decay / 2 * (m.square() + w.square()).sum()
        for factor, gradient in zip((m, w), torch.autograd.grad(penalty, (m, w)), strict=True):
            factor.grad = torch.randn_like(factor)
            expected.append((factor, factor.grad + gradient))
    sparsifier.add_decay()
    for factor, gradient in expected:
        assert torch.allclose(factor.grad, gradient, rtol=1e-12, atol=1e-14)
        assert not factor.grad.requires_grad, "a graph of every step would stay in memory"
    others = {p for p, _ in expected}
    assert all(p.grad is None for p in model.parameters() if p not in others)


def test_the_frobenius_decay_pulls_theta_by_lambda_theta():
    """(m, w) = (2, 1): theta = 2, so that its gradient is .2, w's part .4 and m's part .2."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    sparsifier = attached(model, scaling=3.0, frobenius=0.1)
    m, w = model.parametrizations.weight.parameters()
    for factor in (m, w):
        factor.grad = torch.zeros_like(factor)
    sparsifier.add_decay()
    assert (m.grad.item(), w.grad.item()) == pytest.approx((0.2, 0.4))
    assert sparsifier.masks.weights["weight"].gradient.item() == pytest.approx(0.2)


def test_without_gradients_nothing_is_decayed():
    model = network()
    attached(model).add_decay()
    assert all(p.grad is None for p in model.parameters())


# The optimizer's own weight decay.


def test_groups_split_in_order_and_keep_their_keys():
    model = network()
    sparsifier = attached(model)
    factors = {id(p) for weight in sparsifier.parameterization.weights for p in weight.parameters}
    first, second = list(model.conv.parameters()) + list(model.norm.parameters()), [*model.a.parameters()]
    groups = [
        {"params": iter(first), "lr": 0.1, "weight_decay": 0.5, "ham_alpha": 7.0},
        {"params": second, "lr": 0.2, "name": "second"},
        {"params": [model.b.bias], "weight_decay": 0.25},
    ]
    found = sparsifier.param_groups(groups)
    for source, rest, decay in ((first, {"lr": 0.1, "ham_alpha": 7.0}, 0.5), (second, {"lr": 0.2}, None)):
        own = [g for g in found if g["lr" if "lr" in g else "params"] == rest["lr"]]
        assert all(rest.items() <= g.items() for g in own)
        split = {g.get("weight_decay"): g["params"] for g in own}
        assert split.keys() == {decay, 0.0} and len(own) == 2
        assert [id(p) for p in split[0.0]] == [id(p) for p in source if id(p) in factors]
        assert [id(p) for p in split[decay]] == [id(p) for p in source if id(p) not in factors]
    assert found[-1] == {"params": [model.b.bias], "weight_decay": 0.25}
    assert [g.get("name") for g in found if g.get("lr") == 0.2] == ["second", "second"]
    assert groups[1]["params"] is second and "weight_decay" not in groups[1]


@pytest.mark.parametrize(
    "given",
    [
        lambda model: model.parameters(),
        lambda model: list(model.parameters()),
        lambda model: model.named_parameters(),
        lambda model: [{"params": model.parameters()}],
        lambda model: [{"params": model.named_parameters()}],
        lambda model: [{"params": p} for p in model.parameters()],
    ],
    ids=["iterator", "list", "named", "group", "named group", "one tensor a group"],
)
def test_the_optimizers_decay_reaches_all_but_the_factors(given):
    """Whatever form of parameters an optimizer takes; nothing is lost and nothing doubled."""
    model = network()
    sparsifier = attached(model)
    factors = {p for weight in sparsifier.parameterization.weights for p in weight.parameters}
    optimizer = torch.optim.SGD(sparsifier.param_groups(given(model)), lr=0.1, weight_decay=0.5)
    before = {p: p.detach().clone() for p in model.parameters()}
    covered = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(covered) == len(before) and set(covered) == before.keys()
    for p in before:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in before.items():
        assert torch.equal(p, old) if p in factors else torch.allclose(p, 0.95 * old)


def test_plain_weights_leave_the_groups_as_they_are():
    model, sparsifier = network(), Dense()
    sparsifier.attach(model, total_epochs=1)
    (group,) = sparsifier.param_groups([{"params": list(model.parameters()), "weight_decay": 0.5}])
    assert group["weight_decay"] == 0.5
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


# Sign-In's resets.


@pytest.mark.parametrize(
    ("epochs", "every", "until", "expected"),
    [
        (10, 3, 1.0, [3, 6, 9]),
        (10, 2, 0.5, [2, 4]),
        (10, 5, 0.75, [5]),
        (8, 2, 0.75, [2, 4, 6]),
        (4, 1, 1.0, [1, 2, 3]),
        (10, 0, 1.0, []),
        (10, 1, 0.0, []),
        (10, 20, 1.0, []),
        (100, 10, 0.75, [10, 20, 30, 40, 50, 60, 70]),
        (100, 29, 0.58, [29, 58]),
    ],
)
def test_resets_happen_at_their_epochs(epochs, every, until, expected):
    model = nn.Linear(3, 2)
    sparsifier = attached(model, epochs=epochs, reset_every=every, reset_until=until)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    theta, (m, w) = model.weight.detach().clone(), model.parametrizations.weight.parameters()
    found = []
    for epoch in range(epochs):
        with torch.no_grad():
            m.copy_(torch.full_like(m, 0.5))
            w.copy_(2 * theta)
        sparsifier.on_epoch_start(epoch, optimizer)
        if (m != 0.5).any():
            found.append(epoch)
            assert torch.allclose(m * w, theta, rtol=1e-6, atol=0)
            assert torch.allclose(m**2 - w**2, torch.ones(()), rtol=1e-6, atol=0)
    assert found == expected


SGD = (torch.optim.SGD, {"lr": 0.02, "momentum": 0.9}, "momentum_buffer")
NESTEROV = (torch.optim.SGD, {"lr": 0.02, "momentum": 0.9, "nesterov": True}, "momentum_buffer")
ADAMW = (torch.optim.AdamW, {"lr": 4e-4, "weight_decay": 0.1}, "exp_avg")
OPTIMIZERS = pytest.mark.parametrize(
    ("make", "options", "key"), [SGD, NESTEROV, ADAMW], ids=["sgd", "nesterov", "adamw"]
)


def test_momentum_is_carried_over_by_hand():
    """(1, 2) becomes (2, 1); V = 2 / 5 by the factors' momenta (1, 0), so that they become (.4, .8)."""
    m, w = torch.ones(1, requires_grad=True), torch.full((1,), 2.0, requires_grad=True)
    optimizer = torch.optim.AdamW([m, w])
    for factor in (m, w):
        factor.grad = torch.ones(1)
    optimizer.step()
    for factor, value, velocity, square in ((m, 1.0, 1.0, 3.0), (w, 2.0, 0.0, 5.0)):
        factor.detach().fill_(value)
        optimizer.state[factor]["exp_avg"].fill_(velocity)
        optimizer.state[factor]["exp_avg_sq"].fill_(square)
    rebalance_(ProductWeight.of(m, w, scaling=3.0), optimizer)
    assert (m.item(), w.item()) == pytest.approx((2.0, 1.0))
    assert [optimizer.state[f]["exp_avg"].item() for f in (m, w)] == pytest.approx([0.4, 0.8])
    assert [optimizer.state[f]["exp_avg_sq"].item() for f in (m, w)] == [3.0, 5.0]
    assert [optimizer.state[f]["step"].item() for f in (m, w)] == [1.0, 1.0]


def test_a_reset_before_the_first_step_needs_no_optimizer_state():
    model = network()
    sparsifier = attached(model, reset_every=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier.on_epoch_start(1, optimizer)
    assert len(optimizer.state) == 0


def next_step(make, options, *, reset: bool, carry: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All products after 40 steps, after the reset, after one step more; and the drift of m^2 - w^2."""
    model = network()
    sparsifier = attached(model, reset_every=1, reset_until=1.0, carry_momentum=carry)
    optimizer = make(sparsifier.param_groups(model.parameters()), **options)
    sparsifier.on_epoch_start(0, optimizer)
    for step in range(40):
        train_step(model, sparsifier, optimizer, step)
    weights = sparsifier.parameterization.weights

    def products() -> Tensor:
        return torch.cat([weight.value.flatten() for weight in weights])

    factors = [torch.cat([weight.parameters[i].detach().flatten() for weight in weights]) for i in (0, 1)]
    trained, drift = products(), factors[0] ** 2 - factors[1] ** 2 - 1
    if reset:
        sparsifier.on_epoch_start(1, optimizer)
        for weight in weights:
            m, w = (p.detach() for p in weight.parameters)
            assert torch.allclose(m**2 - w**2, torch.ones(()), rtol=1e-6, atol=0)
    rebalanced = products()
    train_step(model, sparsifier, optimizer, 40)
    return trained, rebalanced, products(), drift


@OPTIMIZERS
def test_a_reset_leaves_the_product_and_its_next_step(make, options, key):
    trained, _, plain, drift = next_step(make, options, reset=False)
    _, rebalanced, carried, _ = next_step(make, options, reset=True)
    _, _, zeroed, _ = next_step(make, options, reset=True, carry=False)
    assert drift.abs().max() > 1e-3  # a reset that does something
    assert torch.allclose(rebalanced, trained, rtol=1e-6, atol=0)
    step = plain - trained
    assert (carried - plain).norm() < 0.02 * step.norm()
    assert (zeroed - plain).norm() > 0.5 * step.norm()


@OPTIMIZERS
def test_momentum_that_is_not_carried_is_zeroed_only_on_the_factors(make, options, key):
    model = network()
    sparsifier = attached(model, reset_every=1, carry_momentum=False)
    optimizer = make(sparsifier.param_groups(model.parameters()), **options)
    sparsifier.on_epoch_start(0, optimizer)
    train_step(model, sparsifier, optimizer, 0)
    before = {p: optimizer.state[p][key].clone() for p in model.parameters()}
    sparsifier.on_epoch_start(1, optimizer)
    factors = {p for weight in sparsifier.parameterization.weights for p in weight.parameters}
    for p, old in before.items():
        assert torch.equal(optimizer.state[p][key], torch.zeros_like(old) if p in factors else old)


# Under a mask.


@OPTIMIZERS
@pytest.mark.parametrize(
    "decayed", [False, True], ids=["factors undecayed", "factors decayed by the optimizer"]
)
def test_a_pruned_product_keeps_its_pruned_value(make, options, key, decayed):
    model = network()
    options = {**options, "weight_decay": 0.1}
    penalties = {"frobenius": 0.1, "decay": 0.1, "reset_every": 2, "reset_until": 1.0}
    sparsifier = attached(model, RandomPruning(sparsity=0.8, allocation="balanced"), **penalties)
    params = model.parameters() if decayed else sparsifier.param_groups(model.parameters())
    optimizer = make(params, **options)
    start = {name: weight.value for name, weight in sparsifier.masks.weights.items()}
    one, zero = bits(torch.tensor([1.0, 0.0]))
    for epoch in range(5):
        sparsifier.on_epoch_start(epoch, optimizer)
        for step in range(3):
            train_step(model, sparsifier, optimizer, step)
            for name, weight in sparsifier.masks.weights.items():
                pruned = ~sparsifier.masks.masks[name]
                m, w = weight.parameters
                assert set(bits(m[pruned])) == {one} and set(bits(w[pruned])) == {zero}
                states = [] if decayed else [optimizer.state[m][key], optimizer.state[w][key]]
                for state in (m.grad, w.grad, *states):
                    assert set(bits(state[pruned])) == {zero}
    exported = plain_state_dict(model)
    for name, weight in sparsifier.masks.weights.items():
        pruned = ~sparsifier.masks.masks[name]
        for value in (weight.value, exported[name], model.get_submodule(name.split(".")[0]).weight):
            assert set(bits(value[pruned])) == {zero}
        assert torch.equal(weight.value != start[name], ~pruned)


# Merging.


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_merging_gives_identical_logits(memory_format):
    model = network().to(memory_format=memory_format)
    sparsifier = attached(model, RandomPruning(sparsity=0.3))
    optimizer = torch.optim.SGD(sparsifier.param_groups(model.parameters()), lr=0.1, momentum=0.9)
    for step in range(3):
        train_step(model, sparsifier, optimizer, step)
    merged = network().to(memory_format=memory_format)
    merged.load_state_dict(plain_state_dict(model), strict=True)
    inputs = batch(9)[0]
    for mode in (False, True):
        assert torch.equal(model.train(mode)(inputs), merged.train(mode)(inputs))
    assert len(sparsifier.parameterization.weights) == 3 and parametrize.is_parametrized(model.conv)
    before = plain_state_dict(model)
    train_step(model, sparsifier, optimizer, 3)
    assert all(not torch.equal(plain_state_dict(model)[name], before[name]) for name in WEIGHTS)


def test_merged_zeros_are_positive():
    model = nn.Linear(2, 1, bias=False)
    attached(model)
    with torch.no_grad():
        model.parametrizations.weight.original1.copy_(torch.tensor([[-0.0, 0.5]]))
    assert bits(plain_state_dict(model)["weight"])[0] == 0


def test_merging_attention_gives_identical_logits():
    def encoder() -> nn.Module:
        torch.manual_seed(1)
        return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    model, merged = encoder(), encoder()
    attached(model)
    merged.load_state_dict(plain_state_dict(model), strict=True)
    inputs = torch.randn(2, 5, 8)
    assert torch.equal(model(inputs), merged(inputs))
    with torch.inference_mode():
        assert torch.equal(model.eval()(inputs), merged.eval()(inputs))


def test_a_deepcopy_computes_the_same_and_lives_on_its_own():
    model = network()
    sparsifier = attached(model)
    twin = copy.deepcopy(model)
    inputs, targets = batch(0)
    expected = model.eval()(inputs)
    assert torch.equal(twin.eval()(inputs), expected)
    nn.functional.cross_entropy(twin(inputs), targets).backward()
    assert all(p.grad is None for p in model.parameters())
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    assert torch.equal(model(inputs), expected) and not torch.equal(twin(inputs), expected)
    assert set(sparsifier.parameterization.weights[0].parameters) <= set(model.parameters())
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(inputs), expected)


@pytest.mark.parametrize("sparsifier", [PILoT(sparsity=0.5), Spred(sparsity=0.5)], ids=["pilot", "spred"])
def test_methods_with_factors_of_their_own_refuse_another_parameterization(sparsifier):
    model = network()
    with pytest.raises(ValueError, match="parametrizes weights itself: use parameterization=plain"):
        sparsifier.attach(model, total_epochs=2, parameterization=Product())
    assert not parametrize.is_parametrized(model.conv)
    sparsifier.attach(model, total_epochs=2, parameterization=Plain())
    assert parametrize.is_parametrized(model.conv)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling": 0.0}, "scaling must be positive, got 0"),
        ({"scaling": -1.0}, "scaling must be positive, got -1"),
        ({"frobenius": -0.1}, r"frobenius must not be negative, got -0\.1"),
        ({"decay": -1.0}, "decay must not be negative, got -1"),
        ({"reset_every": -2}, "reset_every must not be negative, got -2"),
        ({"reset_until": 1.5}, r"reset_until must be a fraction of the epochs in \[0, 1\], got 1\.5"),
        ({"reset_until": -0.1}, r"reset_until must be a fraction .* got -0\.1"),
    ],
)
def test_values_out_of_range_raise(options, message):
    with pytest.raises(ValueError, match=message):
        Product(**options)


def test_the_defaults_of_products_are_without_decay_and_resets():
    product = Product()
    assert (product.scaling, product.frobenius, product.decay) == (1.0, 5e-5, 0.0)
    assert (product.reset_every, product.reset_until, product.carry_momentum) == (0, 0.75, True)
    assert product.has_penalty and not product.changes_at_epochs
    assert not product.decoupled_decay and not Plain().decoupled_decay


@pytest.mark.parametrize(
    ("options", "penalty", "resets"),
    [
        ({"frobenius": 0.0}, False, False),
        ({"frobenius": 0.0, "decay": 0.5}, True, False),
        ({"frobenius": 0.5}, True, False),
        ({"reset_every": 1, "reset_until": 0.0}, True, True),
        ({"reset_until": 1.0}, True, False),
    ],
    ids=str,
)
def test_a_loop_must_call_what_the_options_need(options, penalty, resets):
    product = Product(**options)
    assert (product.has_penalty, product.changes_at_epochs) == (penalty, resets)


HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtypes", [HALVES, HALVES[::-1], (*HALVES, torch.float64, *HALVES, torch.float32)])
@pytest.mark.parametrize("scaling", [1.0, 0.25])
def test_pruned_factors_keep_their_values_in_every_dtype_that_the_model_takes(dtypes, scaling):
    """Elements of float16 and bfloat16 have one size, and other bits for the same number."""
    model, sparsifier = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), RandomPruning(0.5)
    sparsifier.attach(model, total_epochs=1, parameterization=Product(scaling=scaling))
    for dtype in dtypes:
        model.to(dtype)
        for _ in range(2):
            for weight in sparsifier.masks.weights.values():
                for factor in weight.parameters:
                    factor.data.fill_(3)
            sparsifier.after_step()
            for name, kept in sparsifier.kept().items():
                m, w = (factor.float() for factor in sparsifier.masks.weights[name].parameters)
                assert torch.equal(m, torch.where(kept, 3.0, scaling**0.5)), dtype
                assert torch.equal(w, torch.where(kept, 3.0, 0.0)), dtype
