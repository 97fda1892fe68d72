"""How images are shared out to the processes that encode them, and what the parent makes of their results."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import Pipe, Value
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ham.data import beton_encoder
from ham.data.beton_encoder import WorkerKilledError
from ham.data.imagenet_source import Source


@pytest.mark.parametrize("total", [0, 1, 16, 17, 40])
def test_workers_take_every_image_once_in_turns(total: int) -> None:
    counter = Value(ctypes.c_uint64, 0)
    takers = [beton_encoder._take(counter, total) for _ in range(2)]
    taken: list[list[int]] = [[], []]
    running = [0, 1]
    while running:
        for taker in list(running):
            if (number := next(takers[taker], None)) is None:
                running.remove(taker)
            else:
                taken[taker].append(number)
    assert sorted(taken[0] + taken[1]) == list(range(total))
    assert all(part == sorted(part) for part in taken)
    assert total <= 16 or all(taken)


class Field:
    """A field that writes its value once there is room."""

    def __init__(self, failures: int) -> None:
        self.failures, self.states = failures, []

    def encode(self, place: np.ndarray, value: int, malloc: Callable) -> None:
        self.states.append(np.random.get_state()[1][0])
        np.random.rand(3)
        if len(self.states) <= self.failures:
            raise MemoryError
        place[:] = value


def encode(failures: int) -> tuple[np.ndarray, list[Any], list[int]]:
    """Encode image 5 of pixels 55 and label 7; the first field needs `failures` more pages."""
    source = SimpleNamespace(image=lambda number: 11 * number, labels=[2 + number for number in range(9)])
    metadata = np.zeros(9, dtype=[("image", int), ("label", int)])
    fields, samples = [Field(failures), Field(0)], []
    allocator = SimpleNamespace(set_current_sample=samples.append, malloc=None)
    beton_encoder._encode(5, source, fields, metadata, allocator)
    return metadata, fields, samples


@pytest.mark.parametrize("failures", [0, 1])
def test_an_image_that_does_not_fit_the_page_goes_to_the_next_one(failures: int) -> None:
    """The draw whether it becomes a JPEG is the same in both tries: it depends on the number alone."""
    metadata, (image, _), samples = encode(failures)
    assert metadata[5].tolist() == (55, 7) and samples == [5]
    assert sum(map(sum, metadata.tolist())) == 62
    np.random.seed(5)
    assert image.states == [np.random.get_state()[1][0]] * (failures + 1)


def test_an_image_that_fits_no_page_is_an_error() -> None:
    with pytest.raises(MemoryError):
        encode(2)


class Bar:
    """In place of tqdm."""

    bars: list[Bar]

    def __init__(self, **options: object) -> None:
        self.options, self.n = options, 0
        self.bars.append(self)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int) -> None:
        self.n += count


def gather(monkeypatch: pytest.MonkeyPatch, results: list[Any], counted: int) -> tuple[Any, Bar]:
    """What the parent makes of the results of two workers that have taken `counted` of 20 images."""
    monkeypatch.setattr(beton_encoder, "tqdm", Bar)
    monkeypatch.setattr(Bar, "bars", [], raising=False)
    in_turn = SimpleNamespace(wait=lambda waiting, timeout: waiting[:1])
    monkeypatch.setattr(beton_encoder, "connection", in_turn)
    running = {}
    for result in results:
        receiver, sender = Pipe(duplex=False)
        running[receiver] = SimpleNamespace(exitcode=-signal.SIGKILL, join=lambda: None)
        if result is not None:
            sender.send(result)
        sender.close()
    counter = SimpleNamespace(value=counted)
    return beton_encoder._gather(running, counter, 20, ".train.beton.partial"), Bar.bars[0]


def test_the_parent_collects_all_allocations_and_counts_to_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    found, bar = gather(monkeypatch, [[(0, 8, 2), (1, 16, 3)], [(2, 24, 4)]], 32)
    assert sorted(found) == [(0, 8, 2), (1, 16, 3), (2, 24, 4)]
    assert bar.options == {"total": 20, "desc": "train.beton.partial", "unit": "images"} and bar.n == 20


def test_the_error_of_a_worker_is_raised_by_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="disk"):
        gather(monkeypatch, [OSError("disk")], 16)
    with pytest.raises(WorkerKilledError, match="ended by SIGKILL, perhaps for lack of memory"):
        gather(monkeypatch, [None], 16)


@pytest.mark.parametrize(
    ("exitcode", "end"),
    [
        (-signal.SIGKILL, "SIGKILL, perhaps for lack of memory: use fewer --workers"),
        (-signal.SIGBUS, "SIGBUS, /dev/shm or the disk may be full: free space there"),
        (-signal.SIGTERM, "SIGTERM, try again"),
        *((0, "status 0, try again"), (1, "status 1, try again")),
    ],
)
def test_how_a_worker_ended_is_named(exitcode: int, end: str) -> None:
    worker = SimpleNamespace(exitcode=None)
    worker.join = lambda: setattr(worker, "exitcode", exitcode)
    assert str(beton_encoder._worker_error(worker)) == f"a worker process ended by {end}"


def test_processes_that_start_meanwhile_ignore_ctrl_c() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    with beton_encoder._block_interrupt():
        assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before | {signal.SIGINT}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before


def test_a_file_has_its_header_and_all_of_its_pages(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(5 + 3 * 100))
    counted = SimpleNamespace(value=3)
    beton_encoder._check_size(path, SimpleNamespace(offset=5, next_page_allocated=counted, page_size=100))
    with pytest.raises(OSError, match=r"No space left on device: 305 of 1,205 bytes were written"):
        counted.value = 12
        beton_encoder._check_size(path, SimpleNamespace(offset=5, next_page_allocated=counted, page_size=100))


@pytest.mark.parametrize(
    ("max_resolution", "page"),
    [(1, 2**23), (500, 2**23), (1672, 2**23), (1673, 2**24), (26754, 2**31)],
)
def test_a_page_has_room_for_an_image_of_three_bytes_per_pixel(max_resolution: int, page: int) -> None:
    assert beton_encoder._page_bytes(max_resolution) == page >= 3 * max_resolution**2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("bad\nmore"), "name 3 cannot be written (ValueError: bad): replace or remove it"),
        (beton_encoder.DataError("as it is"), "as it is"),
        (OSError(28, "full"), "[Errno 28] full"),
    ],
)
def test_a_worker_sends_its_error_and_ends(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2 = pytest.importorskip("cv2", reason="comes with FFCV")

    class EndedError(Exception):
        """Instead of the end of the process."""

    def end(status: int) -> None:
        raise EndedError(status)

    def fail(number: int, *_: object) -> None:
        if number == 3:
            raise error

    sent: list[Any] = []
    asked: list[tuple[int, int]] = []
    threads = cv2.getNumThreads()
    cv2.setNumThreads(3)
    source = Source(["a"], [0] * 5, [("", 0, 0)] * 5, [f"name {number}" for number in range(5)])
    writer = SimpleNamespace(
        metadata_sm=SimpleNamespace(buf=bytearray(5)), metadata_type=np.dtype("u1"), fields={}
    )
    allocator = SimpleNamespace(__enter__=lambda: None, __exit__=lambda *_: None, allocations=[(0, 1, 2)])
    monkeypatch.setattr(beton_encoder, "_encode", fail)
    monkeypatch.setattr(beton_encoder.os, "_exit", end)
    monkeypatch.setattr(
        beton_encoder.ctypes, "CDLL", lambda name: SimpleNamespace(prctl=lambda *call: asked.append(call))
    )
    arguments = (source, writer, allocator)
    sender = SimpleNamespace(send=sent.append)
    with pytest.raises(EndedError, match="1"):
        beton_encoder._worker(*arguments, Value(ctypes.c_uint64, 0), sender, os.getppid())
    (result,) = sent
    assert isinstance(result, Exception) and str(result) == message
    assert asked == [(1, signal.SIGKILL)], "PR_SET_PDEATHSIG: it ends with its parent"
    assert cv2.getNumThreads() == 1
    cv2.setNumThreads(threads)
    sent.clear()
    beton_encoder._worker(*arguments, Value(ctypes.c_uint64, 0), sender, os.getppid() + 1)
    assert sent == [], "its parent has ended meanwhile"
    monkeypatch.setattr(beton_encoder, "_encode", lambda *_: None)
    beton_encoder._worker(*arguments, Value(ctypes.c_uint64, 0), sender, os.getppid())
    assert sent == [[(0, 1, 2)]]


class Process:
    """In place of a process: sends what `results` has next, and notes what is done with it."""

    results: list[Any]
    started: list[Process]

    def __init__(self, target: Callable, args: tuple, daemon: bool) -> None:
        self.arguments, self.calls = args, []
        assert target is beton_encoder._worker

    def start(self) -> None:
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())
        self.started.append(self)
        counter, sender = self.arguments[3:5]
        assert counter.value == 0
        sender.send(self.results.pop(0))

    def kill(self) -> None:
        self.calls.append("kill")

    def join(self) -> None:
        self.calls.append("join")


def encode_all(
    path: Path, monkeypatch: pytest.MonkeyPatch, results: list[Any], size: int, calls: list[Any]
) -> None:
    """Encode two images with stand-ins for FFCV's writer and the processes, and list the calls of FFCV."""
    path.write_bytes(bytes(size))

    def writer(*arguments: object, **options: object) -> SimpleNamespace:
        calls.append((arguments, options))
        memory = SimpleNamespace(close=lambda: calls.append("close"), unlink=lambda: calls.append("unlink"))
        made = SimpleNamespace(fname="f", data_region_start=5, page_size=100, metadata_sm=memory)
        made.prepare = lambda: calls.append(("prepare", made.num_samples))
        made.finalize = lambda allocations: calls.append(sorted(allocations))
        return made

    def allocator(*arguments: object) -> SimpleNamespace:
        calls.append(arguments)
        return SimpleNamespace(offset=5, next_page_allocated=SimpleNamespace(value=2), page_size=100)

    ffcv = SimpleNamespace(writer=SimpleNamespace(DatasetWriter=writer))
    monkeypatch.setattr(beton_encoder, "import_ffcv", lambda: ffcv)
    monkeypatch.setitem(sys.modules, "ffcv", ffcv)
    memory_allocator = SimpleNamespace(MemoryAllocator=allocator)
    monkeypatch.setitem(sys.modules, "ffcv.memory_allocator", memory_allocator)
    context = SimpleNamespace(Pipe=Pipe, Process=Process)
    monkeypatch.setattr(beton_encoder, "get_context", {"fork": context}.__getitem__)
    monkeypatch.setattr(Process, "results", list(results), raising=False)
    monkeypatch.setattr(Process, "started", [], raising=False)
    source = Source(["a"], [0, 0], [("", 0, 0)] * 2, ["x", "y"])
    try:
        beton_encoder.encode_all(path, source, {"image": None}, 500, len(results))
    finally:
        calls.append([process.calls for process in Process.started])


def test_the_file_gets_the_allocations_of_all_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls = tmp_path / "file", []
    encode_all(path, monkeypatch, [[(1, 9, 2)], [(0, 7, 2)]], 205, calls)
    assert calls == [
        *(((str(path), {"image": None}), {"page_size": 2**23}), ("prepare", 2), ("f", 5, 100)),
        *([(0, 7, 2), (1, 9, 2)], "close", "unlink", [["kill", "join"]] * 2),
    ]


@pytest.mark.parametrize(("result", "size"), [(OSError("disk"), 205), ([(0, 7, 2)], 204)])
def test_no_process_and_no_shared_memory_stays_after_an_error(
    result: Any, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    with pytest.raises(OSError, match=r"disk|204 of 205 bytes"):
        encode_all(tmp_path / "file", monkeypatch, [result], size, calls)
    assert calls[3:] == ["close", "unlink", [["kill", "join"]]]
