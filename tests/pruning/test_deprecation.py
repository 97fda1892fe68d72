"""Renamed methods and classes keep their old names for one release, with a warning that says the new one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import pruning
from pruning import ACDC, STR, PILoT, Plain, Product, RigL, Sparsifier, TargetSparsity


def attached(sparsifier: Sparsifier) -> Sparsifier:
    torch.manual_seed(0)
    sparsifier.attach(nn.Linear(4, 4), total_epochs=4, steps_per_epoch=10)
    return sparsifier


RENAMED: dict[str, tuple[Callable, str, str, tuple]] = {
    "rigl updates": (lambda: attached(RigL(0.5, interval=5)), "updates", "is_update_step", (5,)),
    "rigl fraction": (lambda: attached(RigL(0.5)), "fraction", "drop_fraction_at", (7,)),
    "str wanted": (lambda: attached(STR(0.5, calibrate="ramp")), "wanted", "target_sparsity_at", (3,)),
    "str measured": (lambda: attached(STR(0.5, initial=-1.5)), "measured", "current_sparsity", (0.5,)),
    "product resets": (lambda: attached_product(), "resets", "is_reset_epoch", (2,)),
    "set_masks": (lambda: attached(ACDC(0.5)), "_set_masks", "set_masks", ({"weight": torch.eye(4) > 0},)),
    "kept target": (lambda: attached(ACDC(0.5)), "_kept_target", "kept_target", ()),
    "shapes": (lambda: attached(ACDC(0.5)), "_shapes", "shapes", ()),
    "near zero": (lambda: attached(PILoT(0.5)), "near_zero", "near_zero_fraction", ()),
}


def attached_product() -> Product:
    product = Product(reset_every=2)
    product.attach(nn.Linear(4, 4), total_epochs=4)
    return product


@pytest.mark.parametrize("case", RENAMED)
def test_a_renamed_method_answers_as_the_new_one(case):
    make, old, new, arguments = RENAMED[case]
    target = make()
    with pytest.warns(DeprecationWarning, match=rf"{old} is deprecated: use .*{new}") as caught:
        answer = getattr(target, old)(*arguments)
    assert caught[0].filename == __file__
    assert answer == getattr(target, new)(*arguments)


def test_masked_is_target_sparsity():
    with pytest.warns(
        DeprecationWarning, match=r"pruning\.Masked is deprecated: use pruning\.TargetSparsity"
    ):
        assert pruning.Masked is TargetSparsity
    with pytest.raises(AttributeError, match="has no attribute 'Maskedd'"):
        pruning.Maskedd  # noqa: B018


def test_separate_decay_reads_and_sets_decoupled_decay():
    plain = Plain()
    with pytest.warns(DeprecationWarning, match="separate_decay is deprecated: use decoupled_decay"):
        plain.separate_decay = True
    assert plain.decoupled_decay
    with pytest.warns(DeprecationWarning):
        assert plain.separate_decay


def test_no_new_name_warns(recwarn):
    for make, _, new, arguments in RENAMED.values():
        getattr(make(), new)(*arguments)
    assert not [w for w in recwarn if issubclass(w.category, DeprecationWarning) and "use" in str(w.message)]


def test_a_checkpoint_of_an_older_version_gives_the_same_masks():
    """Older versions saved the pruned positions of each weight under its name."""
    saved = attached(RigL(0.5))
    older = {"masks": {name: ~mask for name, mask in saved.kept().items()}}
    resumed = RigL(0.5)
    resumed.attach(nn.Linear(4, 4), total_epochs=4, steps_per_epoch=10, seed=1)
    assert not torch.equal(resumed.kept()["weight"], saved.kept()["weight"])
    resumed.load_state_dict(older)
    assert torch.equal(resumed.kept()["weight"], saved.kept()["weight"])
    resumed.load_state_dict(saved.state_dict())
    assert torch.equal(resumed.kept()["weight"], saved.kept()["weight"])
