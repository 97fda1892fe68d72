"""How much the longest tests do: by default a fixed part of their cases, with HAM_TESTS=all every one."""

from __future__ import annotations

import os

ALL = os.environ.get("HAM_TESTS") == "all"
