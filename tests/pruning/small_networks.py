"""Networks of a few dozen weights, one for each way in which a model holds its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BATCH, CLASSES, TOKENS = 6, 4, 7


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class LanguageModel(nn.Module):
    """An embedding, a layer, and a head that shares the embedding's weight where it is tied."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Embedding(TOKENS, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, TOKENS, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.embed(x)).relu().mean(1))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def convolutional() -> nn.Sequential:
    layers = (
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )
    return nn.Sequential(*layers)


def shared() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, CLASSES))
    model[2].weight = model[0].weight
    return model


def normed() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, CLASSES))
    nn.utils.parametrizations.weight_norm(model[2])
    return model


def frozen() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, CLASSES))
    model[0].requires_grad_(False)
    return model


@dataclass(frozen=True)
class Network:
    """A model, its inputs and what a sparsifier finds in it.

    Args:
        make: a new model from torch's random stream.
        inputs: shape without the batch dimension.
        prunable: the names of its prunable weights.
        tokens: the inputs are token ids.
        include: globs given to `attach`.
        exclude: globs given to `attach`.
        takes_masks: False: a weight is computed, and attach raises.
        takes_factors: False: a weight cannot be parametrized, and attach raises.
    """

    make: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    prunable: tuple[str, ...]
    tokens: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    takes_masks: bool = True
    takes_factors: bool = True

    def build(self, seed: int) -> nn.Module:
        """The model of a seed."""
        torch.manual_seed(seed)
        return self.make()

    def batch(self, seed: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of a seed."""
        generator = torch.Generator().manual_seed(seed)
        shape = (BATCH, *self.inputs)
        x = torch.randint(TOKENS, shape, generator=generator) if self.tokens else None
        y = torch.randint(CLASSES, (BATCH,), generator=generator)
        return (torch.randn(shape, generator=generator) if x is None else x), y


NETWORKS = {
    "mlp": Network(mlp, (6,), ("0.weight", "2.weight")),
    "mlp_excluded": Network(mlp, (6,), ("0.weight",), exclude=("2.*",)),
    "convolutional": Network(convolutional, (1, 4, 4), ("0.weight", "4.weight")),
    "attention": Network(
        Attention, (3, 8), ("attention.in_proj_weight", "attention.out_proj.weight", "head.weight")
    ),
    "recurrent": Network(
        Recurrent,
        (3, 4),
        ("lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"),
        takes_factors=False,
    ),
    "recurrent_excluded": Network(Recurrent, (3, 4), ("head.weight",), exclude=("lstm.*",)),
    "shared": Network(shared, (6,), ("0.weight", "3.weight"), takes_factors=False),
    "shared_excluded": Network(shared, (6,), ("3.weight",), exclude=("0.weight",)),
    "normed": Network(
        normed, (6,), ("0.weight", "2.weight", "3.weight"), takes_masks=False, takes_factors=False
    ),
    "normed_excluded": Network(normed, (6,), ("0.weight", "3.weight"), exclude=("2.weight",)),
    "frozen": Network(frozen, (6,), ("2.weight", "3.weight")),
    "embedding": Network(
        lambda: LanguageModel(tied=False), (3,), ("hidden.weight", "head.weight"), tokens=True
    ),
    "embedding_included": Network(
        lambda: LanguageModel(tied=False),
        (3,),
        ("embed.weight", "hidden.weight", "head.weight"),
        tokens=True,
        include=("embed.*",),
    ),
    "tied": Network(lambda: LanguageModel(tied=True), (3,), ("hidden.weight",), tokens=True),
    "tied_included": Network(
        lambda: LanguageModel(tied=True),
        (3,),
        ("embed.weight", "hidden.weight"),
        tokens=True,
        include=("embed.weight",),
        takes_factors=False,
    ),
}
