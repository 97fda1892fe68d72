"""Comparison of the ranks of a run: their start values, and the states that they hold. No torch."""

from __future__ import annotations

import json
from typing import Any

Identity = dict[str, Any]
"""Start values of a rank: key -> plain value."""

SAME_START = "start all ranks with the same command and the same code"


class PeerLostError(Exception):
    """Another rank did not arrive, died or hangs; the message names rank and step."""


class StartError(Exception):
    """The ranks of a run were started differently; the message names both values and the cure.

    `shared` is True if rank 0 raises it too and prints it. Otherwise the rank that raises it does.
    """

    shared = False


class RanksDisagreeError(Exception):
    """The ranks of a run hold different states; the message names where they first differ."""


def difference(ours: Identity, theirs: Identity) -> str | None:
    """The first key whose values differ, with both values; None if there is no such key."""
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        if key not in ours or key not in theirs or ours[key] != theirs[key]:
            mine, other = (_describe(identity.get(key, "missing")) for identity in (ours, theirs))
            return f"{key} is {other} there and {mine} on rank 0"
    return None


def _describe(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def compare(identities: list[Identity], cure: str = SAME_START) -> str | None:
    """The error line for ranks that differ; None if all are alike.

    Args:
        identities: identity of each rank. One with the key "error" could not start.
        cure: the end of the line.
    """
    failed = [(rank, who["error"]) for rank, who in enumerate(identities) if "error" in who]
    if failed:
        (rank, error), count = failed[0], len({error for _, error in failed})
        same = len(failed) == len(identities) and count == 1
        return error if same else f"rank {rank} of {len(identities)}: {error}"
    for rank, identity in enumerate(identities[1:], start=1):
        if problem := difference(identities[0], identity):
            return f"rank {rank} differs from rank 0: {problem}; {cure}"
    return None
