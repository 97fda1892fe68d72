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


def test_ham_alone_loads_no_theory_and_scipy_waits_until_it_is_used():
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=root, timeout=120)
    assert done.stdout.split("\n") == ["", "ham.theory", ""], done.stderr
