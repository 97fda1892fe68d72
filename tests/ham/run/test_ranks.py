"""What ranks compare and send: configurations, code, states, files."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ham import distributed, process_group
from ham.agreement import PeerLostError
from ham.distributed import World
from ham.run import ranks
from ham.run.config import ConfigError, load

RUN = ["+exp=dense", "+demo=digits"]


def test_tensors_and_plain_values_are_identified_by_their_crc_32() -> None:
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).t()
    state = {"a": {"b": [tensor, True]}, "c": (None, "x"), "d": {}}
    content = tensor.contiguous().numpy().tobytes()
    assert ranks.checksums(state) == {
        "a.b.0": f"{zlib.crc32(content):08x}",
        "a.b.1": f"{zlib.crc32(b'True'):08x}",
        "c.0": f"{zlib.crc32(b'None'):08x}",
        "c.1": f"{zlib.crc32(repr('x').encode()):08x}",
    }
    assert ranks.checksums({"x": torch.tensor(-0.0)}) != ranks.checksums({"x": torch.tensor(0.0)})


def test_ranks_are_identified_by_what_decides_a_result_by_versions_and_by_code() -> None:
    mine = ranks.identity(replace(load(RUN), seed=3, runs_dir="/a"))
    assert mine["seed"] == 3 and mine["resume"] is True and mine["compute.device"] == "auto"
    assert not {"runs_dir", "compute.threads", "data.root", "wandb.mode"} & mine.keys()
    assert mine["torch"] == torch.__version__ and mine["GPUs"] is torch.cuda.is_available()
    assert mine["code"] == ranks.code_digest() and len(mine["code"]) == 12


def test_the_code_is_identified_by_the_names_and_contents_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"train.py": "1", "ham/b.py": "2", "ham/a/c.py": "3", "pruning/d.py": "4", "configs/e.yaml": "5"}
    for name, text in (files | {"ham/notes.txt": "6", "scripts/f.py": "7"}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(ranks, "ROOT", tmp_path)
    ordered = ["train.py", "ham/a/c.py", "ham/b.py", "pruning/d.py", "configs/e.yaml"]
    lines = [f"{name}\0{hashlib.sha256(files[name].encode()).hexdigest()}\n" for name in ordered]
    assert ranks.code_digest() == hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, float]]:
    """What the ranks are connected with; this is rank 1 of 2."""
    calls: list[tuple[Any, float]] = []
    monkeypatch.setattr(distributed, "world", lambda: World(1, 2, 1))
    monkeypatch.setattr(process_group, "init_distributed", lambda who, timeout: calls.append((who, timeout)))
    return calls


def test_ranks_connect_with_their_configuration_or_with_its_error(
    started: list[tuple[Any, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = ranks.load_on_all_ranks(RUN)
    assert started == [(ranks.identity(cfg), 600.0)]
    started.clear()
    message = "epochs must be at least 1, got 0"
    with pytest.raises(ConfigError, match=message):
        ranks.load_on_all_ranks([*RUN, "epochs=0"])
    assert started == [({"error": message}, 60.0)]

    def lost(*_: Any) -> None:
        raise PeerLostError("nobody")

    monkeypatch.setattr(process_group, "init_distributed", lost)
    with pytest.raises(ConfigError, match=message):
        ranks.load_on_all_ranks([*RUN, "epochs=0"])
    monkeypatch.setattr(distributed, "world", World)
    assert ranks.load_on_all_ranks(RUN) == load(RUN)


@pytest.mark.usefixtures("started")
def test_states_are_compared_with_place_and_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, str]] = []
    monkeypatch.setattr(distributed, "check_ranks_agree", lambda *arguments: compared.append(arguments))
    task = SimpleNamespace(steps_per_epoch=9)
    run = SimpleNamespace(task=task, epoch=2, step=21, shared_state=lambda: {"a": 1})
    ranks.check_run(run)
    ((state, where),) = compared
    assert state == ranks.checksums({"steps per epoch": 9, "a": 1})
    assert where == (
        "in epoch 3, step 21 (CRC-32): start the same command again to resume from the last checkpoint, on "
        "nodes of one kind"
    )
    monkeypatch.setattr(distributed, "world", World)
    ranks.check_run(run)
    ranks.check_states({}, "now")
    assert len(compared) == 1


def test_a_checkpoint_is_sent_in_parts_and_read_on_the_other_side(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"w": torch.arange(5.0), "n": 3}
    parts: list[torch.Tensor] = []
    sizes: list[int] = []
    assert ranks.send_state(state) is state and ranks.send_state(None) is None
    monkeypatch.setattr(distributed, "world", lambda: World(0, 2))
    monkeypatch.setattr(distributed, "broadcast_object", lambda size: sizes.append(size) or size)
    monkeypatch.setattr(distributed, "broadcast", lambda part: parts.append(part.clone()))
    assert ranks.send_state(state) is state and len(parts) == 1, "a small one is sent at once"
    parts.clear()
    monkeypatch.setattr(ranks, "_CHUNK", 1000)
    assert ranks.send_state(state) is state
    assert [len(part) for part in parts[:-1]] == [1000] * (sizes[0] // 1000) and sum(
        map(len, parts)
    ) == sizes[0]
    sent = iter(parts)
    monkeypatch.setattr(distributed, "world", lambda: World(1, 2))
    monkeypatch.setattr(distributed, "broadcast_object", lambda size: sizes[0])
    monkeypatch.setattr(distributed, "broadcast", lambda part: part.copy_(next(sent)))
    received = ranks.send_state(None)
    assert received["n"] == 3 and torch.equal(received["w"], state["w"])
    monkeypatch.setattr(distributed, "broadcast_object", lambda size: 0)
    assert ranks.send_state(None) is None


def test_a_folder_is_sent_file_by_file_where_it_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, sender = tmp_path / "mine", tmp_path / "sender"
    sender.mkdir()
    for name in ("a", "b", "c"):
        (sender / name).write_text(f"new {name}")
    ranks.send_folder(mine)
    assert not mine.exists(), "a single process has all files"
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(sender.iterdir())}
    answers: list[Any] = [digests]
    monkeypatch.setattr(distributed, "world", lambda: World(1, 2))
    monkeypatch.setattr(distributed, "from_rank_zero", lambda fn: answers.pop(0))
    monkeypatch.setattr(distributed, "all_reduce_or", lambda flag: flag)
    monkeypatch.setattr(distributed, "raise_on_all_ranks", lambda fn: fn())
    answers += [(sender / name).read_bytes() for name in ("a", "c")]
    mine.mkdir()
    (mine / "b").write_text("new b")
    (mine / "c").write_text("old c")
    ranks.send_folder(mine)
    assert {path.name: path.read_text() for path in mine.iterdir()} == {n: f"new {n}" for n in "abc"}
    assert answers == []


def test_a_file_is_written_by_the_rank_that_lacks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, digest = tmp_path / "new" / "deep" / "file", hashlib.sha256(b"x").hexdigest()
    monkeypatch.setattr(distributed, "world", lambda: World(1, 3))
    ranks._receive(path, b"x", digest, 2)
    assert not path.exists()
    ranks._receive(path, b"x", digest, 1)
    assert path.read_bytes() == b"x"
    ranks._receive(path, b"never written", digest, 1)
    assert path.read_bytes() == b"x" and ranks._digest(path) == digest and ranks._digest(tmp_path) == ""
