"""Files of graphs that are damaged, wrong or hostile: one line, and the command that it names mends it."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import graph_files as small_files
import numpy as np
import pytest
import scipy.sparse
import torch

pytest.importorskip("torch_geometric", reason="needs pip install -e '.[gnn]'")

from commands import script

from ham import experiments
from ham.data import DataError, Graph, commonsense_files, graph_download, graphs, molecules
from ham.data.checksums import read_sums
from ham.data.commonsense_files import Record
from ham.data.damaged import DamagedError
from ham.data.graph_facts import SETS, SHA256, sources
from ham.data.graph_files import fixed_split, read
from ham.data.graphs import Split
from ham.data.ogbg.files import _table
from ham.data.pickles import load_pickle, plain

REAL = Path(os.environ.get("HAM_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "graphs"
NPZ = ("amazon-photo", "coauthor-cs", "chameleon", "minesweeper")
PLANETOID = [file for file in SETS["cora"].files if not file.endswith("index")]


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    graphs._read.cache_clear()


def prepared(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the raw files of a small set."""
    small_files.write(name, root)
    small_files.shrink_sets(monkeypatch, name)
    return root / name / "raw"


def load(name: str, root: Path) -> None:
    reader = SETS[name].reader
    split = Split.public if reader == "Planetoid" else Split.official
    split = Split.fixed if reader in ("Amazon", "Coauthor") else split
    Graph(name=name, root=str(root), split=split).load_graph(0, torch.device("cpu"))


def refusal(name: str, root: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(name, root)
    message = str(caught.value)
    assert "\n" not in message
    command = f"python scripts/prepare_graphs.py {name} --to DIR"
    assert message.endswith(f"; {command} fetches it, then data.root=DIR/graphs")
    return message


class Opens:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


# pickles


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("file", PLANETOID)
def test_no_pickle_of_planetoid_runs_code(
    file: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = prepared("cora", tmp_path, monkeypatch) / file
    content = pickle.loads(path.read_bytes())  # written above
    trap = Opens(tmp_path / "marker")
    hidden = {0: [trap]} if file.endswith("graph") else content
    if scipy.sparse.issparse(content):
        hidden.trap = trap
    for value in (trap, hidden if hidden is not content or scipy.sparse.issparse(content) else [trap]):
        path.write_bytes(pickle.dumps(value, protocol=protocol))
        assert f"{file} cannot be unpickled (it calls '" in refusal("cora", tmp_path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", NPZ)
def test_no_object_in_npz_files_runs_code(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = prepared(name, tmp_path, monkeypatch)
    paths = [raw / SETS[name].files[0]]
    paths += [tmp_path / "splits" / f"{name}_split.npz"] if (tmp_path / "splits").is_dir() else []
    trap = np.array([Opens(tmp_path / "marker")], dtype=object)
    for path in paths:
        original = path.read_bytes()
        with np.load(path) as file:
            content = dict(file)
        for key in content:
            np.savez(path, **{**content, key: trap})
            assert "is damaged (Object arrays cannot be loaded" in refusal(name, tmp_path)
        path.write_bytes(pickle.dumps(trap))
        assert "is damaged (File is not a zip file)" in refusal(name, tmp_path)
        path.write_bytes(original)
    assert not (tmp_path / "marker").exists()
    load(name, tmp_path)


@pytest.mark.parametrize("name", ["cora", "chameleon", "minesweeper", "amazon-photo", "wikics"])
def test_files_that_pytorch_geometric_leaves_beside_are_not_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = prepared(name, tmp_path, monkeypatch)
    for folder in (raw, raw.parent / "processed", raw.parent / "geom-gcn", raw / "processed"):
        folder.mkdir(exist_ok=True)
        for file in ("data.pt", "pre_transform.pt", "pre_filter.pt", "geometric_data_processed.pt"):
            torch.save(Opens(tmp_path / "marker"), folder / file)
    load(name, tmp_path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("form", ["old scipy", "old numpy", "protocol 2", "protocol 5", "a default dict"])
def test_pickles_of_every_age_are_read(form: str) -> None:
    from collections import defaultdict

    matrix = scipy.sparse.random(7, 5, density=0.4, format="csr", random_state=0)
    protocol = 5 if form == "protocol 5" else 2
    content = pickle.dumps(matrix, protocol=protocol)
    if form == "old scipy":
        content = content.replace(b"scipy.sparse._csr", b"scipy.sparse.csr")
    elif form == "old numpy":
        content = content.replace(b"numpy._core", b"numpy.core")
    elif form == "a default dict":
        assert load_pickle(pickle.dumps(defaultdict(list, {3: [4]}), protocol=2)) == {3: [4]}
    assert (plain(load_pickle(content)) != matrix).nnz == 0


@pytest.mark.parametrize("part", ["indices", "indptr", "data", "_shape", "dtype"])
def test_a_matrix_that_reads_elsewhere_is_refused(part: str) -> None:
    matrix = scipy.sparse.random(7, 5, density=0.4, format="csr", random_state=0)
    wrong = {"indices": matrix.indices + 10**6, "indptr": matrix.indptr * 9, "data": matrix.data[:2]}
    if part in wrong:
        setattr(matrix, part, wrong[part])
    elif part == "_shape":
        matrix._shape = (7, 2)
    else:
        matrix.data = np.array(["a"] * matrix.nnz)
    with pytest.raises(ValueError, match=r"^cannot be unpickled \(.+\)$"):
        load_pickle(pickle.dumps(matrix))


# contents


def change_npz(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with np.load(path) as file:
            content = dict(file)
        change(content)
        np.savez(path, **content)

    return apply


def set_value(key: str, place: Any, value: Any, dtype: type | None = None) -> Callable[[Path], None]:
    def change(content: dict[str, np.ndarray]) -> None:
        content[key] = content[key].astype(dtype or content[key].dtype)
        content[key][place] = value

    return change_npz(change)


WRONG: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a nan": ("chameleon", set_value("node_features", (7, 2), np.nan), "a feature of node 7 is nan or inf"),
    "an inf": (
        "minesweeper",
        set_value("node_features", (0, 0), np.inf),
        "a feature of node 0 is nan or inf",
    ),
    "too large": (
        "chameleon",
        set_value("node_features", (3, 3), 1e300, np.float64),
        "a feature of node 3 is nan or inf",
    ),
    "a nan in a matrix": ("amazon-photo", set_value("attr_data", 0, np.nan), "is nan or inf"),
    "a label": ("chameleon", set_value("node_labels", 4, 3), "the label 3 is not an integer from 0 to 2"),
    "a negative label": ("coauthor-cs", set_value("labels", 4, -1), "the label -1 is not"),
    "half a label": ("chameleon", set_value("node_labels", 4, 0.5, np.float64), "the label 0.5 is not"),
    "a label nan": ("minesweeper", set_value("node_labels", 4, np.nan, np.float64), "is damaged ("),
    "a node": ("chameleon", set_value("edges", (0, 1), 60), "the end of an edge, 60 is not an integer"),
    "a negative node": ("chameleon", set_value("edges", (0, 1), -1), "the end of an edge, -1 is not"),
    "a node less": (
        "chameleon",
        change_npz(lambda c: c.update(node_features=c["node_features"][1:])),
        "it has features of 59 nodes, and labels of 60",
    ),
    "a node in two parts": (
        "chameleon",
        set_value("test_masks", (5,), True),
        "its split has node",
    ),
    "a node in no part": ("minesweeper", set_value("train_masks", (9, slice(3)), False), ""),
    "no training nodes": ("chameleon", set_value("train_masks", 2, False), "its split has no train nodes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_contents_are_one_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, change, words = WRONG[case]
    raw = prepared(name, tmp_path, monkeypatch)
    load(name, tmp_path)
    graphs._read.cache_clear()
    if case == "a node in no part":
        node = int(np.flatnonzero(small_files.masks(name)["train"][9])[0])
        change, words = set_value("train_masks", (9, node), False), f"its split lacks node {node}"
    change(raw / SETS[name].files[0])
    assert f"{name}: {raw} is damaged (" in (message := refusal(name, tmp_path)) and words in message, message


SPLITS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a node twice": (set_value("train", 1, 0), "its split has node 0 more than once"),
    "a node in two parts": (set_value("test", 0, 7), "its split has node 7 more than once"),
    "a node less": (change_npz(lambda c: c.update(test=c["test"][1:])), "its split lacks node 45"),
    "out of range": (set_value("valid", 0, 60), "the valid node 60 is not an integer from 0 to 59"),
    "negative": (set_value("valid", 0, -1), "the valid node -1 is not"),
    "a fraction": (set_value("valid", 0, 30.5, np.float64), "the valid node 30.5 is not"),
    "no test nodes": (change_npz(lambda c: c.update(test=c["test"][:0])), "its split has no test nodes"),
    "no part": (change_npz(lambda c: c.pop("valid")), "valid"),
}


@pytest.mark.parametrize("case", SPLITS)
def test_a_wrong_split_is_one_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared("amazon-photo", tmp_path, monkeypatch)
    path = tmp_path / "splits" / "amazon-photo_split.npz"
    change, words = SPLITS[case]
    change(path)
    message = refusal("amazon-photo", tmp_path)
    assert f"{path} is damaged (" in message and words in message, message


@pytest.mark.parametrize("lines", ["580 581 581", "580 -1", "580 x", "580 600", "", "580.5"])
def test_wrong_test_nodes_of_planetoid_are_one_line(
    lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = prepared("cora", tmp_path, monkeypatch) / "ind.cora.test.index"
    numbers = path.read_text().split()
    path.write_text("\n".join([*lines.split(), *numbers[len(lines.split()) :]] if lines else []) + "\n")
    assert f"{path.parent} is damaged (" in refusal("cora", tmp_path)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", '"a"'])
def test_wrong_numbers_in_json_are_one_line(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = prepared("wikics", tmp_path, monkeypatch) / "data.json"
    content = json.loads(path.read_text())
    content["features"][11][0] = 777.0
    path.write_text(json.dumps(content).replace("777.0", value))
    assert f"{path.parent} is damaged (" in refusal("wikics", tmp_path)


def test_every_rank_can_raise_the_error() -> None:
    error = DamagedError("x is damaged", "y replaces it", [Path("x")])
    error.shared = True
    copy = pickle.loads(pickle.dumps(error))  # as all_gather_object does
    assert (str(copy), copy.paths, copy.shared) == ("x is damaged; y replaces it", (Path("x"),), True)


# checksums, and the command that a message names


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "flipped":  # in the content of a member, such that only its checksum shows it
        with zipfile.ZipFile(path) as archive:
            last = archive.infolist()[-1]
        content[last.header_offset + 30 + len(last.filename) + last.compress_size - 1] ^= 1
    else:
        content = {
            "torn": content[: len(content) // 2],
            "empty": b"",
            "a page": b"<html>",
            "cut": content[:-4],
        }[kind]
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["torn", "cut", "empty", "a page", "flipped"])
@pytest.mark.parametrize("name", ["amazon-photo", "chameleon", "cora"])
def test_the_command_that_is_named_replaces_damaged_files(
    name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "cora" and kind in ("flipped", "cut"):
        pytest.skip("pickles have no checksums")
    prepared(name, tmp_path / "remote", monkeypatch)
    urls = {place: (tmp_path / "remote" / place).as_uri() for place in sources(name)}
    monkeypatch.setattr(graph_download, "sources", lambda name: urls)
    command, root = script("prepare_graphs").main, tmp_path / "to" / "graphs"
    assert command([name, "--to", str(tmp_path / "to")]) == 0
    for place in urls:
        damage(root / place, kind)
    content = {place: (root / place).read_bytes() for place in urls}
    graphs._read.cache_clear()
    assert "is damaged (" in refusal(name, root)
    capsys.readouterr()
    assert command([name, "--to", str(tmp_path / "to")]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("; downloaded\n") and err.endswith(": downloading it again\n")
    for place in urls:
        assert (root / f"{place}.damaged").read_bytes() == content[place]
    load(name, root)
    assert command([name, "--to", str(tmp_path / "to")]) == 0 and capsys.readouterr().err == ""


def test_without_the_internet_a_damaged_file_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = prepared("chameleon", tmp_path / "graphs", monkeypatch) / "chameleon_filtered.npz"
    damage(path, "torn")
    missing = {"chameleon/raw/chameleon_filtered.npz": (tmp_path / "nowhere").as_uri()}
    monkeypatch.setattr(graph_download, "sources", lambda name: missing)
    assert script("prepare_graphs").main(["chameleon", "--to", str(tmp_path)]) == 2
    assert f"save the file as {path}" in capsys.readouterr().err
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_a_published_file_with_a_changed_bit_is_refused(tmp_path: Path) -> None:
    """A changed bit in a pickled label would be another number in a table."""
    if not (REAL / "cora" / "raw").is_dir():
        pytest.skip(f"no cora at {REAL}: set HAM_DATA")
    shutil.copytree(REAL / "cora", tmp_path / "cora")
    read("cora", tmp_path)
    for file in (*SETS["cora"].files[:3], "ind.cora.graph", "ind.cora.test.index"):
        path = tmp_path / "cora" / "raw" / file
        content = path.read_bytes()
        changed = bytearray(content)
        changed[len(content) // 2] ^= 1
        path.write_bytes(changed)
        words = "is damaged (its SHA-256 is not that of the published file)"
        assert f"{path} {words}" in refusal("cora", tmp_path)
        path.write_bytes(content)


def test_the_real_splits_are_complete() -> None:
    names = [file.removesuffix("_split.npz") for file in SHA256 if file.endswith("_split.npz")]
    if not (REAL / "splits").is_dir():
        pytest.skip(f"no splits at {REAL}: set HAM_DATA")
    assert len(names) == 4
    for name in names:
        assert sum(map(len, fixed_split(name, REAL).values())) == SETS[name].nodes


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, None])
def test_a_failing_machine_is_not_taken_for_a_damaged_file(
    number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good files must not be replaced where the temporary folder is full, or the memory."""
    prepared("cora", tmp_path, monkeypatch)
    error = OSError(number, os.strerror(number)) if number else MemoryError("Unable to allocate 1 GiB")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("ham.data.graph_files.shutil.copyfile", fail)
    with pytest.raises(
        DataError, match=r"cora/raw cannot be read \(.+\): free memory, and space in /"
    ) as caught:
        load("cora", tmp_path)
    assert not isinstance(caught.value, DamagedError) and "\n" not in str(caught.value)


def test_memory_that_a_file_asks_for_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header of 4 EiB in a file of a few bytes."""
    path = prepared("chameleon", tmp_path, monkeypatch) / "chameleon_filtered.npz"
    header = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (2**59,)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.npy", header.getvalue())
    with pytest.raises(DataError, match=r"chameleon/raw cannot be read \(.+\): free memory"):
        load("chameleon", tmp_path)


RECORD = {"instruction": "a", "input": "", "output": "b", "answer": "c"}
TEXTS: dict[str, tuple[str, Callable[[Path], Any], Any]] = {  # content of a file, its reader, what is read
    "SMILES": ("smiles,HIV_active\r\nCC,1\r\n", lambda path: molecules.read_smiles(path)[0], ["CC"]),
    "SHA256SUMS": (f"{'0' * 64}  a\n", lambda path: read_sums(path.parent), {"a": "0" * 64}),
    "questions": (json.dumps([RECORD]), commonsense_files.read_records, [Record(**RECORD)]),
    "an experiment": ('cell: "Table 4"\n', experiments._cell, "Table 4"),
    "a table of OGB": ("1,2\n", lambda path: _table(path).tolist(), [[1, 2]]),
}


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["no mark", "a mark"])
@pytest.mark.parametrize("kind", TEXTS)
def test_a_byte_order_mark_is_skipped(kind: str, mark: str, tmp_path: Path) -> None:
    text, read, expected = TEXTS[kind]
    path = tmp_path / "SHA256SUMS"
    content = (mark + text).encode()
    path.write_bytes(gzip.compress(content) if kind == "a table of OGB" else content)
    assert read(path) == expected
