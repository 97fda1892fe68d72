"""The README and docs/: snippets run, and what they mention exists. Results: test_readme.py."""

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
        records = ("results/runs/*", "results/cifar16/*")  # may be without a run of this kind
        records = (*records, "results/site/assets/vega-lite.js")  # is not committed
        assert list(ROOT.glob(path.rstrip("/"))) or path.startswith(records), word


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
