"""The looks of the training methods in all figures, and the method of an experiment or label.

The colors are Okabe and Ito's (Color Universal Design, 2008) and Tol's (Colour Schemes, SRON, 2021); line
styles and markers distinguish the methods in gray.
"""

from __future__ import annotations

from typing import Any

from .spec import PlanError

METHODS: dict[str, dict[str, Any]] = {  # name -> matplotlib's properties; SAM's are tints with hollow markers
    "base": {"color": "#000000", "linestyle": "-", "marker": "o"},
    "ham": {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    "alpha_only": {"color": "#CC79A7", "linestyle": ":", "marker": "v"},
    "beta_only": {"color": "#117733", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "D"},
    "matched_decay": {"color": "#F0A830", "linestyle": (0, (8, 2)), "marker": "P"},
    "nham": {"color": "#AA4499", "linestyle": (0, (2, 2)), "marker": "*"},
    "sign_in": {"color": "#0072B2", "linestyle": "-.", "marker": "^"},
    "pilot": {"color": "#882255", "linestyle": (0, (6, 1, 2, 1)), "marker": "X"},
    "spred": {"color": "#661100", "linestyle": (0, (4, 1, 1, 1, 1, 1, 1, 1)), "marker": "h"},
    "product": {"color": "#56B4E9", "linestyle": (0, (4, 1, 1, 1)), "marker": "<"},
    "product_decay": {"color": "#44AA99", "linestyle": (0, (1, 1)), "marker": ">"},
    "ham_signed": {"color": "#332288", "linestyle": (0, (7, 1.5, 1.5, 1.5)), "marker": "d"},
    "hyperbolic": {"color": "#999933", "linestyle": (0, (1, 0.7)), "marker": "p"},
    "sam": {"color": "#999999", "linestyle": (0, (10, 1)), "marker": "o", "markerfacecolor": "white"},
    "sam_ham": {"color": "#EBA878", "linestyle": (0, (3, 1)), "marker": "s", "markerfacecolor": "white"},
    "sam_alpha_only": {
        "color": "#DDA9C7",
        "linestyle": (0, (1, 2)),
        "marker": "v",
        "markerfacecolor": "white",
    },
    "sam_beta_only": {
        **{"color": "#70AD85", "linestyle": (0, (3, 1, 1, 1, 1, 1)), "marker": "D"},
        "markerfacecolor": "white",
    },
    "sam_matched_decay": {
        **{"color": "#D6C87E", "linestyle": (0, (6, 3)), "marker": "P"},
        "markerfacecolor": "white",
    },
}
SPARSIFIERS = ("Random", "AC/DC", "RiGL", "STR", "SNIP", "SynFlow", "Dense")
_IN_NAMES = (  # what names of experiments contain, in the order of the search
    *("matched_decay", "product_decay", "alpha_only", "beta_only", "sign_in", "nham", "ham"),
    *("pilot", "spred", "product"),
)
LABELS: dict[str, tuple[str, ...]] = {  # name of a method -> its labels in figures, after a sparsifier's name
    "base": ("SGD", "Adam", "AdamW", "GD", "Baseline", "base", *SPARSIFIERS),
    "ham": ("HAM", "HAM (200, 1e-3)", "HAM (200, 16e-3)"),
    "alpha_only": ("alpha alone", "HAM (200, 0)"),
    "beta_only": ("beta alone", "HAM (0, 1e-3)", "HAM (0, 16e-3)"),
    "matched_decay": ("matched decay",),
    "nham": ("nHAM",),
    "sign_in": ("Sign-In", "Sign-In, s = 0.9"),
    "pilot": ("PILoT",),
    "spred": ("spred",),
    "product": ("m * w",),
    "product_decay": ("m * w with decay",),
    "ham_signed": ("HAM signed", "HYP"),
    "hyperbolic": ("hyperbolic step alone",),
    "sam": ("SAM",),
    "sam_ham": ("SAM + HAM",),
    "sam_alpha_only": ("SAM + alpha alone",),
    "sam_beta_only": ("SAM + beta alone",),
    "sam_matched_decay": ("SAM + matched decay",),
}


def method_of(label: str) -> str:
    """The name in `METHODS` of one of the `LABELS`, as `HAM`, `+ HAM` or `Random + HAM`.

    Raises:
        PlanError: no method has this label.
    """
    head, plus, tail = label.partition("+ ")
    plain = tail if plus and head.strip() in ("", *SPARSIFIERS) else label
    for name, labels in LABELS.items():
        if plain in labels:
            return name
    raise PlanError(f"no method has the label {label!r}: add it to LABELS in ham/report/methods.py")


def look(label: str) -> dict[str, Any]:
    """Color, line style and marker of a method by one of its labels. Raises PlanError, as `method_of`."""
    return METHODS[method_of(label)]


def method_of_experiment(exp: str) -> str:
    """The name in `METHODS` of an experiment, by its name: `acdc_ham_s90` -> `ham`, `dense_sam` -> `sam`."""
    words = f"_{exp}_"
    own = next((name for name in _IN_NAMES if f"_{name}_" in words), "")
    if "_sam_" in words:
        return f"sam_{own}" if own else "sam"
    return own or "base"
