"""The paper's theory as code: sections 3 and 4, Appendices A to G.1; docs/theory.md explains it.

Needs numpy in addition to torch. The flows need scipy, which is imported on first use.
"""

from importlib.util import find_spec

if find_spec("numpy") is None:
    raise ModuleNotFoundError("ham.theory needs numpy: pip install numpy", name="numpy")

from .fisher import fisher_information, mean_of, weight_of
from .flows import (
    exponential_step,
    factor_flow,
    factor_step,
    gd_step,
    ham_step,
    hyperbolic_step,
    linear_rate,
    mirror_flow,
    product_closed_form,
    product_flow,
    riemannian_flow,
)
from .metrics import (
    bregman,
    bregman_gradient,
    bregman_hessian,
    factor_inverse_metric,
    inverse_metric,
    inverse_mirror_map,
    on_manifold_regularizer,
)
from .neuron import (
    Neuron,
    balance,
    in_learning_region,
    learned_cases,
    multidimensional_gap,
    neuron_flow,
)
from .regression import (
    Regression,
    implicit_solution,
    recorded_steps,
    regression,
    simulate,
    simulate_linear_regression,
)

__all__ = [
    "Neuron",
    "Regression",
    "balance",
    "bregman",
    "bregman_gradient",
    "bregman_hessian",
    "exponential_step",
    "factor_flow",
    "factor_inverse_metric",
    "factor_step",
    "fisher_information",
    "gd_step",
    "ham_step",
    "hyperbolic_step",
    "implicit_solution",
    "in_learning_region",
    "inverse_metric",
    "inverse_mirror_map",
    "learned_cases",
    "linear_rate",
    "mean_of",
    "mirror_flow",
    "multidimensional_gap",
    "neuron_flow",
    "on_manifold_regularizer",
    "product_closed_form",
    "product_flow",
    "recorded_steps",
    "regression",
    "riemannian_flow",
    "simulate",
    "simulate_linear_regression",
    "weight_of",
]
