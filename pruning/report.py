"""A sparsifier as a table: the kept weights of each layer, by the mask and in the model."""

from __future__ import annotations

import dataclasses
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .batches import InputShape
from .checks import check_model
from .cost import cost, dense_flops, mask_bits
from .parameterization import Plain

if TYPE_CHECKING:
    from .base import Sparsifier

WIDTH = 110
_LEGEND = "* empty: no weight of this layer is kept"


@dataclass(frozen=True)
class Layer:
    """One row of the table.

    Args:
        name: name of the weight.
        shape: shape of the weight, such as "64x3x7x7".
        size: number of entries of the weight.
        kept: number of entries that the mask keeps.
        zeros: number of entries of the model's weight that are zero, kept or not.
        flops: FLOPs of one input's forward pass with the entries that are not zero; None: not counted.
    """

    name: str
    shape: str
    size: int
    kept: int
    zeros: int
    flops: float | None = None

    @property
    def bytes(self) -> int:
        """4 per entry that is not zero, and one bit per entry where some are, as in `pruning.cost.Cost`."""
        return 4 * (self.size - self.zeros) + ceil(mask_bits(self.size - self.zeros, self.size) / 8)


def report(sparsifier: Sparsifier, input_shape: InputShape | None = None, *, bold: bool = False) -> str:
    """A table with a row per prunable weight and their total, at most 110 columns wide.

    A row has the number of entries of the weight, of those that the mask keeps, their fraction (density) and
    the number of zeros of the model's weight. Kept entries may be zero too: those that RigL has just grown. A
    method that has not set masks yet keeps all weights; STR keeps those above its thresholds. An empty layer
    is marked by `*`.

    Args:
        sparsifier: an attached sparsifier. The report makes two host syncs, one for each counted column.
        input_shape: see `pruning.cost.cost`, such as (1, 3, 224, 224). It adds the FLOPs and the bytes of the
            entries that are not zero, and the cost of the entire model.
        bold: True to print empty layers in bold, by ANSI codes.

    Raises:
        NotAttachedError: `attach` was not called.
        RuntimeError: a weight is no longer a parameter of the model, or has no values.
    """
    check_model(sparsifier.model, sparsifier.masks.weights, sparsifier._ties)
    layers = _layers(sparsifier, input_shape)
    total = Layer(
        "total",
        "",
        sum(layer.size for layer in layers),
        sum(layer.kept for layer in layers),
        sum(layer.zeros for layer in layers),
        None if input_shape is None else sum(layer.flops or 0.0 for layer in layers),
    )
    empty = [layer.kept == 0 for layer in layers]
    rows = [_cells(layer, marked) for layer, marked in zip(layers, empty, strict=True)]
    has_cost = input_shape is not None
    head = [
        "layer",
        "shape",
        "weights",
        "kept",
        "density",
        "zeros",
        *(["FLOPs", "bytes"] if has_cost else []),
    ]
    last = [*_cells(total, marked=False)]
    last[-1] = f"{sum(layer.bytes for layer in layers):,}" if has_cost else last[-1]
    lines = _align([head, *rows, last])
    if bold:
        lines[1:-1] = [
            f"\033[1m{line}\033[0m" if marked else line
            for line, marked in zip(lines[1:-1], empty, strict=True)
        ]
    legend = [_LEGEND] if any(empty) else []
    return "\n".join(
        [*_method_lines(sparsifier), *lines, *legend, *_model_lines(sparsifier, layers, input_shape)]
    )


def is_terminal() -> bool:
    """Return True if the standard output shows ANSI codes; False with the environment variable NO_COLOR."""
    return sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _layers(sparsifier: Sparsifier, input_shape: InputShape | None) -> list[Layer]:
    weights = sparsifier.masks.weights
    if any(weight.parameters[0].is_meta for weight in weights.values()):
        raise RuntimeError("the model is on the meta device and has no values to report: load it first")
    masks = sparsifier.kept()
    kept = _on_host((masks[name] != 0).sum() for name in weights)
    zeros = _on_host((weight.value == 0).sum() for weight in weights.values())
    flops: dict[str, float] = {}
    if input_shape is not None:
        flops = dense_flops(sparsifier.model, weights, input_shape, sparsifier._include)
    layers = []
    for (name, weight), on, off in zip(weights.items(), kept, zeros, strict=True):
        size, shape = weight.numel(), "x".join(str(length) for length in weight.shape)
        layer_flops = flops[name] * (size - off) / size if flops else None
        layers.append(Layer(name, shape, size, on, off, layer_flops))
    return layers


def _on_host(counts: Iterable[Tensor]) -> list[int]:
    """0-dim integer tensors, on any devices, as numbers: one host sync."""
    tensors = [_full(count) for count in counts]
    return [int(count) for count in torch.stack([t.to(tensors[0].device) for t in tensors]).tolist()]


def _full(count: Tensor) -> Tensor:
    """The sum over the shards of a DTensor; other tensors are returned unchanged."""
    gather: Callable[[], Tensor] | None = getattr(count, "full_tensor", None)
    return count if gather is None else gather()


def _cells(layer: Layer, marked: bool) -> list[str]:
    density = layer.kept / layer.size if layer.size else 0.0
    cells = [f"{layer.name}{' *' if marked else ''}", layer.shape, f"{layer.size:,}", f"{layer.kept:,}"]
    cells += [f"{density:.4f}", f"{layer.zeros:,}"]
    return cells if layer.flops is None else [*cells, f"{layer.flops:,.0f}", f"{layer.bytes:,}"]


def _align(table: list[list[str]]) -> list[str]:
    """The rows as lines: names and shapes to the left, numbers to the right, long names shortened."""
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    widths[0] = max(min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)), 9)
    lines = []
    for name, shape, *numbers in table:
        cells = [f"{_shorten(name, widths[0]):<{widths[0]}}", f"{shape:<{widths[1]}}"]
        cells += [f"{number:>{width}}" for number, width in zip(numbers, widths[2:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _shorten(name: str, width: int) -> str:
    """The name with its middle replaced by "..." where it is longer than `width`."""
    if len(name) <= width:
        return name
    tail = (width - 3 + 1) // 2
    return f"{name[: width - 3 - tail]}...{name[len(name) - tail :]}"


def _method_lines(sparsifier: Sparsifier) -> list[str]:
    """The method and its hyperparameters without empty ones, in lines of at most 110 columns."""
    parameterization = sparsifier.parameterization
    text = _describe(sparsifier)
    if type(parameterization) is not Plain and not sparsifier.reparametrizes:
        text += f", parameterization={_describe(parameterization)}"
    return textwrap.wrap(text, WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def _describe(method: Sparsifier | Plain) -> str:
    values = {field.name: getattr(method, field.name) for field in dataclasses.fields(method) if field.repr}
    shown = ", ".join(f"{name}={value}" for name, value in values.items() if value not in ([], ""))
    return f"{type(method).__name__}({shown})"


def _model_lines(
    sparsifier: Sparsifier, layers: Sequence[Layer], input_shape: InputShape | None
) -> list[str]:
    """Lines below the table: parameters that are never pruned, and the cost of the entire model."""
    model = sparsifier.model
    shown = {id(p) for weight in sparsifier.masks.weights.values() for p in weight.parameters}
    others = sum(p.numel() for p in model.parameters() if id(p) not in shown)
    lines = [f"other parameters, not pruned: {others:,}"]
    if input_shape is not None:
        nonzero = {layer.name: layer.size - layer.zeros for layer in layers}
        full = cost(model, nonzero, input_shape, sparsifier._include)
        lines.append(
            f"entire model: {full.parameters:,} parameters, {round(full.megabytes * 1e6):,} bytes, "
            f"{full.flops:,.0f} FLOPs ({full.flops_ratio:.4f} of dense)"
        )
    return lines
