"""The packages that importing the libraries loads, and the direction of imports."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torchvision", "timm", "hydra", "omegaconf", "wandb", "sklearn", "tqdm", "ffcv", "torch_geometric")


def test_importing_the_libraries_loads_torch_alone():
    """Besides the packages that torch itself loads, such as tqdm."""
    code = (
        "import sys, torch; before = set(sys.modules); import ham, pruning; "
        f"print([name for name in {HEAVY} if name in sys.modules and name not in before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize("package", ["report", "sweep", "site"])
def test_reports_and_sweeps_import_without_torch(package: str):
    """Every module, with torch and the packages of the run layer blocked."""
    if package == "site":
        pytest.importorskip("jinja2", reason="jinja2 is not installed: pip install -e '.[site]'")
    names = [
        f"ham.{package}" + (f".{path.stem}" if path.stem != "__init__" else "")
        for path in modules(f"ham/{package}")
    ]
    code = (
        "import importlib, sys\n"
        "sys.modules |= dict.fromkeys(['torch', 'torchvision', 'hydra', 'omegaconf', 'pruning', 'ham.run'])\n"
        f"[importlib.import_module(name) for name in {names}]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr


def modules(*folders: str) -> list[Path]:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert paths, folders
    return paths


def imported(path: Path) -> Iterator[str]:
    """Absolute names of all imports of the file, at its top or inside functions."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            origin = ".".join((*base, *filter(None, [node.module])))
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_imported_resolves_relative_names():
    names = set(imported(ROOT / "ham" / "optim" / "loading.py"))
    assert {"ham.optim.keys.keys_of", "torch.optim.Optimizer", "warnings"} <= names


@pytest.mark.parametrize(
    "path",
    [*modules("ham/optim", "pruning"), ROOT / "ham" / "c_code.py"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_core_libraries_import_only_the_standard_library_torch_and_themselves(path):
    own = ("ham.optim", "ham.c_code") if path.is_relative_to(ROOT / "ham") else ("pruning",)
    trainer = {"lightning.py": "pytorch_lightning", "transformers.py": "transformers"}
    served = [trainer[path.name]] if path.parent.name == "integrations" and path.name in trainer else []
    served += ["triton"] if path.name == "triton_step.py" else []  # imported where Triton is installed
    foreign = [
        name
        for name in imported(path)
        if name.split(".")[0] not in sys.stdlib_module_names and not within(name, "torch", *own, *served)
    ]
    assert not foreign


def test_nothing_below_the_run_layer_imports_it():
    offenders = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules("ham", "pruning")
        if path.relative_to(ROOT).parts[:2] != ("ham", "run")
        for name in imported(path)
        if within(name, "ham.run", "train")
    ]
    assert not offenders


def test_only_the_edge_imports_hydra():
    users = {
        str(path.relative_to(ROOT))
        for path in [*modules("ham", "pruning"), ROOT / "train.py"]
        if any(within(name, "hydra", "omegaconf") for name in imported(path))
    }
    assert users
    assert {user for user in users if not user.startswith("ham/run/config/")} <= {"train.py"}


EXPERIMENTS = (
    "ham.run",
    "ham.tasks",
    "ham.report",
    "ham.sweep",
    "ham.site",
    "ham.data",
    "ham.models",
    "ham.optim",
)
BELOW = ("ham.run", "ham.tasks", "ham.data", "ham.models", "ham.optim", "pruning", "torch")
ABOVE = {  # package or module -> packages that it must not import
    "ham/regular_files.py": ("ham", "torch"),
    "ham/errors.py": (*EXPERIMENTS, "torch"),
    "ham/locks.py": (*EXPERIMENTS, "torch"),
    "ham/processes.py": (*EXPERIMENTS, "torch"),
    "ham/c_code.py": ("ham",),
    "ham/files.py": (*EXPERIMENTS, "torch"),
    "ham/agreement.py": ("ham", "torch"),
    "ham/endpoint.py": (*EXPERIMENTS, "torch"),
    "ham/rendezvous.py": (*EXPERIMENTS, "torch"),
    "ham/distributed.py": EXPERIMENTS,
    "ham/process_group.py": EXPERIMENTS,
    "ham/programs.py": ("ham",),
    "ham/command_line.py": ("ham",),
    "ham/theory": ("ham.run", "ham.tasks", "ham.report", "ham.sweep", "ham.site", "ham.data", "ham.models"),
    "ham/data": ("ham.run", "ham.tasks", "ham.report", "ham.sweep", "ham.site", "ham.optim"),
    "ham/models": ("ham.run", "ham.tasks", "ham.report", "ham.sweep", "ham.site", "ham.optim"),
    "ham/tasks": ("ham.run", "ham.report", "ham.sweep", "ham.site"),
    "ham/run": ("ham.site",),
    "ham/report": ("ham.sweep", "ham.site", *BELOW),
    "ham/sweep": ("ham.site", *BELOW),
    "ham/site": BELOW,
}


@pytest.mark.parametrize("place", ABOVE)
def test_imports_point_one_way(place):
    paths = [ROOT / place] if place.endswith(".py") else modules(place)
    offenders = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in paths
        for name in imported(path)
        if within(name, *ABOVE[place])
    ]
    assert not offenders


def test_nothing_imports_a_command():
    commands = {path.stem for path in modules("scripts")}
    offenders = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in [*modules("ham", "pruning", "benchmarks"), ROOT / "train.py"]
        for name in imported(path)
        if name.split(".")[0] in {"scripts", *commands}
    ]
    assert not offenders
