"""The Triton kernel without a GPU: interpreted on a CPU, and compiled for GPUs that are not there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed: torch's CUDA builds have it")


def test_the_interpreted_kernel_passes_the_tests_of_the_step() -> None:
    """In a process of its own: Triton decides at import whether it interprets."""
    tests = Path(__file__).with_name("test_hyperbolic.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 50


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "load"), [("float32", "ld.global.v4.b32"), ("float64", "ld.global.v2.b64")]
)
def test_the_kernel_compiles_for_a_gpu_and_loads_16_bytes_at_once(
    capability: int, dtype: str, load: str
) -> None:
    import triton.language as tl
    from triton.backends.compiler import GPUTarget

    from ham.optim.triton_step import _kernel

    constants = {
        **{"DTYPE": getattr(tl, dtype), "STEPS": 6, "HAS_RATES": True, "MASK_ZERO_GRAD": True},
        **{"HAS_FOUND_INF": True, "COUNTS": True, "IS_ALIGNED": True, "BLOCK": 4096},
    }
    pointers = {"table": "*i64", "tensors": "i32", "rates": f"*fp{dtype[-2:]}"}
    pointers |= {"found_inf": "*fp32", "clamped": "*i64"}
    signature = pointers | dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(fn=_kernel, signature=signature, constexprs=constants)
    options = {"num_warps": 8, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    text = compiled.asm["ptx"]
    assert load in text and load.replace("ld.", "st.") in text
    assert compiled.asm["cubin"]


def test_the_kernels_exp_is_within_one_and_a_half_units_in_the_last_place() -> None:
    """theta = 1 and alpha = -lr = 1 give exp(clip(gradient)); float64 is the oracle."""
    code = """
import torch
from ham import hyperbolic_step_
x = torch.cat([torch.linspace(-6, 6, 20001), torch.linspace(-80, 80, 20001), torch.logspace(-30, 0, 4001)])
weight = torch.ones_like(x)
hyperbolic_step_([weight], [x], lr=1.0, alpha=-1.0, beta=0.0, clamp=200.0, implementation="triton")
exact = x.double().exp()
unit = torch.nextafter(exact.float(), torch.tensor(torch.inf)).double() - exact.float().double()
print(float(((weight.double() - exact).abs() / unit).max()), float(((weight.double() - exact) / unit).mean()))
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    largest, mean = map(float, done.stdout.split())
    assert largest <= 1.5 and abs(mean) < 0.05
