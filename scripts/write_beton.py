"""Write ImageNet as FFCV's files, which data=imagenet reads.

    python scripts/write_beton.py --from SOURCE --to DIR [--workers N]

SOURCE holds train/<class>/ and val/<class>/, or ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
ILSVRC2012_devkit_t12.tar.gz, which are not unpacked. A file gets its name once it is complete and checked; an
existing file is checked and kept. Which images are stored as JPEG depends only on their numbers, and with
--workers 1 every byte of the file is reproducible.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ham.command_line import Parser, run_script
from ham.data import DataError
from ham.data.beton_encoder import WorkerKilledError
from ham.data.beton_writer import Format, check_targets, write_split
from ham.errors import one_line


def main(argv: list[str] | None = None) -> int:
    """Write the files; returns the exit status."""
    args = parse(argv)
    try:
        image_format = Format(args.max_resolution, args.jpeg_share, args.quality)
        check_targets(args.to, list(map(image_format.file_name, args.splits)), args.overwrite)
        for split in args.splits:
            print(
                write_split(
                    args.source, args.to, split, image_format, args.workers, args.expect, args.overwrite
                )
            )
    except DataError as error:
        print(f"write_beton.py: {error}", file=sys.stderr)
        return 2
    except WorkerKilledError as error:
        print(f"write_beton.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        path = error.filename or args.to
        print(f"write_beton.py: cannot write {path}: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("write_beton.py: interrupted; no incomplete file is left", file=sys.stderr)
        return 130
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--from", dest="source", type=Path, required=True, help="folder tree or archives to read"
    )
    parser.add_argument("--to", type=Path, required=True, help="folder to write to")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    splits, splits_help = ("train", "val"), "which parts to write (default: both)"
    parser.add_argument("--splits", nargs="+", choices=splits, default=list(splits), help=splits_help)
    parser.add_argument("--max-resolution", type=int, default=500, help="pixels of the longer side, at most")
    parser.add_argument("--jpeg-share", type=float, default=0.5, help="fraction of images stored as JPEG")
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality, 1 to 100")
    parser.add_argument(
        "--expect",
        choices=("any", "imagenet"),
        help="imagenet: reject other numbers of images; the default for the official archives",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_script(main))
