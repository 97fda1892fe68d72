"""Methods that prune at initialization, on models that return several tensors or compute in one dtype."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pruning import GraSP, Sparsifier, SynFlow

Pair = namedtuple("Pair", ["logits", "hidden"])


class Network(nn.Module):
    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.pack = nn.Linear(4, 6), nn.Linear(6, 3), pack

    def forward(self, x: Tensor) -> Any:
        hidden = self.first(x).tanh()
        return self.pack(self.last(hidden), hidden)


RETURNED = {
    "tuple": (lambda logits, hidden: (logits, hidden), lambda outputs: outputs[0]),
    "named tuple": (Pair, lambda outputs: outputs.logits),
    "dict": (lambda logits, hidden: {"all": [logits], "cache": None}, lambda outputs: outputs["all"][0]),
    "labels too": (lambda logits, hidden: (logits.argmax(1), logits), lambda outputs: outputs[1]),
}


def kept(sparsifier: Sparsifier, model: nn.Module, loss_fn: Callable[..., Tensor]) -> Tensor:
    sparsifier.attach(model, total_epochs=1)
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 4, generator=draw), torch.randint(3, (8,), generator=draw)
    sparsifier.initialize([(x, y)], loss_fn)
    return torch.cat([mask.flatten() for mask in sparsifier.kept().values()])


@pytest.mark.parametrize("case", RETURNED)
@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_grasp_divides_each_tensor(case, temperature):
    pack, logits = RETURNED[case]
    expected = kept(GraSP(0.5, batches=1, temperature=temperature), Network(lambda a, b: a), cross_entropy)
    found = kept(
        GraSP(0.5, batches=1, temperature=temperature),
        Network(pack),
        lambda outputs, targets: cross_entropy(logits(outputs), targets),
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("pack", "summed"),
    [
        (lambda logits, hidden: (logits, hidden), lambda logits, hidden: torch.cat([logits, hidden], 1)),
        (lambda logits, hidden: {"a": logits, "b": [hidden]}, lambda *both: torch.cat(both, 1)),
        (lambda logits, hidden: (logits.argmax(1), logits, None), lambda logits, hidden: logits),
    ],
    ids=["tuple", "dict", "labels too"],
)
def test_synflow_sums_all_outputs(pack, summed):
    found, expected = (
        kept(SynFlow(0.5, iterations=3), Network(outputs), cross_entropy) for outputs in (pack, summed)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("make", "verb"), [(lambda: GraSP(0.5, batches=1), "divides"), (lambda: SynFlow(0.5), "sums")]
)
@pytest.mark.parametrize("kind", ["object", "tuple", "NoneType"])
def test_outputs_without_tensors_are_named(make, verb, kind):
    packs = {"object": lambda a, b: object(), "tuple": lambda a, b: ("a", 1.0), "NoneType": lambda a, b: None}
    with pytest.raises(ValueError) as error:
        kept(make(), Network(packs[kind]), cross_entropy)
    assert str(error.value) == (
        f"{type(make()).__name__} {verb} the outputs of the model, which returns {kind} without "
        "floating-point tensors: return tensors, alone or in tuples, lists and dicts, or choose SNIP"
    )


class Casting(Network):
    def __init__(self, cast: Callable[[Tensor], Tensor], layer: nn.Module) -> None:
        super().__init__(lambda logits, hidden: logits)
        self.cast, self.layer = cast, layer

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.layer(self.cast(x)).flatten(1))


@pytest.mark.parametrize(
    "layer", [nn.Linear(4, 4), nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 1, 1))]
)
@pytest.mark.parametrize("cast", [Tensor.float, Tensor.half, lambda x: x.to(torch.float32)])
def test_synflow_names_a_model_that_computes_in_one_dtype(cast, layer):
    with pytest.raises(ValueError) as error:
        kept(SynFlow(0.5), Casting(cast, layer), cross_entropy)
    message = str(error.value)
    assert message.startswith("SynFlow computes in float64, and the model's forward makes tensors of another")
    assert message.endswith("): remove x.float(), dtype=torch.float32 and the like, or choose SNIP")
    assert "\n" not in message


def test_other_errors_of_the_model_stay_as_they_are():
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        kept(SynFlow(0.5), Casting(lambda x: x[:, :2], nn.Linear(4, 4)), cross_entropy)
