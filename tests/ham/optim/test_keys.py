"""The keys of parameter groups: what is kept, filled in, renamed and restored."""

import pytest
import torch
from torch import nn

from ham.optim.keys import SavedKeys, fill_missing, has_own_values, keys_of, rename_old_key


@pytest.mark.parametrize(
    ("group", "own"),
    [
        ({}, False),
        ({"ham_alpha": 1.0}, False),
        ({"ham_beta": 1.0}, False),
        ({"ham_alpha": None, "ham_beta": None}, True),
        ({"ham_alpha": 1.0, "ham_beta": 1.0, "ham_explicit": False}, False),
        ({"ham_explicit": True}, True),
        ({"ham_explicit": False, "ham_chosen": True}, True),
        ({"ham_alpha": 1.0, "ham_beta": 1.0, "ham_chosen": False}, False),
    ],
    ids=str,
)
def test_a_group_has_its_own_values_where_it_says_so_or_has_both(group, own):
    assert has_own_values(group) is own


def test_absent_keys_and_none_are_filled_in():
    group = {"ham_alpha": None, "ham_beta": 0.0}
    fill_missing(group, (200.0, 1e-3, False))
    assert group == {"ham_alpha": 200.0, "ham_beta": 0.0, "ham_explicit": False}


def test_the_key_of_older_checkpoints_gets_its_present_name():
    group = {"lr": 0.1, "ham_chosen": True}
    rename_old_key(group)
    assert group == {"lr": 0.1, "ham_explicit": True}
    rename_old_key(group)
    assert group == {"lr": 0.1, "ham_explicit": True}


def test_only_the_present_keys_are_read():
    group = {"lr": 0.1, "ham_alpha": 1.0, "ham_explicit": True, "ham_chosen": False}
    assert keys_of(group) == {"ham_alpha": 1.0, "ham_explicit": True}


def test_what_was_saved_is_restored_and_a_later_group_has_none():
    first, second = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first], "ham_alpha": 5.0, "ham_chosen": True}], lr=0.1)
    optimizer.defaults["ham_beta"] = 0.25
    before, defaults = dict(optimizer.param_groups[0]), dict(optimizer.defaults)
    saved = SavedKeys(optimizer)
    optimizer.add_param_group({"params": [second]})
    for place in (*optimizer.param_groups, optimizer.defaults):
        place.update(ham_alpha=1.0, ham_beta=2.0, ham_explicit=False)
        place.pop("ham_chosen", None)
    saved.restore(optimizer)
    assert dict(optimizer.param_groups[0]) == before and dict(optimizer.defaults) == defaults
    assert not [key for key in optimizer.param_groups[1] if key.startswith("ham")]
