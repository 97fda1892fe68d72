"""Groups of an optimizer, by the weight decay of their parameters."""

from __future__ import annotations

import torch
from torch import nn

from pruning.groups import set_learning_rate_, split_by_weight_decay


def parameters(count: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2)) for _ in range(count)]


def shown(groups: list[dict], names: dict[int, str]) -> list[tuple[str, dict]]:
    """The letters of each group's parameters, and its other keys."""
    return [
        (
            "".join(names[id(p[1] if isinstance(p, tuple) else p)] for p in group["params"]),
            {k: v for k, v in group.items() if k != "params"},
        )
        for group in groups
    ]


def test_a_group_is_split_where_decays_differ():
    ps = parameters(5)
    names = dict(zip(map(id, ps), "abcde", strict=True))
    decays = {ps[1]: 0.5, ps[3]: 0.0, ps[4]: 0.5}
    assert shown(split_by_weight_decay(iter(ps), decays), names) == [
        ("ac", {}),
        ("be", {"weight_decay": 0.5}),
        ("d", {"weight_decay": 0.0}),
    ]
    groups = [{"params": iter(ps[:2]), "lr": 1.0, "weight_decay": 0.1}, {"params": ps[3], "lr": 2.0}]
    assert shown(split_by_weight_decay(groups, decays), names) == [
        ("a", {"lr": 1.0, "weight_decay": 0.1}),
        ("b", {"lr": 1.0, "weight_decay": 0.5}),
        ("d", {"lr": 2.0, "weight_decay": 0.0}),
    ]


def test_named_parameters_stay_named_and_empty_groups_stay():
    ps = parameters(2)
    names = dict(zip(map(id, ps), "ab", strict=True))
    groups = split_by_weight_decay([("one", ps[0]), ("other", ps[1])], {ps[1]: 0.5})
    assert shown(groups, names) == [("a", {}), ("b", {"weight_decay": 0.5})]
    assert groups[0]["params"][0][0] == "one" and groups[1]["params"][0][0] == "other"
    assert split_by_weight_decay([], {}) == [{"params": []}]
    assert split_by_weight_decay([{"params": [], "lr": 1.0}], {}) == [{"params": [], "lr": 1.0}]


def test_the_learning_rate_is_set_in_every_group():
    first, second = parameters(2)
    rate = torch.tensor(1.0)
    optimizer = torch.optim.SGD([{"params": [first], "lr": rate}, {"params": [second]}], lr=0.5)
    set_learning_rate_(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is rate and rate.item() == 0.25
    assert optimizer.param_groups[1]["lr"] == 0.25
