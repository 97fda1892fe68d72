"""A step's time on a GPU that is limited by its memory or by the launches of its kernels, from counts."""

from __future__ import annotations

from collections.abc import Mapping

GPUS = {"A100 40 GB": 1555, "A100 80 GB": 2039, "H100 SXM": 3352}
"""GPU -> GB/s of its memory, as NVIDIA's data sheets state them (SXM)."""

LAUNCH_US = 2.5
"""Microseconds between the starts of two kernels, assumed: launches from a stream on a current host."""


def milliseconds(count: Mapping[str, int], gpu: str, launch_us: float = LAUNCH_US) -> float:
    """The larger of bytes / bandwidth and launches * launch cost.

    Arithmetic is left out, so the time of a model's matrix products is a lower bound.

    Args:
        count: launches, and bytes read and written.
        gpu: a key of GPUS.
        launch_us: cost of a launch in microseconds.
    """
    memory = (count["read"] + count["written"]) / GPUS[gpu] / 1e6
    return max(memory, count["launches"] * launch_us / 1e3)
