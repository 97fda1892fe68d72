"""Which files of configs/ an experiment and a demo are composed of."""

from __future__ import annotations

from pathlib import Path

import pytest

from ham import experiments
from ham.run.config import paths


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small configs/."""
    files = {
        "exp/one.yaml": 'defaults:\n  - _self_\n  - /base: wide/net\ncell: "Table 1"\n',
        "exp/sub/two.yaml": "defaults:\n  - /base: plain\n",
        "base/wide/net.yaml": "defaults:\n  - override /model: m\n  - override /data: photos\n",
        "base/plain.yaml": "defaults:\n  - override /model: m\n",
        "demo/small.yaml": "",
        "demo/other.yaml": "",
        "demo/photos/small.yaml": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("- _self_", "- {a: b}"))
    for module in (paths, experiments):
        monkeypatch.setattr(module, "CONFIGS", tmp_path)
    return tmp_path


@pytest.mark.usefixtures("configs")
def test_bases_and_demos_are_those_that_the_files_name() -> None:
    assert [paths.base_of(name) for name in ("one", "sub/two")] == ["wide/net", "plain"]
    assert paths.demos() == ["other", "small"]
    assert paths.demo_file("small", "one") == "photos/small"
    assert paths.demo_file("other", "one") == "other"
    assert paths.demo_file("small", "sub/two") == "small"


@pytest.mark.usefixtures("configs")
def test_experiments_are_listed_in_order_with_their_cells() -> None:
    assert experiments.experiments() == {"one": "Table 1", "sub/two": ""}
    assert experiments.choices_of("base") == ["plain", "wide/net"]
    assert (experiments.SEEDS[0], experiments.SEEDS[-1]) == (0, 4294967295)
