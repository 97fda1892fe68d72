from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ham import HAM
from pruning import ACDC, GMP, SET, SNIP, STR, MaskFrom, PILoT, RandomPruning, RigL, Spred, SynFlow
from pruning.granularity import granularity
from pruning.topk import NotFinite, global_topk, layerwise_topk
from pruning.units import Layout


def groups(tensor: Tensor, m: int, input_dim: int = 1) -> Tensor:
    """[groups, m]: what follows each other along the input dimension."""
    return tensor.transpose(input_dim, -1).reshape(-1, m)


def per_block(mask: Tensor, rows: int, columns: int) -> list[int]:
    """Kept weights in every block, position by position of a kernel."""
    flat = mask.flatten(2) if mask.ndim > 2 else mask[..., None]
    return [
        int(flat[i : i + rows, j : j + columns, k].sum())
        for k in range(flat.shape[2])
        for i in range(0, mask.shape[0], rows)
        for j in range(0, mask.shape[1], columns)
    ]


def scores(*shapes: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"w{i}": torch.rand(shape, generator=generator) for i, shape in enumerate(shapes)}


def layouts_of(tensors: dict[str, Tensor], input_dim: int = 1) -> dict[str, Layout]:
    return {name: Layout(tuple(tensor.shape), input_dim) for name, tensor in tensors.items()}


# 2:4 and its kin


def test_two_of_four_by_hand():
    """The two largest of every four neighbors along a row; ties keep the lower index."""
    row = [0.1, 0.4, 0.3, 0.2, 5.0, 5.0, 5.0, 6.0]
    found = granularity("2:4").select({"w": torch.tensor([row])}, 4, {"w": Layout((1, 8))})["w"]
    assert found.int().tolist() == [[0, 1, 1, 0, 1, 0, 0, 1]]


def test_groups_of_a_convolution_are_of_input_channels_at_one_kernel_position():
    weight = torch.zeros(1, 4, 1, 2)
    weight[0, :, 0, 0], weight[0, :, 0, 1] = torch.tensor([4.0, 3, 2, 1]), torch.tensor([1.0, 2, 3, 4])
    found = granularity("2:4").select({"w": weight}, 4, {"w": Layout((1, 4, 1, 2))})["w"]
    assert found[0, :, 0, 0].int().tolist() == [1, 1, 0, 0]
    assert found[0, :, 0, 1].int().tolist() == [0, 0, 1, 1]


def test_weights_stored_inputs_first_are_grouped_along_their_first_dimension():
    tensors = scores((8, 6))
    found = granularity("1:4").select(tensors, 12, layouts_of(tensors, input_dim=0))["w0"]
    turned = {"w0": tensors["w0"].T.contiguous()}
    assert torch.equal(found.T, granularity("1:4").select(turned, 12, layouts_of(turned))["w0"])
    assert groups(found, 4, input_dim=0).sum(dim=1).eq(1).all()


@settings(max_examples=40)
@given(
    st.data(), st.integers(2, 5), st.integers(1, 3), st.integers(1, 4), st.sampled_from([(), (2,), (3, 2)])
)
def test_n_of_m_keeps_the_best_of_each_group_and_any_count_above(data, m, outputs, count, kernel):
    """Exactly as many as asked for, at least N of each group, and none below a pruned one of its group."""
    n = data.draw(st.integers(1, m - 1))
    tensors = scores((outputs, count * m, *kernel), (2, m), seed=data.draw(st.integers(0, 99)))
    total = sum(t.numel() for t in tensors.values())
    kept = data.draw(st.integers(total * n // m, total))
    found = granularity(f"{n}:{m}").select(tensors, kept, layouts_of(tensors))
    assert sum(int(mask.sum()) for mask in found.values()) == kept
    for name, mask in found.items():
        in_group, score = groups(mask, m), groups(tensors[name], m)
        assert (in_group.sum(dim=1) >= n).all()
        worst_kept = score.masked_fill(~in_group, 2.0).min(dim=1).values
        assert (score.masked_fill(in_group, -1.0).max(dim=1).values <= worst_kept).all()


def test_n_of_m_refuses_fewer_weights_and_nan():
    tensors = scores((4, 8))
    with pytest.raises(ValueError, match=r"^granularity 2:4 keeps 2 of every 4 weights in each layer$"):
        granularity("2:4").select(tensors, 15, layouts_of(tensors))
    tensors["w0"][1, 2] = float("nan")
    with pytest.raises(NotFinite, match=r"^the scores of w0 contain nan"):
        granularity("2:4").select(tensors, 16, layouts_of(tensors))


# blocks


@settings(max_examples=40)
@given(st.tuples(*[st.integers(1, 3)] * 4), st.booleans(), st.integers(0, 99))
def test_blocks_of_largest_sums_are_kept_in_one_piece(sizes, is_conv, percent):
    rows, columns, down, across = sizes
    shape = (rows * down, columns * across, *((2, 2) if is_conv else ()))
    tensors, units = scores(shape, (rows, columns)), granularity(f"{rows}x{columns}")
    total = sum(t.numel() for t in tensors.values())
    kept, blocks = units.kept_count(total, percent / 100), total // (rows * columns)
    assert kept == (blocks - ceil(Fraction(percent, 100) * blocks)) * rows * columns
    found = units.select(tensors, kept, layouts_of(tensors))
    assert sum(int(mask.sum()) for mask in found.values()) == kept
    sums = {True: [], False: []}
    for name, mask in found.items():
        each = zip(per_block(mask, rows, columns), block_sums(tensors[name], rows, columns), strict=True)
        for count, score in each:
            assert count in (0, rows * columns)
            sums[count > 0].append(score)
    assert max(sums[False], default=-1.0) <= min(sums[True], default=99.0) + 1e-5


def block_sums(score: Tensor, rows: int, columns: int) -> list[float]:
    flat = score.flatten(2) if score.ndim > 2 else score[..., None]
    return [
        float(flat[i : i + rows, j : j + columns, k].double().sum())
        for k in range(flat.shape[2])
        for i in range(0, score.shape[0], rows)
        for j in range(0, score.shape[1], columns)
    ]


def test_a_block_of_one_is_a_single_weight():
    tensors = scores((4, 6), (3, 2, 2))
    for kept in (7, {"w0": 5, "w1": 3}):
        one, other = (
            granularity(text).select(tensors, kept, layouts_of(tensors)) for text in ("1x1", "element")
        )
        assert all(torch.equal(one[name], other[name]) for name in tensors)
        plain = global_topk(tensors, kept) if isinstance(kept, int) else layerwise_topk(tensors, kept)
        assert all(torch.equal(other[name], plain[name]) for name in tensors)


# through the methods


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 4)
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 4, 3, 3, generator=generator), torch.randint(4, (8,), generator=generator)


METHODS = {
    "acdc": lambda **o: ACDC(**o),
    "gmp": lambda **o: GMP(begin=0.1, end=0.3, interval=2, **o),
    "gmp_global": lambda **o: GMP(begin=0.1, end=0.3, interval=2, scope="global", **o),
    "snip": lambda **o: SNIP(batches=1, **o),
    "synflow": lambda **o: SynFlow(iterations=3, **o),
    "random": lambda **o: RandomPruning(allocation="uniform", **o),
    "rigl": lambda **o: RigL(allocation="uniform", interval=3, **o),
    "set": lambda **o: SET(allocation="uniform", interval=3, **o),
    "pilot": lambda **o: PILoT(prune_at=0.4, **o),
    "spred": lambda **o: Spred(finetune=0.6, finetune_lr=0.01, **o),
}


def train(sparsifier, *, ham: bool) -> tuple[list[bool], dict[str, Tensor]]:
    """Ten epochs of two steps with AdamW: whether the weights fit at each step, and the last masks."""
    model, epochs, steps = network(), 10, 2
    sparsifier.attach(model, total_epochs=epochs, steps_per_epoch=steps)
    optimizer = torch.optim.AdamW(sparsifier.param_groups(model.parameters()), lr=1e-2)
    if ham:
        HAM(optimizer, alpha=50.0, beta=1e-2, model=model)
    sparsifier.initialize([batch(99)], cross_entropy)
    seen = []
    for step in range(epochs * steps):
        if step % steps == 0:
            if step:
                sparsifier.on_epoch_end(train_accuracy=0.5)
            sparsifier.on_epoch_start(step // steps, optimizer)
        optimizer.zero_grad()
        images, labels = batch(step)
        cross_entropy(model(images), labels).backward()
        if sparsifier.after_backward(step, optimizer):
            sparsifier.add_decay()
            optimizer.step()
            sparsifier.after_step()
        kept = sparsifier.kept()
        for name, value in sparsifier.masks.values().items():
            assert not value[~kept[name]].any() or not sparsifier.masks.active, name
        if sparsifier.masks.active:
            seen.append(all(groups(mask, 4).sum(dim=1).eq(2).all() for mask in kept.values()))
    return seen, sparsifier.kept()


@pytest.mark.parametrize("method", METHODS)
def test_training_with_adamw_and_ham_keeps_exactly_two_of_four_inputs(method):
    ham = method not in ("pilot", "spred")  # these train factors
    sparsifier = METHODS[method](sparsity=0.5, granularity="2:4")
    seen, _ = train(sparsifier, ham=ham)
    if method.startswith("gmp"):
        assert not all(seen[:1]) and all(seen[4:])  # while it rises, at least two of four
    else:
        assert all(seen) and len(seen) >= 5
    assert sparsifier.achieved_sparsity() == 0.5


@pytest.mark.parametrize("method", METHODS)
def test_training_in_blocks_ends_with_entire_blocks(method):
    sparsifier = METHODS[method](sparsity=0.7, granularity="4x2")
    _, kept = train(sparsifier, ham=False)
    assert {count for mask in kept.values() for count in per_block(mask, 4, 2)} == {0, 8}
    on = sum(int(mask.sum()) for mask in kept.values()) / sum(mask.numel() for mask in kept.values())
    assert abs(on - 0.3) < 0.03  # 72 blocks of 8, 36 each
    if method in ("acdc", "gmp_global", "snip", "synflow", "pilot", "spred"):
        assert sparsifier.achieved_sparsity() == 1 - 21 / 72  # 72 - ceil(50.4)


@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize(("text", "sparsity"), [("2:4", 0.5), ("4x2", 0.7)])
def test_updates_of_structured_masks_drop_and_grow(method, text, sparsity):
    sparsifier = METHODS[method](sparsity=sparsity, granularity=text)
    sparsifier.attach(network(), total_epochs=1, steps_per_epoch=9)
    before = sparsifier.kept()
    for weight in sparsifier.masks.weights.values():
        weight.parameters[0].grad = torch.ones_like(weight.parameters[0])
    assert not sparsifier.after_backward(3, torch.optim.SGD(sparsifier.model.parameters(), lr=0.1))
    after = sparsifier.kept()
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert all(int(after[name].sum()) == int(before[name].sum()) for name in before)


# what does not fit


def test_layers_that_do_not_fit_are_listed_with_the_cure():
    model = nn.ModuleDict({"a": nn.Conv2d(3, 8, 3), "b": nn.Linear(8, 4), "c": nn.Linear(6, 4)})
    with pytest.raises(ValueError) as caught:
        ACDC(0.5, granularity="2:4").attach(model, total_epochs=1)
    assert str(caught.value) == (
        "granularity 2:4 needs inputs divisible by 4, unlike a.weight [8, 3, 3, 3], c.weight [4, 6]: "
        'keep them dense by exclude=["a.weight", "c.weight"]'
    )
    cured = ACDC(0.5, granularity="2:4", exclude=["a.weight", "c.weight"])
    cured.attach(model, total_epochs=1)
    with pytest.raises(ValueError, match=r"^granularity 16x2 needs outputs divisible by 16 and inputs by 2"):
        ACDC(0.5, granularity="16x2").attach(model, total_epochs=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ACDC(0.9, granularity="2:4"),
            "granularity 2:4 prunes 0.5 of each layer, got sparsity=0.9: set sparsity=0.5",
        ),
        (
            lambda: RandomPruning(0.5, granularity="2:4"),
            "granularity 2:4 keeps the same fraction of each layer: use allocation=uniform",
        ),
        (lambda: STR(0.5, granularity="2:4"), 'STR supports only granularity="element"'),
        (
            lambda: MaskFrom(0.5, source="a", granularity="4x4"),
            'MaskFrom supports only granularity="element"',
        ),
        *(
            (
                lambda text=text: ACDC(0.5, granularity=text),
                'granularity must be "element", "N:M" with N < M such as "2:4", or "RxC" such as "4x4", '
                f"got {text!r}",
            )
            for text in ("4:2", "4:4", "0:4", "4x", "blocks", "")
        ),
    ],
)
def test_what_cannot_be_is_one_line(make, message):
    with pytest.raises(ValueError) as caught:
        make().attach(network(), total_epochs=1, steps_per_epoch=4)
    assert str(caught.value) == message


def test_a_printed_sparsity_of_a_third_is_accepted():
    model = nn.Linear(6, 50)
    for sparsity in (1 / 3, 0.333333, 1 - 2 / 3):
        sparsifier = RandomPruning(sparsity, granularity="2:3", allocation="uniform")
        sparsifier.attach(model, total_epochs=1)
        assert groups(sparsifier.kept()["weight"], 3).sum(dim=1).eq(2).all()
        assert sparsifier.kept_target() == 200


# groups of convolutions, and unknown input dimensions


@pytest.mark.parametrize(
    ("layer", "fitting", "unfit"),
    [
        (nn.ConvTranspose2d(12, 12, 3, groups=6), "1:2", "2:4"),  # 2 inputs and 2 outputs each
        (nn.ConvTranspose2d(12, 12, 3, groups=6), "2x2", "2x4"),
        (nn.ConvTranspose2d(12, 12, 3, groups=6), "2x1", "4x1"),
        (nn.Conv2d(8, 8, 3, groups=4), "2x2", "4x2"),
        (nn.Conv2d(8, 8, 3, groups=4), "1:2", "2:4"),
        (nn.Conv1d(16, 4, 3, groups=2), "2x8", "4x8"),
    ],
    ids=str,
)
def test_no_unit_spans_two_groups_of_a_convolution(layer, fitting, unfit):
    RandomPruning(0.5, granularity=fitting, allocation="uniform").attach(layer, total_epochs=1)
    message = (
        rf"^granularity {unfit} needs .*, unlike weight \[.*\] in {layer.groups} groups: keep them dense"
    )
    with pytest.raises(ValueError, match=message):
        RandomPruning(0.5, granularity=unfit, allocation="uniform").attach(layer, total_epochs=1)


@pytest.mark.parametrize("unit", ["2:4", "4x4"])
def test_experts_that_do_not_state_their_layout_are_pruned_by_elements_only(unit):
    """Llama 4 stores [experts, inputs, outputs] and does not say so, unlike GPT-OSS and Mixtral."""
    pytest.importorskip("transformers")
    from transformers import Llama4TextConfig
    from transformers.models.llama4.modeling_llama4 import Llama4TextExperts

    experts = Llama4TextExperts(
        Llama4TextConfig(hidden_size=8, intermediate_size=12, num_local_experts=2, num_hidden_layers=1)
    )
    for parameter in experts.parameters():
        nn.init.normal_(parameter)
    with pytest.raises(
        ValueError, match=r"unlike gate_up_proj \[2, 8, 24\] whose input dimension is unknown"
    ):
        RandomPruning(0.5, granularity=unit, allocation="uniform").attach(experts, total_epochs=1)
    sparsifier = RandomPruning(0.5, allocation="uniform")
    sparsifier.attach(experts, total_epochs=1)
    assert sparsifier.achieved_sparsity() == 0.5
