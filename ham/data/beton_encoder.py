"""Encodes images into FFCV's files with several processes.

FFCV's DatasetWriter waits forever for a worker process that fails, so the processes here are our own. Which
images are stored as JPEG depends only on their numbers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Value, connection, get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .base import DataError
from .beton import import_ffcv
from .imagenet_source import Source

_CHUNK = 16  # images that a worker takes at a time
_PR_SET_PDEATHSIG = 1  # of prctl(2)


class WorkerKilledError(Exception):
    """A worker process ended by a signal; the message names the cure."""


def encode_all(path: Path, source: Source, fields: dict[str, Any], max_resolution: int, workers: int) -> None:
    """Write all images of `source` into an FFCV file.

    Args:
        path: the file.
        source: images and labels.
        fields: FFCV's fields of a sample.
        max_resolution: pixels of the longer side of a stored image, at most.
        workers: number of processes.

    Raises:
        DataError: an image is damaged.
        WorkerKilledError: a worker process was killed.
        OSError: the file cannot be written.
    """
    ffcv = import_ffcv()
    from ffcv.memory_allocator import MemoryAllocator

    writer = ffcv.writer.DatasetWriter(str(path), fields, page_size=_page_bytes(max_resolution))
    writer.num_samples = len(source)
    writer.prepare()
    allocator = MemoryAllocator(writer.fname, writer.data_region_start, writer.page_size)
    fork, counter = get_context("fork"), Value(ctypes.c_uint64, 0)
    running: dict[Any, Any] = {}
    try:
        for _ in range(workers):
            receiver, sender = fork.Pipe(duplex=False)
            arguments = (source, writer, allocator, counter, sender, os.getpid())
            process = fork.Process(target=_worker, args=arguments, daemon=True)
            with _block_interrupt():
                process.start()
            running[receiver] = process
            sender.close()  # so that the receiver sees the end of a killed worker
        allocations = _gather(running, counter, len(source), path.name)
        _check_size(path, allocator)
        writer.finalize(allocations)
    finally:
        for process in running.values():
            process.kill()
            process.join()
        writer.metadata_sm.close()
        writer.metadata_sm.unlink()


def _page_bytes(max_resolution: int) -> int:
    """FFCV's default, or the power of two that has room for one image."""
    return 1 << max(23, (3 * max_resolution**2).bit_length())


@contextmanager
def _block_interrupt() -> Iterator[None]:
    """Processes that start here ignore Ctrl-C, which reaches the entire group: the parent handles it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _check_size(path: Path, allocator: Any) -> None:
    """Raise OSError unless all pages were written. FFCV does not notice a write that was cut off."""
    expected = allocator.offset + allocator.next_page_allocated.value * allocator.page_size
    if (actual := path.stat().st_size) != expected:
        reason = f"{os.strerror(errno.ENOSPC)}: {actual:,} of {expected:,} bytes were written"
        raise OSError(errno.ENOSPC, reason)


def _gather(running: dict[Any, Any], counter: Any, total: int, name: str) -> list[tuple[int, int, int]]:
    """Image number, first byte and size of all that the workers wrote, with a progress bar."""
    allocations, waiting = [], set(running)
    with tqdm(total=total, desc=name.strip("."), unit="images") as bar:
        while waiting:
            for receiver in connection.wait(list(waiting), timeout=0.2):
                try:
                    result = receiver.recv()
                except EOFError:
                    raise _worker_error(running[receiver]) from None
                if isinstance(result, Exception):
                    raise result
                allocations += result
                waiting.remove(receiver)
            bar.update(min(counter.value, total) - bar.n)
    return allocations


def _worker_error(worker: Any) -> WorkerKilledError:
    worker.join()
    causes = {
        signal.SIGKILL: "perhaps for lack of memory: use fewer --workers",
        signal.SIGBUS: "/dev/shm or the disk may be full: free space there",
    }
    name = signal.Signals(-worker.exitcode).name if worker.exitcode < 0 else f"status {worker.exitcode}"
    return WorkerKilledError(f"a worker process ended by {name}, {causes.get(-worker.exitcode, 'try again')}")


def _worker(source: Source, writer: Any, allocator: Any, counter: Any, sender: Any, parent: int) -> None:
    """A worker process: encode images until none is left, then send their allocations or an error."""
    import cv2

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    cv2.setNumThreads(0)
    metadata = np.frombuffer(writer.metadata_sm.buf, dtype=writer.metadata_type, count=len(source))
    number = 0
    try:
        allocator.__enter__()  # not a with statement: after an error, its end would wait for other workers
        for number in _take(counter, len(source)):
            _encode(number, source, writer.fields.values(), metadata, allocator)
        allocator.__exit__(None, None, None)
    except Exception as error:  # the parent must receive any error
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        problem = f"{source.names[number]} cannot be written ({reason}): replace or remove it"
        sender.send(error if isinstance(error, DataError | OSError) else DataError(problem))
        os._exit(1)
    sender.send(allocator.allocations)


def _take(counter: Any, total: int) -> Iterator[int]:
    """Image numbers that no other worker has."""
    while True:
        with counter.get_lock():
            first, counter.value = counter.value, counter.value + _CHUNK
        if first >= total:
            return
        yield from range(first, min(first + _CHUNK, total))


def _encode(number: int, source: Source, fields: Any, metadata: np.ndarray, allocator: Any) -> None:
    """Encode an image and its label; FFCV raises MemoryError on a full page, and the next page has space."""
    sample = source.image(number), source.labels[number]
    allocator.set_current_sample(number)
    for attempt in (1, 2):
        np.random.seed(number)  # FFCV draws from the global stream whether to store a JPEG
        try:
            for field, column, value in zip(fields, metadata.dtype.names, sample, strict=True):
                field.encode(metadata[column][number : number + 1], value, allocator.malloc)
            return
        except MemoryError:
            if attempt == 2:
                raise
