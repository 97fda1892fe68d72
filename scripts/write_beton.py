"""Write ImageNet as FFCV's files, which data=imagenet reads.

    python scripts/write_beton.py --from SOURCE --to DIR [--workers N]

SOURCE holds train/<class>/ and val/<class>/, or ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
ILSVRC2012_devkit_t12.tar.gz, which stay packed. A file gets its name when it is whole and checked; one that
is there and good is kept. Which images are kept as JPEG depends on their numbers alone, and with --workers 1
so does every byte of the file.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Value, connection, get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ham.data import DataError
from ham.data.beton import Beton, import_ffcv
from ham.data.imagenet_source import COUNTS, Source, is_official, open_source

_CHUNK = 16  # images that a worker takes at a time
_SIGNAL_OF_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass(frozen=True)
class Format:
    """How images are stored: ffcv-imagenet's write_imagenet.sh 500 0.50 90 is the paper's code base's."""

    max_resolution: int = 500
    jpeg_share: float = 0.5
    quality: int = 90

    def __post_init__(self) -> None:
        """Raise DataError where a value is out of range."""
        if self.max_resolution < 1 or not 0 <= self.jpeg_share <= 1 or not 1 <= self.quality <= 100:
            raise DataError(f"{self}: a resolution of at least 1, a share in [0, 1], a quality from 1 to 100")

    def name(self, split: str) -> str:
        """As ffcv-imagenet names its files."""
        return f"{split}_{self.max_resolution}_{self.jpeg_share:.2f}_{self.quality}.beton"

    def fields(self) -> dict[str, Any]:
        """FFCV's description of an image and its label."""
        fields = import_ffcv().fields
        image = fields.RGBImageField(
            write_mode="proportion",
            max_resolution=self.max_resolution,
            compress_probability=self.jpeg_share,
            jpeg_quality=self.quality,
        )
        return {"image": image, "label": fields.IntField()}


def main(argv: list[str] | None = None) -> int:
    """Write the files; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", type=Path, required=True, help="folder tree or archives")
    parser.add_argument("--to", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes; all cores if not given"
    )
    parser.add_argument("--splits", nargs="+", choices=("train", "val"), default=["train", "val"])
    parser.add_argument("--max-resolution", type=int, default=500, help="longer side in pixels, at most")
    parser.add_argument("--jpeg-share", type=float, default=0.5, help="share of images kept as JPEG")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs")
    parser.add_argument(
        "--expect",
        choices=("any", "imagenet"),
        help="imagenet: refuse other numbers of images; the default for the official archives",
    )
    parser.add_argument("--overwrite", action="store_true", help="write anew what is there")
    args = parser.parse_args(argv)
    try:
        form = Format(args.max_resolution, args.jpeg_share, args.quality)
        args.to.mkdir(parents=True, exist_ok=True)
        for split in args.splits:
            official = is_official(args.source, split)
            source = open_source(args.source, split)
            if (args.expect or ("imagenet" if official else "any")) == "imagenet":
                _expect_imagenet(source, split)
            path = args.to / form.name(split)
            if path.exists() and not args.overwrite:
                check(path, source, form)
                print(f"{path}: kept, {len(source)} images of {len(source.classes)} classes")
            else:
                write(path, source, form, max(1, args.workers))
                size = path.stat().st_size / 1e9
                print(f"{path}: {len(source)} images of {len(source.classes)} classes, {size:.2f} GB")
    except DataError as error:
        print(f"write_beton.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"write_beton.py: cannot write: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("write_beton.py: interrupted; nothing half is left", file=sys.stderr)
        return 130
    return 0


def _expect_imagenet(source: Source, split: str) -> None:
    found, expected = (len(source), len(source.classes)), (COUNTS[split], 1000)
    if found != expected:
        raise DataError(
            f"{split}: {found[0]} images of {found[1]} classes, ImageNet has {expected[0]} of {expected[1]}: "
            "fetch it anew, or say --expect any"
        )


def write(path: Path, source: Source, form: Format, workers: int) -> None:
    """Write one file under a temporary name, check it, and only then give it its own.

    Raises:
        DataError: an image of the source is damaged, or another process is writing the same file.
        OSError: the disk is full or cannot be written to.
    """
    partial = path.with_name(f".{path.name}.partial")  # one a file: what a killed run left is used up here
    with open(partial, "ab") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another process is writing {path}: wait for it") from None
        try:
            _encode_all(partial, source, form, min(workers, len(source)))
            os.fsync(held.fileno())
            check(partial, source, form)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _encode_all(path: Path, source: Source, form: Format, workers: int) -> None:
    """FFCV's DatasetWriter with worker processes of our own: FFCV's waits for ever for one that fails."""
    ffcv = import_ffcv()
    from ffcv.memory_allocator import MemoryAllocator

    page = 1 << max(23, (3 * form.max_resolution**2 - 1).bit_length())  # bytes; FFCV's default or one image
    writer = ffcv.writer.DatasetWriter(str(path), form.fields(), page_size=page)
    writer.num_samples = len(source)
    writer.prepare()
    allocator = MemoryAllocator(writer.fname, writer.data_region_start, writer.page_size)
    fork, todo = get_context("fork"), Value(ctypes.c_uint64, 0)
    running: dict[Any, Any] = {}
    try:
        for _ in range(workers):
            receiver, sender = fork.Pipe(duplex=False)
            running[receiver] = fork.Process(
                target=_work, args=(source, writer, allocator, todo, sender, os.getpid()), daemon=True
            )
            running[receiver].start()
            sender.close()  # the receiver then sees the end of a worker that is killed
        writer.finalize(_collect(running, todo, len(source), path.name))
    finally:
        for process in running.values():
            process.kill()
            process.join()
        writer.metadata_sm.close()
        writer.metadata_sm.unlink()


def _collect(running: dict[Any, Any], todo: Any, total: int, name: str) -> list[tuple[int, int, int]]:
    """Image, first byte and bytes of everything that the workers wrote, with a progress bar."""
    allocations, waiting = [], set(running)
    with tqdm(total=total, desc=name.strip("."), unit="images") as bar:
        while waiting:
            for receiver in connection.wait(list(waiting), timeout=0.2):
                try:
                    found = receiver.recv()
                except EOFError:
                    raise DataError(
                        "a worker process was killed, perhaps for want of memory: use fewer --workers"
                    ) from None
                if isinstance(found, Exception):
                    raise found
                allocations += found
                waiting.remove(receiver)
            bar.update(min(todo.value, total) - bar.n)
    return allocations


def _work(source: Source, writer: Any, allocator: Any, todo: Any, sender: Any, parent: int) -> None:
    """A worker process: encode images until there are no more, then report where they lie."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    ctypes.CDLL(None).prctl(_SIGNAL_OF_PARENTS_DEATH, signal.SIGKILL)
    if os.getppid() != parent:
        return
    cv2.setNumThreads(0)
    metadata = np.frombuffer(writer.metadata_sm.buf, dtype=writer.metadata_type, count=len(source))
    with allocator:
        try:
            for number in _take(todo, len(source)):
                _encode(number, source, writer.fields.values(), metadata, allocator)
        except Exception as error:  # whatever it is, the parent must hear of it
            known = isinstance(error, DataError | OSError)
            said = f"{type(error).__name__}: {error}".partition("\n")[0]
            told = f"{source.names[number]} cannot be written ({said}): replace or remove it"
            sender.send(error if known else DataError(told))
            os._exit(1)
    sender.send(allocator.allocations)


def _take(todo: Any, total: int) -> Iterator[int]:
    """Numbers that no other worker has."""
    while True:
        with todo.get_lock():
            first, todo.value = todo.value, todo.value + _CHUNK
        if first >= total:
            return
        yield from range(first, min(first + _CHUNK, total))


def _encode(number: int, source: Source, fields: Any, metadata: np.ndarray, allocator: Any) -> None:
    """One image and its label; on a full page FFCV raises MemoryError, and the next takes both."""
    sample = source.image(number), source.labels[number]
    allocator.set_current_sample(number)
    for attempt in (1, 2):
        np.random.seed(number)  # FFCV draws from the global stream whether this image is kept as JPEG
        try:
            for field, column, value in zip(fields, metadata.dtype.names, sample, strict=True):
                field.encode(metadata[column][number : number + 1], value, allocator.malloc)
            return
        except MemoryError:
            if attempt == 2:
                raise


def check(path: Path, source: Source, form: Format) -> None:
    """Open the file anew: labels of all images, size and pixels of the first, the last and some between.

    Raises:
        DataError: it is not what `source` and `form` make.
    """
    import cv2

    resized = import_ffcv().fields.rgb_image.resizer
    cv2.setNumThreads(0)  # a later fork must not meet OpenCV's threads
    beton = Beton(path)
    if beton.classes.tolist() != source.labels:
        raise DataError(f"{path} has other images or labels than the source: write it anew with --overwrite")
    for number in np.linspace(0, len(source) - 1, min(len(source), 16), dtype=int).tolist():
        expected = resized(source.image(number), form.max_resolution)
        if beton.compressed[number]:
            quality = [cv2.IMWRITE_JPEG_QUALITY, form.quality]
            packed = cv2.imencode(".jpg", cv2.cvtColor(expected, cv2.COLOR_RGB2BGR), quality)[1]
            expected = cv2.cvtColor(cv2.imdecode(packed, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        height, width = beton.sizes[number].tolist()
        found = torch.empty(1, height, width, 3, dtype=torch.uint8)
        beton.decode(torch.tensor([number]), torch.tensor([[0, 0, height, width]]), found)
        difference = np.inf
        if expected.shape == (height, width, 3):
            difference = np.abs(found[0].numpy().astype(int) - expected).mean()
        if difference > (2 if beton.compressed[number] else 0):  # JPEG decoders round differently
            raise DataError(f"{path}: {source.names[number]} is stored wrong: write it anew with --overwrite")


if __name__ == "__main__":
    sys.exit(main())
