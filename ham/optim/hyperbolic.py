"""The hyperbolic step of HAM (HYP*, section 3.1); implementations.py computes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ham.c_code import CompilerError, is_plain

from .implementations import IMPLEMENTATIONS, fastest

DTYPES = (torch.float32, torch.float64)
COMPILED_FAILS = "implementation='compiled' does not work on this CPU: {}; or use 'fused' or None"
LOW_PRECISION = (
    "HAM needs float32 or float64 weights, got {}: its relative steps are rounded to zero in fewer bits; "
    "keep float32 weights and compute in autocast"
)


@torch.no_grad()
def hyperbolic_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    *,
    lr: float | Tensor,
    alpha: float | Tensor,
    beta: float | Tensor,
    clamp: float = 5.0,
    mask_zero_grad: bool = False,
    found_inf: Tensor | None = None,
    clamped: Tensor | None = None,
    implementation: str | None = None,
) -> None:
    """HYP* (section 3.1, App. G.2) on every weight, in place.

        theta <- theta * exp(clip(-lr * (alpha * sign(theta) * grad + beta), -clamp, clamp))

    Zeros stay zero and no sign changes. `theta` is the weight after the base optimizer's step, `grad` the
    gradient which that step saw, without weight decay and momentum.

    Args:
        params: weights, float32 or float64, any shapes and devices; changed in place.
        grads: one gradient per weight, same shape, dtype and device; None skips the weight.
        lr: the base step's learning rate; a 0-dim tensor is used without a host sync.
        alpha: strength of the hyperbolic awareness; negative is nHAM (Tables 17-19). A 0-dim tensor is used
            without a host sync, like `lr`.
        beta: strength of the multiplicative weight decay; it may be a tensor too.
        clamp: bound on the exponent's magnitude, 5 in App. G.2; `inf` for none.
        mask_zero_grad: True to leave weights whose gradient is exactly zero unchanged, also by beta.
        found_inf: 0-dim tensor; if it is not zero nothing changes (GradScaler's overflow flag).
        clamped: 0-dim int64 tensor to which the number of clamped exponents is added, without a host
            sync.
        implementation: None for the fastest one that works here, or "reference" (the formula, tensor by
            tensor), "foreach" (torch's multi-tensor kernels), "fused" (one pass over memory, CPU only: C
            code, or without a C compiler torch's operations in blocks that stay in the cache), "compiled"
            (on a CPU only the C code, elsewhere torch.compile, which takes some seconds at the first step)
            or "triton" (one launch, CUDA only).

    Raises:
        ValueError: unequal lengths or shapes, an unsupported dtype, sparse gradients, an implementation that
            is unknown or for other devices, no C compiler for "compiled" on a CPU.
    """
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {', '.join(IMPLEMENTATIONS)} or None, got {implementation!r}"
        )
    if len(params) != len(grads):
        raise ValueError(f"params and grads must have the same length, got {len(params)} and {len(grads)}")
    pairs = [(p, g) for p, g in zip(params, grads, strict=True) if g is not None]
    for p, g in pairs:
        _check_pair(p, g)
    lr, alpha, beta = (_number(value) for value in (lr, alpha, beta))
    for device, ps, gs in _by_device_and_dtype([(local(p), local(g)) for p, g in pairs]):
        rate, *strengths = (_on(device, value) for value in (lr, alpha, beta))
        a, b = (_representable(-rate * strength, ps[0].dtype) for strength in strengths)
        if isinstance(a, Tensor) != isinstance(b, Tensor):  # alpha or beta is a tensor on a device
            a, b = (x if isinstance(x, Tensor) else torch.full((), x, device=device) for x in (a, b))
        step = IMPLEMENTATIONS[implementation or fastest(ps[0], a)]
        try:
            step(ps, gs, a, b, clamp, mask_zero_grad, found_inf, clamped)
        except CompilerError as error:  # only with "compiled": "fused" tries the C code before
            raise ValueError(COMPILED_FAILS.format(error)) from None


@torch.no_grad()
def clip_weight_norm_(params: Sequence[Tensor], max_norm: float, *, found_inf: Tensor | None = None) -> None:
    """Scale each tensor in place by min(1, max_norm / |theta|), without a host sync (the authors' wrapper).

    Args:
        params: weights of any shapes and devices; changed in place.
        max_norm: largest 2-norm of a tensor, positive; 1000 in that wrapper.
        found_inf: 0-dim tensor; if it is not zero nothing changes (GradScaler's overflow flag).
    """
    params = list(params)
    if not params:
        return
    norms = [n.full_tensor() if hasattr(n, "full_tensor") else n for n in torch._foreach_norm(params)]
    scales = [torch.where(norm > max_norm, max_norm / norm, 1.0) for norm in norms]
    if found_inf is not None:
        scales = [torch.where(found_inf.to(scale.device) != 0, 1.0, scale) for scale in scales]
    torch._foreach_mul_([local(p) for p in params], scales)


def _check_pair(p: Tensor, g: Tensor) -> None:
    if p.dtype not in DTYPES:
        raise ValueError(LOW_PRECISION.format(p.dtype))
    check_gradient(p, g)
    if not (is_plain(p) and is_plain(g)) and getattr(p, "placements", None) != getattr(g, "placements", None):
        raise ValueError("a sharded weight and its gradient must be sharded alike: reduce the gradient first")
    if p.shape != g.shape:
        raise ValueError(
            f"weight {tuple(p.shape)} {p.dtype} and gradient {tuple(g.shape)} {g.dtype} must match"
        )


def check_gradient(p: Tensor, grad: Tensor) -> None:
    """Raise ValueError on a sparse gradient, or one of another dtype than the weight's."""
    check_dense(grad)
    if p.dtype != grad.dtype:
        raise ValueError(
            f"weight {p.dtype} and gradient {grad.dtype} must match in HAM: leave p.grad_dtype at the "
            "weight's dtype, or set ham_alpha=ham_beta=0 in the group of such weights"
        )


def check_dense(grad: Tensor) -> None:
    """Raise ValueError on a sparse gradient."""
    if grad.is_sparse:
        raise ValueError("HAM needs dense gradients: set sparse=False in the embedding")


def local(t: Tensor) -> Tensor:
    """This rank's shard of a DTensor, in the same memory: HAM's step is elementwise."""
    return t if is_plain(t) or not hasattr(t, "to_local") else t.to_local()


def _by_device_and_dtype(
    pairs: Sequence[tuple[Tensor, Tensor]],
) -> Iterator[tuple[torch.device, list[Tensor], list[Tensor]]]:
    groups: dict[tuple, tuple[list[Tensor], list[Tensor]]] = {}
    for p, g in pairs:
        if (group := groups.get(key := (p.device, p.dtype))) is None:
            group = groups[key] = ([], [])
        group[0].append(p)
        group[1].append(g)
    for (device, _), (ps, gs) in groups.items():
        yield device, ps, gs


def _number(value: float | Tensor) -> float | Tensor:
    """The value, as a number where that needs no host sync, else as a 0-dim tensor."""
    if not isinstance(value, Tensor):
        return value
    is_on_host = value.device.type == "cpu" and not torch.compiler.is_compiling()
    return value.item() if is_on_host else value.reshape(())


def _on(device: torch.device, value: float | Tensor) -> float | Tensor:
    return value.to(device, non_blocking=device.type != "cpu") if isinstance(value, Tensor) else value


def _representable(value: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """The value limited to the dtype's range: beyond it every exponent is clamped."""
    limit = torch.finfo(dtype).max
    return value if isinstance(value, Tensor) else max(-limit, min(limit, value))
