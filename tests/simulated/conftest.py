"""Lets the tests of this folder import the files beside them and tests/pruning/contract.py."""

import sys
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path += [str(FOLDER), str(FOLDER.parent / "pruning")]
