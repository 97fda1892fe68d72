"""Warnings for names that are kept for one release."""

from __future__ import annotations

import warnings


def warn_renamed(old: str, new: str) -> None:
    """Warn, at the caller of the deprecated function, that a name is deprecated."""
    warnings.warn(f"{old} is deprecated: use {new}", DeprecationWarning, stacklevel=3)
