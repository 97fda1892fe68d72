"""Which machine this is, and since when its processes run, as Linux's /proc says. No torch."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from .regular_files import read_text


@cache
def machine() -> str | None:
    """Processes with the same value see each other's numbers; None where that is unknown."""
    try:
        boot = read_text("/proc/sys/kernel/random/boot_id").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def started(pid: Any) -> str | None:
    """When a process of this machine started, in ticks since the boot; None if it is dead."""
    try:
        status = read_text(f"/proc/{pid}/stat", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if not status or status[0] in "ZX" else status[19]


def is_running(pid: Any, start: Any) -> bool | None:
    """Return True if the process that started then still runs; None if /proc hides those of other users."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    if (current := started(pid)) is not None:
        return current == start
    try:
        os.kill(pid, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return None
    return False  # a zombie


def age_of_process(pid: int) -> float | None:
    """Seconds since a process of this machine started; None if it is dead or the time is unknown."""
    ticks = started(pid)
    try:
        uptime = float(read_text("/proc/uptime").split()[0])
        return None if ticks is None else uptime - int(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
