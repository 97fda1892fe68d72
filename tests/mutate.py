"""Change the code in small ways and see which changes no test notices: python tests/mutate.py [PATH ...]

A mutant is one changed expression or statement. The tests that import its module run on a copy of the tree
that holds it; a mutant whose tests all pass survives, and a test is missing or the mutant is equivalent.
A test that fails with a mutant runs again without it: if it fails there too, it is left out.
With --contexts, of a run of pytest --cov --cov-context=test, the tests that execute the line run first,
and with --times, of its --junitxml, the quickest of them.
tests/equivalent_mutants.yaml lists those that change nothing that matters, with the reason.
Results are kept in .mutants.jsonl: the same command resumes. Exit status: 1 when too few mutants are killed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import yaml
from covering import CoveringTests
from mutants import CODE, Mutant, mutants_of, related_tests

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "pytest_timeout"}  # a faster start
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu and not slurm")
KILLED, SURVIVED, UNDECIDED = "killed", "survived", "undecided"
REFUSED = "refused"  # pytest could not start: a test is not found, or a conftest.py cannot be imported
LIMIT_S = 3600.0  # of all tests of one mutant; one test ends earlier, by --timeout


class UsageError(Exception):
    """What keeps this from starting, in one line."""


class CannotRunError(UsageError):
    """None of the tests can run without a mutant."""


class Trees:
    """Copies of the repository `root` in `folder`, one for each job; the repository itself never changes."""

    def __init__(self, root: Path, folder: Path, jobs: int) -> None:
        self.root = root
        self._free: queue.Queue[Path] = queue.Queue()
        listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
        for tree in (folder / str(number) for number in range(jobs)):
            for name in filter(None, listed):
                if (root / name).is_file():
                    (tree / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(root / name, tree / name)
            self._free.put(tree)

    def run(self, arguments: list[str], mutant: Mutant | None = None) -> tuple[str, list[str]]:
        """Run pytest, with a mutant in place when one is given; returns how it ended and what failed."""
        tree = self._free.get()
        try:
            if mutant is not None:
                (tree / mutant.file).write_text(mutant.source)
            return run_pytest(tree, arguments)
        finally:
            if mutant is not None:
                shutil.copy2(self.root / mutant.file, tree / mutant.file)
            self._free.put(tree)


def run_pytest(tree: Path, arguments: list[str], limit: float = LIMIT_S) -> tuple[str, list[str]]:
    """How pytest ended in `tree`, and the tests that failed; after `limit` seconds it is stopped."""
    own = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "HAM_COMMIT": "0000000"}  # it has no .git
    environment = os.environ | PLUGINS | own
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    command = [sys.executable, *PYTEST, *arguments]
    process = subprocess.Popen(command, cwd=tree, env=environment, start_new_session=True, **pipes)
    try:
        output = process.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        return UNDECIDED, []
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that the tests started
            process.communicate()
    statuses = {0: SURVIVED, 5: SURVIVED, 4: REFUSED}  # 5: no test was collected
    return statuses.get(process.returncode, KILLED), failing(output)


def failing(output: str) -> list[str]:
    """The tests that failed, and the test files that could not be imported, from pytest's summary."""
    summary = output.rpartition("short test summary info")[2]
    return re.findall(
        r"^(?:FAILED|ERROR) (\S+?\.py(?:::[^\[\n]*?(?:\[.*?\])?)?)(?: - .*)?$", summary, re.MULTILINE
    )


class Judge:
    """Runs the tests of a mutant in copies of the repository, and leaves out those that always fail.

    Args:
        trees: The copies.
        timeout: Seconds of one test; a mutant that makes a test endless is killed by it.
        covering: Finds the tests that execute a line; None: all related tests run.
    """

    def __init__(self, trees: Trees, timeout: float, covering: CoveringTests | None = None) -> None:
        self.trees, self.covering = trees, covering
        self.broken: set[str] = set()
        self._sound: set[str] = set()
        self._options = ["-x", f"--timeout={timeout:g}"]

    def status(self, mutant: Mutant, related: list[str]) -> str:
        """How the tests of a mutant end: those that execute its line, then all of the related files.

        Raises:
            CannotRunError: none of the related files can be imported, or pytest cannot start.
        """
        try:
            covering = self.covering.of(mutant, related) if self.covering else []
            if covering and self._status(mutant, covering) == KILLED:
                return KILLED
        except CannotRunError:
            pass
        return self._status(mutant, related)

    def _status(self, mutant: Mutant, tests: list[str]) -> str:
        while True:
            files = [file for file in tests if file not in self.broken]
            if tests and not files:
                raise CannotRunError(
                    f"no test of {mutant.file} can run without a mutant: pytest {' '.join(tests)}"
                )
            arguments = [*(f"--deselect={name}" for name in sorted(self.broken - {*tests})), *files]
            status, failed = self.trees.run([*self._options, *arguments], mutant)
            unknown = {*failed} - self._sound
            if status in (SURVIVED, UNDECIDED) or (failed and not unknown):
                return status
            again, always = self.trees.run([*self._options[1:], *(sorted(unknown) or arguments)])
            if status == again == REFUSED:
                raise CannotRunError(f"pytest cannot start without a mutant: pytest {' '.join(files)}")
            self._sound |= unknown - {*always}
            if status == REFUSED or again in (SURVIVED, REFUSED) or unknown - {*always}:
                return KILLED  # a test that is not found without the mutant is one that it made
            if not {*always} - self.broken:
                return UNDECIDED  # pytest ends without a mutant too, and names no test
            self.broken |= {*always}


class Results:
    """Finished mutants, in a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._known = {line["key"]: line for line in map(json.loads, lines)}

    def status(self, mutant: Mutant, tests: str) -> str | None:
        """Of an earlier run: a killed one stays killed; a survivor counts while its tests are the same."""
        line = self._known.get(mutant.key, {"status": UNDECIDED})
        kept = line["status"] == KILLED or (line["status"] == SURVIVED and line["tests"] == tests)
        return line["status"] if kept else None

    def add(self, mutant: Mutant, status: str, tests: str) -> None:
        """Append one line."""
        line = {"key": mutant.key, "file": mutant.file, "line": mutant.line, "status": status, "tests": tests}
        with self.path.open("a") as file:
            file.write(json.dumps(line | {"before": mutant.before, "after": mutant.after}) + "\n")


def check_contexts(contexts: Path | None, times: Path | None) -> None:
    """Raise UsageError unless --contexts and --times name files."""
    for option, file in (("--contexts", contexts), ("--times", times)):
        if file is not None and not file.is_file():
            raise UsageError(f"{option} {file} is not a file: see CONTRIBUTING.md")
    if times is not None and contexts is None:
        raise UsageError("--times needs --contexts")


def targets(root: Path, paths: Iterable[str], base: str) -> list[str]:
    """The modules to mutate: under the paths, or those changed since `base`."""
    if paths := list(paths):
        if missing := [path for path in paths if not (root / path).exists()]:
            raise UsageError(f"{missing[0]} does not exist: give files or folders of {root}")
        found = [file for path in paths for file in (root / path).rglob("*.py")]
        return sorted(
            {str(file.relative_to(root)) for file in found} | {p for p in paths if p.endswith(".py")}
        )
    changed = _git(root, "diff", "--name-only", base, "--", *CODE).splitlines()
    names = sorted(name for name in changed if name.endswith(".py") and (root / name).exists())
    if not names:
        raise UsageError(f"no module changed since {base}: give --base COMMIT, or folders such as pruning")
    return names


def without_equivalent(mutants: list[Mutant], listed: list[dict[str, str]]) -> list[Mutant]:
    """The mutants that are not listed as equivalent.

    Raises:
        UsageError: an entry has no reason, or matches no mutant of a file that is examined.
    """
    keys = {(mutant.file, mutant.before, mutant.after) for mutant in mutants}
    files, equivalent = {mutant.file for mutant in mutants}, set()
    for entry in listed:
        key = (entry["file"], entry["before"], entry["after"])
        if not entry.get("reason"):
            raise UsageError(f"the equivalent mutant {key[2]!r} of {key[0]} has no reason: write one")
        if key[0] in files and key not in keys:
            raise UsageError(f"{key[0]} has no mutant {key[1]!r} -> {key[2]!r} any more: remove its entry")
        equivalent.add(key)
    return [mutant for mutant in mutants if (mutant.file, mutant.before, mutant.after) not in equivalent]


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout


def run_all(root: Path, sample: list[Mutant], options: argparse.Namespace) -> dict[Mutant, str]:
    """The status of each mutant, from an earlier run or by its tests; progress is printed."""
    results = Results(root / options.results)
    tests = {file: related_tests(root, file)[: options.files] for file in {m.file for m in sample}}
    digests = {file: _digest(root, names) for file, names in tests.items()}
    found = {m: s for m in sample if (s := results.status(m, digests[m.file]))}
    remaining = [mutant for mutant in sample if mutant not in found]
    print(f"{len(sample)} mutants, {len(found)} of them finished earlier", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        trees = Trees(root, Path(folder), options.jobs if remaining else 0)
        judge = Judge(
            trees, options.timeout, options.contexts and CoveringTests(options.contexts, options.times)
        )
        started = {pool.submit(judge.status, mutant, tests[mutant.file]): mutant for mutant in remaining}
        try:
            for number, done in enumerate(as_completed(started), start=1):
                mutant, status = started[done], done.result()
                results.add(mutant, status, digests[mutant.file])
                found[mutant] = status
                left = (time.monotonic() - start) / number * (len(remaining) - number)
                place = f"{mutant.file}:{mutant.line}"
                print(f"{number}/{len(remaining)}  {status:<10}{place}  {left / 60:.0f} min left", flush=True)
        except UsageError:
            pool.shutdown(cancel_futures=True)
            raise
    if judge.broken:
        print(f"left out, because they fail without a mutant: {', '.join(sorted(judge.broken))}", flush=True)
    return found


def _digest(root: Path, names: list[str]) -> str:
    return hashlib.sha256("".join((root / name).read_text() for name in names).encode()).hexdigest()[:16]


def main(argv: list[str], root: Path = ROOT) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="mutate.py", description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="*", help="files or folders; default: what changed since --base")
    parser.add_argument("--base", default="main", help="a commit")
    parser.add_argument("--sample", type=int, default=60, help="number of mutants, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="mutants at once")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds of one test")
    parser.add_argument("--files", type=int, default=None, help="run the closest test files only, this many")
    parser.add_argument("--at-least", type=float, default=95.0, help="percent of mutants to kill")
    parser.add_argument("--contexts", type=Path, help="coverage data that name the tests of each line")
    parser.add_argument("--times", type=Path, help="what --junitxml wrote in that run")
    parser.add_argument("--results", default=".mutants.jsonl")
    options = parser.parse_args(argv)
    try:
        check_contexts(options.contexts, options.times)
        names = targets(root, options.paths, options.base)
        every = [mutant for name in names for mutant in mutants_of(name, (root / name).read_text())]
        listed = root / "tests" / "equivalent_mutants.yaml"
        every = without_equivalent(every, yaml.safe_load(listed.read_text()) or [] if listed.exists() else [])
        drawn = random.Random(options.seed).sample(every, min(options.sample, len(every)))
        found = run_all(root, sorted(drawn, key=lambda m: (m.file, m.line)), options)
    except UsageError as error:
        print(f"mutate.py: {error}", file=sys.stderr)
        return 2
    survivors = [mutant for mutant, status in found.items() if status != KILLED]
    for mutant in survivors:
        print(f"{found[mutant]}: {mutant.file}:{mutant.line}\n  - {mutant.before}\n  + {mutant.after}")
    killed = 100 * (1 - len(survivors) / max(len(found), 1))
    print(f"{len(found) - len(survivors)} of {len(found)} mutants killed: {killed:.1f} %")
    return int(killed < options.at_least)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
