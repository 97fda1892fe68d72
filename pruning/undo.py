"""Leave a model and a sparsifier unchanged if `attach` fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.utils import parametrize


@contextmanager
def undone_on_error(owner: object, model: nn.Module) -> Iterator[None]:
    """If the block raises, restore the attributes of `owner` and of the layers of `model`.

    This removes parametrizations that the block has registered. Values of weights are not copied.
    """
    attributes = dict(vars(owner))
    layers = [(m, type(m), dict(m._parameters), dict(m._modules)) for m in model.modules()]
    classes = {type(m): set(vars(type(m))) for m in model.modules() if parametrize.is_parametrized(m)}
    try:
        yield
    except BaseException:
        vars(owner).clear()
        vars(owner).update(attributes)
        for layer, kind, parameters, children in layers:
            layer.__class__ = kind
            for name in set(vars(kind)) - classes.get(kind, set(vars(kind))):
                delattr(kind, name)  # a layer that is parametrized has a class of its own
            for current, saved in ((layer._parameters, parameters), (layer._modules, children)):
                current.clear()
                current.update(saved)
        raise
