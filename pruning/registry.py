"""Tables of plugins: a class enters one under a name, by a decorator in its own file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Class = TypeVar("Class", bound=type)


def register_in(table: dict[str, type], name: str) -> Callable[[Class], Class]:
    """A class decorator that enters the class in `table` under `name`.

    Raises:
        ValueError: another class has that name.
    """

    def decorate(cls: Class) -> Class:
        other = table.setdefault(name, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"{name!r} is already registered for {other.__module__}.{other.__qualname__}: "
                f"choose another name for {cls.__qualname__}"
            )
        table[name] = cls  # a reloaded module replaces its own class
        return cls

    return decorate
