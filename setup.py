"""The wheel is the library without the experiments: ham.optim, ham.theory, pruning, and the integrations."""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildLibrary(build_py):
    """Of the modules beside ham's packages, `__init__` and `c_code` belong to the library."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """(package, module, file) of every module to build."""
        modules = super().find_package_modules(package, package_dir)
        return [found for found in modules if package != "ham" or found[1] in ("__init__", "c_code")]


setup(cmdclass={"build_py": BuildLibrary})
