"""The run directory: config, provenance, metrics, log and summary, the progress bar and the wandb mirror."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from .checkpoint import CheckpointError, sync_folder
from .schema import Config, ConfigError, WandbMode

_REFRESH_SECONDS = 5.0
_UNTOLD = ("kept", "l1_sum", "l1_mean", "inverse_metric_at_zero")  # in metrics.jsonl, not in the terminal


class Taken(ConfigError):
    """Another process is at this run."""


class Record:
    """Writes what a run tells. metrics.jsonl knows no clock: a resumed run repeats it exactly.

    Args:
        folder: the run directory; made if need be, locked for this process.
        cfg: the run.

    Raises:
        ConfigError: the directory cannot be written.
        Taken: another process runs in it.
    """

    def __init__(self, folder: Path, cfg: Config) -> None:
        self.folder, self.cfg = folder, cfg
        self._lock = _locked(folder)
        self._bar, self._wandb = None, None
        self._refreshed = 0.0
        self.elapsed, self._since = 0.0, time.monotonic()

    # what a run has been told before

    def clear(self) -> None:
        """Forget an earlier run in this directory."""
        for name in ("summary.json", "previous.pt", "last.pt"):  # so that no half of it passes for a run
            (self.folder / name).unlink(missing_ok=True)
        sync_folder(self.folder)
        for path in self.folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def summary(self) -> dict[str, Any]:
        """The summary of a run that is done."""
        return read_summary(self.folder)

    def metrics(self) -> list[dict[str, Any]]:
        """One line per epoch so far."""
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    # the life of a run

    def begin(self, facts: dict[str, Any], config_yaml: str) -> None:
        """Write config.yaml and provenance.json."""
        (self.folder / "config.yaml").write_text(config_yaml)
        write_json(self.folder / "provenance.json", facts | {"resumed_from": self._earlier()})

    def _earlier(self) -> list[dict[str, Any]]:
        """Commit and hardware of each process that worked on this run before, oldest first."""
        path = self.folder / "provenance.json"
        if not path.exists():
            return []
        before = json.loads(path.read_text())
        told = ("commit", "dirty", "hardware", "ranks")
        return [*before["resumed_from"], {key: before.get(key) for key in told}]

    def provenance(self) -> dict[str, Any]:
        """What produced this run."""
        return json.loads((self.folder / "provenance.json").read_text())

    def open(self, total_steps: int, step: int) -> None:
        """Start the progress bar and the wandb mirror at `step`."""
        from tqdm import tqdm

        every = 0.5 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(total=total_steps, initial=step, unit="step", mininterval=every, smoothing=0.05)
        if self.cfg.wandb.mode is not WandbMode.disabled:
            self._wandb = _open_wandb(self.folder, self.cfg)

    def step(self) -> None:
        """Count one step."""
        self._bar.update()

    def is_time_to_look(self) -> bool:
        """Every few seconds: may the host ask the device how the loss is doing?"""
        if time.monotonic() - self._refreshed < _REFRESH_SECONDS:
            return False
        self._refreshed = time.monotonic()
        return True

    def show(self, **facts: Any) -> None:
        """Tell the progress bar."""
        self._bar.set_postfix(facts, refresh=False)

    def epoch(self, epoch: int, step: int, **metrics: Any) -> None:
        """One line of metrics.jsonl."""
        line = {"epoch": epoch, "step": step, **metrics}
        line = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._wandb is not None:
            self._wandb.log({k: v for k, v in line.items() if isinstance(v, (int, float))}, step=step)
        told = {
            k: round(v, 4) if isinstance(v, float) else v
            for k, v in metrics.items()
            if not isinstance(v, dict) and k not in _UNTOLD
        }
        self.say(f"epoch {epoch + 1}/{self.cfg.epochs}  " + "  ".join(f"{k} {v}" for k, v in told.items()))

    def lines(self, lines: list[dict[str, Any]]) -> None:
        """Many lines of metrics.jsonl at once, for epochs that are shorter than a write to the disk."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        if self._wandb is not None:
            for line in lines:
                self._wandb.log(line, step=line["epoch"] + 1)

    def say(self, text: str) -> None:
        """One line for the reader, in the terminal and in train.log."""
        from tqdm import tqdm

        tqdm.write(text)
        with open(self.folder / "train.log", "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        write_json(self.folder / "summary.json", summary)
        self._bar.close()
        if self._wandb is not None:
            self._wandb.summary.update(summary["metrics"])

    def close(self) -> None:
        """End the progress bar and the mirror and give the directory free."""
        if self._bar is not None:
            self._bar.close()
        if self._wandb is not None:
            self._wandb.finish()
        self._lock.close()

    # checkpoints

    def seconds(self) -> float:
        """Time spent on this run, over all its processes."""
        return self.elapsed + time.monotonic() - self._since

    def state_dict(self) -> dict[str, Any]:
        """The length of metrics.jsonl so far, and the time spent."""
        path = self.folder / "metrics.jsonl"
        return {
            "metrics_bytes": path.stat().st_size if path.exists() else 0,
            "elapsed": self.seconds(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint: lines of metrics.jsonl from after it are cut off."""
        self.elapsed = state["elapsed"]
        path = self.folder / "metrics.jsonl"
        if (path.stat().st_size if path.exists() else 0) < state["metrics_bytes"]:
            raise CheckpointError(
                f"{path} lacks lines that its checkpoint knows: start anew with resume=false"
            )
        if path.exists():
            os.truncate(path, state["metrics_bytes"])


class Silence:
    """What ranks other than the first have in place of a record: nothing is written or shown.

    Args:
        folder: the run directory.
        cfg: the run.
    """

    def __init__(self, folder: Path, cfg: Config) -> None:
        self.folder, self.cfg = folder, cfg

    def _nothing(self, *_: Any, **__: Any) -> None:
        """The first rank does it."""

    clear = begin = open = step = show = epoch = say = close = load_state_dict = _nothing

    def is_time_to_look(self) -> bool:
        """The first rank tells when."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the first rank writes checkpoints."""
        return {}


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of the run in this directory; None if it is not done, or the file is not whole."""
    try:
        return json.loads((folder / "summary.json").read_text())
    except (
        FileNotFoundError,
        NotADirectoryError,
        ValueError,
    ):  # not whole: the run ends anew from its last checkpoint
        return None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def _locked(folder: Path) -> Any:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")  # noqa: SIM115 - held until the run ends
    except OSError as error:
        raise ConfigError(
            f"cannot write runs to {folder}: {error.strerror}; choose another runs_dir"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise Taken(f"another process is running in {folder}: wait for it or choose another seed") from None
    return lock


def _open_wandb(folder: Path, cfg: Config) -> Any:
    import wandb

    identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    try:
        return wandb.init(
            project=cfg.wandb.project,
            name=f"{folder.parent.name}/seed{cfg.seed}",
            id=identity,
            resume="allow",
            mode=str(cfg.wandb.mode),
            dir=str(folder),
            settings=wandb.Settings(silent=True),
        )
    except wandb.errors.Error as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"wandb: {reason}; run wandb login, or use wandb.mode=offline") from error
