"""scripts/nodes.py prints the new command and forwards to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import script


def test_the_deprecated_command_names_and_runs_the_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--sets", "amazon-photo", "--archs", "gcn", "--seeds", "2", "--list", "--again"]
    runs = ["--runs", str(tmp_path)]
    assert script("nodes").main([*argv, *runs, "--methods", "base", "nham"]) == 0
    out, err = capsys.readouterr()
    assert "DeprecationWarning: use python scripts/sweep.py --exp node/amazon_photo_gcn " in err
    names = [line.split("  ")[0] for line in out.splitlines() if "not launched" in line][1:]
    assert names == ["node/amazon_photo_gcn", "node/amazon_photo_gcn_nham"]
    assert script("nodes").main([*argv, *runs, "--grid"]) == 0
    assert "27 cells x 2 seeds: 54 not launched" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        script("nodes").main([*argv, *runs, "--grid", "--methods", "ham"])
