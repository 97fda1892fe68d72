"""The README and docs/: snippets run, numbers are those of the records, and what is mentioned exists."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from pages import METHOD_PAGES, PAGES, ROOT, anchors, code_words, links, snippets

EXTENDING = "extending.md"  # its paths are created by test_extending.py
OPTIONAL = ("transformers", "onnx")  # what only some snippets need; slow to import
SNIPPETS = [(page.name, code) for page in PAGES for code in snippets(page.read_text())]


def imported(code: str) -> list[str]:
    """Those of the optional packages that a snippet imports."""
    return [name for name in OPTIONAL if re.search(rf"^(import|from) {name}\b", code, re.MULTILINE)]


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 8192


def test_the_numbers_of_the_readme_are_those_of_the_report():
    report = (ROOT / "results" / "tables" / "node_reading.md").read_text()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in report.splitlines() if line[:2] == "| "
    ]
    readme = " ".join((ROOT / "README.md").read_text().split())
    counts, means = {}, {}
    for method in ("+HAM", "+nHAM"):
        own = [(float(row[5].split()[0]), float(row[8])) for row in rows if row[1].endswith(method)]
        counts[method] = [sum((ours > 0) - (ours < 0) == sign for ours, _ in own) for sign in (1, 0, -1)]
        means[method] = [sum(column) / len(own) for column in zip(*own, strict=True)]
    above = sum(float(row[8]) > 0 for row in rows if row[1].endswith("+HAM"))
    up, equal, down = counts["+HAM"]
    assert (
        f"of the {up + equal + down} HAM rows that were run, {up} lie above their base, {equal} equals it"
        in readme
    )
    assert f"{down} lie below (mean difference {means['+HAM'][0]:+.2f} points)" in readme
    assert f"{above} of the same rows lie above (mean {means['+HAM'][1]:+.2f})" in readme
    run = sum("±" in row[3] for row in rows)
    assert f"{run} of the 117 node classification experiments are run" in readme
    up, equal, down = counts["+nHAM"]
    assert f"{up} above their base, {equal} equal, {down} below" in readme
    bounds = [re.findall(r"[+-][\d.]+", row[5])[1:] for row in rows if "[" in row[5]]
    contain_zero = sum(float(low) <= 0 <= float(high) for low, high in bounds)
    assert f"{contain_zero} of {len(bounds)} intervals of the differences on graphs contain 0" in readme


@pytest.mark.parametrize("page", PAGES + METHOD_PAGES, ids=lambda page: page.name)
def test_lines_are_short_outside_of_tables(page: Path):
    lines = page.read_text().splitlines()
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]


@pytest.mark.parametrize("page", PAGES + METHOD_PAGES, ids=lambda page: page.name)
def test_spelling_is_american(page: Path):
    british = r"\b\w*(?:alis(?:e|ation|ed|er|ing)|our(?:ed|s)?(?<=colour)|behaviour|centred|licence|grey)\b"
    assert not re.findall(rf"{british}|\bcancelled\b|\btowards\b", page.read_text())


@pytest.mark.parametrize(
    ("page", "code"),
    [pytest.param(*pair, marks=[pytest.mark.slow] if imported(pair[1]) else []) for pair in SNIPPETS],
    ids=[page for page, _ in SNIPPETS],
)
def test_snippet_runs(page: str, code: str):
    for name in [*imported(code), *(["onnxscript"] if "onnx" in imported(code) else [])]:
        pytest.importorskip(name, reason=f"{name} is not installed: pip install {name}")
    torch.manual_seed(0)  # otherwise a drawn weight is exactly 0 now and then, like a pruned one
    exec(compile(code, page, "exec"), {})


# Links, paths, names


@pytest.mark.parametrize("page", PAGES + METHOD_PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for link in links(page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert link.startswith("https://") or target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("page", PAGES + METHOD_PAGES, ids=lambda page: page.name)
def test_paths_exist(page: Path):
    folders = ["ham", "pruning", "configs", "scripts", "slurm", "tests", "results", "benchmarks", "docs"]
    for word in code_words(page.read_text()):
        path = re.sub(r"<[^>]*>", "*", word.split()[0])
        if path.split("/")[0] not in folders or "/" not in path or "NAME" in path or page.name == EXTENDING:
            continue
        assert list(ROOT.glob(path.rstrip("/"))) or path.startswith("results/runs/*"), word


def expanded(word: str) -> list[str]:
    """a{b,c}d -> abd, acd."""
    match = re.search(r"\{([^}]*)\}", word)
    if not match:
        return [word]
    parts = [word[: match.start()] + part + word[match.end() :] for part in match[1].split(",")]
    return [full for part in parts for full in expanded(part)]


def test_the_table_of_experiments_is_complete():
    """Each name stands for its variants: a suffix, another sparsity, a combination with Sign-In or HAM."""
    from ham.run.config import experiments

    text = (ROOT / "docs" / "experiments.md").read_text()
    rows = re.search(r"^\| experiment .*?\n\n", text, re.DOTALL | re.MULTILINE)[0].strip().splitlines()[2:]
    cells = [code_words(row.split("|")[1]) for row in rows]
    names = [re.sub(r"<\w+>", "*", name) for cell in cells for word in cell for name in expanded(word)]
    names = [name for name in names if not name.startswith("_") and name not in ("sign_in", "ham")]
    known = experiments()
    assert all(any(fnmatchcase(exp, name) for exp in known) for name in names)
    variants = r"_(sign_in|n?ham|alpha_only|beta_only|200ep)"
    for exp in known:
        base = re.sub(variants, "", re.sub("_s(80|95)$", "_s90", exp))
        forms = (exp, re.sub("_s(80|95)$", "_s90", exp), base)
        assert any(fnmatchcase(form, name) for form in forms for name in names), exp


def test_keys_of_the_configuration_exist():
    from ham import __all__ as exported
    from ham.run.config.registry import SCHEMAS
    from ham.run.config.schema import Config

    groups = {
        name: set().union(*(s.__dataclass_fields__ for s in own.values())) for name, own in SCHEMAS.items()
    }
    for name in ("compute", "checkpoint", "wandb"):
        groups[name] = set(Config.__dataclass_fields__[name].default_factory.__dataclass_fields__)
    packages = {path.stem for path in (ROOT / "ham").iterdir()} | set(exported)
    for page in PAGES:
        for group, key in re.findall(r"`(\w+)\.(\w+)(?:=[^`]*)?`", page.read_text()):
            if group in groups and key not in ("yaml", "json"):
                assert key in groups[group] or (group == "ham" and key in packages), f"{group}.{key}"
