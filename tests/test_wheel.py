"""The wheel is the library: ham.optim, ham.theory and pruning, typed, and torch is all that HAM needs."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "ham", "pruning")
USER = ROOT / "tests" / "typed_user.py"
WRONG = {k for k, line in enumerate(USER.read_text().splitlines(), start=1) if line.endswith("# wrong")}

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=500
    )


def has_setuptools() -> bool:
    """Is the build backend here, in a version that pyproject.toml accepts? Otherwise pip downloads it."""
    try:
        return int(metadata.version("setuptools").partition(".")[0]) >= 77
    except metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this working tree, built from a copy: no earlier build can add files."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, source / name)
    options = ["--no-deps", *(["--no-build-isolation"] if has_setuptools() else [])]
    done = run(sys.executable, "-m", "pip", "wheel", *options, "-w", folder, source, cwd=folder)
    assert done.returncode == 0, done.stderr
    [path] = folder.glob("*.whl")
    return path


def environment(home: Path, wheel: Path) -> Path:
    """Install the wheel in a new environment; returns the folder of its packages."""
    venv.create(home, with_pip=False, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    zipfile.ZipFile(wheel).extractall(packages)
    return packages


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The Python of an environment with the wheel and all packages of this one; no editable install."""
    home = tmp_path_factory.mktemp("installed")
    folders = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (environment(home, wheel) / "others.pth").write_text("\n".join(folders))
    return home / "bin" / "python"


@pytest.fixture(scope="module")
def torch_only(wheel, tmp_path_factory) -> Path:
    """The Python of an environment with the wheel, torch and what torch requires, as links."""
    home = tmp_path_factory.mktemp("torch_only")
    packages = environment(home, wheel)
    for name in requirements("torch", set()):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__", "bin"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(distribution.locate_file(top))
    return home / "bin" / "python"


def requirements(name: str, seen: set[str]) -> set[str]:
    """The package and what it requires, as far as it is installed here."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        lines = metadata.requires(name) or []
        seen.add(name)
        for other in (re.match(r"[\w.-]+", line)[0] for line in lines if "extra ==" not in line):
            if other not in seen:
                requirements(other, seen)
    return seen


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    expected = {
        str(path.relative_to(ROOT))
        for folder in ("ham/optim", "ham/theory", "ham/integrations", "pruning", "pruning/integrations")
        for path in (ROOT / folder).glob("*.py")
    }
    expected |= {
        "ham/__init__.py",
        "ham/c_code.py",
        "ham/py.typed",
        "ham/optim/cpu_step.c",
        "pruning/py.typed",
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == expected
    assert {name.partition(".dist-info/")[2] for name in about} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "licenses/LICENSE",
        "top_level.txt",
    }


def test_the_wheel_requires_torch_only(wheel):
    archive = zipfile.ZipFile(wheel)
    [name] = [name for name in archive.namelist() if name.endswith("/METADATA")]
    required = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist")
    assert [line for line in required if "extra ==" not in line] == ["torch>=2.9"]


def python(installed: Path, code: str, cwd: Path) -> str:
    done = run(installed, "-I", "-W", "ignore", "-c", code, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_libraries_and_the_readmes_first_example_need_torch_only(torch_only, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    example = next(block for block in blocks if "from ham import HAM" in block)
    modules = """
import importlib, importlib.util, pkgutil, ham.integrations, ham.optim, pruning
for package in (ham.optim, pruning):  # of the integrations only the package itself
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
print(pruning.__file__)
print([name for name in ("numpy", "hydra", "timm", "tqdm", "transformers") if importlib.util.find_spec(name)])
"""
    place, others = python(torch_only, modules + example, tmp_path).splitlines()
    assert Path(place).is_relative_to(torch_only.parents[1])
    assert others == "[]"


@pytest.mark.parametrize(
    "name", ["run", "tasks", "data", "models", "report", "sweep", "files", "distributed", "process_group"]
)
def test_the_experiments_are_not_installed(installed, tmp_path, name):
    assert (
        python(installed, f"import importlib.util as u; print(u.find_spec('ham.{name}'))", tmp_path) == "None"
    )


def test_an_unknown_name_is_an_error_in_both_libraries(installed, tmp_path):
    for name in ("ham", "pruning"):
        done = run(installed, "-I", "-c", f"from {name} import nothing", cwd=tmp_path)
        assert "ImportError: cannot import name 'nothing'" in done.stderr


def test_mypy_accepts_a_users_script_and_finds_its_mistakes(installed, tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed: pip install -e '.[dev]'")
    cache = ROOT / ".mypy_cache"  # what mypy knows of torch, which it checks for changes, takes half a minute
    options = ["--strict", "--python-executable", installed, "--cache-dir", cache]
    done = run(sys.executable, "-m", "mypy", *options, shutil.copy2(USER, tmp_path), cwd=tmp_path)
    lines = re.findall(rf"^{USER.name}:(\d+): error: .*$", done.stdout, flags=re.MULTILINE)
    assert {int(line) for line in lines} == WRONG, done.stdout + done.stderr


def test_pyright_accepts_a_users_script_and_finds_its_mistakes(installed, tmp_path):
    pytest.importorskip("pyright", reason="pyright is not installed: pip install -e '.[dev]'")
    if shutil.which("node") is None:
        pytest.skip("pyright needs node, which is not on the PATH, and would download it")
    command = ["-m", "pyright", "--outputjson", "--pythonpath", installed, shutil.copy2(USER, tmp_path)]
    done = run(sys.executable, *command, cwd=tmp_path)
    if not done.stdout.startswith("{"):
        pytest.skip(f"pyright does not start: {done.stderr.strip().splitlines()[-1:]}")
    found = json.loads(done.stdout)["generalDiagnostics"]
    errors = {entry["range"]["start"]["line"] + 1 for entry in found if entry["severity"] == "error"}
    assert errors == WRONG, found
