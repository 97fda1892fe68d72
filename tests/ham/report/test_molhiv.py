"""What docs/decisions.md says of the runs on ogbg-molhiv, computed from their records."""

from __future__ import annotations

import json

import numpy as np
from recomputed import RESULTS, ROOT
from scipy import stats

TEXT = " ".join((ROOT / "docs" / "decisions.md").read_text().split())
PLACES = {method: RESULTS / "epochs20" / "graph" / f"ogbg_molhiv{method}" for method in ("", "_ham")}


def metrics(method: str, key: str) -> np.ndarray:
    return np.array(
        [json.loads((PLACES[method] / f"seed{k}.json").read_text())["metrics"][key] for k in range(3)]
    )


def sentence(key: str) -> str:
    base, ham = metrics("", key), metrics("_ham", key)
    mean = (ham - base).mean()
    half = stats.t.ppf(0.975, 2) * (ham - base).std(ddof=1) / np.sqrt(3)
    what = "95 % interval " if key == "valid_best" else ""
    means = f"{base.mean():.2f} and {'with HAM ' if what else ''}{ham.mean():.2f}"
    return f"{means}, a difference of {mean:+.2f} ({what}{mean - half:+.2f} to {mean + half:+.2f})"


def test_means_and_differences_are_those_of_the_records() -> None:
    assert f"best validation ROC-AUC of GCN+ is {sentence('valid_best')}" in TEXT
    assert f"test ROC-AUC at that epoch is {sentence('test_at_best')}" in TEXT


def test_no_effect_is_claimed_while_intervals_contain_0() -> None:
    assert "the runs neither support nor contradict the paper's gain" in TEXT
    for key in ("valid_best", "test_at_best"):
        assert stats.ttest_rel(metrics("_ham", key), metrics("", key)).pvalue > 0.05


def test_every_run_learned_and_its_arms_ran_on_one_kind_of_processor() -> None:
    assert min(metrics(method, "valid_best").min() for method in PLACES) > 75
    for seed in range(3):
        records = [json.loads((place / f"seed{seed}.json").read_text()) for place in PLACES.values()]
        assert len({record["provenance"]["hardware"]["cpu"] for record in records}) == 1
        assert {record["epochs"] for record in records} == {20}
