"""Learning problems of the paper. A new one is a file here; `task_for` registers it."""

from importlib import import_module
from pkgutil import iter_modules

from .base import TASKS, Task, TaskFacts, task_for, task_of

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["TASKS", "Task", "TaskFacts", "task_for", "task_of"]
