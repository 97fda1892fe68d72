"""Lets the tests of this folder import tests/simulated, the contract behind it and benchmarks/."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / "simulated"), str(TESTS / "pruning"), str(TESTS.parent / "benchmarks")]
