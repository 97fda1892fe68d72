"""FLOPs of weights that a model uses outside their layer, at several lengths, or by several inputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from pruning import Dense, Product, SparsityWarning
from pruning.cost import cost, dense_flops
from pruning.prunable import prunable_weights


class Calls(nn.Module):
    """Layers by name, and a function of them and of the inputs."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        return self.function(self, *inputs, **named)


def flops(model: nn.Module, input_shape: Any, *include: str) -> dict[str, float]:
    return dense_flops(model, prunable_weights(model, include=include), input_shape, include)


def standardized(weight: Tensor) -> Tensor:
    return (weight - weight.mean()) / weight.std()


linear, conv = nn.Linear(8, 8), nn.Conv1d(4, 6, 3)
LIST = nn.ParameterList([torch.ones(8, 4), torch.ones(4, 3)])
BY_HAND: dict[str, tuple[Callable[..., Any], dict[str, nn.Module], Any, dict[str, int]]] = {
    # function, layers, shape of the input, multiply-adds
    "functional": (lambda m, x: F.linear(x, m.a.weight), {"a": linear}, (1, 10, 8), {"a.weight": 640}),
    "transposed": (lambda m, x: x @ m.a.weight, {"a": linear}, (1, 10, 8), {"a.weight": 640}),
    "einsum": (
        lambda m, x: torch.einsum("bti,oi->bto", x, m.a.weight),
        {"a": linear},
        (1, 10, 8),
        {"a.weight": 640},
    ),
    "called and functional": (
        lambda m, x: F.linear(m.a(x), m.a.weight),
        {"a": linear},
        (1, 10, 8),
        {"a.weight": 1280},
    ),
    "half of the rows": (
        lambda m, x: F.linear(x, m.a.weight[4:]),
        {"a": linear},
        (1, 10, 8),
        {"a.weight": 320},
    ),
    "a list": (lambda m, x: x @ m.a[0] @ m.a[1], {"a": LIST}, (1, 5, 8), {"a.0": 5 * 32, "a.1": 5 * 12}),
    "convolution": (lambda m, x: F.conv1d(x, m.a.weight), {"a": conv}, (1, 4, 9), {"a.weight": 72 * 7}),
    "by name": (lambda m, x: m.a(input=x), {"a": nn.ConvTranspose1d(4, 3, 2)}, (1, 4, 5), {"a.weight": 120}),
    "standardized": (
        lambda m, x: m.a(x),
        {
            "a": type("Standardized", (nn.Linear,), {"forward": lambda s, x: x @ standardized(s.weight).T})(
                8, 8
            )
        },
        (1, 10, 8),
        {"a.weight": 640},
    ),
    "a layer's output in a dict": (
        lambda m, x: m.a(x)["out"],
        {
            "a": type("Named", (nn.Linear,), {"forward": lambda s, x: {"out": x @ standardized(s.weight).T}})(
                8, 8
            )
        },
        (1, 10, 8),
        {"a.weight": 640},
    ),
    "batch of tokens": (
        lambda m, x: m.b(m.a(input=x)),
        {"a": nn.Embedding(5, 8), "b": nn.Linear(8, 2)},
        (1, 7),
        {"b.weight": 16 * 7},
    ),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_multiply_adds_by_hand(case):
    function, layers, shape, expected = BY_HAND[case]
    found = flops(Calls(function, **layers), shape, *(["a.*"] if case == "a list" else []))
    assert found == {name: 2 * count for name, count in expected.items()}


@pytest.mark.parametrize("factored", [False, True])
def test_the_weight_of_a_product_is_known_outside_its_layer(factored):
    model = Calls(lambda m, x: F.linear(m.a(x), m.b.weight), a=nn.Linear(8, 4), b=nn.Linear(4, 2))
    sparsifier = Dense()
    sparsifier.attach(model, total_epochs=1, parameterization=Product() if factored else None)
    assert dense_flops(model, sparsifier.masks.weights, (1, 5, 8)) == {
        "a.weight": 2 * 5 * 32,
        "b.weight": 2 * 5 * 8,
    }


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 4}])
def test_attention_counts_keys_and_values_at_their_own_length(bias, options):
    """Queries of length 2, keys and values of length 10."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True, bias=bias, **options)
    widths = options.get("kdim", 8), options.get("vdim", 8)
    model = Calls(lambda m, q, k, v: m.attention(q, k, v)[0], attention=attention)
    found = flops(model, ((1, 2, 8), (1, 10, widths[0]), (1, 10, widths[1])))
    counts = [2 * 8 * 8, 10 * widths[0] * 8, 10 * widths[1] * 8]
    out = {"attention.out_proj.weight": 2 * 2 * 8 * 8}
    if options:
        projections = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        assert found == out | {f"attention.{n}": 2 * c for n, c in zip(projections, counts, strict=True)}
    else:
        assert found == out | {"attention.in_proj_weight": 2816}
        assert sum(counts) * 2 == 2816


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}])
def test_recurrent_layers_count_each_step_once(kind, is_packed, options):
    """Of 7 steps; a packed sequence leaves 3 of them out."""

    def read(m: Calls, x: Tensor) -> Any:
        return m.a(pack_padded_sequence(x, torch.tensor([4])) if is_packed else x)

    layer = kind(3, 5, **options)
    found = flops(Calls(read, a=layer), (7, 1, 3))
    steps = 4 if is_packed else 7
    assert found == {f"a.{n}": 2 * steps * p.numel() for n, p in layer.named_parameters() if p.ndim == 2}


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: Calls(lambda m, x: checkpoint(m.a, x, use_reentrant=False), a=model),
    ],
    ids=["data_parallel", "compiled", "checkpointed"],
)
def test_a_wrapped_model_counts_as_the_plain_one(wrap):
    model = Calls(lambda m, x: F.linear(m.a(x), m.b.weight), a=nn.Linear(8, 4), b=nn.Linear(4, 2))
    assert [*flops(wrap(model), (1, 5, 8)).values()] == [2 * 5 * 32, 2 * 5 * 8]


# Several inputs


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        return scale * self.a(x) + self.b(y)


@pytest.mark.parametrize(
    "shape",
    [
        ((1, 3), (1, 5)),
        [(1, 3), [1, 5]],
        {"y": (1, 5), "x": (1, 3)},
        (torch.ones(1, 3), (1, 5)),
        {"x": torch.Size([1, 3]), "y": torch.ones(1, 5)},
    ],
    ids=["tuple", "list", "dict", "example", "mixed"],
)
def test_several_inputs_have_a_shape_each(shape):
    model = Two()
    assert flops(model, shape) == {"a.weight": 24, "b.weight": 40}
    assert cost(model, {"a.weight": 6}, shape).flops == 12 + 40
    sparsifier = Dense()
    sparsifier.attach(model, total_epochs=1)
    assert sparsifier.report(input_shape=shape).splitlines()[-1].endswith("64 FLOPs (1.0000 of dense)")


def test_an_example_is_an_input_of_its_own_values():
    model = Calls(lambda m, ids: m.b(m.a.weight[ids]), a=nn.Embedding(5, 4), b=nn.Linear(4, 2))
    assert flops(model, torch.tensor([[4, 0, 1]])) == {"b.weight": 2 * 8 * 3}


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((1, 3), "missing a required argument: 'y'"),
        ([1, 3], "missing a required argument: 'y'"),
        (((1, 3), (1, 5), (1,), (1,)), "too many positional arguments"),
        ({"x": (1, 3), "z": (1, 5)}, "missing a required argument: 'y'"),
    ],
)
def test_inputs_that_the_model_does_not_take_are_named(shape, why):
    with pytest.raises(TypeError) as error:
        cost(Two(), {}, shape)
    assert str(error.value) == (
        f"the model does not take these inputs ({why}): give a shape, or an example tensor, for each, such "
        "as input_shape=((1, 3), (1, 5)) or a dict by name"
    )


# Weights whose use is not seen


@pytest.mark.parametrize(
    ("function", "unused"),
    [
        (lambda m, x: m.a(x), "b.weight"),
        (lambda m, x: m.a(x) + standardized(m.b.weight).sum(), "b.weight"),
        (lambda m, x: x, "a.weight, b.weight"),
    ],
)
def test_weights_that_count_as_0_are_warned_of(function, unused):
    model = Calls(function, a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    with pytest.warns(SparsityWarning) as record:
        found = flops(model, (1, 3))
    assert str(record[0].message) == (
        f"the forward pass used {unused} in no layer, matrix product or convolution, so their FLOPs count as "
        "0: give inputs by which the model uses them, or add their FLOPs yourself"
    )
    assert [name for name, count in found.items() if count == 0] == re.split(", ", unused)


def test_of_many_weights_that_count_as_0_three_are_named():
    model = Calls(lambda m, x: x, **{name: nn.Linear(2, 2) for name in "abcde"})
    with pytest.warns(SparsityWarning, match=r"used a\.weight, b\.weight, c\.weight and 2 more in no layer"):
        flops(model, (1, 2))


@pytest.mark.filterwarnings("error::pruning.checks.SparsityWarning")
def test_an_embedding_that_is_looked_up_is_used():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    assert flops(model, (1, 3), "0.weight") == {"0.weight": 0, "1.weight": 48}
