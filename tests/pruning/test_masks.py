from __future__ import annotations

import io
import pickle
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from pruning import MaskSet
from pruning.optimizer_state import fill_second_moments_, reset_first_moments_
from pruning.prunable import prunable_weights
from pruning.weights import Weight

INF, NAN = float("inf"), float("nan")

# optimizer, options, and its state per weight: first moments, second moments, others
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}, ["momentum_buffer"], [], []),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, ["momentum_buffer"], [], []),
    "adam": (torch.optim.Adam, {}, ["exp_avg"], ["exp_avg_sq"], []),
    "adamw": (torch.optim.AdamW, {"amsgrad": True}, ["exp_avg"], ["exp_avg_sq", "max_exp_avg_sq"], []),
    "adamw fused": (torch.optim.AdamW, {"fused": True}, ["exp_avg"], ["exp_avg_sq"], []),
    "nadam": (torch.optim.NAdam, {}, ["exp_avg"], ["exp_avg_sq"], []),
    "adamax": (torch.optim.Adamax, {}, ["exp_avg"], ["exp_inf"], []),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9}, ["momentum_buffer"], ["square_avg"], []),
    "rmsprop centered": (torch.optim.RMSprop, {"centered": True}, ["grad_avg"], ["square_avg"], []),
    "adagrad": (torch.optim.Adagrad, {}, [], ["sum"], []),
    "adadelta": (torch.optim.Adadelta, {}, [], ["square_avg"], ["acc_delta"]),
}


def bits(tensor: Tensor) -> list[int]:
    """The floats as integers, so that +0.0, -0.0 and every nan differ; +0.0 is 0."""
    return tensor.detach().contiguous().view(torch.int32).flatten().tolist()


def two_layers(a: list[float] | None = None, b: list[float] | None = None) -> dict[str, nn.Parameter]:
    return {
        "a": nn.Parameter(torch.tensor(a or [1.0, -2.0, 3.0, -4.0])),
        "b": nn.Parameter(torch.tensor(b or [-5.0, 6.0, -7.0, 8.0]).view(2, 2)),
    }


KEPT = {"a": torch.tensor([True, False, False, True]), "b": torch.tensor([[False, True], [True, False]])}
PRUNED = {"a": [1, 2], "b": [0, 3]}


def masked(weights: dict[str, nn.Parameter]) -> MaskSet:
    masks = MaskSet(weights)
    masks.set(KEPT)
    return masks


@pytest.mark.parametrize("value", [1.5, -2.5, 0.0, -0.0, INF, -INF, NAN, 1e-45])
def test_pruned_weights_become_positive_zero_and_kept_ones_stay(value):
    weights = two_layers([value] * 4, [value] * 4)
    before = bits(weights["a"])[0]
    masked(weights).apply_to_weights_()
    assert bits(weights["a"]) == [before, 0, 0, before]
    assert bits(weights["b"]) == [0, before, before, 0]


@pytest.mark.parametrize("value", [1.5, -0.0, INF, NAN])
def test_pruned_gradients_become_positive_zero_and_kept_ones_stay(value):
    weights = two_layers()
    weights["a"].grad = torch.full((4,), value)
    before = bits(weights["a"].grad)[0]
    masked(weights).apply_to_gradients_()
    assert bits(weights["a"].grad) == [before, 0, 0, before]
    assert weights["b"].grad is None
    assert weights["a"].tolist() == [1.0, -2.0, 3.0, -4.0]


def test_while_inactive_nothing_is_masked():
    weights = two_layers()
    optimizer = torch.optim.SGD(weights.values(), lr=0.0, momentum=0.9)
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    masks = MaskSet(weights)
    masks.apply_to_weights_()
    masks.apply_to_gradients_()
    masks.apply_to_optimizer_(optimizer)
    assert not masks.active
    assert weights["a"].tolist() == [1.0, -2.0, 3.0, -4.0]
    assert all(
        (w.grad == 1).all() and (optimizer.state[w]["momentum_buffer"] == 1).all() for w in weights.values()
    )
    assert list(masks.counts()) == [("a", 4, 4), ("b", 4, 4)]


def trained(kind: str) -> tuple[dict[str, nn.Parameter], nn.Parameter, torch.optim.Optimizer]:
    """Two layers, a bias that is never pruned, and an optimizer two steps old, moments nowhere zero."""
    make, options, *_ = OPTIMIZERS[kind]
    weights, bias = two_layers(), nn.Parameter(torch.ones(4))
    optimizer = make([*weights.values(), bias], lr=0.01, **options)
    for step in (1.0, 2.0):
        for p in (*weights.values(), bias):
            p.grad = torch.arange(1.0, 5.0).view_as(p) * step
        optimizer.step()
    return weights, bias, optimizer


def states(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, dict[str, Tensor]]:
    return {
        p: {k: v.clone() for k, v in state.items() if isinstance(v, Tensor)}
        for p, state in optimizer.state.items()
    }


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizer_state_is_zeroed_at_pruned_places_only(kind):
    _, _, first, second, others = OPTIMIZERS[kind]
    weights, bias, optimizer = trained(kind)
    before = states(optimizer)
    masked(weights).apply_to_optimizer_(optimizer)
    for name, weight in weights.items():
        for key in (*first, *second, *others):
            old = bits(before[weight].pop(key))
            assert 0 not in old
            expected = [0 if i in PRUNED[name] else value for i, value in enumerate(old)]
            assert bits(optimizer.state[weight].pop(key)) == expected
    assert before[bias].keys() == {*first, *second, *others} | before[weights["a"]].keys()
    for p, state in before.items():  # the bias and the step counters
        assert all(torch.equal(optimizer.state[p][key], old) for key, old in state.items())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_reset_zeroes_the_first_moments_of_every_parameter(kind):
    _, _, first, second, others = OPTIMIZERS[kind]
    _, _, optimizer = trained(kind)
    before = states(optimizer)
    reset_first_moments_(optimizer)
    for p, state in before.items():
        assert {*first, *second, *others} <= state.keys()
        for key, old in state.items():
            assert (old != 0).all()
            assert torch.equal(optimizer.state[p][key], torch.zeros(p.shape) if key in first else old), key


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_fill_gives_revived_weights_the_mean_second_moment_of_active_ones(kind):
    _, _, _, second, _ = OPTIMIZERS[kind]
    weights, bias, optimizer = trained(kind)
    masks = masked(weights)
    masks.apply_to_optimizer_(optimizer)
    for weight in weights.values():
        for key in second:  # a: pruned 1, 2; b: pruned 0, 3
            optimizer.state[weight][key].copy_(torch.tensor([1.0, 7.0, 9.0, 4.0]).view_as(weight))
    before = states(optimizer)
    fill_second_moments_(optimizer, masks)
    for weight, expected in ((weights["a"], [1.0, 2.5, 2.5, 4.0]), (weights["b"], [8.0, 7.0, 9.0, 8.0])):
        for key, old in before[weight].items():
            new = optimizer.state[weight][key]
            assert new.flatten().tolist() == expected if key in second else torch.equal(new, old), key
    assert all(torch.equal(optimizer.state[bias][key], old) for key, old in before[bias].items())


def test_an_entirely_pruned_layer_is_revived_with_the_mean_over_all_layers():
    weights, _, optimizer = trained("adam")
    masks = MaskSet(weights)
    masks.set({"a": torch.zeros(4, dtype=torch.bool), "b": KEPT["b"]})
    masks.apply_to_optimizer_(optimizer)
    second = {name: optimizer.state[weight]["exp_avg_sq"] for name, weight in weights.items()}
    second["b"].copy_(torch.tensor([0.0, 7.0, 9.0, 0.0]).view_as(second["b"]))  # b: pruned 0, 3
    fill_second_moments_(optimizer, masks)
    assert second["a"].flatten().tolist() == [8.0] * 4


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_with_clean_state_no_step_moves_a_pruned_weight(kind):
    make, options, *_ = OPTIMIZERS[kind]
    weights = two_layers()
    optimizer = make(weights.values(), lr=0.01, weight_decay=0.1, **options)
    masks = masked(weights)

    def step(number: int) -> None:
        for weight in weights.values():
            weight.grad = torch.tensor([1.0, -2.0, 3.0, -4.0]).view_as(weight) * (-1) ** number
        masks.apply_to_gradients_()
        optimizer.step()

    masks.clear()
    for number in range(3):
        step(number)
    masks.set(KEPT)
    masks.apply_to_weights_()
    masks.apply_to_optimizer_(optimizer)
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    for number in range(5):
        step(number)
    for name, weight in weights.items():
        assert [bits(weight)[i] for i in PRUNED[name]] == [0, 0]
        assert torch.equal(weight != start[name], KEPT[name])


def test_an_optimizer_without_state_is_left_without():
    weights = two_layers()
    optimizer = torch.optim.SGD(weights.values(), lr=0.1, momentum=0.9)
    masked(weights).apply_to_optimizer_(optimizer)
    assert len(optimizer.state) == 0


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"a": KEPT["a"]}, "differ in names.*'b'"),
        ({**KEPT, "c": KEPT["a"]}, "differ in names.*'c'"),
        ({"a": KEPT["a"], "B": KEPT["b"]}, "differ in names: no mask for ..b.."),
        ({"a": KEPT["a"], "b": KEPT["b"].flatten()}, r"mask of b must have .* shape \(2, 2\), got \(4,\)"),
        ({"a": torch.tensor(True), "b": KEPT["b"]}, r"mask of a must have .* shape \(4,\), got \(\)"),
    ],
    ids=["missing", "extra", "misnamed", "flat", "scalar"],
)
def test_masks_that_do_not_fit_raise(kept, message):
    masks = MaskSet(two_layers())
    with pytest.raises(ValueError, match=message):
        masks.set(kept)
    assert not masks.active
    with pytest.raises(ValueError, match=message):
        masks.load_state_dict({"kept": kept})
    assert not masks.active
    with pytest.raises(ValueError, match=message):
        masks.load_state_dict({name: ~mask for name, mask in kept.items()})  # as older versions wrote it
    assert not masks.active


def test_counts():
    assert list(masked(two_layers()).counts()) == [("a", 2, 4), ("b", 2, 4)]
    masks = MaskSet(two_layers())
    masks.set({"a": torch.tensor([True, True, True, False]), "b": torch.zeros(2, 2, dtype=torch.bool)})
    assert list(masks.counts()) == [("a", 3, 4), ("b", 0, 4)]


def test_clear_turns_all_on_and_leaves_the_values():
    weights = two_layers()
    masks = masked(weights)
    masks.apply_to_weights_()
    masks.clear()
    assert not masks.active
    assert weights["a"].tolist() == [1.0, 0.0, 0.0, -4.0]
    assert list(masks.counts()) == [("a", 4, 4), ("b", 4, 4)]
    with torch.no_grad():
        weights["a"].fill_(9.0)
    masks.apply_to_weights_()
    assert weights["a"].tolist() == [9.0] * 4


def test_set_replaces_the_masks_before():
    weights = two_layers()
    masks = masked(weights)
    masks.set({name: ~mask for name, mask in KEPT.items()})
    masks.apply_to_weights_()
    assert weights["a"].tolist() == [0.0, -2.0, 3.0, 0.0]
    assert weights["b"].flatten().tolist() == [-5.0, 0.0, 0.0, 8.0]


def test_state_dict_round_trip_through_a_file():
    file = io.BytesIO()
    torch.save(masked(two_layers()).state_dict(), file)
    file.seek(0)
    weights = two_layers()
    masks = MaskSet(weights)
    masks.load_state_dict(torch.load(file, weights_only=True))
    masks.apply_to_weights_()
    assert masks.active
    assert weights["a"].tolist() == [1.0, 0.0, 0.0, -4.0]
    assert weights["b"].flatten().tolist() == [0.0, 6.0, -7.0, 0.0]


def test_the_state_dict_of_inactive_masks_turns_all_on():
    masks = masked(two_layers())
    masks.load_state_dict(MaskSet(two_layers()).state_dict())
    assert not masks.active


def test_a_state_dict_is_no_view_of_later_masks():
    masks = masked(two_layers())
    state = masks.state_dict()
    masks.clear()
    masks.load_state_dict(state)
    assert list(masks.counts()) == [("a", 2, 4), ("b", 2, 4)]


def test_masks_are_true_where_a_weight_is_kept():
    masks = masked(two_layers())
    assert masks.masks.keys() == KEPT.keys()
    assert all(torch.equal(masks.masks[name], mask) for name, mask in KEPT.items())
    assert all(torch.equal(masks.kept()[name], mask) for name, mask in KEPT.items())
    state = masks.state_dict()
    assert all(torch.equal(state["kept"][name], mask) for name, mask in KEPT.items())
    masks.clear()
    assert (masks.masks, masks.state_dict()) == ({}, {"kept": {}})
    assert all(mask.all() for mask in masks.kept().values())


def test_what_kept_returns_is_a_copy():
    masks = masked(two_layers())
    masks.kept()["a"].fill_(False)
    assert torch.equal(masks.masks["a"], KEPT["a"])


@pytest.mark.parametrize("rename", [{}, {"a": "kept"}, {"a": "kept", "b": "b.kept"}], ids=str)
def test_a_state_with_pruned_positions_of_an_older_version_is_inverted(rename):
    """Even where a weight has the name of the new layout's key."""
    weights = {rename.get(name, name): weight for name, weight in two_layers().items()}
    kept = {rename.get(name, name): mask for name, mask in KEPT.items()}
    old = MaskSet(weights)
    old.load_state_dict({name: ~mask for name, mask in kept.items()})
    new = MaskSet(weights)
    new.load_state_dict(old.state_dict())
    for masks in (old, new):
        assert masks.masks.keys() == kept.keys()
        assert all(torch.equal(masks.masks[name], mask) for name, mask in kept.items())


def test_an_older_state_of_inactive_masks_turns_all_on():
    masks = masked(two_layers())
    masks.load_state_dict({})
    assert not masks.active


def test_the_pruned_positions_are_deprecated():
    masks = masked(two_layers())
    with pytest.warns(DeprecationWarning, match="MaskSet.masks") as caught:
        pruned = masks.pruned
    assert caught[0].filename == __file__
    assert all(torch.equal(pruned[name], ~mask) for name, mask in KEPT.items())


@pytest.mark.parametrize("mask_format", [torch.contiguous_format, torch.channels_last])
def test_channels_last_weights_are_pruned_at_the_right_places(mask_format):
    values = torch.arange(1.0, 25.0).view(2, 3, 2, 2)
    weight = nn.Parameter(values.to(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD([weight], lr=0.0, momentum=0.9)
    weight.grad = values.to(memory_format=torch.channels_last)
    optimizer.step()
    masks = MaskSet({"w": weight})
    masks.set({"w": (values % 3 != 0).to(memory_format=mask_format)})
    masks.apply_to_weights_()
    masks.apply_to_gradients_()
    masks.apply_to_optimizer_(optimizer)
    expected = [0.0 if i % 3 == 0 else float(i) for i in range(1, 25)]
    for tensor in (weight, weight.grad, optimizer.state[weight]["momentum_buffer"]):
        assert tensor.flatten().tolist() == expected
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert list(masks.counts()) == [("w", 16, 24)]
    assert masks.masks["w"].stride() == weight.stride()  # masked in one sweep through memory


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]
)
def test_masks_follow_a_model_that_changes_its_dtype(dtype):
    layer = nn.Linear(4, 2, bias=False)
    masks = MaskSet({"w": Weight(layer, "weight")})
    kept = torch.tensor([[True, False, True, False], [False, False, True, True]])
    for change in (lambda: layer.to(dtype), lambda: layer.float(), lambda: layer.to(dtype)):
        masks.set({"w": kept})
        masks.apply_to_weights_()
        change()
        with torch.no_grad():
            layer.weight.fill_(NAN)
        layer.weight.grad = torch.full_like(layer.weight, INF)
        masks.apply_to_weights_()
        masks.apply_to_gradients_()
        for tensor in (layer.weight.detach(), layer.weight.grad):
            assert torch.equal(tensor == 0, ~kept)


@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state", [torch.float64, torch.float32, torch.bfloat16, torch.bool])
def test_state_of_another_size_than_the_weight_is_zeroed_too(weight, state):
    """As that of optimizers which keep float32 for weights of another dtype."""
    parameter = nn.Parameter(torch.ones(2, 2, dtype=weight))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.state[parameter]["momentum_buffer"] = torch.ones(2, 2, dtype=state)
    masks = MaskSet({"w": parameter})
    masks.set({"w": KEPT["b"]})
    masks.apply_to_optimizer_(optimizer)
    assert torch.equal(optimizer.state[parameter]["momentum_buffer"] != 0, KEPT["b"])


# the bytes that are loaded were written on the same line
@pytest.mark.parametrize("copy", [deepcopy, lambda masks: pickle.loads(pickle.dumps(masks))])
def test_a_copy_masks_its_own_weights(copy):
    weights = two_layers()
    masks = masked(weights)
    masks.apply_to_weights_()
    other = copy(masks)
    with torch.no_grad():
        for weight in (*weights.values(), *(w.parameters[0] for w in other.weights.values())):
            weight.fill_(2)
    other.apply_to_weights_()
    assert [int(w.parameters[0].count_nonzero()) for w in other.weights.values()] == [2, 2]
    assert all((weight == 2).all() for weight in weights.values())
    assert not any(part for name, part in other.__getstate__().items() if name in ("_multipliers", "_fills"))


def test_masks_stay_where_the_weights_stay_and_follow_them_elsewhere():
    layer = nn.Linear(2, 2, bias=False)
    masks = MaskSet({"w": Weight(layer, "weight")})
    masks.set({"w": KEPT["b"]})
    first = masks.masks["w"]
    masks.apply_to_weights_()
    assert masks.masks["w"] is first
    layer.to("meta")
    assert masks.masks["w"].is_meta and masks.empty() == []
    layer.to_empty(device="cpu")
    with pytest.raises(RuntimeError) as error:
        masks.apply_to_weights_()
    assert str(error.value) == (
        "the mask of w was made on the meta device and has no values: attach the sparsifier after "
        "model.to_empty(device=...)"
    )


def test_layers_of_which_nothing_is_kept_are_named():
    masks = MaskSet(two_layers())
    assert masks.empty() == []
    masks.set({"a": torch.zeros(4, dtype=torch.bool), "b": torch.tensor([[False, False], [True, False]])})
    assert masks.empty() == ["a"]
    masks.set({"a": torch.zeros(4, dtype=torch.bool), "b": torch.zeros(2, 2, dtype=torch.bool)})
    assert masks.empty() == ["a", "b"]


@pytest.mark.parametrize(
    ("mask", "kind"),
    [([True] * 4, "list"), (torch.ones(4), "torch.float32"), (torch.ones(4).int(), "torch.int32")],
)
def test_masks_of_another_kind_are_refused(mask, kind):
    with pytest.raises(ValueError) as error:
        MaskSet(two_layers()).set({**KEPT, "a": mask})
    assert str(error.value) == (f"the mask of a must be a bool tensor, got {kind}: use (scores > threshold)")


def test_up_to_three_names_that_differ_are_listed():
    weights = {name: nn.Parameter(torch.ones(1)) for name in "edcba"}
    one = torch.ones(1, dtype=torch.bool)
    for given, listed in (
        ({}, "no mask for ['a', 'b', 'c']"),
        (dict.fromkeys("abcdexyzw", one), "['w', 'x', 'y'] are not prunable weights"),
    ):
        with pytest.raises(ValueError) as error:
            MaskSet(weights).set(given)
        assert str(error.value) == (
            f"masks and weights differ in names: {listed}; pass one mask per name in kept()"
        )


def test_sparse_gradients_take_no_mask():
    weights = two_layers()
    masks = masked(weights)
    weights["b"].grad = torch.ones(2, 2).to_sparse()
    with pytest.raises(
        ValueError, match=r"^a weight has sparse gradients, which cannot be masked: set sparse=False"
    ):
        masks.apply_to_gradients_()


def test_what_follows_from_a_mask_is_kept_from_step_to_step_and_made_again_for_another_dtype():
    model = nn.Linear(3, 2)
    masks = MaskSet(prunable_weights(model))
    masks.set({"weight": torch.tensor([[True, False, True], [False, True, True]])})
    (first,), (again,) = ([part for _, part, _ in masks._trained_tensors()] for _ in range(2))
    assert again is first and first.dtype == torch.int32
    model.double()
    ((_, other, _),) = masks._trained_tensors()
    assert other.dtype == torch.int64 and other.tolist() == [[1, 0, 1], [0, 1, 1]]
