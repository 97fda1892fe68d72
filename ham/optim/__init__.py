"""HAM, its step, parameter groups, SAM and learning-rate schedules: everything here needs torch only."""

from .groups import everything, ndim2, not_norm, param_groups
from .hook import HAM
from .hyperbolic import clip_weight_norm_, hyperbolic_step_
from .sam import frozen_running_statistics, perturbed
from .schedules import cosine, linear, multistep, triangular

__all__ = [
    "HAM",
    "clip_weight_norm_",
    "cosine",
    "everything",
    "frozen_running_statistics",
    "hyperbolic_step_",
    "linear",
    "multistep",
    "ndim2",
    "not_norm",
    "param_groups",
    "perturbed",
    "triangular",
]
