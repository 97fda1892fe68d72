"""The entries of slurm/resources.yaml: their types, their errors, and which of them a run has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ham.report.spec import RunSpec
from ham.sweep import resources as module
from ham.sweep.manifests import SweepError
from ham.sweep.resources import Resources, is_short, resource_class, resources

ENTRY = {"sbatch": {"mem": "1G"}, "images_per_epoch": 7200, "images_per_second": 2, "disk_gb": 0.5}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | bytes], None]]:
    """`write(text)`: slurm/resources.yaml has this content."""
    monkeypatch.setattr(module, "SLURM", tmp_path)

    def replace(text: str | bytes) -> None:
        (tmp_path / "resources.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        resources.cache_clear()

    resources.cache_clear()
    yield replace
    resources.cache_clear()


def test_gpu_hours_are_images_over_speed_and_0_without_a_speed() -> None:
    """7,200 images at 2 a second are an hour; SAM passes over them twice."""
    for name, passes in (("dense", 1), ("dense_sam", 2)):
        run = RunSpec(name, 0, demo="tiny")
        assert Resources(**ENTRY).gpu_hours(run) == run.info.epochs * passes
        assert Resources(**ENTRY | {"images_per_second": 0}).gpu_hours(run) == 0.0


@pytest.mark.parametrize("short", [True, False])
def test_an_entry_is_read_as_it_is(write: Callable, short: bool) -> None:
    write(yaml.dump({"demo": ENTRY | {"short": short}, "node": ENTRY}))
    assert resources() == {"demo": Resources(**ENTRY, short=short), "node": Resources(**ENTRY, short=False)}
    assert is_short(RunSpec("dense", 0, demo="tiny")) is short


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("demo: 1\nnode: }\n", "slurm/resources.yaml, line 2: "),
        ("- demo", "slurm/resources.yaml has no entries: restore it from git"),
        (b"demo: \xff", "slurm/resources.yaml cannot be read: "),
    ],
)
def test_a_file_that_is_no_mapping_is_one_line(write: Callable, text: str | bytes, message: str) -> None:
    write(text)
    with pytest.raises(SweepError) as caught:
        resources()
    assert str(caught.value).startswith(message)


def test_a_missing_file_is_one_line(write: Callable) -> None:
    with pytest.raises(SweepError, match=r"^slurm/resources.yaml cannot be read: .*No such file"):
        resources()


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (7, " must be a mapping"),
        (ENTRY | {"disk": 1}, " has an unknown key 'disk': choose from sbatch, images_per_epoch, "),
        ({"sbatch": {}, "images_per_second": 1, "disk_gb": 1}, " has no images_per_epoch"),
        (ENTRY | {"sbatch": 1}, ": sbatch must be a mapping"),
        (ENTRY | {"disk_gb": True}, ": disk_gb must be a number"),
        (ENTRY | {"images_per_second": "1"}, ": images_per_second must be a number"),
        (ENTRY | {"short": 1}, ": short must be true or false"),
    ],
)
def test_an_entry_with_a_wrong_key_or_type_is_one_line(write: Callable, entry: Any, problem: str) -> None:
    write(yaml.dump({"demo": entry}))
    with pytest.raises(SweepError) as caught:
        resources()
    assert str(caught.value).startswith(f"slurm/resources.yaml: demo{problem}")


def test_a_run_has_the_class_of_its_scale_its_own_name_or_its_family(write: Callable) -> None:
    names = ("demo", "tiny", "node", "ogbg_ppa")
    write(yaml.dump(dict.fromkeys(names, ENTRY)))
    of = {
        RunSpec("dense", 0, demo="tiny"): "tiny",
        RunSpec("dense", 0, demo="digits"): "demo",
        RunSpec("node/cora_gcn", 0): "node",
        RunSpec("graph/ogbg_ppa_ham", 0): "ogbg_ppa",
    }
    assert {run: resource_class(run) for run in of} == of
    with pytest.raises(SweepError, match=r"^slurm/resources.yaml has no entry imagenet_rn50: add one$"):
        resource_class(RunSpec("dense", 0))
