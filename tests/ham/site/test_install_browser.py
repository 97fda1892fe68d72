"""scripts/install_browser.sh: it does nothing, installs, or ends in one line with the cure."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from sweep_files import stand_in

from ham.files import ROOT

SCRIPT = ROOT / "scripts" / "install_browser.sh"
HAND = "install chromium or google-chrome by hand, then rerun this script"
INSTALLS = (
    f'[ "$1" = env ] && shift; case "$*" in *install*) cp {shutil.which("true")} "$FAKES/chromium" ;; esac'
)


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    """A PATH with little on it, on which no browser is."""
    for name in ("bash", "env", "cp", "true"):
        (tmp_path / name).symlink_to(shutil.which(name))
    stand_in(tmp_path, "id", "echo 0")
    return tmp_path


def install(fakes: Path) -> tuple[int, str, str]:
    environment = {"PATH": str(fakes), "FAKES": str(fakes)}
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", ["chromium", "chromium-browser", "google-chrome"])
def test_it_does_nothing_where_a_browser_is_installed(fakes: Path, name: str) -> None:
    stand_in(fakes, name, "exit 1")
    stand_in(fakes, "apt-get", "exit 1")
    assert install(fakes) == (0, "", "")


def test_it_installs_the_package_of_the_distribution(fakes: Path) -> None:
    stand_in(fakes, "apt-get", INSTALLS)
    assert install(fakes) == (0, "Installing chromium with apt-get (about a minute, once)\n", "")
    assert (fakes / "chromium").exists()


@pytest.mark.parametrize(
    ("apt_get", "user", "reason"),
    [
        (None, 0, f"apt-get is missing: {HAND}"),
        ("true", 1000, "installing needs root: sudo apt-get install chromium"),
        ("false", 0, f"apt-get could not install chromium: {HAND}"),
        ('[ "$5" != update ]; case "$*" in *install*) exit 100 ;; esac', 0, "apt-get could not install"),
        ("true", 0, f"chromium is installed but not on the PATH: {HAND}"),
    ],
)
def test_it_says_in_one_line_why_there_is_no_browser(
    fakes: Path, apt_get: str | None, user: int, reason: str
) -> None:
    stand_in(fakes, "id", f"echo {user}")
    if apt_get:
        stand_in(fakes, "apt-get", apt_get)
    status, _, err = install(fakes)
    assert (status, err.count("\n")) == (1, 1) and err.startswith(f"install_browser.sh: {reason}")


def test_a_build_without_a_browser_continues() -> None:
    rule = (ROOT / "Makefile").read_text().partition("\ntest:")[2].partition("\n\n")[0]
    assert '[ "$(BROWSER)" = no ] || scripts/install_browser.sh || echo' in rule
