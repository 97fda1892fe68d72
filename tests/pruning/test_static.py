from __future__ import annotations

import copy
import dataclasses
import warnings
import weakref
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ham.models import DeiT
from pruning import (
    ACDC,
    SNIP,
    STR,
    GraSP,
    MaskFrom,
    Product,
    RandomPruning,
    Sparsifier,
    SynFlow,
    prunable_weights,
)
from pruning.export import save_masks
from pruning.scores import snip, synflow, synflow_masks


def attached(sparsifier: Sparsifier, model: nn.Module, **options: object) -> Sparsifier:
    sparsifier.attach(model, total_epochs=1, **options)
    return sparsifier


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4)]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        model[1].running_mean.uniform_(-1, 1)
        model[1].running_var.uniform_(0.5, 2)
    return model


def data(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(5, 6, dtype=torch.float64, generator=generator),
            torch.randint(4, (5,), generator=generator),
        )
        for _ in range(count)
    ]


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def snapshot(model: nn.Module) -> list[object]:
    """All that a score must leave alone, bit for bit."""
    return [
        {name: bits(value) for name, value in model.state_dict().items()},
        {n: None if p.grad is None else bits(p.grad) for n, p in model.named_parameters()},
        [module.training for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
    ]


def disturbed(model: nn.Module) -> nn.Module:
    """With gradients on some parameters, mixed training flags and a negative zero."""
    model.train()
    list(model.modules())[2].eval()
    first = next(iter(prunable_weights(model).values())).parameters[-1]
    first.grad = torch.full_like(first, 0.5)
    with torch.no_grad():
        first.flatten()[0] = -0.0
    return model


# random masks


@pytest.mark.parametrize(
    ("allocation", "counts"),
    [
        ("uniform", [10, 5, 4]),  # 100 - 90, 50 - 45, 40 - 36
        # 19 kept over three layers: 6.33 each, N - floor(N - 6.33)
        ("balanced", [7, 7, 7]),
        # eps = 19 / (20 + 15 + 14): 7.76, 5.82 and 5.43
        ("erk", [8, 6, 6]),
    ],
)
def test_random_counts_by_hand(allocation, counts):
    def pruned(seed: int) -> tuple[nn.Module, RandomPruning]:
        model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 5), nn.Linear(10, 4))
        return model, attached(RandomPruning(sparsity=0.9, allocation=allocation), model, seed=seed)

    (model, first), (_, same), (_, other) = pruned(0), pruned(0), pruned(1)
    for sparsifier in (first, same, other):
        assert [kept for _, kept, _ in sparsifier.counts()] == counts
    assert all(torch.equal(mask, same.kept()[name]) for name, mask in first.kept().items())
    assert not any(torch.equal(mask, other.kept()[name]) for name, mask in first.kept().items())
    assert [int(layer.weight.count_nonzero()) for layer in model] == counts
    assert all(torch.equal(model.get_parameter(n) != 0, mask) for n, mask in first.kept().items())


def test_random_masks_do_not_change_the_global_generator_and_biases():
    model = nn.Sequential(nn.Linear(10, 10))
    bias, state = model[0].bias.detach().clone(), torch.get_rng_state()
    attached(RandomPruning(sparsity=0.5), model)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(model[0].bias, bias)


# SNIP


def scores_of(model: nn.Module, batches: Iterable) -> dict[str, Tensor]:
    return snip(model, prunable_weights(model), batches, cross_entropy)


def test_snip_is_the_gradient_of_the_summed_loss_times_the_weight():
    model = mlp()
    scores = scores_of(model, data())
    model.eval()
    sum(cross_entropy(model(x), y) for x, y in data()).backward()
    assert scores.keys() == {"0.weight", "4.weight"}
    for name, score in scores.items():
        weight = model.get_parameter(name)
        torch.testing.assert_close(score, (weight.grad * weight).abs(), rtol=1e-12, atol=1e-15)


def test_snip_of_a_complex_weight_is_the_finite_difference_with_respect_to_a_mask_entry():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4, dtype=torch.complex128), Magnitude())
    x, y = torch.randn(5, 6, dtype=torch.complex128), torch.randint(4, (5,))
    (score,) = snip(model, prunable_weights(model), [(x, y)], cross_entropy).values()
    weight, step = model[0].weight, 1e-6

    @torch.no_grad()
    def loss(factor: float, row: int, column: int) -> float:
        before = weight[row, column].clone()
        weight[row, column] *= factor
        value = float(cross_entropy(model(x), y))
        weight[row, column] = before
        return value

    for row, column in ((0, 0), (1, 3), (3, 5)):
        slope = (loss(1 + step, row, column) - loss(1 - step, row, column)) / (2 * step)
        assert float(score[row, column]) == pytest.approx(abs(slope), rel=1e-6, abs=1e-10)


class Magnitude(nn.Module):
    """|x| of complex numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


@pytest.mark.parametrize("method", [SynFlow(0.5), GraSP(0.5, batches=1)])
def test_scores_of_real_weights_refuse_complex_ones(method):
    model = nn.Sequential(nn.Linear(6, 4, dtype=torch.complex64), Magnitude(), nn.Linear(4, 4))
    name = type(method).__name__
    sparsifier = attached(method, model)
    with pytest.raises(ValueError, match=rf"0\.weight is complex and {name} scores real weights: exclude"):
        sparsifier.initialize([(torch.ones(2, 6), torch.zeros(2, dtype=torch.long))], cross_entropy)
    excluding = attached(dataclasses.replace(method, exclude=["0.weight"]), model)
    assert [*excluding.masks.weights] == ["2.weight"]


def test_snip_computes_a_large_batch_in_parts_and_scores_it_as_one():
    model, generator = mlp(), torch.Generator().manual_seed(2)
    x = torch.randn(300, 6, dtype=torch.float64, generator=generator)  # 128 + 128 + 44
    y = torch.randint(4, (300,), generator=generator)
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    scores = scores_of(model, [(x, y)])
    handle.remove()
    assert sum(sizes) == 300 and max(sizes) <= 128
    cross_entropy(model.eval()(x), y).backward()
    for name, score in scores.items():
        weight = model.get_parameter(name)
        torch.testing.assert_close(score, (weight.grad * weight).abs(), rtol=1e-12, atol=1e-15)


def test_snip_holds_one_batch_at_a_time():
    refs: list[weakref.ref] = []
    alive: list[int] = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(5):
            alive.append(sum(ref() is not None for ref in refs))
            inputs, targets = data(number + 1)[-1]
            refs.append(weakref.ref(inputs))
            yield inputs, targets

    sparsifier = attached(SNIP(sparsity=0.5, batches=5), mlp())
    sparsifier.initialize(batches(), cross_entropy)
    assert len(alive) == 5 and max(alive) <= 1  # the last one, while the next is made
    assert sparsifier.achieved_sparsity() == 0.5


def test_snip_with_too_few_batches_prunes_nothing():
    model = mlp()
    before, sparsifier = snapshot(model), attached(SNIP(sparsity=0.5, batches=4), model)
    with pytest.raises(ValueError, match=r"^SNIP needs 4 batches, got 3: lower its batches$"):
        sparsifier.initialize(iter(data(3)), cross_entropy)
    assert snapshot(model) == before and sparsifier.achieved_sparsity() == 0


def test_snip_is_the_finite_difference_with_respect_to_a_mask_entry():
    model, step = mlp(), 1e-5
    scores = scores_of(model, data())
    model.eval()

    @torch.no_grad()
    def loss(weight: Tensor, place: int, mask: float) -> float:
        kept = weight.flatten()[place].clone()
        weight.view(-1)[place] *= mask
        total = sum(cross_entropy(model(x), y) for x, y in data())
        weight.view(-1)[place] = kept
        return float(total)

    for name, score in scores.items():
        weight = model.get_parameter(name)
        found = [
            abs(loss(weight, i, 1 + step) - loss(weight, i, 1 - step)) / (2 * step)
            for i in range(weight.numel())
        ]
        assert score.flatten().tolist() == pytest.approx(found, rel=1e-5, abs=1e-9)


def linear_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs * targets).sum()


def test_snip_adds_gradients_before_it_takes_the_absolute_value():
    """Gradients 5 and -5, then 1 and 1: the sum keeps the second weight, a sum of magnitudes the first."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    nn.init.ones_(model[0].weight)
    one = torch.ones(1, 1)
    batches = [(torch.tensor([[5.0, 1.0]]), one), (torch.tensor([[-5.0, 1.0]]), one)]
    sparsifier = attached(SNIP(sparsity=0.5, batches=2), model)
    sparsifier.initialize(batches, linear_loss)
    assert sparsifier.kept()["0.weight"].tolist() == [[False, True]]
    assert model[0].weight.tolist() == [[0, 1]]


def test_snip_takes_as_many_batches_as_asked_for_and_prunes_to_one_threshold():
    model = mlp()
    scores = scores_of(copy.deepcopy(model), data(2))
    sparsifier = attached(SNIP(sparsity=0.75, batches=2), model)
    sparsifier.initialize(iter(data(5)), cross_entropy)
    flat = torch.cat([s.flatten() for s in scores.values()])
    threshold = flat.sort(descending=True).values[19]  # of 80 entries 20 stay
    for name, kept in sparsifier.kept().items():
        assert torch.equal(kept, scores[name] >= threshold)
    assert sparsifier.achieved_sparsity() == 0.75


def test_snip_leaves_the_model_as_it_is():
    model = disturbed(mlp())
    before = snapshot(model)
    scores_of(model, data())
    assert snapshot(model) == before

    def fail(outputs: Tensor, targets: Tensor) -> Tensor:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        snip(model, prunable_weights(model), data(), fail)
    assert snapshot(model) == before


@pytest.mark.parametrize("factor", [None, 0, 1])
def test_snip_refuses_a_weight_that_is_frozen_in_whole_or_in_part(factor):
    """Without the gradient of one factor of a product, the gradient of the weight is not known."""
    model = mlp()
    if factor is not None:
        Product().attach(model, total_epochs=1)
    weights = prunable_weights(model)
    weights["4.weight"].parameters[factor or 0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"^4\.weight is frozen and has no gradient"):
        snip(model, weights, data(), cross_entropy)


def test_snip_scores_a_product_as_the_plain_weight():
    model, other = mlp(), mlp()
    Product().attach(other, total_epochs=1)
    plain, product = scores_of(model, data()), scores_of(other, data())
    assert plain.keys() == product.keys()
    for name, score in plain.items():
        torch.testing.assert_close(product[name], score, rtol=1e-10, atol=1e-14)
    pruned = [attached(SNIP(sparsity=0.8, batches=3), mlp(), parameterization=p) for p in (None, Product())]
    for sparsifier in pruned:
        sparsifier.initialize(data(), cross_entropy)
    assert all(torch.equal(mask, pruned[1].kept()[name]) for name, mask in pruned[0].kept().items())
    assert all(torch.equal(v != 0, pruned[1].kept()[n]) for n, v in pruned[1].masks.values().items())


@pytest.mark.parametrize("score", ["snip", "synflow"])
def test_autocast_around_the_call_changes_nothing(score):
    def found(dtype: torch.dtype, *, autocast: bool) -> dict[str, Tensor]:
        model = mlp().to(dtype)
        weights = prunable_weights(model)
        kept = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            if score == "synflow":
                return synflow(model, weights, kept, (1, 6))
            return scores_of(model, [(x.to(dtype), y) for x, y in data()])

    plain, mixed = (found(torch.float32, autocast=autocast) for autocast in (False, True))
    exact = found(torch.float64, autocast=False)
    for name, value in plain.items():
        assert value.dtype == mixed[name].dtype and torch.equal(value, mixed[name])
        torch.testing.assert_close(mixed[name].double(), exact[name].double(), rtol=1e-4, atol=1e-6)


# SynFlow


def flow_net(kind: str) -> tuple[nn.Sequential, tuple[int, ...]]:
    torch.manual_seed(3)
    if kind == "mlp":
        layers = [nn.Linear(7, 9, bias=False), nn.ReLU(), nn.Linear(9, 5, bias=False), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(5, 3, bias=False)), (1, 7)
    layers = [nn.Conv2d(2, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3, bias=False)), (1, 2, 8, 8)


@pytest.mark.parametrize("density", [1.0, 0.5])
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_synaptic_flow_is_conserved(kind, density):
    """Every layer's scores sum to R; what flows into a hidden unit flows out (Tanaka et al., Theorem 1)."""
    model, shape = flow_net(kind)
    weights = prunable_weights(model)
    generator = torch.Generator().manual_seed(0)
    kept = {name: torch.rand(w.shape, generator=generator) < density for name, w in weights.items()}
    scores = synflow(model, weights, kept, shape)
    values = torch.ones(shape, dtype=torch.float64)
    reference = copy.deepcopy(model).double()
    with torch.no_grad():
        for name, mask in kept.items():
            weight = reference.get_parameter(name)
            weight.copy_(weight.abs() * mask)
        total = float(reference(values).sum())
    assert total > 0
    layers = list(scores.values())
    assert all(score.dtype == torch.float64 and (score >= 0).all() for score in layers)
    assert [float(score.sum()) for score in layers] == pytest.approx([total] * len(layers), rel=1e-9)
    assert all((score[~kept[name]] == 0).all() for name, score in scores.items())
    for before, after in pairwise(layers):
        into = before.flatten(1).sum(1)
        out = after.unflatten(1, (len(into), -1)).transpose(0, 1).flatten(1).sum(1)
        torch.testing.assert_close(into, out, rtol=1e-9, atol=0)


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_synflow_of_a_transformer_is_the_magnitude_of_its_absolute_networks_flow(density):
    """LayerNorm subtracts a mean, so that dR/dtheta has either sign and conservation does not hold."""
    torch.manual_seed(0)
    model = DeiT(patch_size=2, embed_dim=12, depth=2, num_heads=2).build(num_classes=3, image_size=4)
    weights = prunable_weights(model)
    generator = torch.Generator().manual_seed(0)
    kept = {name: torch.rand(w.shape, generator=generator) < density for name, w in weights.items()}
    scores = synflow(model, weights, kept, (1, 3, 4, 4))

    absolute = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for name, p in absolute.named_parameters():
            p.copy_(p.abs() * kept.get(name, 1))
    absolute(torch.ones(1, 3, 4, 4, dtype=torch.float64)).sum().backward()
    flows = {name: (p.grad * p).detach() for name, p in absolute.named_parameters() if name in weights}
    assert any((flow < 0).any() for flow in flows.values())
    assert scores.keys() == flows.keys() and "blocks.0.attn.qkv.weight" in scores
    for name, score in scores.items():
        assert (score >= 0).all() and not score[~kept[name]].any(), name
        torch.testing.assert_close(score, flows[name].abs(), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("model", ["transformer", "resnet"])
def test_synflow_of_a_network_with_activation_checkpointing_is_that_without(model, dtype):
    """Checkpointing computes the forward pass again in the backward pass, with the same weights."""
    torch.manual_seed(0)
    if model == "transformer":
        sizes = dict(img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=2)
        net = timm.models.VisionTransformer(num_classes=3, **sizes)
    else:
        sizes = dict(layers=[1, 1, 1, 1], channels=(4, 8, 8, 8))
        net = timm.models.ResNet(timm.models.resnet.BasicBlock, num_classes=3, **sizes)
    net = net.to(dtype)
    weights = prunable_weights(net)
    generator = torch.Generator().manual_seed(0)
    kept = {name: torch.rand(w.shape, generator=generator) < 0.5 for name, w in weights.items()}
    plain = synflow(net, weights, kept, (1, 3, 8, 8))
    net.set_grad_checkpointing()
    checkpointed = synflow(net, weights, kept, (1, 3, 8, 8))
    assert sum(float(score.sum()) for score in plain.values()) > 0
    for name, score in checkpointed.items():
        torch.testing.assert_close(score, plain[name], rtol=1e-9, atol=0)


def deep_net() -> nn.Sequential:
    """Narrow but for one wide layer, which holds nine in ten weights and has the smallest scores."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    widths = [3, 8, 8, 8, 96, 96, 8, 8, 8]
    for before, width in pairwise(widths):
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def images(count: int = 2, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(count, 3, 8, 8, generator=generator), torch.zeros(count, dtype=torch.long))]


@pytest.mark.parametrize(("iterations", "collapses"), [(1, True), (100, False)])
def test_synflow_prunes_bit_by_bit_to_avoid_layer_collapse(iterations, collapses):
    model = deep_net()
    sparsifier = attached(SynFlow(sparsity=0.99, iterations=iterations), model)
    sparsifier.initialize(images())
    counts = [kept for _, kept, _ in sparsifier.counts()]
    assert (min(counts) == 0) == collapses
    total = sum(total for _, _, total in sparsifier.counts())
    assert sum(counts) == total // 100


def test_synflow_leaves_the_model_as_it_is():
    model = disturbed(deep_net())
    with torch.no_grad():
        model[1].running_mean.uniform_(-1, 1)
    before = snapshot(model)
    weights = prunable_weights(model)
    masks = synflow_masks(model, weights, (1, 3, 8, 8), [5000, 1000])
    assert snapshot(model) == before
    assert sum(int(mask.sum()) for mask in masks.values()) == 1000
    assert any((w.parameters[0] < 0).any() for w in weights.values())


def test_initialize_writes_zeros_and_nothing_else():
    model = disturbed(deep_net())
    old = {name: value.clone() for name, value in model.state_dict().items()}
    rest = snapshot(model)[1:]
    sparsifier = attached(SynFlow(sparsity=0.9, iterations=5), model)
    sparsifier.initialize(images())
    assert snapshot(model)[1:] == rest
    for name, value in model.state_dict().items():
        kept = sparsifier.kept().get(name)
        expected = old[name] if kept is None else old[name].masked_fill(~kept, 0.0)
        assert bits(value) == bits(expected), name


def test_synflow_never_brings_a_weight_back():
    model = deep_net()
    weights = prunable_weights(model)
    schedule = [20000, 5000, 1000, 300, 300, 40, 0]
    sets = [synflow_masks(model, weights, (1, 3, 8, 8), schedule[:k]) for k in range(1, len(schedule) + 1)]
    for count, masks in zip(schedule, sets, strict=True):
        assert sum(int(mask.sum()) for mask in masks.values()) == count
    for before, after in pairwise(sets):
        assert not any((after[name] & ~before[name]).any() for name in weights)


def test_synflow_masks_of_products_are_those_of_plain_weights():
    kept = []
    for parameterization in (None, Product()):
        model = deep_net().double()
        sparsifier = attached(SynFlow(sparsity=0.95, iterations=10), model, parameterization=parameterization)
        sparsifier.initialize(images())
        kept.append(sparsifier.kept())
    assert all(torch.equal(mask, kept[1][name]) for name, mask in kept[0].items())


def test_synflow_uses_only_the_shape_of_the_inputs():
    kept = []
    for batches in (images(), images(count=7, seed=1), [(torch.full((1, 3, 8, 8), float("nan")), None)]):
        sparsifier = attached(SynFlow(sparsity=0.95, iterations=3), deep_net())
        sparsifier.initialize(batches)
        kept.append(sparsifier.kept())
    for other in kept[1:]:
        assert all(torch.equal(mask, other[name]) for name, mask in kept[0].items())


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: SNIP(sparsity=0.5, batches=0), ValueError, "batches must be at least 1, got 0"),
        (lambda: SynFlow(sparsity=0.5, iterations=0), ValueError, "iterations must be at least 1, got 0"),
        (lambda: attached(SNIP(0.5), mlp()).initialize(data()), ValueError, "SNIP needs a loss: initialize"),
        (
            lambda: attached(SNIP(0.5), mlp()).initialize(data(), cross_entropy),
            ValueError,
            "needs 10 batches, got 3: lower its batches",
        ),
        (lambda: attached(SynFlow(0.5), mlp()).initialize(), ValueError, "needs one batch for the shape"),
        (
            lambda: attached(SNIP(0.5), mlp()).after_backward(0, None),
            RuntimeError,
            "SNIP has not pruned yet: call initialize",
        ),
        (
            lambda: attached(SynFlow(0.5), mlp()).after_backward(0, None),
            RuntimeError,
            "SynFlow has not pruned",
        ),
        (lambda: MaskFrom(sparsity=0.5), ValueError, "MaskFrom requires source="),
        (lambda: RandomPruning(sparsity=0.5, allocation="ERK"), ValueError, "ERK"),
    ],
)
def test_misuse_is_an_error_of_one_line(act, error, message):
    with pytest.raises(error, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_a_resumed_run_needs_no_initialization():
    first, resumed = (attached(SNIP(sparsity=0.5, batches=3), mlp()) for _ in range(2))
    first.initialize(data(), cross_entropy)
    resumed.load_state_dict(first.state_dict())
    assert resumed.after_backward(7, None)
    assert all(torch.equal(mask, resumed.kept()[name]) for name, mask in first.kept().items())


# masks of another run


def sparse_source(path, sparsity: float = 0.5) -> ACDC:
    model = mlp()
    acdc = attached(ACDC(sparsity=sparsity), model)
    acdc.on_epoch_start(0, torch.optim.SGD(model.parameters(), lr=0.1))
    save_masks(path / "masks.pt", acdc, {"run": "acdc", "seed": 3})
    return acdc


@pytest.mark.parametrize("place", [".", "masks.pt"], ids=["folder", "file"])
def test_masks_of_a_finished_run_on_new_weights(place, tmp_path):
    acdc = sparse_source(tmp_path)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))
    old = model[0].weight.detach().clone()
    sparsifier = attached(MaskFrom(sparsity=0.5, source=str(tmp_path / place)), model)
    for name, mask in acdc.kept().items():
        assert torch.equal(sparsifier.kept()[name], mask)
    assert torch.equal(model[0].weight, old.masked_fill(~acdc.kept()["0.weight"], 0.0))
    assert sparsifier.stats() == {"sparsity": 0.5, "kept": 40, "masks_from": {"run": "acdc", "seed": 3}}


@pytest.mark.filterwarnings("ignore:all weights of")
@pytest.mark.parametrize(
    ("sparsity", "kept"),
    [
        # |w| - sigmoid(-2): .381, .081, -.069, -.019 in one layer, .281, -.119, .001, -.109 in the other
        (0.25, [[True, True, True, True], [True, False, True, False]]),
        (0.5, [[True, True, False, False], [True, False, True, False]]),
        (0.625, [[True, True, False, False], [True, False, False, False]]),
        (0.875, [[True, False, False, False], [False, False, False, False]]),
    ],
)
def test_masks_of_thresholds_are_cut_or_filled_by_margin(sparsity, kept, tmp_path):
    def model() -> nn.Module:
        layers = nn.Sequential(nn.Linear(4, 1), nn.Linear(4, 1))
        with torch.no_grad():
            layers[0].weight.copy_(torch.tensor([[0.5, -0.2, 0.05, -0.1]]))
            layers[1].weight.copy_(torch.tensor([[-0.4, 0.0, 0.12, 0.01]]))
        return layers

    thresholds = attached(STR(sparsity=0.5, initial=-2.0), model())
    assert thresholds.achieved_sparsity() == 0.5
    save_masks(tmp_path / "masks.pt", thresholds)
    sparsifier = attached(MaskFrom(sparsity=sparsity, source=str(tmp_path)), model())
    assert [mask[0].tolist() for mask in sparsifier.kept().values()] == kept
    assert sparsifier.achieved_sparsity() == sparsity


def small(out: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Identity(), nn.Identity(), nn.Linear(8, out))


@pytest.mark.parametrize(
    ("model", "sparsity", "message"),
    [
        (lambda: small(5), 0.5, r"mask of 4\.weight must have .* shape \(5, 8\), got \(4, 8\)"),
        (lambda: nn.Sequential(nn.Linear(6, 8)), 0.5, r"another model: 1 names differ, such as 4\.weight"),
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)), 0.5, r"2 names differ, such as 1\.weight"),
        (small, 0.9, r"have sparsity 0\.5000, not 0\.9: use that sparsity"),
        (small, 0.51, r"have sparsity 0\.5000, not 0\.51: "),
    ],
)
def test_masks_that_do_not_fit_are_refused(model, sparsity, message, tmp_path):
    sparse_source(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        attached(MaskFrom(sparsity=sparsity, source=str(tmp_path)), model())
    assert "\n" not in str(caught.value)


class Opened:
    """Pickle's invitation to run code."""

    done: list[str] = []

    def __reduce__(self) -> tuple:
        return self.done.append, ("run",)


def truncated(path) -> None:
    sparse_source(path.parent)
    content = (path.parent / "masks.pt").read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "masks.pt does not exist: finish the run"),
        (truncated, "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(b"\x80\x02garbage"), "damaged"),
        (lambda path: path.write_text("<html>not found</html>"), "damaged"),
        (lambda path: path.write_bytes(bytes(range(256))), "damaged"),
        (lambda path: torch.save(mlp().state_dict(), path), "contains no masks"),
        (lambda path: torch.save(torch.zeros(3), path), "contains no masks"),
        (lambda path: torch.save([], path), "contains no masks"),
        (lambda path: torch.save({"masks": 3, "margins": {}, "origin": {}}, path), "contains no masks"),
        (lambda path: torch.save({"masks": {}, "margins": {}, "origin": Opened()}, path), "damaged"),
    ],
    ids=[
        "missing",
        "truncated",
        "empty",
        "garbage",
        "text",
        "bytes",
        "weights",
        "tensor",
        "list",
        "number",
        "code",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_files_that_hold_no_masks_are_refused(write, message, tmp_path):
    write(tmp_path / "masks.pt")
    Opened.done.clear()
    with pytest.raises(ValueError, match=message) as caught:
        attached(MaskFrom(sparsity=0.5, source=str(tmp_path)), small())
    assert "\n" not in str(caught.value)
    assert Opened.done == []


def test_the_defaults_of_the_scores_and_of_masks_from_a_run():
    assert (SNIP(0.5).batches, SynFlow(0.5).iterations, RandomPruning(0.5).allocation) == (10, 100, "erk")
    loaded = MaskFrom(0.5, source="exp/name")
    assert loaded.redraw and loaded.redraws_weights and loaded.depends_on == ""
    assert not MaskFrom(0.5, source="name", redraw=False).redraws_weights


def test_one_batch_and_one_iteration_are_enough():
    sparsifier = attached(SNIP(0.5, batches=1), mlp())
    sparsifier.initialize(data(1), cross_entropy)
    assert sparsifier.achieved_sparsity() == 0.5
    sparsifier = attached(SynFlow(0.5, iterations=1), mlp())
    sparsifier.initialize(data(1))
    assert sparsifier.achieved_sparsity() == 0.5


def test_snip_computes_a_large_batch_in_parts_of_128():
    model, seen = mlp(), []
    handle = model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    x, y = (torch.cat(tensors) for tensors in zip(*data(60), strict=True))
    parts = scores_of(model, [(x, y)])
    handle.remove()
    assert seen == [128, 128, 44]
    model.eval()
    cross_entropy(model(x), y).backward()
    for name, score in parts.items():
        weight = model.get_parameter(name)
        torch.testing.assert_close(score, (weight.grad * weight).abs(), rtol=1e-10, atol=1e-15)


def test_a_source_that_is_a_name_is_resolved_to_the_folder_of_its_run():
    by_name, by_path = MaskFrom(0.5, source="acdc"), MaskFrom(0.5, source="runs/acdc")
    assert by_name.depends_on == "acdc"
    assert by_name.resolve("runs/{}/seed0".format, resumed=False).source == "runs/acdc/seed0"
    assert by_path.resolve("runs/{}/seed0".format, resumed=False) is by_path
    resumed = by_name.resolve("runs/{}/seed0".format, resumed=True)
    assert resumed.source == "acdc" and resumed.resumed and not by_name.resumed
    attached(resumed, mlp())  # reads no file
    assert not resumed.masks.active


def test_masks_of_thresholds_far_from_the_target_are_changed_with_a_warning(tmp_path):
    """0.5 is pruned: a target of 0.545 is within 0.05, one of 0.6 is not."""

    def model() -> nn.Module:
        layer = nn.Linear(200, 1)
        with torch.no_grad():
            layer.weight.copy_(torch.arange(1.0, 201.0) / 200)
        return layer

    thresholds = attached(STR(sparsity=0.5, initial=0.01), model())
    assert thresholds.achieved_sparsity() == 0.5
    save_masks(tmp_path / "masks.pt", thresholds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attached(MaskFrom(0.545, source=str(tmp_path)), model())
    with pytest.warns(UserWarning) as caught:
        sparsifier = attached(MaskFrom(0.6, source=str(tmp_path)), model())
    assert [str(warning.message) for warning in caught] == [
        f"the masks in {tmp_path} have sparsity 0.5000 and are changed to 0.6 by the weights' distance to "
        "their threshold: use sparsity=0.5000 to keep them"
    ]
    assert sparsifier.achieved_sparsity() == pytest.approx(0.6)


@pytest.mark.parametrize(("target", "fits"), [(0.504, True), (0.496, True), (0.507, False), (0.493, False)])
def test_hard_masks_must_have_the_target_within_half_a_percent(target, fits, tmp_path):
    sparse_source(tmp_path)
    if fits:
        assert attached(MaskFrom(target, source=str(tmp_path)), small()).achieved_sparsity() == 0.5
    else:
        with pytest.raises(ValueError, match=f"have sparsity 0.5000, not {target:g}"):
            attached(MaskFrom(target, source=str(tmp_path)), small())


def test_the_origin_of_masks_comes_back_with_a_state(tmp_path):
    sparse_source(tmp_path)
    first = attached(MaskFrom(0.5, source=str(tmp_path)), small())
    resumed = MaskFrom(0.5, source="acdc").resolve(str, resumed=True)
    attached(resumed, small())
    resumed.load_state_dict(first.state_dict())
    assert resumed.stats()["masks_from"] == {"run": "acdc", "seed": 3}
    assert resumed.masks.active


@pytest.mark.parametrize(
    ("inputs", "kind"), [(torch.zeros(2, 6, dtype=torch.int64), "torch.int64"), (object(), "object")]
)
def test_synflow_needs_inputs_that_can_be_ones(inputs, kind):
    sparsifier = attached(SynFlow(0.5), mlp())
    with pytest.raises(ValueError) as error:
        sparsifier.initialize([(inputs, None)])
    assert str(error.value) == (
        f"SynFlow feeds ones through the network and needs floating-point inputs, got {kind}: choose SNIP or "
        "RandomPruning"
    )
    assert not sparsifier.masks.active


def test_the_density_of_synflow_falls_by_a_constant_factor(monkeypatch):
    """80 weights, sparsity 0.75 in two steps: 80 * 0.25^(1/2), then 80 * 0.25."""
    asked = []

    def recorded(model, weights, shape, schedule, select):
        asked.append((shape, schedule))
        return synflow_masks(model, weights, shape, schedule, select)

    monkeypatch.setattr("pruning.synflow.synflow_masks", recorded)
    sparsifier = attached(SynFlow(0.75, iterations=2), mlp())
    sparsifier.initialize(data(1))
    assert asked == [((1, 6), [40, 20])]
    assert sparsifier.achieved_sparsity() == 0.75
