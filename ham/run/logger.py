"""The output of a run: console and train.log, progress bar, metrics.jsonl, wandb."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from pathlib import Path
from typing import Any

from ham.errors import one_line
from ham.files import open_text

from .config import Config, ConfigError
from .config.schema import WandbMode
from .console import encodable, on_console
from .directory import RunDirectory

_REFRESH_SECONDS = 5.0
_LINE_SECONDS = 1.0
_NOT_PRINTED = ("kept", "l1_sum", "l1_mean", "inverse_metric_at_zero")  # only in metrics.jsonl


class RunLogger:
    """Logger of rank 0, which also holds the run directory.

    Args:
        folder: the run directory; created if it does not exist, and locked for this process.
        cfg: configuration of the run.

    Raises:
        ConfigError: the directory cannot be written.
        RunLockedError: another process holds the lock of this run.
    """

    def __init__(self, folder: Path, cfg: Config) -> None:
        self.directory, self.cfg = RunDirectory(folder), cfg
        self._bar, self._wandb, self._log_failed = None, None, False
        self._refreshed, self._printed = 0.0, 0.0
        self._buffer: list[dict[str, Any]] = []
        self.elapsed, self._since = 0.0, time.monotonic()

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.directory.folder

    def clear(self) -> None:
        """Delete an earlier run; other files are kept, and named."""
        if kept := self.directory.clear():
            self.log(f"files that do not belong to a run are kept in {self.folder}: {', '.join(kept)}")

    def start_progress(self, total_steps: int, step: int) -> None:
        """Start the progress bar and the wandb run at `step`."""
        from tqdm import tqdm

        every = 0.5 if sys.stderr.isatty() else 30.0
        options = dict(unit="step", mininterval=every, smoothing=0.05)
        self._bar = on_console(lambda: tqdm(total=total_steps, initial=step, **options))
        if self.cfg.wandb.mode is not WandbMode.disabled:
            self._wandb = _open_wandb(self.folder, self.cfg)

    def update_progress(self) -> None:
        """Count one step."""
        try:
            self._bar.update()
        except OSError:
            on_console(self._bar.refresh)

    def set_postfix(self, **values: Any) -> None:
        """Set the progress bar's postfix."""
        self._bar.set_postfix(values, refresh=False)

    def should_log(self) -> bool:
        """True every few seconds: the host may then wait for the device to read the loss."""
        if time.monotonic() - self._refreshed < _REFRESH_SECONDS:
            return False
        self._refreshed = time.monotonic()
        return True

    def log(self, text: str) -> None:
        """Write one line to the console and to train.log.

        Neither ends the run: a closed console is ignored, and the first failure of train.log is printed.
        """
        from tqdm import tqdm

        on_console(lambda: tqdm.write(encodable(text)))
        try:
            with open_text(self.folder / "train.log", "a", errors="backslashreplace") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
        except OSError as error:
            if not self._log_failed:
                self._log_failed = True
                problem = f"train.log cannot be written ({one_line(error)}): lines are missing there"
                on_console(lambda: tqdm.write(problem, file=sys.stderr))

    def log_epoch(self, line: dict[str, Any]) -> None:
        """Log the metrics of an epoch; `flush` writes them to metrics.jsonl and wandb.

        The console shows at most one epoch a second, and always the first and the last.
        """
        self._buffer.append(line)
        epoch, now = line["epoch"] + 1, time.monotonic()
        if epoch in (1, self.cfg.epochs) or now - self._printed >= _LINE_SECONDS:
            self._printed = now
            self.log(f"epoch {epoch}/{self.cfg.epochs}  {_printable(line)}")

    def log_steps(self, line: dict[str, Any], total_steps: int) -> None:
        """Log metrics at `step`, of a run whose epochs are long; `flush` writes them.

        The console shows at most one line a second.
        """
        self._buffer.append(line)
        now = time.monotonic()
        if now - self._printed >= _LINE_SECONDS:
            self._printed = now
            self.log(f"step {line['step']}/{total_steps}  {_printable(line)}")

    def flush(self) -> None:
        """Write the metrics that are not in metrics.jsonl yet."""
        if not self._buffer:
            return
        lines, self._buffer = self._buffer, []
        self.directory.append_metrics(lines)
        if self._wandb is not None:
            for line in lines:
                numbers = {k: v for k, v in line.items() if isinstance(v, (int, float))}
                self._wandb.log(numbers, step=line.get("step", line["epoch"] + 1))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json, which marks the run as finished."""
        self.directory.write_summary(summary)
        on_console(self._bar.close)
        if self._wandb is not None:
            self._wandb.summary.update(summary["metrics"])

    def close(self) -> None:
        """Close the progress bar and wandb, and release the directory lock."""
        if self._bar is not None:
            on_console(self._bar.close)
        if self._wandb is not None:
            self._wandb.finish()
        self.directory.unlock()

    def seconds(self) -> float:
        """Time spent on this run, over all its processes."""
        return self.elapsed + time.monotonic() - self._since

    def state_dict(self) -> dict[str, Any]:
        """Size of metrics.jsonl, and the time spent. Call `flush` before.

        Raises CheckpointError if the file was lost.
        """
        return {"metrics_bytes": self.directory.metrics_size(), "elapsed": self.seconds()}

    def load_state_dict(self, state: dict[str, Any], epochs: int = 0) -> None:
        """Restore a checkpoint: lines of metrics.jsonl written after it are cut off.

        Args:
            state: what `state_dict` has returned.
            epochs: number of epochs of which there is a line.
        """
        self.elapsed = state["elapsed"]
        self.directory.truncate_metrics(state["metrics_bytes"], epochs)


class NullLogger:
    """No-op logger for ranks other than 0.

    Args:
        folder: the run directory.
        cfg: configuration of the run.
    """

    def __init__(self, folder: Path, cfg: Config) -> None:
        self.folder, self.cfg = folder, cfg

    def _nothing(self, *_: Any, **__: Any) -> None:
        """Do nothing: rank 0 does it."""

    clear = start_progress = update_progress = set_postfix = log = log_epoch = log_steps = flush = _nothing
    close = load_state_dict = _nothing

    def should_log(self) -> bool:
        """Rank 0 decides when."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: rank 0 writes checkpoints."""
        return {}


def finite_or_none(line: dict[str, Any]) -> dict[str, Any]:
    """The metrics with None for nan and inf, which JSON does not have."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}


def _printable(line: dict[str, Any]) -> str:
    """The metrics of an epoch that the console shows."""
    shown = {
        key: round(value, 4) if isinstance(value, float) else value
        for key, value in line.items()
        if key not in ("epoch", "step", *_NOT_PRINTED) and not isinstance(value, dict)
    }
    return "  ".join(f"{key} {value}" for key, value in shown.items())


def _open_wandb(folder: Path, cfg: Config) -> Any:
    import wandb

    run_id = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    try:
        return wandb.init(
            project=cfg.wandb.project,
            name=f"{folder.parent.name}/seed{cfg.seed}",
            id=run_id,
            resume="allow",
            mode=str(cfg.wandb.mode),
            dir=str(folder),
            settings=wandb.Settings(silent=True),
        )
    except wandb.errors.Error as error:
        raise ConfigError(f"wandb: {one_line(error)}; run wandb login, or use wandb.mode=offline") from error
