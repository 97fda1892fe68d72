"""The step in C: compiler, threads and unusual inputs. test_hyperbolic.py compares it with the formula."""

import itertools
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.optim import SGD

from ham import HAM, c_code, hyperbolic_step_
from ham.optim import cpu_step, implementations

ROOT = Path(__file__).resolve().parents[3]
PAPER = {"lr": 0.25, "alpha": 200.0, "beta": 1e-3}
needs_compiler = pytest.mark.skipif(not c_code.has_compiler(), reason="needs a C compiler")


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def stepped(weights: list[torch.Tensor], grads: list[torch.Tensor], **options) -> list[torch.Tensor]:
    weights = [w.clone(memory_format=torch.preserve_format) for w in weights]
    hyperbolic_step_(weights, grads, **(PAPER | options))
    return weights


@pytest.fixture
def fresh_loads():
    for load in (cpu_step.load, c_code.load):
        load.cache_clear()
    yield
    for load in (cpu_step.load, c_code.load):
        load.cache_clear()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exp_is_exact_to_about_one_unit_in_the_last_place(dtype):
    """alpha 0 and a weight of 1 leave exp of a number, here of many between -80 and 80."""
    exponents = torch.linspace(-79.9, 79.9, 501, dtype=torch.float64)
    worst = 0.0
    for exponent in exponents.tolist():
        rate = torch.tensor(exponent, dtype=dtype).item()  # the number that the code gets
        weight = torch.ones(1, dtype=dtype)
        hyperbolic_step_([weight], [weight], lr=-rate, alpha=0, beta=1, clamp=80, implementation="compiled")
        worst = max(worst, abs(weight.item() / math.exp(rate) - 1))
    assert worst < 1.5 * torch.finfo(dtype).eps


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("sizes", [[400_003], [1, 200_001, 0, 3, 300_000], [65_536] * 7])
def test_any_number_of_threads_gives_the_same_weights_and_counts(threads, sizes, monkeypatch):
    weights = [randn(n, seed=k) for k, n in enumerate(sizes)]
    grads = [randn(n, seed=100 + k) * 0.1 for k, n in enumerate(sizes)]
    expected, count = torch.tensor(0), torch.tensor(0)
    alone = stepped(weights, grads, implementation="reference", clamped=expected)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    together = stepped(weights, grads, implementation="compiled", clamped=count)
    assert count == expected > 1000
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    for one, other in zip(together, stepped(weights, grads, implementation="compiled"), strict=True):
        assert torch.equal(one, other)


@needs_compiler
def test_weights_of_other_layouts_are_stepped_with_the_rest():
    weights = [randn(4, 3, 5, 5), randn(4, 3, 5, 5).to(memory_format=torch.channels_last), randn(6, 5).t()]
    grads = [torch.ones_like(w, memory_format=torch.contiguous_format) for w in weights]
    grads[0] = grads[0].to(memory_format=torch.channels_last)
    for one, other in zip(
        stepped(weights, grads, implementation="reference"),
        stepped(weights, grads, implementation="compiled"),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


@needs_compiler
@pytest.mark.parametrize("clamp", [80.0, 81.0, 600.0, math.inf])
def test_a_clamp_of_any_size_is_the_formula(clamp):
    weights, grads = [torch.tensor([1.0, -1.0, 0.0, 1e-30])], [torch.tensor([-4.0, 4.0, -4.0, 1.5])]
    names = ("reference", "compiled")
    one, other = (stepped(weights, grads, clamp=clamp, implementation=name)[0] for name in names)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=0)
    assert torch.isinf(one[0]) == (clamp > 88.8)


@needs_compiler
@pytest.mark.parametrize("weight", [1.0, -2.0, 0.0])
def test_nan_and_infinite_gradients_do_what_the_formula_says(weight):
    weights, grads = [torch.full((5,), weight)], [torch.tensor([math.nan, math.inf, -math.inf, 0.0, 1.0])]
    one, other = (stepped(weights, grads, implementation=name)[0] for name in ("reference", "compiled"))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=0, equal_nan=True)


@needs_compiler
def test_autograd_notices_the_change():
    weight = torch.ones(3, requires_grad=True)
    loss = (weight**2).sum()
    hyperbolic_step_([weight], [torch.ones(3)], **PAPER, implementation="compiled")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_compiler
def test_a_child_process_has_threads_of_its_own(monkeypatch):
    """After a fork the parent's threads do not exist: waiting for them would never end."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    weights, grads = [randn(400_000)], [randn(400_000)]
    expected = stepped(weights, grads, implementation="compiled")[0]
    torch.set_num_threads(1)  # OpenMP's threads, which torch's own operations use, do not exist there either
    child = os.fork()
    if not child:
        threading.Timer(20, os._exit, (2,)).start()
        os._exit(not torch.equal(stepped(weights, grads, implementation="compiled")[0], expected))
    status = os.waitpid(child, 0)[1]
    torch.set_num_threads(threads)
    assert os.waitstatus_to_exitcode(status) == 0


@needs_compiler
def test_a_thread_that_outlives_the_main_thread_takes_its_steps(tmp_path):
    """No new threads can be started then."""
    program = tmp_path / "program.py"
    program.write_text(
        "import threading, time, torch\n"
        "from ham import hyperbolic_step_\n"
        "torch.get_num_threads = lambda: 3\n"
        "def train():\n"
        "    threading.main_thread().join()\n"
        "    time.sleep(0.5)\n"
        "    weight = torch.ones(400_000)\n"
        "    options = dict(lr=0.1, alpha=1, beta=0, implementation='compiled')\n"
        "    hyperbolic_step_([weight], [torch.ones(400_000)], **options)\n"
        "    print(weight.unique().numel(), round(weight[0].item(), 4))\n"
        "threading.Thread(target=train).start()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.stdout == "1 0.9048\n", done.stderr  # exp(-0.1)


def test_all_parts_have_ended_when_one_fails():
    """C code must not go on with memory that an exception frees."""
    ended = []

    def interrupted(number: int, first: int, last: int) -> None:
        if number == 0:
            raise KeyboardInterrupt
        time.sleep(0.3)
        ended.append(number)

    with pytest.raises(KeyboardInterrupt):
        c_code.in_threads(interrupted, [0, 1, 2, 3])
    assert sorted(ended) == [1, 2]


def test_threads_are_those_of_the_largest_call():
    before = threading.active_count()
    for parts in (2, 3, 4, 5, 3, 2) * 4:
        c_code.in_threads(lambda number, first, last: time.sleep(0.002), list(range(parts + 1)))
    assert threading.active_count() - before <= (os.cpu_count() or 1)


@needs_compiler
@pytest.mark.parametrize("make", [torch._neg_view, lambda t: torch._efficientzerotensor(t.shape)])
def test_gradients_whose_values_are_not_in_memory_are_stepped_by_the_formula(make):
    weights, grads = [randn(50)], [make(randn(50, seed=1))]
    one, other = (stepped(weights, grads, implementation=name)[0] for name in ("reference", "compiled"))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


@needs_compiler
def test_nan_weights_count_as_in_the_formula():
    counts = [torch.tensor(0), torch.tensor(0)]
    weights, grads = [torch.tensor([math.nan, 1.0, -1.0, 0.0])], [torch.ones(4)]
    for name, count in zip(("reference", "compiled"), counts, strict=True):
        stepped(weights, grads, implementation=name, clamped=count)
    assert counts[0] == counts[1] == 2


@needs_compiler
def test_inside_torch_compile_the_compiler_gets_the_formula(monkeypatch):
    monkeypatch.setattr(cpu_step, "step_", None)  # would fail
    weight, grad = randn(5), randn(5, seed=1)
    expected = stepped([weight], [grad], implementation="reference")[0]
    step = torch.compile(hyperbolic_step_, backend="eager")
    step([weight], [grad], **PAPER, implementation="compiled")
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("compiler", "words"),
    [
        ("no-such-compiler", "No such file or directory"),
        ("/", "Permission denied"),
        ("false", "the C compiler false fails (exit status 1)"),
        ("true", "compiled code cannot be written or loaded"),
        pytest.param("cc -include /no/such.h", "fatal error: /no/such.h: No such file", marks=needs_compiler),
        (f"{sys.executable} -c 'raise SystemExit(\"first\\nno backend\")'", "no backend"),
    ],
)
def test_a_compiler_that_does_not_work_is_one_line_with_the_cure(compiler, words, monkeypatch, fresh_loads):
    monkeypatch.setenv("CC", compiler)
    optimizer = SGD([torch.ones(3, 3, requires_grad=True)], lr=0.1)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        HAM(optimizer, implementation="compiled")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("; or use 'fused' or None")
    assert not hasattr(optimizer, "_ham") or optimizer._ham is None
    with pytest.raises(ValueError, match=re.escape(words)):
        hyperbolic_step_([torch.ones(2)], [torch.ones(2)], **PAPER, implementation="compiled")


@needs_compiler
def test_a_temporary_folder_that_cannot_be_used_is_named_with_the_cure(monkeypatch, fresh_loads, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(ValueError, match=r"compiled code cannot be written .*; TMPDIR must name a folder"):
        stepped([torch.ones(2)], [torch.ones(2)], implementation="compiled")


@needs_compiler
def test_the_compiler_and_its_flags_are_those_of_cc(monkeypatch, fresh_loads, tmp_path):
    log = tmp_path / "with spaces" / "log"
    log.parent.mkdir()
    compiler = tmp_path / "my cc"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> "{log}"\nexec cc "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", f"'{compiler}' -DMINE")
    stepped([torch.ones(2)], [torch.ones(2)], implementation="compiled")
    assert "-DMINE" in log.read_text()


@needs_compiler
def test_a_compiler_without_the_flags_of_this_processor_still_compiles(monkeypatch, fresh_loads, tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\ncase "$*" in *-m*=*) exit 1;; esac\nexec cc "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    weights, grads = [randn(1000)], [randn(1000, seed=1)]
    one, other = (stepped(weights, grads, implementation=name)[0] for name in ("reference", "compiled"))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_compile_which_other_devices_use_gives_the_formula(dtype):
    weight, grad = randn(1003, dtype=dtype), randn(1003, dtype=dtype, seed=1) * 0.1
    count, expected_count = torch.tensor(0), torch.tensor(0)
    expected = stepped([weight], [grad], implementation="reference", clamped=expected_count)[0]
    implementations._by_torch_compile_([weight], [grad], -50.0, -0.25e-3, 5.0, False, None, count)
    torch.testing.assert_close(weight, expected, rtol=1e-5, atol=0)
    assert count == expected_count > 100


@needs_compiler
@pytest.mark.parametrize("first_that_fails", [1, 2, 3])
def test_each_share_is_computed_once_where_threads_cannot_be_started(first_that_fails, monkeypatch):
    """A share whose thread cannot start is queued all the same, for a running thread or for a later step."""
    starts = itertools.count(1)
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if next(starts) >= first_that_fails:
            raise RuntimeError("can't start new thread")
        start(thread)

    c_code._threads.cache_clear()
    monkeypatch.setattr(threading.Thread, "start", limited)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    weights, grads = [randn(400_000)], [randn(400_000, seed=1)]
    expected = stepped(weights, grads, implementation="reference")[0]
    found = [stepped(weights, grads, implementation="compiled")[0] for _ in range(3)]
    monkeypatch.undo()
    c_code.in_threads(lambda number, first, last: None, [0, 1, 2, 3, 4])  # whatever was left in the queue
    c_code._threads.cache_clear()
    for weight in found:
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "step_", [implementations._in_blocks_, *([implementations._in_c_] if c_code.has_compiler() else [])]
)
def test_the_default_device_does_not_matter(step_):
    weight, grad = randn(1000), randn(1000, seed=1) * 0.1
    expected = stepped([weight], [grad], implementation="reference")[0]
    with torch.device("meta"):
        step_([weight], [grad], -50.0, -0.25e-3, 5.0, False, None, None)
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=0)
