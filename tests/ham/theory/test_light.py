"""What importing the theory loads."""

import subprocess
import sys
from pathlib import Path

CODE = """
import sys, torch, numpy
import ham
print(*[name for name in ("scipy", "matplotlib", "ham.theory") if name in sys.modules])
import ham.theory
print(*[name for name in ("scipy", "matplotlib", "ham.theory") if name in sys.modules])
"""


def test_importing_ham_loads_no_theory_and_importing_theory_loads_no_scipy():
    root = Path(__file__).parents[3]
    result = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, cwd=root, timeout=120
    )
    assert result.stdout.split("\n") == ["", "ham.theory", ""], result.stderr
