"""HYP* against an arbitrary-precision oracle, and its fast paths against the reference."""

import itertools
import math
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from unittest import mock

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ham import hyperbolic_step_
from ham.optim import clip_weight_norm_, implementations
from ham.optim.implementations import _BLOCK

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # set by test_triton.py, which runs this file again
COMPILED = ("compiled",) if shutil.which("cc") else ()
BLOCKS = "fused, no C compiler"
FAST = ("triton",) if INTERPRETED else ("foreach", "fused", BLOCKS, *COMPILED)
IMPLEMENTATIONS = FAST if INTERPRETED else ("reference", *FAST)
DTYPES = (torch.float32, torch.float64)
PAPER = {"lr": 0.25, "alpha": 200.0, "beta": 1e-3}


@pytest.fixture(autouse=True, scope="module")
def blocks():
    """What `fused` is without a C compiler, under a name of its own."""
    with mock.patch.dict(implementations.IMPLEMENTATIONS, {BLOCKS: implementations._in_blocks_}):
        yield


def randn(shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def smallest_denormal(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).tiny * torch.finfo(dtype).eps


def stepped(weight: Tensor, grad: Tensor, **keywords) -> Tensor:
    weight = weight.clone()
    hyperbolic_step_([weight], [grad], **keywords)
    return weight


def oracle(theta: float, grad: float, lr: float, alpha: float, beta: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    """The new weight and its exponent from the formula, in 80 digits."""
    lr, alpha, beta, theta, grad = (mpmath.mpf(x) for x in (lr, alpha, beta, theta, grad))
    exponent = -lr * (alpha * mpmath.sign(theta) * grad + beta)
    exponent = max(mpmath.mpf(-5), min(mpmath.mpf(5), exponent))
    return theta * mpmath.exp(exponent), exponent


def assert_matches_oracle(
    before: Tensor, grad: Tensor, after: Tensor, lr: float, alpha: float, beta: float
) -> None:
    """Relative error <= 8 eps (1 + |exponent|), plus one smallest denormal.

    The exponent is a sum of two rounded terms: its absolute error grows with the larger term, not with the
    sum. The bound holds however they cancel because every caller keeps lr * beta <= 1: inside the clamp the
    other term is then at most 1 + |exponent|. Beyond the clamp the error is cut off.
    """
    finfo = torch.finfo(before.dtype)
    assert lr * beta <= 1
    with mpmath.workdps(80):
        for theta, g, out in zip(before.tolist(), grad.tolist(), after.tolist(), strict=True):
            exact, exponent = oracle(theta, g, lr, alpha, beta)
            bound = 8 * finfo.eps * (1 + abs(exponent)) * abs(exact) + smallest_denormal(before.dtype)
            overflow = abs(exact) + bound > finfo.max and out == math.copysign(math.inf, theta)
            assert overflow or abs(mpmath.mpf(out) - exact) <= bound, (theta, g, out, exact)
            assert math.copysign(1, out) == math.copysign(1, theta)


def numbers(width: int) -> st.SearchStrategy[float]:
    """Every finite float, with emphasis on zeros, denormals, the largest ones and the range of training."""
    dtype = torch.float32 if width == 32 else torch.float64
    extremes = [torch.finfo(dtype).tiny, smallest_denormal(dtype), torch.finfo(dtype).max]
    return st.one_of(
        st.floats(width=width, allow_nan=False, allow_infinity=False),
        st.floats(-1, 1, width=width),
        st.floats(-(2**-6), 2**-6, width=width),
        st.sampled_from([0.0, -0.0, *extremes, *(-x for x in extremes)]),
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 32), (torch.float64, 64)])
@settings(max_examples=100)
@given(data=st.data())
def test_oracle_on_any_finite_input(implementation, dtype, width, data):
    pairs = data.draw(st.lists(st.tuples(numbers(width), numbers(width)), min_size=1, max_size=20))
    lr = data.draw(st.floats(1e-6, 1.0))
    alpha = data.draw(st.floats(-1000.0, 1000.0))
    beta = data.draw(st.floats(0.0, 1.0))
    weight, grad = (torch.tensor(column, dtype=dtype) for column in zip(*pairs, strict=True))
    after = stepped(weight, grad, lr=lr, alpha=alpha, beta=beta, implementation=implementation)
    assert_matches_oracle(weight, grad, after, lr, alpha, beta)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [200.0, -200.0, 0.0])
def test_oracle_on_gaussian_weights(implementation, dtype, alpha):
    """Enough elements for vectorised loops and their tails; a third of the exponents sits at the clamp."""
    weight, grad = randn([403], dtype, seed=1), randn([403], dtype, seed=2) * 0.1
    after = stepped(weight, grad, lr=0.25, alpha=alpha, beta=0.5, implementation=implementation)
    assert_matches_oracle(weight, grad, after, 0.25, alpha, 0.5)


def transposed(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return randn((7, 5), dtype, 1).t(), randn((7, 5), dtype, 2).t()


def unlike_strides(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return randn((5, 7), dtype, 1), randn((7, 5), dtype, 2).t()


def channels_last(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    weight, grad = randn((4, 3, 5, 5), dtype, 1), randn((4, 3, 5, 5), dtype, 2)
    return weight.to(memory_format=torch.channels_last), grad.to(memory_format=torch.channels_last)


def channels_last_weight(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return channels_last(dtype)[0], randn((4, 3, 5, 5), dtype, 2)


def every_other(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return randn((6, 8), dtype, 1)[:, ::2], randn((6, 4), dtype, 2)


def expanded_gradient(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return randn((6, 8), dtype, 1), randn((6, 1), dtype, 2).expand(6, 8)


def shaped(*shape: int) -> Callable[[torch.dtype], tuple[Tensor, Tensor]]:
    return lambda dtype: (randn(shape, dtype, 1), randn(shape, dtype, 2))


PAIRS = {
    "0-dim": shaped(),
    "empty": shaped(0),
    "empty matrix": shaped(3, 0),
    "one": shaped(1),
    "block - 1": shaped(_BLOCK - 1),
    "block": shaped(_BLOCK),
    "block + 1": shaped(_BLOCK + 1),
    "two blocks and some": shaped(3, _BLOCK - 5),
    "pointwise convolution": shaped(8, 4, 1, 1),
    "transposed": transposed,
    "unlike strides": unlike_strides,
    "channels_last": channels_last,
    "channels_last weight": channels_last_weight,
    "every other": every_other,
    "expanded gradient": expanded_gradient,
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_every_shape_and_layout_equals_the_reference_on_plain_copies(implementation, dtype, pair):
    weight, grad = pair(dtype)
    grad = grad * 0.1
    expected = weight.clone(memory_format=torch.contiguous_format)
    counts = torch.tensor(0), torch.tensor(0)
    reference = {**PAPER, "implementation": "reference", "clamped": counts[0]}
    hyperbolic_step_([expected], [grad.contiguous()], **reference)
    kept_grad, stride, version = grad.clone(), weight.stride(), weight._version
    hyperbolic_step_([weight], [grad], **PAPER, implementation=implementation, clamped=counts[1])
    assert counts[0] == counts[1]
    assert weight._version > version or not weight.numel(), "autograd has to know of the change"
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(weight, expected, rtol=16 * eps, atol=0, check_stride=False)
    assert weight.stride() == stride
    assert torch.equal(grad, kept_grad)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_memory_between_strided_elements_is_left_alone(implementation):
    storage = randn((6, 8))
    before = storage.clone()
    hyperbolic_step_([storage[:, ::2]], [torch.ones(6, 4)], **PAPER, implementation=implementation)
    assert torch.equal(storage[:, 1::2], before[:, 1::2])
    assert not torch.equal(storage[:, ::2], before[:, ::2])


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
def test_clamped_exponents_and_zeros_equal_the_reference_exactly(implementation, dtype):
    weight = randn([1003], dtype)
    weight[::7], weight[::11] = 0.0, -0.0
    grad = torch.where(randn([1003], dtype, seed=1) > 0, 1e3, -1e3).to(dtype)
    fast = stepped(weight, grad, **PAPER, implementation=implementation)
    slow = stepped(weight, grad, **PAPER, implementation="reference")
    assert torch.equal(fast, slow)
    assert torch.equal(fast.signbit(), slow.signbit())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_stay_zero_and_no_sign_changes(implementation, dtype):
    weight = torch.cat([torch.tensor([0.0, -0.0], dtype=dtype).repeat(50), randn([100], dtype)])
    grad = torch.cat([randn([100], dtype) * 1e30, randn([100], dtype, seed=1)])
    after = stepped(weight, grad, **PAPER, implementation=implementation)
    assert torch.equal(after[:100], weight[:100])
    assert torch.equal(after.signbit(), weight.signbit())
    assert bool((after[100:] != 0).all())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("clamp", [5.0, 0.5, math.inf])
def test_clamp_bounds_the_exponent(implementation, clamp):
    weight = torch.tensor([2.0, 2.0], dtype=torch.float64)
    grad = torch.tensor([0.03, -0.03], dtype=torch.float64)
    after = stepped(weight, grad, lr=1.0, alpha=200.0, beta=0.0, clamp=clamp, implementation=implementation)
    size = min(6.0, clamp)
    assert after.tolist() == pytest.approx([2 * math.exp(-size), 2 * math.exp(size)], rel=1e-13)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("clamp", [5.0, 80.0, 81.0, 200.0, math.inf])
def test_zeros_stay_zero_whatever_the_clamp(implementation, clamp):
    weight = torch.tensor([0.0, -0.0, 0.0, -0.0])
    grad = torch.tensor([1e30, 1e30, -1e30, -1e30])
    after = stepped(weight, grad, **PAPER, clamp=clamp, implementation=implementation)
    assert after.tolist() == [0.0] * 4
    assert torch.equal(after.signbit(), weight.signbit())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_and_beta_zero_change_no_bit(implementation, dtype):
    weight, grad = randn([1003], dtype), randn([1003], dtype, 1)
    after = stepped(weight, grad, lr=0.3, alpha=0.0, beta=0.0, implementation=implementation)
    assert torch.equal(after, weight)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_mask_zero_grad_spares_weights_without_gradient(implementation):
    weight, grad = randn([64]), randn([64], seed=1)
    grad[::2], grad[1] = 0.0, -0.0
    spared = grad == 0
    free = stepped(weight, grad, **PAPER, implementation=implementation)
    masked = stepped(weight, grad, **PAPER, mask_zero_grad=True, implementation=implementation)
    assert torch.equal(masked[spared], weight[spared])
    assert torch.equal(masked[~spared], free[~spared])
    assert not torch.equal(free[spared], weight[spared])  # without the mask beta acts on them


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("mask_zero_grad", [False, True])
def test_found_inf_stops_the_step(implementation, mask_zero_grad):
    weight = torch.tensor([1.0, -1.0, 0.0, 2.0, 3.0])
    grad = torch.tensor([math.inf, -math.inf, math.inf, math.nan, 1.0])
    keywords = {**PAPER, "mask_zero_grad": mask_zero_grad, "implementation": implementation}
    assert torch.equal(stepped(weight, grad, found_inf=torch.tensor(1.0), **keywords), weight)
    grad = randn([5])
    unflagged = stepped(weight, grad, **keywords)
    assert torch.equal(stepped(weight, grad, found_inf=torch.tensor(0.0), **keywords), unflagged)
    assert not torch.equal(unflagged, weight)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_clamped_counts_exponents_at_the_bound(implementation):
    """lr * alpha = 50: the exponents are .5, 50, 50, 5 (at the bound) and 4.9 in size; that of zeros is 0."""
    weight = torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0, 0.0])
    grad = torch.tensor([0.01, 1.0, 1.0, 0.1, 0.098, 1.0])
    count = torch.tensor(7)
    keywords = {"lr": 0.25, "alpha": 200.0, "beta": 0.0, "clamped": count, "implementation": implementation}
    hyperbolic_step_([weight, weight.clone()], [grad, grad], **keywords)
    assert count.dtype == torch.int64
    assert count.item() == 7 + 2 * 3


def test_every_variant_is_compiled_and_not_run_eagerly(monkeypatch):
    """torch.compile gives up after eight variants of one function, and runs it as it is."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # code takes 3 s a variant
    torch._dynamo.reset()
    implementations._compiled_step.cache_clear()
    graphs = torch._dynamo.utils.counters["stats"]
    flags = itertools.product(DTYPES, (False, True), (None, torch.tensor(0.0)), (None, torch.tensor(0)))
    for number, (dtype, mask_zero_grad, found_inf, clamped) in enumerate(flags):
        before = graphs["unique_graphs"]
        weight, grad = randn([5], dtype), randn([5], dtype)
        implementations._by_torch_compile_(
            [weight], [grad], -50.0, -1e-3, 5.0, mask_zero_grad, found_inf, clamped
        )
        assert graphs["unique_graphs"] == before + 1, number


@pytest.mark.parametrize("gradient_of", [lambda w: w, lambda w: w.view(-1), lambda w: w.flip(0).flip(0)[:]])
def test_a_gradient_in_the_memory_of_its_weight_is_not_compiled(gradient_of, monkeypatch):
    """Code compiled for it would stay in torch's cache on disk, and be wrong for two tensors."""
    weight, variants = randn([8]), []
    grad = gradient_of(weight)
    monkeypatch.setattr(
        implementations, "_compiled_step", lambda *v: variants.append(v) or implementations._step_
    )
    expected = weight * (-5 * weight.sign() * weight - 1e-3).clamp(-5, 5).exp()
    is_shared = grad.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
    implementations._by_torch_compile_([weight], [grad], -5.0, -1e-3, 5.0, False, None, None)
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=0)
    assert bool(variants) is not is_shared


def test_tensors_of_both_dtypes_go_in_one_call():
    weights = [randn([5]), randn([6], torch.float64), randn([2, 3]), randn([0])]
    grads = [randn(w.shape, w.dtype, seed=9) for w in weights]
    alone = [stepped(w, g, **PAPER) for w, g in zip(weights, grads, strict=True)]
    hyperbolic_step_(weights, grads, **PAPER)
    assert all(torch.equal(w, a) for w, a in zip(weights, alone, strict=True))
    hyperbolic_step_([], [], **PAPER)


@pytest.mark.parametrize("implementation", [None, *IMPLEMENTATIONS])
def test_learning_rate_may_be_a_tensor(implementation):
    weight, grad = randn([50]), randn([50], seed=1) * 0.1
    number = stepped(weight, grad, **PAPER, implementation=implementation)
    tensor = stepped(weight, grad, **{**PAPER, "lr": torch.tensor(0.25)}, implementation=implementation)
    assert torch.equal(tensor, number)


def ones(dtype: torch.dtype) -> Tensor:
    return torch.ones(2, dtype=dtype)


@pytest.mark.parametrize(
    ("weights", "grads", "keywords", "message"),
    [
        ([torch.ones(2)], [], {}, "must have the same length"),
        ([torch.ones(2)], [torch.ones(3)], {}, "weight .* gradient .* must"),
        ([torch.ones(2)], [ones(torch.float64)], {}, "weight .* gradient .* must"),
        ([ones(torch.bfloat16)], [ones(torch.bfloat16)], {}, "float32 or float64"),
        ([ones(torch.float16)], [ones(torch.float16)], {}, "float32 or float64"),
        ([ones(torch.complex64)], [ones(torch.complex64)], {}, "float32 or float64"),
        ([torch.ones(2)], [torch.ones(2).to_sparse()], {}, "sparse=False"),
        ([torch.ones(2)], [torch.ones(2)], {"implementation": "gpu"}, "one of reference, .*triton"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_changes_nothing(weights, grads, keywords, message):
    good = torch.ones(3)
    with pytest.raises(ValueError, match=message) as error:
        hyperbolic_step_([good, *weights], [good.clone(), *grads], **PAPER, **keywords)
    assert "\n" not in str(error.value)
    assert torch.equal(good, torch.ones(3))


@pytest.mark.parametrize(("norm", "factor"), [(10.0, 0.5), (5.0, 1.0), (1.0, 1.0), (0.0, 1.0)])
def test_clip_weight_norm(norm, factor):
    weight = torch.tensor([[0.6, -0.8]], dtype=torch.float64) * norm
    expected = weight * factor
    clip_weight_norm_([weight, torch.zeros(0, dtype=torch.float64)], 5.0)
    torch.testing.assert_close(weight, expected, rtol=1e-15, atol=0)


def test_clip_weight_norm_of_nothing():
    clip_weight_norm_([], 1.0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_weight_without_a_gradient_is_skipped(implementation):
    weights = [randn((4,), seed=1), randn((4,), seed=2), randn((2, 2), seed=3)]
    grads = [randn((4,), seed=4), None, randn((2, 2), seed=5)]
    expected = [
        w.clone() if g is None else stepped(w, g, **PAPER, implementation=implementation)
        for w, g in zip(weights, grads, strict=True)
    ]
    hyperbolic_step_(weights, grads, **PAPER, implementation=implementation)
    assert all(torch.equal(w, e) for w, e in zip(weights, expected, strict=True))
    hyperbolic_step_(weights, [None] * 3, **PAPER, implementation=implementation)
    assert all(torch.equal(w, e) for w, e in zip(weights, expected, strict=True))


def test_a_zero_has_no_exponent_at_the_bound_inside_torch_compile():
    """There the sign comes from copysign, which is 1 for +0 and -1 for -0."""
    weights, grads = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0]), torch.full((5,), 100.0)
    count = torch.tensor(0)
    step = torch.compile(hyperbolic_step_, backend="eager")
    step([weights], [grads], lr=1.0, alpha=1.0, beta=0.0, clamped=count)
    assert count == 3
    torch.testing.assert_close(
        weights, torch.tensor([0.0, -0.0, -5.0, 5.0, -5.0]).exp() * torch.tensor([0.0, -0.0, 1, -1, 2])
    )


class Sharded(Tensor):
    """A tensor with placements, as DTensor has."""

    @staticmethod
    def __new__(cls, data: Tensor, placements: tuple[str, ...]) -> Tensor:
        made = data.as_subclass(cls)
        made.placements = placements
        return made


def test_a_weight_and_its_gradient_must_be_sharded_alike():
    weight, grad = torch.ones(2), torch.zeros(2)
    for other in (Sharded(grad, ("Partial",)), grad):
        with pytest.raises(ValueError, match="must be sharded alike: reduce the gradient first"):
            hyperbolic_step_([Sharded(weight, ("Shard(0)",))], [other], **PAPER)
    hyperbolic_step_([Sharded(weight, ("Shard(0)",))], [Sharded(grad, ("Shard(0)",))], lr=1, alpha=0, beta=1)
    torch.testing.assert_close(weight, torch.full((2,), math.exp(-1)))
