"""The sparsifiers under contract, and a small training of each in the loop's order of effects."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ham import HAM, param_groups, perturbed
from pruning import (
    ACDC,
    GMP,
    SET,
    SNIP,
    STR,
    Dense,
    GraSP,
    MaskFrom,
    OneShotMagnitude,
    PILoT,
    Product,
    RandomPruning,
    RigL,
    Sparsifier,
    Spred,
    SynFlow,
)
from pruning.export import save_masks
from pruning.ranks import mean_over_ranks

EPOCHS, STEPS, BATCH = 8, 2, 32
LAST = EPOCHS * STEPS - 1
PARAMETERS = ("weight", "original", "original0", "original1")
RESETS = (3, 6)
"""Epochs of Sign-In's resets: every third, up to 3/4 of eight."""

TOTAL = 72 + 1152 + 640
"""Weights of `network`: [8, 1, 3, 3], [16, 8, 3, 3] and [10, 64]."""

# By hand at 80 %. All layers together: 1864 - ceil(1491.2) = 372. ERK: eps = (15 + 231 + 128) / (15 + 30 +
# 74) = 374 / 119, each layer ceil(eps * sum of its shape). Balanced: 372.8 / 3 > 72, so conv1 is dense and
# the others share 300.8. Each layer alone: N - ceil(.8 N) by magnitude, N - floor(.8 N) at random.
GLOBAL = 372
LAYERWISE = {"conv1.weight": 14, "conv2.weight": 230, "fc.weight": 128}
UNIFORM = {"conv1.weight": 15, "conv2.weight": 231, "fc.weight": 128}
ERK = {"conv1.weight": 48, "conv2.weight": 95, "fc.weight": 233}
BALANCED = {"conv1.weight": 72, "conv2.weight": 151, "fc.weight": 151}


@dataclass(frozen=True)
class Method:
    """A sparsifier and its expected behavior.

    Args:
        make: gets the path of a mask file.
        phases: per epoch "s" for sparse, "d" for dense, "t" for what learned thresholds leave, "g" for what
            a gradual schedule leaves.
        kept: weights that are on in a sparse epoch, of all layers or of each.
        fixed: the masks never change.
        updates: iterations that update the masks instead of an optimizer step.
        brief: trained with fewer optimizers, to save time; others of its kind have them all.
        plain: works on plain weights, and so beside other parameterizations.
    """

    make: Callable[[Path], Sparsifier]
    phases: str = "d" * EPOCHS
    kept: int | Mapping[str, int] = TOTAL
    fixed: bool = False
    updates: int = 0
    brief: bool = False
    plain: bool = True


METHODS = {
    "dense": Method(lambda masks: Dense()),
    "acdc": Method(lambda masks: ACDC(0.8), "ddsddsss", GLOBAL),
    "acdc_stale": Method(lambda masks: ACDC(0.8, revive="stale"), "ddsddsss", GLOBAL),
    "acdc_layerwise": Method(lambda masks: ACDC(0.8, scope="layerwise"), "ddsddsss", LAYERWISE),
    "rigl": Method(lambda masks: RigL(0.8, interval=3), "ssssssss", ERK, updates=3),
    "set": Method(lambda masks: SET(0.8, interval=5, until=0.9), "ssssssss", ERK, updates=2, brief=True),
    "gmp": Method(
        lambda masks: GMP(0.8, begin=0.25, end=0.45, interval=2), "ddggssss", LAYERWISE, brief=True
    ),
    "one_shot": Method(
        lambda masks: OneShotMagnitude(0.8, prune_at=0.7, finetune_lr=0.01), "dddddgss", GLOBAL, brief=True
    ),
    "random_erk": Method(lambda masks: RandomPruning(0.8), "ssssssss", ERK, fixed=True),
    "random_balanced": Method(
        lambda masks: RandomPruning(0.8, allocation="balanced"), "ssssssss", BALANCED, fixed=True
    ),
    "random_uniform": Method(
        lambda masks: RandomPruning(0.8, allocation="uniform"), "ssssssss", UNIFORM, fixed=True
    ),
    "snip": Method(lambda masks: SNIP(0.8, batches=2), "ssssssss", GLOBAL, fixed=True),
    "grasp": Method(lambda masks: GraSP(0.8, batches=2), "ssssssss", GLOBAL, fixed=True, brief=True),
    "synflow": Method(lambda masks: SynFlow(0.8, iterations=10), "ssssssss", GLOBAL, fixed=True),
    "mask_from": Method(lambda masks: MaskFrom(0.8, source=str(masks)), "ssssssss", ERK, fixed=True),
    "str": Method(lambda masks: STR(0.8, initial=-3, calibrate="ramp"), "tttttttt", plain=False),
    "pilot": Method(lambda masks: PILoT(0.8, prune_at=0.75), "ddddddss", GLOBAL, plain=False),
    "spred": Method(
        lambda masks: Spred(0.8, finetune=0.25, finetune_lr=0.01), "ddddddss", GLOBAL, plain=False
    ),
}

OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9),
    "nesterov": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=3e-3),
}
OPTIMIZERS["sam"] = OPTIMIZERS["sgd"]
OPTIMIZERS["sam_per_rank"] = OPTIMIZERS["sgd"]


@dataclass(frozen=True)
class Case:
    """One cell of the contract."""

    method: str
    product: bool = False
    optimizer: str = "sgd"
    ham: bool = False

    def __str__(self) -> str:
        parts = (self.method, "product" if self.product else "", self.optimizer, "ham" if self.ham else "")
        return "-".join(part for part in parts if part)

    @property
    def rule(self) -> Method:
        return METHODS[self.method]


CELLS = [
    (method, factored, ham)
    for method, rule in METHODS.items()
    for factored, ham in (
        (False, False),
        *([(True, False), (False, True), (True, True)] if rule.plain else []),
        *([(False, True)] if method == "str" else []),  # PILoT and spred train factors: no HAM on these
    )
]
CASES = [
    Case(method, optimizer=optimizer, product=factored, ham=ham)
    for method, factored, ham in CELLS
    for optimizer in ("sgd", "nesterov", "adamw", "sam")
    if not METHODS[method].brief or optimizer == "adamw" or (optimizer == "sam" and not (factored or ham))
]


def network(seed: int) -> nn.Sequential:
    """Two convolutions with BatchNorm and a linear layer, for gray images of 8x8 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = {
            "conv1": nn.Conv2d(1, 8, 3, padding=1, bias=False),
            "bn1": nn.BatchNorm2d(8),
            "relu1": nn.ReLU(),
            "pool1": nn.MaxPool2d(2),
            "conv2": nn.Conv2d(8, 16, 3, padding=1, bias=False),
            "bn2": nn.BatchNorm2d(16),
            "relu2": nn.ReLU(),
            "pool2": nn.MaxPool2d(2),
            "flatten": nn.Flatten(),
            "fc": nn.Linear(64, 10),
        }
        return nn.Sequential(OrderedDict(layers))


@cache
def digits(rank: int = 0, ranks: int = 1) -> list[tuple[Tensor, Tensor]]:
    """A batch of handwritten digits for every step; each rank has images of its own in it."""
    found = load_digits(n_class=10)
    images = torch.from_numpy(found.images[: (LAST + 1) * BATCH]).float().unsqueeze(1)
    images, classes = (images - images.mean()) / images.std(), torch.from_numpy(found.target).long()
    x, y = images.view(-1, BATCH, 1, 8, 8), classes[: len(images)].view(-1, BATCH)
    return list(zip(x[:, rank::ranks], y[:, rank::ranks], strict=True))


def write_masks(path: Path) -> None:
    """A mask file as a finished run leaves it, with the counts of ERK."""
    origin = RandomPruning(0.8)
    origin.attach(network(0), total_epochs=1, seed=77)
    save_masks(path, origin, {"exp": "random"})


def flat(prefix: str, item: Any) -> Iterator[tuple[str, bytes | str]]:
    """Every tensor's bytes and every plain value in nested dicts and lists, with its path."""
    if isinstance(item, Tensor):
        yield prefix, item.detach().contiguous().numpy().tobytes()
    elif isinstance(item, Mapping):
        for key, value in item.items():
            yield from flat(f"{prefix}.{key}", value)
    elif isinstance(item, list | tuple):
        for place, value in enumerate(item):
            yield from flat(f"{prefix}.{place}", value)
    else:
        yield prefix, repr(item)


class Training:
    """A model, its sparsifier and its optimizer, new or resumed from saved bytes.

    Args:
        case: what to train.
        masks: path of a mask file.
        data: batches, one for every step.
        saved: what `save` gave.
        wrap: what the model's forward pass goes through, such as DistributedDataParallel.
        seed: of the weights and of masks drawn at random.
    """

    def __init__(
        self,
        case: Case,
        masks: Path,
        *,
        data: list[tuple[Tensor, Tensor]],
        saved: bytes | None = None,
        wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
        seed: int = 0,
    ) -> None:
        self.case, self.data = case, data
        self.model, self.sparsifier = network(seed), case.rule.make(masks)
        self.sparsifier.attach(
            self.model,
            total_epochs=EPOCHS,
            steps_per_epoch=STEPS,
            seed=seed,
            parameterization=Product(decay=1e-4, reset_every=RESETS[0]) if case.product else None,
        )
        groups = param_groups(self.model, weight_decay=0.0 if case.optimizer == "sgd" else 0.01)
        self.optimizer = OPTIMIZERS[case.optimizer](self.sparsifier.param_groups(groups))
        if case.ham:
            if case.product:  # HAM sees gradients without decay
                self.sparsifier.parameterization.decoupled_decay = True
                self.optimizer.register_step_post_hook(self.sparsifier.parameterization.remove_decay)
            HAM(self.optimizer, alpha=50.0, beta=1e-2)
        self.forward = wrap(self.model)
        if saved is None:
            self.sparsifier.initialize(iter(data), cross_entropy)
        else:
            state = torch.load(io.BytesIO(saved), weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.sparsifier.load_state_dict(state["sparsifier"])

    def steps(self, start: int = 0) -> Iterator[tuple[str, int]]:
        """Train, and stop to be looked at: (what just happened, number of the step)."""
        params = list(self.model.parameters())
        for number in range(start, LAST + 1):
            epoch, place = divmod(number, STEPS)
            if place == 0:
                self.sparsifier.on_epoch_start(epoch, self.optimizer)
                yield "started", number
            with self.forward.no_sync() if self.case.optimizer == "sam_per_rank" else nullcontext():
                right = self._backward(number)
            stepping = self.sparsifier.after_backward(number, self.optimizer)
            if stepping:
                if self.case.optimizer.startswith("sam"):
                    with perturbed(params, rho=0.05, freeze_bn=self.model):
                        self._backward(number)
                        self.sparsifier.mask_gradients()
                        yield "perturbed", number
                self.sparsifier.add_decay()
                self.optimizer.step()
                self.sparsifier.after_step()
            yield ("stepped" if stepping else "updated"), number
            self.optimizer.zero_grad()
            if place == STEPS - 1:
                self.sparsifier.on_epoch_end(train_accuracy=float(mean_over_ranks(right)))
                yield "ended", number
        self.sparsifier.on_end()

    def _backward(self, number: int) -> Tensor:
        """Add to the gradients; returns the share of the batch classified right."""
        images, classes = self.data[number]
        logits = self.forward(images)
        cross_entropy(logits, classes).backward()
        return (logits.detach().argmax(dim=1) == classes).float().mean()

    def values(self) -> dict[str, Tensor]:
        """The prunable weights as the network computes with them."""
        layers = {name: getattr(self.model, name) for name in ("conv1", "conv2", "fc")}
        return {f"{name}.weight": layer.weight.detach().clone() for name, layer in layers.items()}

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The trained tensors behind one of `values`, the weight itself or m and w."""
        layer = name.removesuffix(".weight")
        found = self.model.get_submodule(layer).named_parameters()
        return [
            p for key, p in found if key == "weight" or key.startswith("parametrizations.weight.original")
        ]

    def kept(self) -> dict[str, Tensor]:
        return {name: mask.clone() for name, mask in self.sparsifier.kept().items()}

    def save(self) -> bytes:
        file = io.BytesIO()
        parts = ("model", "optimizer", "sparsifier")
        torch.save({name: getattr(self, name).state_dict() for name in parts}, file)
        return file.getvalue()

    def fingerprint(self) -> dict[str, bytes | str]:
        """Everything that decides how the training continues, to the bit."""
        parts = ("model", "optimizer", "sparsifier")
        return dict(entry for name in parts for entry in flat(name, getattr(self, name).state_dict()))
