"""Lets the tests of this folder import what is beside them, benchmarks/ and tests/pruning/contract.py."""

import sys
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path += [str(folder) for folder in (FOLDER, FOLDER.parent / "pruning", FOLDER.parents[1] / "benchmarks")]
