"""Records of strangers are shown as text: no element, attribute or script of theirs reaches a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from site_pages import Element, data_of, parse

from ham.report.records import (
    Record,
    metrics_path,
    path_of,
    read,
    record,
    write_divergence,
)
from ham.report.spec import RunSpec
from ham.report.theory_data import DATA, show
from ham.site import build, sources, theory

ELEMENTS = {
    *(
        "document",
        "html",
        "head",
        "meta",
        "title",
        "link",
        "script",
        "noscript",
        "style",
        "body",
        "header",
        "nav",
    ),
    *(
        "main",
        "footer",
        "h1",
        "h2",
        "h3",
        "p",
        "a",
        "ul",
        "li",
        "div",
        "span",
        "strong",
        "code",
        "pre",
        "dl",
        "dt",
    ),
    *(
        "dd",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "button",
        "form",
        "fieldset",
        "legend",
        "label",
    ),
    *("input", "select", "option", "figure", "figcaption", "details", "summary", "progress"),
}
ATTRIBUTES = {
    *(
        "lang",
        "charset",
        "name",
        "content",
        "rel",
        "href",
        "src",
        "defer",
        "class",
        "id",
        "type",
        "style",
        "role",
    ),
    *("tabindex", "scope", "rowspan", "colspan", "value", "max", "checked", "placeholder", "autocomplete"),
    *(
        "aria-label",
        "aria-labelledby",
        "aria-current",
        "aria-sort",
        "aria-hidden",
        "data-chart",
        "data-choice",
    ),
    *(
        "data-copy",
        "data-sort",
        "data-sort-by",
        "data-sortable",
        "data-filter",
        "data-kind",
        "data-value",
        "data-fixed",
    ),
}
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% for x in y %}",
    "javascript:alert(1)",
    "datum.x || alert(1)",
)


def foreign(page: Element) -> list[str]:
    """Elements, attributes and scripts that are not of our templates."""
    found = []
    for own in page.all():
        found += [own.tag] if own.tag not in ELEMENTS else []
        found += [name for name in own.attrs if name not in ATTRIBUTES or name.startswith("on")]
        if own.tag == "script":
            kind, source = own.attrs.get("type"), own.attrs.get("src") or ""
            is_ours = (
                source.removeprefix("../") in ("assets/site.js", "assets/vega-lite.js") and not own.parts
            )
            found += [] if is_ours or kind == "application/json" else [f"script {own.attrs}"]
        link = own.attrs.get("href") or own.attrs.get("src") or ""
        found += [link] if ":" in link and link != "data:," else []
        style = own.attrs.get("style") or ""
        found += [style] if style and not style.startswith(("min-height: ", "--share: ")) else []
    return found


def expressions(spec: Any) -> Iterator[str]:
    """Names of fields and expressions of a Vega-Lite specification."""
    if isinstance(spec, dict):
        for key, own in spec.items():
            if key in (
                "field",
                "filter",
                "expr",
                "signal",
                "test",
                "calculate",
                "as",
                "labelExpr",
                "url",
                "href",
            ):
                yield str(own)
            if key != "values":
                yield from expressions(own)
    elif isinstance(spec, list):
        for own in spec:
            yield from expressions(own)


def check(site: dict[str, str]) -> None:
    """Every page has our elements alone, and specifications our fields alone."""
    names = {"series", "epoch", "mean", "low", "high", "row", "seed", "paper", "datum.row % 6 === 1"}
    names |= {f"isValid(datum.{name})" for name in ("mean", "seed", "paper")}
    for name, text in site.items():
        page = parse(text)
        assert not foreign(page), name
        drawn = {
            **data_of(page, "data-chart"),
            **{k: v["spec"] for k, v in data_of(page, "data-choice").items()},
        }
        own_names = names | (theory_expressions() if name == theory.PAGE else set())
        assert {own for spec in drawn.values() for own in expressions(spec)} <= own_names, name


def theory_expressions() -> set[str]:
    """Those of the theory's charts, constants of ham/site; data are the values of parameters and rows."""
    shown = [show(DATA / f"{section.figure}.json", section.make) for section in theory.SECTIONS]
    return {own for chart in shown for own in expressions(chart.vega_lite)}


def test_the_committed_pages_pass(committed: dict[str, str]) -> None:
    check(committed)


@pytest.mark.parametrize("text", HOSTILE[:3])
def test_the_check_notices_markup(text: str, committed: dict[str, str]) -> None:
    page = committed["runs.html"].replace("<h1>", f"<h1>{text}", 1)
    with pytest.raises(AssertionError):
        check({"runs.html": page})


def spoiled(value: Any, text: str, depth: int = 0) -> Any:
    """A value of JSON with the text in every key, at the end of every text, and as one more item."""
    if isinstance(value, dict):
        extra = {text: 1.0} if depth else {}
        return {key: spoiled(own, text, depth + 1) for key, own in value.items()} | extra
    if isinstance(value, list):
        return [spoiled(own, text, depth + 1) for own in value]
    return f"{value}{text}" if isinstance(value, str) else value


@pytest.mark.parametrize("text", HOSTILE)
def test_markup_in_what_a_valid_record_may_hold_is_text(
    text: str, tmp_path: Path, make_summary: Callable[..., dict], make_epochs: Callable[..., list]
) -> None:
    """Names of metrics, versions and timings, the command line, names in epochs."""
    text = text.replace("/", "")  # what looks like a path of a machine is no record
    run = RunSpec("random_ham_s90", 0, demo="digits")
    content = make_summary(run)
    for part in (content["metrics"], content["timing"], content["sparsity"]):
        part[text] = 1.0
    content["provenance"]["versions"][text] = "1.0"
    content["provenance"]["argv"] += [text, f"x={text}"]
    path = path_of(run, tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record(content)))
    lines = [{k: v for k, v in line.items() if k != "layers"} | {text: 0.5} for line in make_epochs(run)]
    metrics_path(path).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    site, problems = build.render_site(tmp_path)
    assert not problems
    check(site)
    shown = parse(site["runs/random_ham_s90-digits.html"])
    assert shown.text.count(" ".join(text.split())) >= 2, "the name of the metric and of the version"
    assert text not in site["runs/random_ham_s90-digits.html"] or not set("<>&'\"") & set(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_markup_in_every_text_of_a_record_is_text(
    text: str, tmp_path: Path, write_record: Callable[..., Path], make_summary: Callable[..., dict]
) -> None:
    """Records that no rule has looked at: every text and every key below the first level is spoiled."""
    run = RunSpec("random_ham_s90", 0, demo="digits")
    own = read(write_record(tmp_path, run), tmp_path)
    content = spoiled(own.content, text)
    content["sparsity"] = own.content["sparsity"] | {text: text}
    content["graph"] = {text: text, "name": text}
    content["timing"] = {"seconds": 1.0, text: 1.0}
    lost = {RunSpec("random_ham_s90", 1, demo="digits"): text, RunSpec("random_s90", 3, demo="digits"): text}
    records = {demo: {} for demo in sources.SETTINGS} | {"digits": {run: Record(run, content, own.path)}}
    found = sources.Sources(records, {demo: {} for demo in sources.SETTINGS} | {"digits": lost})
    site = build.render_records(found)[0]
    check(site)
    assert parse(site["runs/random_ham_s90-digits.html"]).text.count(" ".join(text.split())) > 8
    assert " ".join(text.split()) in parse(site["tables/demo_table04.html"]).text


@pytest.mark.parametrize("text", ["x<script>alert(1)<", '"><img src=x onerror=y>', "&lt;b&gt;"])
def test_names_of_files_and_folders_reach_no_page(
    text: str, tmp_path: Path, write_record: Callable[..., Path]
) -> None:
    """They are in the wrong place, hence left out and named in one line."""
    path = write_record(tmp_path, RunSpec("acdc_s90", 0))
    before = build.render_site(tmp_path)[0]
    (path.parent / f"seed0{text}.json").write_text(path.read_text())
    folder = path.parents[1] / text
    folder.mkdir()
    (folder / "seed0.json").write_text(path.read_text())
    site, problems = build.render_site(tmp_path)
    assert site == before and len(problems) == 2 and all("wrong place" in line for line in problems)


@pytest.mark.parametrize("field", ["cell", "reason", "cpu", "python", "exp"])
def test_markup_where_words_are_expected_is_not_a_record(
    field: str, tmp_path: Path, write_record: Callable[..., Path], make_summary: Callable[..., dict]
) -> None:
    run = RunSpec("acdc_s90", 0)
    content = make_summary(run, reason="the loss became nan", status="diverged")
    part = {"cpu": content["provenance"]["hardware"], "python": content["provenance"]}.get(field, content)
    part[field] = HOSTILE[0]
    path = write_divergence(run, content, tmp_path)
    site, (problem,) = build.render_site(tmp_path)
    assert str(path) in problem and "\n" not in problem
    check(site)
    assert "alert(1)" not in "".join(site.values())
