"""Lets the tests of this folder, and processes that they start, import contract.py beside them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
