"""`attach` and `hook` a second time, and where they fail: nothing is lost, half done or silently dense."""

from __future__ import annotations

import copy
import gc
import io
import warnings
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pruning import (
    ACDC,
    GMP,
    SET,
    SNIP,
    STR,
    GraSP,
    MaskFrom,
    OneShotMagnitude,
    PILoT,
    Product,
    RandomPruning,
    RigL,
    SparsityWarning,
    Spred,
)
from pruning.export import save_masks
from pruning.prunable import prunable_weights

HALF = pytest.approx(0.5, abs=0.01)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 3) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()


def zeros(model: nn.Module) -> float:
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def test_a_failed_attach_leaves_the_former_one_working() -> None:
    model = network()
    optimizer, sparsifier = sgd(model), RandomPruning(sparsity=0.5)
    sparsifier.attach(model, optimizer, total_epochs=1)
    for wrong in ({"exclude": ["typo"]}, {"sparsities": {"typo": 0.5}}, {"total_epochs": 0}):
        with pytest.raises(ValueError, match=r"typo|total_epochs"):
            sparsifier.attach(model, optimizer, **{"total_epochs": 1, **wrong})
        steps(model, optimizer)
        assert zeros(model) == HALF and sparsifier.achieved_sparsity() == HALF
    with pytest.raises(ValueError, match="does not train"):
        sparsifier.attach(network(), optimizer, total_epochs=1)
    steps(model, optimizer)
    assert zeros(model) == HALF and sparsifier.model is model


def test_another_model_is_announced() -> None:
    one, other = network(), network()
    optimizers, sparsifier = [sgd(one), sgd(other)], RandomPruning(sparsity=0.75)
    sparsifier.attach(one, optimizers[0], total_epochs=1)
    with pytest.warns(SparsityWarning, match="was detached from the model of an earlier attach.*per model"):
        sparsifier.attach(other, optimizers[1], total_epochs=1)
    steps(other, optimizers[1])
    assert zeros(other) == pytest.approx(0.75, abs=0.01) and not optimizers[0]._optimizer_step_pre_hooks


def test_attach_again_draws_masks_again_with_one_hook() -> None:
    model = network()
    optimizer, sparsifier = sgd(model), RandomPruning(sparsity=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(3):
            sparsifier.attach(model, optimizer, total_epochs=1, seed=seed)
    steps(model, optimizer)
    assert len(optimizer._optimizer_step_pre_hooks) == 1 and sparsifier.step == 3


def test_a_second_optimizer_takes_the_hook_over() -> None:
    model = network()
    first, sparsifier = sgd(model), RandomPruning(sparsity=0.5)
    sparsifier.attach(model, first, total_epochs=1)
    steps(model, first)
    second = torch.optim.Adam(model.parameters(), lr=0.01)
    sparsifier.hook(second)
    assert not first._optimizer_step_pre_hooks and not first._optimizer_step_post_hooks
    steps(model, second)
    assert zeros(model) == HALF and sparsifier.step == 6
    with pytest.raises(ValueError, match="does not train"):
        sparsifier.hook(sgd(network()))
    steps(model, second)
    assert zeros(model) == HALF


@pytest.mark.parametrize(
    ("method", "wrong", "right"),
    [
        (lambda: STR(sparsity=0.5, calibrate="ramp"), {}, {"steps_per_epoch": 3}),
        (
            lambda: RigL(sparsity=0.5),
            {"parameterization": Product()},
            {"parameterization": Product(), "steps_per_epoch": 3},
        ),
        (
            lambda: ACDC(sparsity=0.5),
            {"parameterization": Product(), "sparsities": {"typo": 0.1}, "total_epochs": 30},
            {"parameterization": Product(), "total_epochs": 30},
        ),
        (lambda: Spred(sparsity=0.5), {"include": ["*.bias"]}, {}),
    ],
    ids=["STR", "RigL", "AC/DC", "spred"],
)
def test_a_model_is_not_left_parametrized(method, wrong, right) -> None:
    model = network()
    before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    kinds = [type(m) for m in model.modules()]
    sparsifier = method()
    with pytest.raises(ValueError):
        sparsifier.attach(model, **{"total_epochs": 1, **wrong})
    assert [type(m) for m in model.modules()] == kinds
    assert all(model.get_parameter(name) is p and torch.equal(p, v) for name, (p, v) in before.items())
    sparsifier.attach(model, **{"total_epochs": 1, **right})
    optimizer = torch.optim.SGD(sparsifier.param_groups(model.parameters()), lr=0.01)
    sparsifier.hook(optimizer)


COUNTED = [
    RandomPruning(0.5),
    PILoT(0.9),
    Spred(0.9),
    OneShotMagnitude(0.9),
    STR(sparsity=0.9, calibrate="ramp"),
    GMP(0.9),
    SET(0.9),
    ACDC(0.9),
]


@pytest.mark.parametrize("sparsifier", COUNTED, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    ("total_epochs", "steps_per_epoch", "name"),
    [
        (1, 3.5, "steps_per_epoch"),
        (1, 0, "steps_per_epoch"),
        (0, 3, "total_epochs"),
        (2.5, 3, "total_epochs"),
        (-1, None, "total_epochs"),
    ],
)
def test_counts_that_are_none_are_refused(sparsifier, total_epochs, steps_per_epoch, name) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive and an integer, got"):
        sparsifier.attach(network(), total_epochs=total_epochs, steps_per_epoch=steps_per_epoch)


def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets, weight=torch.tensor([0.1, 1.0, 5.0, 20.0]))


@pytest.mark.parametrize("method", [SNIP, GraSP])
def test_a_loss_that_is_no_mean_over_samples_is_not_computed_in_parts(method) -> None:
    model, generator = network(), torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 8, generator=generator), torch.randint(4, (300,), generator=generator)
    sparsifier = method(sparsity=0.5, batches=1)
    sparsifier.attach(model, total_epochs=1)
    with pytest.raises(ValueError, match="mean over samples"):
        sparsifier.initialize([(x, y)], weighted)
    sparsifier.initialize([(x[:60], y[:60])], weighted)  # in one part
    assert sparsifier.achieved_sparsity() == pytest.approx(0.5, abs=0.01)


class Recurrent(nn.Module):
    """Takes inputs [T, N, F]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 4]."""
        return self.head(self.lstm(x)[0][-1])


class Named(nn.Module):
    """Takes and gives dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Outputs by name."""
        return {"logits": self.layer(x)}


@pytest.mark.parametrize("method", [SNIP, GraSP])
def test_what_cannot_be_split_is_computed_as_a_whole(method) -> None:
    sparsifier = method(sparsity=0.5, batches=1)
    sparsifier.attach(Recurrent(), total_epochs=1)
    sparsifier.initialize([(torch.randn(150, 20, 8), torch.randint(4, (20,)))], cross_entropy)
    assert sparsifier.achieved_sparsity() == pytest.approx(0.5, abs=0.01)


def test_snip_takes_targets_of_any_kind() -> None:
    sparsifier = SNIP(sparsity=0.5, batches=1)
    sparsifier.attach(Named(), total_epochs=1)
    batch = (torch.randn(200, 8), {"labels": torch.randint(4, (200,))})
    sparsifier.initialize([batch], lambda out, targets: cross_entropy(out["logits"], targets["labels"]))
    assert sparsifier.achieved_sparsity() == 0.5


def test_grasp_says_what_a_batch_is() -> None:
    sparsifier = GraSP(sparsity=0.5, batches=1)
    sparsifier.attach(network(), total_epochs=1)
    with pytest.raises(ValueError, match=r"pairs \(inputs, targets\), got tuple of 3"):
        sparsifier.initialize([(torch.ones(4, 8), torch.zeros(4), torch.zeros(4))], cross_entropy)


@pytest.mark.parametrize("exclude", [["0.weight"], "0.weight"])
@pytest.mark.parametrize("place", ["field", "attach"])
def test_a_computed_weight_can_be_excluded(exclude, place) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 16)), nn.Linear(16, 64))
    with pytest.raises(ValueError, match=r"0.weight is not a parameter .*or exclude the weight"):
        RandomPruning(sparsity=0.5).attach(model, total_epochs=1)
    fields, given = ({"exclude": exclude}, {}) if place == "field" else ({}, {"exclude": exclude})
    sparsifier = RandomPruning(sparsity=0.5, **fields)
    sparsifier.attach(model, total_epochs=1, **given)
    assert list(sparsifier.masks.weights) == ["1.weight"]


@pytest.mark.parametrize("method", [RandomPruning, RigL, SET])
def test_a_layer_without_elements_has_nothing_to_prune(method) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(0, 4))
    sparsifier = method(sparsity=0.5)
    sparsifier.attach(model, total_epochs=2, steps_per_epoch=3)
    assert list(sparsifier.masks.weights) == ["0.weight", "1.weight"]
    assert sparsifier.achieved_sparsity() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "method", [lambda: STR(0.5), lambda: PILoT(0.5), lambda: Spred(0.5)], ids=["STR", "PILoT", "spred"]
)
def test_complex_weights_are_not_parametrized(method) -> None:
    model = nn.Sequential(nn.Linear(8, 16, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"0.weight is complex: exclude it, or use a method that sets masks"):
        method().attach(model, total_epochs=1)


def test_two_parameters_in_one_memory_are_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8))
    model[1].weight = nn.Parameter(model[0].weight.data.t())
    with pytest.raises(ValueError, match=r"0.weight and 1.weight are two parameters in the same memory"):
        RandomPruning(sparsity=0.5).attach(model, total_epochs=1)
    RandomPruning(sparsity=0.5).attach(model, total_epochs=1, exclude=["1.weight"])


def test_views_of_one_tensor_are_separate_where_they_do_not_overlap() -> None:
    whole = torch.randn(16, 16)
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(8, 16))
    for layer, part in zip(model, whole.split(8, dim=1), strict=True):
        layer.weight = nn.Parameter(part)
    RandomPruning(sparsity=0.5).attach(model, total_epochs=1)


class SmallExperts(nn.Module):
    """One matrix and one bias per expert."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8, 8))
        self.bias = nn.Parameter(torch.randn(3, 1, 8))


def test_biases_of_experts_are_not_pruned() -> None:
    assert list(prunable_weights(nn.ModuleDict({"experts": SmallExperts()}))) == ["experts.weight"]


def test_sparse_gradients_that_come_later_are_named() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(20, 8, sparse=True), "head": nn.Linear(8, 4)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = RandomPruning(sparsity=0.5)
    sparsifier.attach(model, optimizer, total_epochs=1, include=["table.weight"])
    model["head"](torch.ones(2, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    model["head"](model["table"](torch.tensor([1, 2]))).sum().backward()
    with pytest.raises(ValueError, match="sparse gradients, which cannot be masked: set sparse=False"):
        optimizer.step()


def test_a_state_is_one_that_torch_loads_safely() -> None:
    model = network()
    sparsifier = RandomPruning(sparsity=0.5)
    sparsifier.attach(model, sgd(model), total_epochs=1)
    file = io.BytesIO()
    torch.save(sparsifier.state_dict(), file)
    file.seek(0)
    sparsifier.load_state_dict(torch.load(file, weights_only=True))


@pytest.mark.parametrize("method", [RandomPruning(0.9), RigL(0.9)], ids=["random", "RigL"])
def test_nothing_is_pruned_where_the_hook_does_not_fit(method) -> None:
    model = network()
    optimizer = sgd(model)
    RandomPruning(sparsity=0.5).attach(model, optimizer, total_epochs=1)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="the hook of another RandomPruning on this optimizer acts on"):
        method.attach(model, optimizer, total_epochs=1, steps_per_epoch=3)
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), before, strict=True))


MASK = {name: torch.ones(4, 4, dtype=torch.bool) for name in ("0.weight", "2.weight")}

EMPTY = {"0.weight": torch.zeros(16, 8).bool(), "2.weight": torch.ones(4, 16).bool()}


class Plugin(RandomPruning):
    """A method that finds out too late that it cannot be attached."""

    def _on_attach(self) -> None:
        super()._on_attach()
        raise ValueError("prune at most once")


@pytest.mark.parametrize("parameterization", [None, Product()], ids=["plain", "product"])
@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda source: MaskFrom(0.6, source=source), {}, "have sparsity 0.4948, not 0.6"),
        (lambda source: RandomPruning(0.5), {"masks": MASK}, "must have its weight's shape"),
        (
            lambda source: RigL(0.5),
            {"masks": {}, "steps_per_epoch": 200},
            "masks and weights differ in names",
        ),
        (lambda source: Plugin(0.5), {}, "prune at most once"),
        (lambda source: RandomPruning(0.5), {"masks": EMPTY}, "all weights of .* are pruned"),
    ],
    ids=["mask_from", "shape", "names", "plugin", "warning"],
)
@pytest.mark.filterwarnings("error::pruning.SparsityWarning")
def test_weights_are_not_pruned_where_attach_fails(
    tmp_path, make, options, message, parameterization
) -> None:
    source = network()
    first = RandomPruning(0.5)
    first.attach(source, total_epochs=1)
    save_masks(tmp_path / "masks.pt", first)
    model = network()
    before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    with pytest.raises((ValueError, UserWarning), match=message):
        make(str(tmp_path)).attach(model, total_epochs=1, parameterization=parameterization, **options)
    assert dict(model.named_parameters()).keys() == before.keys()
    assert all(model.get_parameter(name) is p and torch.equal(p, v) for name, (p, v) in before.items())


class Doubled(nn.Module):
    """A parametrization of the user's own."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice the value."""
        return 2 * x


def test_a_layer_with_a_parametrization_of_its_own_is_left_with_that() -> None:
    model = network()
    nn.utils.parametrize.register_parametrization(model[0], "bias", Doubled())
    x, outputs = torch.randn(4, 8), model(torch.ones(4, 8))
    with pytest.raises(ValueError, match="nope"):
        RigL(0.5).attach(model, total_epochs=1, parameterization=Product(), sparsities={"nope": 0.5})
    assert torch.equal(model(torch.ones(4, 8)), outputs) and model(x).shape == (4, 4)
    sparsifier = RigL(0.5)
    sparsifier.attach(model, total_epochs=1, parameterization=Product(), steps_per_epoch=3)
    assert sparsifier.achieved_sparsity() == HALF and model(x).shape == (4, 4)


def test_a_wrapped_model_is_no_other_one() -> None:
    model = network()
    optimizer, sparsifier = sgd(model), RandomPruning(sparsity=0.5)
    sparsifier.attach(model, optimizer, total_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsifier.attach(nn.Sequential(model), optimizer, total_epochs=1)


@pytest.mark.parametrize("method", [SNIP, GraSP])
@pytest.mark.parametrize("count", [300, 511])
def test_a_mean_in_low_precision_is_a_mean(method, count) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 40)).bfloat16()
    sparsifier = method(sparsity=0.5, batches=1)
    sparsifier.attach(model, total_epochs=1)
    sparsifier.initialize([(torch.randn(count, 8).bfloat16(), torch.randint(40, (count,)))], cross_entropy)
    assert sparsifier.achieved_sparsity() == HALF


# in mid-training: the optimizer has a state

OPTIMIZERS = {
    "sgd": sgd,
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
}


def states(optimizer: torch.optim.Optimizer, weight: Tensor) -> list[Tensor]:
    return [v for v in optimizer.state[weight].values() if isinstance(v, Tensor) and v.shape == weight.shape]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("method", [RigL, SET])
@pytest.mark.parametrize("way", ["attach", "hook", "calls", "loaded"])
def test_weights_that_grow_after_dense_training_start_without_its_momentum(way, method, kind) -> None:
    model = network()
    optimizer = OPTIMIZERS[kind](model)
    steps(model, optimizer, 5)
    dense = [io.BytesIO(), io.BytesIO()]
    for part, file in zip((model, optimizer), dense, strict=True):
        torch.save(part.state_dict(), file)
        file.seek(0)
    sparsifier = method(0.5, interval=3, until=1.0)
    given = optimizer if way in ("attach", "loaded") else None
    sparsifier.attach(model, given, total_epochs=1, steps_per_epoch=8)
    if way == "hook":
        sparsifier.hook(optimizer)
    grew = 0
    for step in range(7):
        if way == "loaded" and step % 3 == 0:  # also right before an update
            for part, file in zip((model, optimizer), dense, strict=True):
                part.load_state_dict(torch.load(file, weights_only=True))
                file.seek(0)
        before = sparsifier.kept()
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        if way != "calls":
            optimizer.step()
        elif sparsifier.after_backward(step, optimizer):
            optimizer.step()
            sparsifier.after_step()
        weights = dict(model.named_parameters())
        for name, kept in sparsifier.kept().items():
            grown = kept & ~before[name]
            grew += int(grown.sum())
            values = [weights[name], *states(optimizer, weights[name])]
            assert not any(value[grown].any() for value in values)
            if step:  # the state of the first step is that before it
                assert not any(value[~kept].any() for value in values)
            assert all(value[kept & before[name]].any() for value in values)
    assert grew >= 10


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_state_loaded_before_the_masks_that_belong_to_it_is_left_whole(kind) -> None:
    """The first masks, which `attach` draws, must not act on it."""
    trained, resumed = network(), network()
    optimizers = [OPTIMIZERS[kind](model) for model in (trained, resumed)]
    saved, loaded = (RigL(0.5, interval=2) for _ in range(2))
    saved.attach(trained, optimizers[0], total_epochs=1, steps_per_epoch=20)
    steps(trained, optimizers[0], 6)
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    loaded.attach(resumed, optimizers[1], total_epochs=1, steps_per_epoch=20, seed=1)
    resumed.load_state_dict(trained.state_dict())
    loaded.load_state_dict(saved.state_dict())
    for model, optimizer in ((trained, optimizers[0]), (resumed, optimizers[1])):
        torch.manual_seed(1)
        steps(model, optimizer, 5)
    pairs = zip(trained.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


# another optimizer at epochs


class Holder:
    """A wrapper that is no optimizer, as accelerate's once was."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups


class Sharing(torch.optim.Optimizer):
    """Keeps its optimizer out of sight, and shares its parameter groups, as some wrappers do."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.hidden = [optimizer]
        self.param_groups = optimizer.param_groups


METHODS = {
    "acdc": lambda: (ACDC(0.5), None),
    "pilot": lambda: (PILoT(0.5), None),
    "spred": lambda: (Spred(0.5), None),
    "rigl": lambda: (RigL(0.5), None),
    "sign_in": lambda: (RandomPruning(0.5), Product(reset_every=1)),
}


def announced(kind: str) -> tuple[object, nn.Module, torch.optim.Optimizer]:
    sparsifier, parameterization = METHODS[kind]()
    model = network()
    sparsifier.attach(model, total_epochs=4, steps_per_epoch=2, parameterization=parameterization)
    return (
        sparsifier,
        model,
        torch.optim.SGD(sparsifier.param_groups(model.parameters()), lr=0.1, momentum=0.9),
    )


@pytest.mark.parametrize("wrong", ["discriminator", "same weights"])
@pytest.mark.parametrize("kind", METHODS)
def test_another_optimizer_at_an_epoch_is_reported_before_anything_changes(kind, wrong) -> None:
    sparsifier, model, optimizer = announced(kind)
    sparsifier.hook(optimizer)
    other = torch.optim.Adam((network() if wrong == "discriminator" else model).parameters())
    for epoch in range(4):
        before = sparsifier.kept()
        with pytest.raises(ValueError) as error:
            sparsifier.on_epoch_start(epoch, other)
        assert str(error.value) == (
            "on_epoch_start got the optimizer Adam, but the optimizer SGD trains the pruned weights: "
            "pass that one, or call sparsifier.hook(optimizer) to change it"
        )
        assert all(torch.equal(mask, before[name]) for name, mask in sparsifier.kept().items())
        sparsifier.on_epoch_start(epoch, optimizer)
        steps(model, optimizer, 2)
        sparsifier.on_epoch_end(train_accuracy=0.1)


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind != "rigl"])
def test_another_optimizer_at_an_epoch_is_reported_at_the_next_call_without_a_hook(kind) -> None:
    sparsifier, model, optimizer = announced(kind)
    sparsifier.on_epoch_start(0, torch.optim.Adam(model.parameters()))
    with pytest.raises(
        ValueError, match=r"^on_epoch_start got the optimizer Adam, but .* SGD trains .*: pass that"
    ):
        sparsifier.after_backward(0, optimizer)
    sparsifier.on_epoch_start(0, optimizer)
    sparsifier.after_backward(0, optimizer)


@pytest.mark.parametrize(("wrap", "hooked"), [(Holder, "inner"), (Sharing, "inner"), (Holder, "none")])
def test_a_wrapper_of_the_optimizer_is_the_same_one(wrap, hooked) -> None:
    sparsifier, model, optimizer = announced("acdc")
    if hooked == "inner":
        sparsifier.hook(optimizer)
    for epoch in range(4):
        sparsifier.on_epoch_start(epoch, wrap(optimizer))
        if hooked == "inner":
            steps(model, optimizer, 2)
        else:
            assert sparsifier.after_backward(2 * epoch, optimizer)
    assert sparsifier.masks.active


def test_a_hook_that_moves_to_another_optimizer_within_an_epoch_follows_it() -> None:
    sparsifier, model, optimizer = announced("acdc")
    sparsifier.hook(optimizer)
    sparsifier.on_epoch_start(0, optimizer)
    steps(model, optimizer, 1)
    sparsifier.hook(other := OPTIMIZERS["adam"](model))
    steps(model, other, 1)
    with pytest.raises(ValueError, match="got the optimizer SGD, but the optimizer Adam trains"):
        sparsifier.on_epoch_start(1, optimizer)
    sparsifier.on_epoch_start(1, other)


@pytest.mark.parametrize("kind", METHODS)
def test_an_explicit_loop_may_replace_its_optimizer_within_an_epoch(kind) -> None:
    """The old one is not kept alive."""
    sparsifier, model, optimizer = announced(kind)

    def take_step(step: int, optimizer: torch.optim.Optimizer) -> None:
        model(torch.ones(2, model[0].in_features)).sum().backward()
        sparsifier.after_backward(step, optimizer)
        sparsifier.add_decay()
        optimizer.step()
        sparsifier.after_step()

    sparsifier.on_epoch_start(0, optimizer)
    take_step(0, optimizer)
    other = torch.optim.SGD(optimizer.param_groups, lr=0.1)
    old = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert old() is None
    take_step(1, other)


@pytest.mark.parametrize("kind", METHODS)
def test_a_pickle_of_a_version_that_did_not_warn_goes_on(kind) -> None:
    sparsifier, _, optimizer = announced(kind)
    for name in ("_warned_of", "_has_warned", "_announced_to", "_ties", "_known_layers"):
        sparsifier.__dict__.pop(name, None)
    for epoch in range(4):
        sparsifier.on_epoch_start(epoch, optimizer)
        sparsifier.on_epoch_end(train_accuracy=0.5)
    sparsifier.on_end()


def rigl(model: nn.Module) -> tuple[RigL, torch.optim.SGD]:
    sparsifier = RigL(0.8, interval=2)
    sparsifier.attach(model, total_epochs=1, steps_per_epoch=40)
    return sparsifier, sgd(model)


@pytest.mark.parametrize("first", ["model", "attach", "sparsifier"])
@pytest.mark.parametrize("done", [1, 2, 7, 9])
@pytest.mark.filterwarnings("error::pruning.SparsityWarning")
def test_a_training_resumes_in_any_order_of_loading(first, done) -> None:
    """Also where the last step has grown weights that are still zero."""
    model = network()
    sparsifier, optimizer = rigl(model)
    sparsifier.hook(optimizer)
    steps(model, optimizer, done)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(sparsifier.state_dict())

    model = network()
    if first == "model":
        model.load_state_dict(weights)
    resumed, _ = rigl(model)
    if first == "attach":
        model.load_state_dict(weights)
    resumed.load_state_dict(state)
    if first == "sparsifier":
        model.load_state_dict(weights)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    assert all(torch.equal(mask, state["masks"]["kept"][name]) for name, mask in resumed.kept().items())
    assert copy.deepcopy(resumed).__dict__["_unpruned"] is None


def test_values_that_a_broadcast_has_written_are_not_restored_but_missed() -> None:
    """As by DistributedDataParallel, which writes to all ranks what the first has."""
    model = network()
    sparsifier, optimizer = rigl(model)
    sparsifier.hook(optimizer)
    steps(model, optimizer, 7)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(sparsifier.state_dict())
    sparsifier, _ = rigl(model)
    model.load_state_dict(model.state_dict())
    with pytest.warns(SparsityWarning) as caught:
        sparsifier.load_state_dict(state)
    assert [str(warning.message) for warning in caught] == [
        "attach has pruned weights that the loaded masks keep: load the state of the model again, after "
        "attach"
    ]
    model.load_state_dict(weights)
    assert 1 - zeros(model) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("first", ["weights", "sparsifier"])
def test_weights_that_were_written_through_data_are_not_replaced(first: str) -> None:
    """torch counts no write through `p.data`, by which older code loads weights."""
    model = network()
    sparsifier, optimizer = rigl(model)
    sparsifier.hook(optimizer)
    steps(model, optimizer, 7)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(sparsifier.state_dict())
    torch.manual_seed(5)
    model = network()
    sparsifier, _ = rigl(model)
    for part in (first, "sparsifier" if first == "weights" else "weights"):
        if part == "sparsifier":
            sparsifier.load_state_dict(state)
            continue
        for name, p in model.named_parameters():
            p.data.copy_(weights[name])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())


def test_values_from_before_attach_are_forgotten_at_the_first_step() -> None:
    model = network()
    sparsifier, optimizer = rigl(model)
    sparsifier.hook(optimizer)
    assert sparsifier._unpruned is not None
    steps(model, optimizer, 1)
    assert sparsifier._unpruned is None
