"""The page of a study, results/tables/study_<name>.md, and its runs as csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from .render import DIVERGED, NOT_RUN
from .statistics import mean_of
from .study_results import CHANCE, ArmResult, ContrastResult, PartResult, StudyResult

MECHANISM = {  # metric of an epoch -> heading, factor
    "l1_mean": ("mean abs(weight)", 1.0),
    "sign_flips": ("sign flips [%]", 100.0),
    "below_0.0001": ("below 1e-4 [%]", 100.0),
    "below_0.001": ("below 1e-3 [%]", 100.0),
    "below_0.01": ("below 1e-2 [%]", 100.0),
    "train_top1": ("training top-1 [%]", 1.0),
}
ARMS = ("arm", "learning rate", "n", "top-1", "sparsity [%]")
CONTRASTS = ("contrast", "difference", "+ / = / -", "p", "p (Holm)", "sd", "detectable")
CONTRASTS_NOTE = (
    "Differences in points, paired by seed: mean with 95 % interval (Student's t); seeds above / equal / "
    "below 0; p of the two-sided paired t-test; p after Holm's correction over these contrasts; standard "
    "deviation of the differences, and the difference that this test at 5 % finds with probability 80 %."
)
MECHANISM_HEAD = ("arm", *(head for head, _ in MECHANISM.values()))
MECHANISM_NOTE = (
    "The weights at the last epoch: means over the seeds; sign flips are those of the last ten epochs."
)
INCOMPLETE = "Incomplete: {ended} of {planned} runs. Tests and intervals follow when all runs have ended."


def page(result: StudyResult) -> str:
    """The page in Markdown."""
    study = result.study
    lines = [
        f"# Study: {study.title}",
        "",
        f"Written by `python scripts/study.py {study.name}` from the committed records; do not edit. The",
        "plan and its rules: [study.md](../../docs/study.md). Scaled-down runs: these numbers cannot be",
        "compared with the paper's.",
        "",
        *(f"- {sentence}" for sentence in headlines(result)),
        "",
        *_table(("claim", "verdict"), [(claim.text, result.verdict(claim)) for claim in study.claims]),
        "",
        *(line for part in result.parts.values() for line in _part(part)),
        *_tuning(result),
    ]
    return "\n".join(lines).rstrip() + "\n"


def headlines(result: StudyResult) -> list[str]:
    """One sentence for each part: its result, or how much of it has run."""
    sentences = []
    for part in result.parts.values():
        name = part.part.name.capitalize()
        if not part.is_complete:
            sentences.append(f"{name} part: {part.ended} of {part.planned} runs have ended; no result yet.")
            continue
        verdicts = "; ".join(f"{c.contrast}: {verdict(c)}" for c in part.contrasts)
        sentences.append(f"{name} part: {verdicts}.")
    return sentences


def verdict(contrast: ContrastResult) -> str:
    """Above or below 0 after Holm's correction, or inconclusive; with mean, interval and number of seeds."""
    if contrast.mean is None:
        return "no pair"
    word = {1: "above 0", -1: "below 0", 0: "inconclusive"}[contrast.sign]
    diverged_count = len(contrast.with_chance) - len(contrast.differences)
    suffix = f", {diverged_count} diverged" if diverged_count else ""
    return f"{word}, {contrast.mean} points (n = {len(contrast.differences)}{suffix})"


def _part(part: PartResult) -> Iterator[str]:
    yield from (f"## {part.part.name.capitalize()} part", "")
    if not part.is_complete:
        yield from (incomplete(part), "")
    if not part.ended:
        return
    yield from (arms_note(part), "", *_table(ARMS, map(arm_row, part.arms.values())), "")
    if part.is_complete:
        yield from (CONTRASTS_NOTE, "", *_table(CONTRASTS, contrast_rows(part)), "")
    mechanism = _table(MECHANISM_HEAD, mechanism_rows(part))
    yield from (MECHANISM_NOTE, "", *mechanism, "", *(f"- {text}" for text in remarks(part)), "")


def incomplete(part: PartResult) -> str:
    """How many runs of an incomplete part have ended."""
    return INCOMPLETE.format(ended=part.ended, planned=part.planned)


def arms_note(part: PartResult) -> str:
    """What the columns of `arm_row` are."""
    return (
        "Top-1 test accuracy in percent at the last epoch: mean ± sample standard deviation over the n of "
        f"{len(part.part.seeds)} seeds that have run."
    )


def arm_row(arm: ArmResult) -> list[str]:
    """An arm in the columns `ARMS`."""
    if arm.sample is None:
        return [arm.name, _number(arm.rate, "g"), "0", DIVERGED if arm.diverged else NOT_RUN, ""]
    sparsities = [record.content["sparsity"]["overall"] for record in arm.records.values()]
    spread = f" ± {arm.sample.std:.2f}" if arm.sample.std is not None else ""
    return [
        *(arm.name, _number(arm.rate, "g"), str(arm.sample.n), f"{arm.sample.mean:.2f}{spread}"),
        f"{100 * sum(sparsities) / len(sparsities):.2f}",
    ]


def contrast_rows(part: PartResult) -> list[list[str]]:
    """The contrasts of a complete part in the columns `CONTRASTS`."""
    return list(map(_contrast, part.contrasts))


def _contrast(result: ContrastResult) -> list[str]:
    if result.mean is None:
        return [str(result.contrast), NOT_RUN, *[""] * 5]
    above, below = (sum(sign * d > 1e-9 for d in result.differences.values()) for sign in (1, -1))
    return [
        str(result.contrast),
        str(result.mean),
        f"{above} / {len(result.differences) - above - below} / {below}",
        _number(result.mean.p, ".2g"),
        _number(result.adjusted, ".2g"),
        _number(result.std, ".2f"),
        _number(result.detectable(), ".2f"),
    ]


def mechanism_rows(part: PartResult) -> list[list[str]]:
    """The weights of the arms in the columns `MECHANISM_HEAD`."""
    return list(map(_mechanism, part.arms.values()))


def _mechanism(arm: ArmResult) -> list[str]:
    values = ((arm.mean_of(metric), factor) for metric, (_, factor) in MECHANISM.items())
    return [arm.name, *("" if value is None else f"{factor * value:.3g}" for value, factor in values)]


def remarks(part: PartResult) -> Iterator[str]:
    """A sentence for each run that diverged, and for the processors."""
    for arm in part.arms.values():
        for seed, reason in arm.diverged.items():
            yield f"{arm.name}, seed {seed}, diverged: {reason}."
    for contrast in part.contrasts:
        if len(contrast.with_chance) > len(contrast.differences):
            mean = mean_of(list(contrast.with_chance.values()))
            holm = _number(contrast.adjusted_with_chance, ".2g")
            after = f", p (Holm) {holm}" if holm else ""
            yield f"{contrast.contrast} with {CHANCE:g} % for runs that diverged: {mean}{after}."
    seeds: dict[str, list[int]] = {}
    for seed, names in sorted(part.processors().items()):
        seeds.setdefault(" and ".join(sorted(names)), []).append(seed)
    for names, own in seeds.items():
        mixed = "; the arms of a seed ran on different ones" if " and " in names else ""
        of_seeds = f"{'seed' if len(own) == 1 else 'seeds'} {', '.join(map(str, own))}"
        yield f"Processor of {of_seeds}: {names}{mixed}."


def _tuning(result: StudyResult) -> Iterator[str]:
    head, rows, chosen = tuning_table(result)
    marked = [
        [f"**{cell}**" if column == own else cell for column, cell in enumerate(row)]
        for row, own in zip(rows, chosen, strict=True)
    ]
    yield from ("## Tuning", "", f"{tuning_note(result)} **Bold**: chosen.", "", *_table(head, marked))


def tuning_note(result: StudyResult) -> str:
    """What the table of tuning shows, and how many of its runs have ended."""
    study, ended = result.study, sum(map(len, result.trials.values()))
    return (
        f"Validation top-1 in percent of seed {study.tuning.seed}, four learning rates for each arm; {ended} "
        f"of {4 * len(study.tuned_arms)} runs have ended."
    )


def tuning_table(result: StudyResult) -> tuple[list[str], list[list[str]], list[int | None]]:
    """Head and rows of the accuracies by learning rate, and the column of each row's choice."""
    rates = sorted({trial.rate for trials in result.trials.values() for trial in trials})
    rows: list[list[str]] = []
    chosen: list[int | None] = []
    for arm, trials in result.trials.items():
        known = {trial.rate: trial.accuracy for trial in trials}
        rows.append([arm, *("" if rate not in known else _trial(known[rate]) for rate in rates)])
        own = result.rates[arm]
        chosen.append(1 + rates.index(own) if own in rates else None)
    return ["arm", *(f"{rate:g}" for rate in rates)], rows, chosen


def _trial(accuracy: float | None) -> str:
    return DIVERGED if accuracy is None else f"{accuracy:.2f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def comma_separated(result: StudyResult) -> str:
    """One line for each run of the parts: part, arm, seed, learning rate, accuracy, sparsity, processor."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("part", "arm", "seed", "learning_rate", "top1_last", "sparsity", "processor"))
    for name, part in result.parts.items():
        for arm in part.arms.values():
            for seed, record in arm.records.items():
                cpu = record.content["provenance"]["hardware"]["cpu"]
                sparsity = record.content["sparsity"]["overall"]
                accuracy = f"{arm.accuracies[seed]:.10g}"
                writer.writerow((name, arm.name, seed, f"{arm.rate:g}", accuracy, f"{sparsity:.10g}", cpu))
    return out.getvalue()
