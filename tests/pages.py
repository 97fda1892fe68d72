"""What the README and the pages of docs/ contain: snippets, files, commands, links, headings, code words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
METHOD_PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"^`(\S+/\S+\.(?:py|yaml))`:\n\n```\w+\n(.*?)^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_WORD = re.compile(r"`([^`]+)`")
_COMMENT = re.compile(r"(^|\s)# .*")
_CONTINUED = re.compile(r" \\\n +")
_NOT_COMMANDS = ("theta <-", "runs/<exp>", "config.yaml ", "provenance.json ", "metrics.jsonl ", "train.log ")
_NOT_COMMANDS += (
    "last.pt ",
    "masks.pt ",
    "summary.json ",
    "diverged.json ",
    "configs/exp/X.yaml ->",
    "(Hydra)",
)
_LAYOUT = re.compile(r"[\w./]+[/y] {2,}\S")  # README's tree of folders


@dataclass(frozen=True)
class Command:
    """A command line of a page."""

    page: str
    line: str

    def __str__(self) -> str:
        return f"{self.page}: {self.line}"


def without_fences(text: str) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", text)


def snippets(text: str) -> list[str]:
    """Python blocks that stand alone: not the files and fragments of the extending page."""
    files = {code for _, code in _FILE.findall(text)}
    blocks = [code for language, code in _FENCE.findall(text) if language == "python"]
    return [code for code in blocks if code not in files and not code.startswith(" ")]


def files(text: str) -> dict[str, str]:
    """Path -> content of the blocks that follow a line with a path in backticks and a colon."""
    return dict(_FILE.findall(text))


def fragments(text: str) -> list[str]:
    """Indented python blocks: lines that are added to an existing file."""
    return [code for language, code in _FENCE.findall(text) if language == "python" and code[0] == " "]


def commands(page: Path) -> list[Command]:
    """The command lines in indented blocks, without comments; a backslash continues a line."""
    text = _CONTINUED.sub(" ", without_fences(page.read_text()))
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    lines = [_COMMENT.sub("", line).strip() for line in lines]
    kept = [line for line in lines if line and not line.startswith(_NOT_COMMANDS) and not _LAYOUT.match(line)]
    return [Command(page.name, line) for line in kept]


def links(text: str) -> list[str]:
    """Targets of the links and pictures outside of code."""
    return _LINK.findall(_WORD.sub("", without_fences(text)))


def anchors(text: str) -> set[str]:
    """The headings as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", without_fences(text), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


def code_words(text: str) -> list[str]:
    """The words in backticks outside of blocks."""
    return [" ".join(word.split()) for word in _WORD.findall(without_fences(text))]
