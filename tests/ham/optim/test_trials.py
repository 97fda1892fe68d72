"""The fastest implementation is the default where it works; elsewhere a warning names another one."""

import shutil
import warnings
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from ham import c_code, hyperbolic_step_
from ham.optim import cpu_step, implementations, trials
from ham.optim.implementations import fastest

PAPER = {"lr": 0.25, "alpha": 200.0, "beta": 1e-3}
SMALL = {"lr": 0.25, "alpha": 2.0, "beta": 0.0}
ON_A_GPU = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)  # one that is not there
FAILURES = [
    (lambda *_: False, "its result differs from the formula"),
    (Mock(side_effect=RuntimeError("no\ncompiler")), "RuntimeError: no compiler"),
    (Mock(side_effect=OSError("driver")), "OSError: driver"),
    (Mock(side_effect=NotImplementedError), "NotImplementedError"),
    (Mock(side_effect=MemoryError("device")), "MemoryError: device"),
]


@pytest.fixture(autouse=True)
def nothing_tried(monkeypatch):
    monkeypatch.setattr(trials, "_WORKS", {})
    monkeypatch.setattr(implementations, "is_plain", lambda weight: True)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for load in (cpu_step.load, c_code.load):
        load.cache_clear()
    yield
    for load in (cpu_step.load, c_code.load):
        load.cache_clear()


@pytest.mark.parametrize(("agrees", "words"), FAILURES)
def test_a_triton_kernel_that_does_not_work_is_stated_once_and_not_used(agrees, words, monkeypatch):
    monkeypatch.setattr(implementations, "find_spec", lambda name: True)
    monkeypatch.setattr(trials, "agrees", agrees)
    message = f"^the Triton kernel .* on cuda:0 \\({words}\\): 'foreach' is used, .*='foreach' avoids"
    with pytest.warns(UserWarning, match=message):
        assert fastest(ON_A_GPU, 0.1) == "foreach"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fastest(ON_A_GPU, 0.1) == "foreach"


@pytest.mark.parametrize(("agrees", "words"), FAILURES)
@pytest.mark.parametrize("implementation", [None, "fused"])
def test_c_code_that_does_not_work_is_stated_once_and_not_used(implementation, agrees, words, monkeypatch):
    monkeypatch.setattr(c_code, "has_compiler", lambda: True)
    monkeypatch.setattr(trials, "agrees", agrees)
    monkeypatch.setattr(implementations, "_in_c_", None)  # would fail
    weight = torch.ones(2)
    message = f"^the C code .* on cpu \\({words}\\): torch's operations, .* are used, .*='foreach' avoids"
    with pytest.warns(UserWarning, match=message):
        hyperbolic_step_([weight], [torch.ones(2)], **SMALL, implementation=implementation)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hyperbolic_step_([weight], [-torch.ones(2)], **SMALL, implementation=implementation)
    torch.testing.assert_close(weight, torch.ones(2))


def test_code_that_works_is_tried_once_for_a_device_and_dtype(monkeypatch):
    agrees = Mock(return_value=True)
    monkeypatch.setattr(implementations, "find_spec", lambda name: True)
    monkeypatch.setattr(c_code, "has_compiler", lambda: True)
    monkeypatch.setattr(trials, "agrees", agrees)
    step_ = Mock()
    monkeypatch.setattr(implementations, "_in_c_", step_)
    for weight in (torch.ones(1), torch.ones(2, 2), torch.ones(1).double(), torch.ones(3).double()):
        assert fastest(weight, 0.1) == "fused"
        hyperbolic_step_([weight], [weight.clone()], **PAPER)
    assert (agrees.call_count, step_.call_count) == (2, 4)
    assert fastest(ON_A_GPU, 0.1) == fastest(ON_A_GPU, torch.tensor(0.1)) == "triton"
    assert agrees.call_count == 3


def test_without_triton_or_a_c_compiler_there_is_no_warning(monkeypatch):
    monkeypatch.setattr(implementations, "find_spec", lambda name: None)
    monkeypatch.setattr(c_code, "_find_compiler", lambda: None)
    monkeypatch.delenv("CC", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fastest(ON_A_GPU, 0.1) == "foreach"
        weight = torch.ones(3)
        hyperbolic_step_([weight], [torch.tensor([1.0, 0.0, -1.0])], **SMALL, implementation="fused")
        torch.testing.assert_close(weight, torch.tensor([-0.5, 0.0, 0.5]).exp())
    with pytest.raises(ValueError, match=r"needs Triton: pip install triton, or use 'foreach' or None"):
        hyperbolic_step_([torch.ones(2)], [torch.ones(2)], **PAPER, implementation="triton")
    with pytest.raises(ValueError, match=r"no C compiler found .*; or use 'fused' or None"):
        monkeypatch.setenv("PATH", "/nowhere")
        hyperbolic_step_([torch.ones(2)], [torch.ones(2)], **PAPER, implementation="compiled")


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wrong_result_is_noticed(dtype):
    """Each fault in one weight, or in the count, of a step that is right otherwise."""

    def with_fault(fault):
        def step_(ps, gs, a, b, clamp, mask_zero_grad, found_inf, clamped):
            implementations._in_c_(ps, gs, a, b, clamp, mask_zero_grad, found_inf, clamped)
            fault(ps, clamped)

        return step_

    def wrong_count(ps, clamped):
        if clamped is not None:
            clamped.add_(1)

    faults = [
        lambda ps, clamped: ps[2][-1:].mul_(1 + 1e-5),
        lambda ps, clamped: ps[0][:1].neg_(),
        lambda ps, clamped: ps[2][35_000:35_001].fill_(torch.nan),
        wrong_count,
    ]
    weight, reference_ = torch.ones(1, dtype=dtype), implementations._reference_
    assert trials.agrees(weight, with_fault(lambda ps, clamped: None), reference_)
    for fault in faults:
        assert not trials.agrees(weight, with_fault(fault), reference_)


@pytest.mark.parametrize("compiler", ["false", "'unbalanced", "/no/such/compiler"])
def test_a_broken_cc_leaves_a_correct_step_and_a_warning(compiler, monkeypatch):
    monkeypatch.setenv("CC", compiler)
    weight = torch.randn(7, generator=torch.Generator().manual_seed(0))
    expected = weight * torch.exp(-0.5 * weight.abs())
    with pytest.warns(UserWarning, match="^the C code of HAM's step does not work on cpu"):
        hyperbolic_step_([weight], [weight.clone()], **SMALL)
    torch.testing.assert_close(weight, expected)
