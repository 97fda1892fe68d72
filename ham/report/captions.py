"""Titles and captions of the figures. They are here because a change of configs/figures alters the lock.

A caption says what the figure shows to a reader who has only this figure.
"""

from __future__ import annotations

from . import plan
from .scales import SCALES, scaled_down
from .spec import PlanError

_REGRESSION = (
    "Distance to a truth with 5 nonzero of 100 weights in linear regression on 40 samples, over the steps; "
    "lines are medians over ten seeds, bands their range. "
)
THEORY = {  # name -> title and caption
    "figure01": (
        "Inverse metrics and their flows",
        "Left: inverse metric of a weight theta under gradient descent (GD), under the product m * w "
        "with gamma = 0.05, and under HAM with alpha = 1. Right: the flow of a weight under each, from "
        "-1 to the minimum at 1 of the loss (theta - 1)^2 / 2. The inverse metric of m * w nearly "
        "vanishes at zero, where the weight slows down; that of HAM is at least that of GD.",
    ),
    "figure02b": (
        "HAM's Bregman function",
        "HAM's Bregman function R, divided by its value at theta = 1. It lies between theta^2, its limit for "
        "alpha to 0 (gradient descent), and abs(theta) (the L1 norm): more alpha favors sparse weights more.",
    ),
    "figure03": (
        "The sign before and after the gradient step",
        "The hyperbolic step needs the sign of the weight: HYP takes it before the gradient step "
        "(theta_k), HYP* after it (theta_k+1/2); HAM uses HYP*. Left: the weight after one step with "
        "gradient 1, learning rate 0.05 and alpha = 20. They differ where the gradient step changes the "
        "sign: HYP* accelerates away from zero, HYP pulls back. Right: steps from 0.6 to the optimum -1; "
        "HYP* arrives first.",
    ),
    "figure04": (
        "Sign cases of one neuron",
        "Paths of a neuron a * relu(w z) that should learn a w = 1 with w > 0, under gradient flow (GD), "
        "under products m * w and under HAM, from the four cases of signs of (a, w), on ten data sets. A "
        "path learns if it ends on the dashed curve. GD learns only from the right signs; m * w and HAM "
        "also learn where the outer weight a starts with the wrong sign. No method learns where w does.",
    ),
    "figure06": (
        "Sparse regression from zero",
        _REGRESSION + "Left: gradient descent (GD), HAM with alpha = 1000, and HAM with the sign before "
        "the gradient step (HAM signed). Right: how much farther HAM signed is from the truth than HAM, "
        "per seed.",
    ),
    "figure07": (
        "Sparse regression from the wrong signs",
        _REGRESSION + "All weights start at -0.0001; the truth is 1 or 0. HAM needs the gradient step "
        "for the signs and the hyperbolic step for sparsity: gradient descent (GD) alone ends farther "
        "from the truth, the hyperbolic step alone changes no sign and moves away.",
    ),
    "figure08": (
        "HAM with more alpha",
        _REGRESSION
        + "HAM from zero with a larger alpha at a smaller learning rate lr, with the same product of both, "
        "ends nearer to the truth after more steps.",
    ),
}
RUNS = {  # name -> caption; the title is in configs/figures
    "figure02a": (
        "Share of the weights that change their sign within an interval of ten epochs, of those that are "
        "active at both of its ends, for a ResNet50 on ImageNet under a random mask at 90 % sparsity: "
        "trained plainly (Random), as products with resets (Sign-In), and with HAM."
    ),
    "figure05": (
        "Inverse metric at theta = 0 of a ResNet50 on ImageNet, mean over the first layer's weights, at "
        "every tenth epoch. It is 1 for HAM at any time; for weights m * w it is abs(m^2 - w^2), which "
        "training and decay let vanish, and which Sign-In resets to 1."
    ),
    "figure09": (
        "Training loss (left) and mean absolute weight (right) of a dense ResNet50 on ImageNet over the "
        "epochs, for the base optimizer (Baseline) and for HAM with (alpha, beta)."
    ),
    "figure10": (
        "Training loss (left) and sum of absolute weights (right) of a dense ResNet50 on ImageNet over the "
        "epochs, with SGD and with sharpness aware minimization (SAM), each alone, with HAM, and with alpha "
        "or beta of HAM alone."
    ),
    "figure11": (
        "Top-1 accuracy on CIFAR-100's test images after the last epoch of a dense ResNet18 for pairs of "
        "HAM's alpha and beta, one seed. The frame marks the paper's choice; the pairs are our own, "
        "since the paper shows its grid only as a picture."
    ),
    "figure12": (
        "Top-1 accuracy on ImageNet's validation images after the last epoch of a dense ResNet50 for "
        "pairs of HAM's alpha and beta, one seed. The frame marks the paper's choice; the pairs are our "
        "own, since the paper shows its grid only as a picture."
    ),
}


STUDIES = {  # name -> title and caption
    "study_cifar16_forest": (
        "Study at CIFAR-100, 16 px: differences",
        "Differences of the top-1 test accuracy of the last epoch between two arms of the study, paired by "
        "seed: each dot is a seed, a square the mean, a line its 95 % interval (Student's t). Scaled down, "
        "not the paper's setting.",
    ),
    "study_cifar16_curves": (
        "Study at CIFAR-100, 16 px: curves",
        "Test accuracy, mean absolute weight, sign flips per ten epochs and the fraction of weights below "
        "1e-3 over the epochs, for the primary arms of the study; bands are one sample standard deviation "
        "over seeds. Scaled down, not the paper's setting.",
    ),
}


def figure_texts(stem: str) -> tuple[str, str]:
    """Title and caption of a figure's file without its ending: `figure03`, `demo_figure02a`.

    Raises:
        PlanError: the file is not one of the figures, or has no caption.
    """
    if stem in STUDIES:
        return STUDIES[stem]
    demo = next((demo for demo, scale in SCALES.items() if stem.startswith(scale.prefix)), "")
    name = stem.removeprefix(SCALES[demo].prefix) if demo else stem
    if name in THEORY and not demo:
        title, caption = THEORY[name]
    elif name in RUNS:
        title, caption = plan.figure(name).title, RUNS[name]
    else:
        raise PlanError(f"no caption for the figure {stem!r}: add it to ham/report/captions.py")
    number = "Figure " + name.removeprefix("figure").lstrip("0")
    if demo:
        scale = scaled_down(demo)
        return (
            f"{scale}: the runs of {number}",
            f"{scale}; the caption names the paper's networks and images. {caption}",
        )
    return f"{number}. {title}", caption
