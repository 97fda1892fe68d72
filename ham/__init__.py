"""Hyperbolic Aware Minimization: an optimizer step for sparsity. `import ham` needs torch alone."""

from .optim import HAM, hyperbolic_step_, param_groups, perturbed

__all__ = ["HAM", "hyperbolic_step_", "param_groups", "perturbed"]
__version__ = "0.4.3"
