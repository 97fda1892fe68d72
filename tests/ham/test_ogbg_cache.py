"""The cache of what is read of OGB's sets, and who may write it."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import safetensors.torch
import torch

if find_spec("ogb") is None:  # not importorskip: `import ogb` asks the network for a newer version
    pytest.skip("needs pip install -e '.[run,ogb]'", allow_module_level=True)

from ogbg_files import assert_equal, edit, load, use_ogbg

from ham.data import DataError
from ham.data.ogbg import cache as ogbg_cache
from ham.data.ogbg import files as ogbg_files
from ham.distributed import World
from ham.files import lock_file

HIV = "ogbg-molhiv"


@pytest.mark.parametrize("name", ogbg_files.SETS)
def test_the_cache_equals_the_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_ogbg(monkeypatch, tmp_path, name)
    fresh, lines = load(tmp_path, name, walk_steps=3)
    assert len(lines) == 1 and lines[0].startswith(f"{name}: reads ")
    monkeypatch.setattr("ham.data.ogbg.read", None)
    monkeypatch.setattr("ham.data.ogbg.return_probabilities", None)
    cached, lines = load(tmp_path, name, walk_steps=3)
    assert not lines
    assert_equal(cached, fresh)
    assert cached.walks.shape == (len(cached.nodes), 3)


def cache_files(folder: Path) -> list[Path]:
    return sorted((folder / "ogbg_molhiv" / "ham_cache").glob("*.safetensors"))


@pytest.mark.parametrize("damage", ["torn", "changed", "empty", "no checksum"])
def test_a_damaged_cache_is_built_again(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_ogbg(monkeypatch, tmp_path, HIV)
    fresh, _ = load(tmp_path, HIV, walk_steps=2)
    for path in cache_files(tmp_path):
        content, sums = path.read_bytes(), path.with_name(f"{path.name}.sha256")
        changed = {
            "torn": content[:-5],
            "changed": content[:-1] + b"\x07",
            "empty": b"",
            "no checksum": content,
        }
        path.write_bytes(changed[damage])
        if damage == "no checksum":
            sums.unlink()
    again, lines = load(tmp_path, HIV, walk_steps=2)
    assert sum("is damaged (" in line and "builds it again" in line for line in lines) == 2
    assert_equal(again, fresh)
    assert not load(tmp_path, HIV, walk_steps=2)[1]


def test_other_raw_files_or_another_version_make_another_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_ogbg(monkeypatch, tmp_path, HIV)
    first, _ = load(tmp_path, HIV)
    edit(tmp_path / "ogbg_molhiv/raw/node-feat.csv.gz", lambda rows: rows[0].__setitem__(0, 77))
    second, lines = load(tmp_path, HIV)
    assert len(lines) == 1 and second.nodes[0, 0] == 77 != first.nodes[0, 0]
    monkeypatch.setattr(ogbg_cache.metadata, "version", lambda name: "0")
    assert len(load(tmp_path, HIV)[1]) == 1
    assert len(cache_files(tmp_path)) == 3


def test_without_a_writable_folder_everything_is_computed_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_ogbg(monkeypatch, tmp_path, HIV)
    fresh, _ = load(tmp_path, HIV, walk_steps=2)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    for path in cache_files(tmp_path):
        path.unlink()
    monkeypatch.setattr(ogbg_cache, "lock_file", refuse)
    for _ in range(2):
        graphs, lines = load(tmp_path, HIV, walk_steps=2)
        assert_equal(graphs, fresh)
        folder = tmp_path / "ogbg_molhiv" / "ham_cache"
        start = f"cannot write the cache to {folder} (Permission denied): every run"
        assert [line for line in lines if "cannot write" in line] == [
            f"{start} reads the raw files again",
            f"{start} computes the random walks again",
        ]
    assert not cache_files(tmp_path)


def test_a_full_disk_costs_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_ogbg(monkeypatch, tmp_path, HIV)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ogbg_cache, "atomic_write", refuse)
    graphs, lines = load(tmp_path, HIV, walk_steps=2)
    assert len(graphs) == 24 and graphs.walks.shape[1] == 2
    assert [line.partition(" (")[2] for line in lines if line.startswith("cannot write the cache ")] == [
        "No space left on device): every run reads the raw files again",
        "No space left on device): every run computes the random walks again",
    ]


def test_a_second_process_waits_and_reads_what_the_first_one_wrote(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    lock, lines, results = lock_file(tmp_path / "set.safetensors.lock"), [], []

    def build() -> dict[str, torch.Tensor]:
        raise AssertionError("the first process has built it")

    def wait() -> None:
        results.append(ogbg_cache.load_or_build(path, build, lines.append, "builds"))

    waiting = threading.Thread(target=wait)
    waiting.start()
    ogbg_cache._store(path, {"walks": torch.ones(3)})
    lock.close()
    waiting.join(timeout=30)
    assert results and results[0]["walks"].tolist() == [1, 1, 1]


def test_who_waits_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks, lines, naps = iter([BlockingIOError, BlockingIOError, BlockingIOError, "lock"]), [], []

    def lock_file(path: Path) -> str:
        assert path == tmp_path / "set.safetensors.lock"
        if isinstance(found := next(locks), str):
            return found
        raise found

    monkeypatch.setattr(ogbg_cache, "lock_file", lock_file)
    monkeypatch.setattr(ogbg_cache.time, "sleep", naps.append)
    assert ogbg_cache._wait_for_lock(tmp_path / "set.safetensors.lock", lines.append) == "lock"
    assert lines == [f"waits for the process that writes {tmp_path / 'set.safetensors'}"]
    assert len(naps) == 3 and 0 < naps[0] <= 1


def test_the_key_of_a_cache_is_a_digest_of_format_name_versions_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Format 2 of the computation; a file of an older one must not be read."""
    (tmp_path / "a").write_bytes(b"content")
    monkeypatch.setattr(ogbg_cache.metadata, "version", {"ogb": "1.3", "rdkit": "2025"}.__getitem__)
    digests = [["a", hashlib.sha256(b"content").hexdigest()]]
    content = json.dumps([2, HIV, [["ogb", "1.3"], ["rdkit", "2025"]], digests])
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    assert ogbg_cache.cache_key(tmp_path, ["a"], ["ogb", "rdkit"], HIV) == key
    with pytest.raises(DataError) as caught:
        ogbg_cache.cache_key(tmp_path, ["b"], [], HIV)
    assert str(caught.value) == (
        f"{tmp_path / 'b'} cannot be read (No such file or directory): check the file"
    )


def test_the_checksum_of_a_cache_has_the_format_of_sha256sum(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    ogbg_cache._store(path, {"walks": torch.ones(3)})
    line = (tmp_path / "set.safetensors.sha256").read_text()
    assert line == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  set.safetensors\n"
    assert ogbg_cache.load(path)["walks"].tolist() == [1, 1, 1]
    assert ogbg_cache.load(tmp_path / "other.safetensors") is None


@pytest.mark.parametrize(("sums", "problem"), [("", "list index out of range"), ("0  a", "another checksum")])
def test_a_wrong_checksum_is_named(sums: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    ogbg_cache._store(path, {"walks": torch.ones(3)})
    path.with_name("set.safetensors.sha256").write_text(sums)
    with pytest.raises(ValueError) as caught:
        ogbg_cache.load(path)
    assert str(caught.value) == f"{path} is damaged ({problem})"


def test_what_safetensors_cannot_write_is_an_error_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise safetensors.SafetensorError("I/O error: No space left")

    monkeypatch.setattr(safetensors.torch, "save_file", refuse)
    lines: list[str] = []
    built = ogbg_cache.load_or_build(
        tmp_path / "a" / "set.safetensors", lambda: {"walks": torch.ones(2)}, lines.append, "computes it"
    )
    assert built["walks"].tolist() == [1, 1]
    place = tmp_path / "a" / "set.safetensors"
    assert lines == [
        f"cannot write the cache {place} (I/O error: No space left): every run computes it again"
    ]


def test_the_cache_can_be_read_by_whom_the_umask_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_ogbg(monkeypatch, tmp_path, HIV)
    load(tmp_path, HIV)
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in cache_files(tmp_path)} == {0o666 & ~umask}


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """As on this one of two ranks; for rank 1, rank 0 has done its part."""
    monkeypatch.setattr("ham.data.ogbg.world", lambda: World(rank=rank, size=2))
    monkeypatch.setattr("ham.data.ogbg.on_rank_zero", lambda fn: fn() if rank == 0 else None)


def test_each_of_several_ranks_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_ogbg(monkeypatch, tmp_path, HIV)
    fresh, _ = load(tmp_path, HIV, walk_steps=2)
    for rank in (0, 1):
        as_rank(monkeypatch, rank)
        graphs, lines = load(tmp_path, HIV, walk_steps=2)
        assert not lines
        assert_equal(graphs, fresh)


PREPARE = (
    "and several ranks do not build it; prepare it first: "
    "python scripts/prepare_graphs.py ogbg-molhiv --to DIR"
)


@pytest.mark.parametrize(
    ("walk_steps", "option"), [(0, ""), (20, ""), (2, " --walk-steps 2")], ids=["none", "paper", "other"]
)
def test_several_ranks_do_not_build_what_may_take_longer_than_they_wait(
    walk_steps: int, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_ogbg(monkeypatch, tmp_path, HIV)
    missing = []
    for prepared in (False, True):
        with monkeypatch.context() as patch:
            as_rank(patch, 0)
            with pytest.raises(DataError) as caught:
                load(tmp_path, HIV, walk_steps=walk_steps or 20 * prepared)
        missing.append(str(caught.value))
        load(tmp_path, HIV)  # in a single process: the graphs without walks
    for message in missing:
        assert f" is missing, {PREPARE}" in message and "\n" not in message
    assert f"--to DIR{option}, with a DIR that can be written to" in missing[0]
    assert "-walks" not in missing[0] and f"-walks{walk_steps or 20}.safetensors is missing" in missing[1]


def test_several_ranks_refuse_a_damaged_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_ogbg(monkeypatch, tmp_path, HIV)
    load(tmp_path, HIV)
    (path,) = cache_files(tmp_path)
    path.write_bytes(b"")
    for rank in (0, 1):
        with monkeypatch.context() as patch, pytest.raises(DataError) as caught:
            as_rank(patch, rank)
            load(tmp_path, HIV)
        assert f"{path} is damaged (another checksum), {PREPARE}" in str(caught.value)
    load(tmp_path, HIV)
    as_rank(monkeypatch, 0)
    assert not load(tmp_path, HIV)[1]
