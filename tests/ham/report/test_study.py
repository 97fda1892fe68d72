"""Studies: the plan is that of docs/study.md, and tuning gives the rates worked out by hand."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from study_files import PLAN, all_tuned, tuned

from ham.files import ROOT
from ham.optim import triangular
from ham.report.spec import PlanError, RunSpec, lock
from ham.report.study import _study, rate_of, studies, study
from ham.run.config import Config, config_hash, load
from ham.run.lock import with_overrides

PAGE = (ROOT / "docs" / "study.md").read_text()
PAPER = {"cifar100": ["+exp=cifar100_ham"], "imagenet": ["+exp=acdc_ham_s90"]}
IMAGES = {"cifar100": 50_000, "imagenet": 1_281_167}


# tuning


@pytest.mark.parametrize(
    ("accuracies", "fourth"),
    [
        ({0.0125: 40, 0.05: 50, 0.2: 45}, 0.1),  # between the best and its better neighbor
        ({0.0125: 45, 0.05: 50, 0.2: 40}, 0.025),
        ({0.0125: 50, 0.05: 45, 0.2: 40}, 0.00625),  # half of the lowest
        ({0.0125: 40, 0.05: 45, 0.2: 50}, 0.4),  # twice the highest
        ({0.0125: 40, 0.05: 50, 0.2: None}, 0.025),  # one that diverged is the worst
        ({0.0125: 50, 0.05: 50, 0.2: 50}, 0.00625),  # the lower rate wins a tie
        ({0.0125: 45, 0.05: 50, 0.2: 45}, 0.025),
        ({0.0125: 1, 0.05: None, 0.2: None}, 0.00625),
    ],
)
def test_the_fourth_rate(accuracies: dict[float, float | None], fourth: float) -> None:
    outcomes = tuned("HAM", accuracies)
    (run,) = [run for run in PLAN.trials("HAM", outcomes) if run not in outcomes]
    assert rate_of(run) == pytest.approx(fourth, rel=1e-12)
    assert PLAN.rate("HAM", outcomes) is None, "it is not chosen before the fourth has ended"


@given(st.lists(st.one_of(st.none(), st.floats(0, 100)), min_size=4, max_size=4))
def test_the_chosen_rate_is_the_best_of_four_and_every_run_is_in_the_lock_file(
    accuracies: list[float | None],
) -> None:
    outcomes = tuned("SGD", dict(zip(PLAN.tuning.rates, accuracies[:3], strict=True)))
    runs = PLAN.trials("SGD", outcomes)
    assert len({*runs}) == 4
    outcomes[runs[-1]] = accuracies[3]
    assert all(run.spec in lock()["cifar16"] for run in runs)
    if not any(accuracy is not None for accuracy in accuracies):
        with pytest.raises(PlanError, match="every tuning run of SGD diverged"):
            PLAN.rate("SGD", outcomes)
        return
    best = max(accuracy for accuracy in accuracies if accuracy is not None)
    lowest = min(rate_of(run) for run in runs if outcomes[run] == best)
    for arm in ("SGD", "random", "SAM"):
        assert PLAN.rate(arm, outcomes) == lowest
    final = PLAN.run("SGD", lowest, 0)
    assert final.spec in lock()["cifar16"] and final.info.epochs == 30


def test_a_run_that_has_not_ended_leaves_the_fourth_trial_open() -> None:
    outcomes = tuned("HAM", {0.0125: 40.0, 0.05: 50.0})
    assert [rate_of(run) for run in PLAN.trials("HAM", outcomes)] == [0.0125, 0.05, 0.2]
    assert PLAN.rate("HAM", outcomes) is None and PLAN.rate("RigL + HAM", outcomes) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("rate_of: SGD", "rate_of: RigL"), "rate_of must name a tuned arm, not 'RigL'"),
        (("- [STR + HAM, STR]", "- [STR + HAM, SGD]"), "part secondary has no arm 'SGD'"),
        (("arms: [SGD, HAM, matched", "arms: [SGD, Ham, matched"), "part primary has no arm"),
        (("[[HAM, SGD]]", "[[SGD, HAM]]"), "the claim 'HAM improves on SGD' needs contrasts of a part"),
        (("rates: [0.0125, 0.05, 0.2]", "rates: [0.05, 0.0125, 0.2]"), "tuning.rates must rise"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(change: tuple[str, str], words: str) -> None:
    text = (ROOT / "configs" / "studies" / "cifar16.yaml").read_text()
    before, after = change
    place = text.rindex(before) if before.startswith("- [") else text.index(before)
    changed = text[:place] + text[place:].replace(before, after, 1)
    assert changed != text
    with pytest.raises(ValueError, match=re.escape(words)):
        _study("cifar16", yaml.safe_load(changed))


def test_a_claim_may_rest_on_all_contrasts() -> None:
    content = yaml.safe_load((ROOT / "configs" / "studies" / "cifar16.yaml").read_text())
    every = [pair for part in content["parts"].values() for pair in part["contrasts"]]
    claims = {"all": {"contrasts": every, "needed": 9}}
    (claim,) = _study("cifar16", content | {"claims": claims}).claims
    assert (claim.text, len(claim.contrasts), claim.needed) == ("all", 9, 9)


def test_the_possible_runs_have_seed_0_and_seven_rates() -> None:
    assert PLAN.possible_rates() == pytest.approx([0.00625, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4])
    possible = PLAN.possible_runs()
    assert {run.seed for run in possible} == {0}
    assert len(possible) == len({*possible}) == 7 * (len(PLAN.tuned_arms) + len(PLAN.arms))


def test_a_plan_in_words_leaves_its_arms_parts_and_claims_out() -> None:
    assert not re.search(r"Arm\(|Part\(|Claim\(", repr(PLAN)) and "cifar16" in repr(PLAN)


def test_parts_wait_for_the_rates_of_their_arms_and_go_seed_by_seed() -> None:
    assert [run.seed for run in PLAN.runs({})] == [1000] * 15
    rates = {"SGD": 0.05, "HAM": 0.0125, "matched decay": 0.2, "beta alone": 0.05, "alpha alone": 0.0125}
    outcomes = all_tuned(rates)
    assert len(PLAN.runs(outcomes)) == 20 + 50 + 55
    primary = PLAN.runs(outcomes)[20:70]
    assert [run.seed for run in primary] == [seed for seed in range(10) for _ in range(5)]
    assert [rate_of(run) for run in primary[:5]] == list(rates.values())
    secondary = PLAN.runs(outcomes)[70:]
    assert [run.seed for run in secondary] == [seed for seed in range(5) for _ in range(11)]
    assert {rate_of(run) for run in secondary if "ham" in run.exp} == {0.0125}
    assert {rate_of(run) for run in secondary if "ham" not in run.exp} == {0.05}
    del outcomes[PLAN.trial("alpha alone", 0.2)]
    assert {run.seed for run in PLAN.runs(outcomes)} == {1000}, "both parts wait for all of tuning"


# the runs


def composed(run: RunSpec) -> Config:
    """The configuration of a run, whose experiment is composed once; a test below compares the two ways."""
    return replace(with_overrides(experiment(run.exp, run.demo), run), seed=run.seed)


@cache
def experiment(exp: str, demo: str) -> Config:
    return load(RunSpec(exp, 0, demo=demo).argv)


@cache
def paper_total(name: str, option: str) -> float:
    """An option's value times learning rate and steps at the paper's scale, from the configurations."""
    exps = {"optimizer.matched_decay": ["+exp=cifar100_matched_decay"]}
    cfg = load(exps.get(option, PAPER[name]))
    section, key = option.split(".")
    return (
        getattr(getattr(cfg, section), key) * cfg.optimizer.lr * cfg.epochs * (IMAGES[name] // cfg.batch_size)
    )


def test_decay_times_the_sum_of_the_rates_is_the_papers() -> None:
    factor = triangular(10_000)
    mean = sum(map(factor, range(10_000))) / 10_000  # of the schedule
    beta = {name: mean * paper_total(name, "ham.beta") for name in PAPER}
    decay = {name: mean * paper_total(name, "optimizer.weight_decay") / (1 - 0.9) for name in PAPER}
    assert [round(value, 1) for value in (*beta.values(), *decay.values())] == [24.2, 16.3, 1.5, 8.1]
    assert "exp(-24.2) as on the paper's CIFAR-100,\nand exp(-16.3)" in PAGE
    assert "by weight decay it is exp(-1.5) and exp(-8.1)" in PAGE
    for arm, paper in [("HAM", "cifar100"), ("matched decay", "cifar100"), ("AC/DC + HAM", "imagenet")]:
        for rate in (0.0125, 0.1):
            run = PLAN.run(arm, rate, 0)
            cfg = composed(run)
            steps = cfg.epochs * (100 * cfg.data.per_class // cfg.batch_size)
            assert steps == PLAN.steps == 4680
            assert set(PLAN.arms[arm].decays) > {"optimizer.weight_decay"}
            for option in PLAN.arms[arm].decays:
                section, key = option.split(".")
                total = getattr(getattr(cfg, section), key) * cfg.optimizer.lr * steps
                assert total == pytest.approx(paper_total(paper, option), rel=1e-3)


def test_the_arms_differ_in_what_the_page_says_and_in_nothing_else() -> None:
    configs = {arm: composed(PLAN.run(arm, 0.05, 3)) for arm in PLAN.arms}
    for arm, cfg in configs.items():
        assert cfg.ham.alpha == (200 if "HAM" in arm or arm == "alpha alone" else 0), arm
        assert (cfg.ham.beta > 0) == ("HAM" in arm or arm == "beta alone"), arm
        assert (cfg.optimizer.matched_decay > 0) == (arm == "matched decay"), arm
        assert (cfg.optimizer.sam_rho > 0) == arm.startswith("SAM"), arm
        sparse = arm.startswith(("random", "AC/DC", "RigL", "STR"))
        assert getattr(cfg.sparsifier, "sparsity", 0) == (0.9 if sparse else 0), arm
        assert cfg.optimizer.weight_decay == pytest.approx(6.683e-3 if sparse else 1.244e-3, rel=1e-3), arm
        shared = (cfg.data, cfg.epochs, cfg.batch_size, cfg.seed, cfg.optimizer.lr, cfg.optimizer.momentum)
        first = configs["SGD"]
        assert shared == (first.data, 30, 128, 3, 0.05, 0.9), arm
        assert cfg.model.building_lines(100, 16) == first.model.building_lines(100, 16), arm
    momentum = configs["SGD"].optimizer.momentum
    matched = configs["matched decay"].optimizer.matched_decay
    assert matched == pytest.approx(configs["HAM"].ham.beta * (1 - momentum), rel=1e-3)


def test_tuning_trains_on_other_images_than_it_judges_on_and_never_sees_test_images() -> None:
    for run in PLAN.runs({}):
        data = composed(run).data
        assert (data.per_class, data.validation_per_class) == (200, 50)
    assert all(composed(PLAN.run(arm, 0.05, 0)).data.validation_per_class == 0 for arm in ("SGD", "RigL"))
    assert all(PLAN.tuning.seed not in part.seeds for part in PLAN.parts.values())


@pytest.mark.parametrize("index", [0, 20, 60, 146])
def test_the_lock_file_has_the_configurations_of_the_study(index: int) -> None:
    run = PLAN.possible_runs()[index]
    assert run.info.config_hash == config_hash(load(run.argv)) == config_hash(composed(run))


# the page


def test_the_page_states_the_plan_that_runs() -> None:
    assert studies() == ["cifar16"]
    assert (
        "learning rates 0.0125, 0.05 and 0.2, seed 1000" in PAGE and "5,000 further training images" in PAGE
    )
    primary, secondary = PLAN.parts["primary"], PLAN.parts["secondary"]
    assert "five arms, seeds 0 to 9, three contrasts named here: " in PAGE
    assert (len(primary.arms), list(primary.seeds), len(primary.contrasts)) == (5, list(range(10)), 3)
    listed = re.search(r"named here: (.+?)\.\n", PAGE, re.S)[1].replace("\n  ", " ")
    assert listed.split("; ") == [str(contrast) for contrast in primary.contrasts]
    assert "eleven arms, seeds 0 to 4, six contrasts" in PAGE
    assert (len(secondary.arms), list(secondary.seeds), len(secondary.contrasts)) == (11, list(range(5)), 6)
    against_base = [c for c in secondary.contrasts if f"{c.reference} + HAM" == c.arm]
    assert {c.reference for c in against_base} == {"random", "AC/DC", "RigL", "STR", "SAM"}
    assert [str(c) for c in secondary.contrasts if c not in against_base] == [
        "random + HAM - random + Sign-In"
    ]


def test_the_claims_of_the_page_are_those_of_the_plan() -> None:
    table = PAGE[PAGE.index("| claim | supported if") :].partition("\n\n")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert rows == [claim.text for claim in PLAN.claims]
    assert [claim.needed for claim in PLAN.claims] == [1, 1, 1, 3]
    assert all(len(claim.contrasts) == (4 if "sparse" in claim.text else 1) for claim in PLAN.claims)


def test_the_power_that_the_page_promises() -> None:
    """Noncentral t: the effect at which a paired t-test rejects with probability 0.8, for sd 0.9."""
    from scipy import optimize, stats

    def detectable(n: int, alpha: float) -> float:
        critical = stats.t.ppf(1 - alpha / 2, n - 1)
        power = lambda d: stats.nct.sf(critical, n - 1, d * math.sqrt(n)) - 0.8  # noqa: E731
        return 0.9 * optimize.brentq(power, 0.1, 4)

    promised = [0.9, 1.1, 1.5, 2.5]
    pairs = [(10, 0.05), (10, 0.05 / 3), (5, 0.05), (5, 0.05 / 6)]
    assert [round(detectable(*pair), 1) for pair in pairs] == promised
    assert "a difference of 0.9 points with a probability of 80 %" in PAGE
    assert "procedure (5 % / 3) one of 1.1 points. With five seeds these are 1.5 and, at 5 % / 6, 2.5" in PAGE


def test_an_unknown_study_is_named() -> None:
    with pytest.raises(PlanError, match="unknown study 'cifar'"):
        study("cifar")
