"""Lets the tests of this folder import the trainings of tests/simulated, and the contract behind them."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / "simulated"), str(TESTS / "pruning")]
