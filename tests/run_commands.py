"""Run Python command lines one after the other in this process, so that torch is imported once.

    python tests/run_commands.py JOBS RESULTS

JOBS is a JSON list of argument lists. Each begins with a script, with -m and a module, or with "compose", for
arguments of train.py that are only composed. RESULTS gets a JSON list of [exit status, output].
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Jobs = list[list[str]]


def run(words: list[str]) -> tuple[int, str]:
    """Exit status and output of one command line."""
    text, before = io.StringIO(), list(sys.path)
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            if words[0] == "compose":
                from ham.run.config import load

                load(words[1:])
            elif words[0] == "-m":
                sys.argv = words[1:]
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = words
                sys.path.insert(0, str(Path(words[0]).resolve().parent))  # as the interpreter does
                runpy.run_path(words[0], run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            traceback.print_exc(file=text)
            status = 1
        finally:
            sys.path[:] = before
    return status, text.getvalue()


def execute(jobs: Jobs, folder: Path, root: Path = ROOT) -> list[tuple[int, str]]:
    """Exit status and output of each job, all in one process with `folder` as the current one."""
    listed, results = folder / "jobs.json", folder / "results.json"
    scripts = [[str(root / job[0]) if job[0].endswith(".py") else job[0], *job[1:]] for job in jobs]
    listed.write_text(json.dumps(scripts))
    command = [sys.executable, __file__, str(listed), str(results)]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return [tuple(result) for result in json.loads(results.read_text())]


if __name__ == "__main__":
    jobs, results = map(Path, sys.argv[1:])
    results.write_text(json.dumps([run(words) for words in json.loads(jobs.read_text())]))
