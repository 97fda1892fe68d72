"""The fixture that starts ranks, as torchrun or srun would."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from launched_ranks import launcher

sys.path.append(str(Path(__file__).parent))  # sharded_training.py, beside the tests
launch = pytest.fixture(scope="module")(launcher)
