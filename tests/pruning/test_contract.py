"""One contract for every sparsifier, parameterization and optimizer: short real trainings, looked at all along."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from contract import (
    EPOCHS,
    LAST,
    METHODS,
    RESETS,
    STEPS,
    TOTAL,
    Case,
    Training,
    digits,
    network,
    write_masks,
)
from torch import Tensor

from pruning import Product
from pruning.export import load_masks, plain_state_dict

CELLS = list(product(METHODS, ("sgd", "nesterov", "adamw", "sam")))
CASES = [
    *(Case(method, optimizer=optimizer) for method, optimizer in CELLS),
    *(Case(method, optimizer=optimizer, product=True) for method, optimizer in CELLS if METHODS[method].plain),
    *(
        Case(method, optimizer=optimizer, ham=True)
        for method, optimizer in CELLS
        if METHODS[method].plain or method == "str"
    ),
]
RESUME_AFTER = (4, 7, 12)
"""Steps inside AC/DC's first sparse epoch, at an epoch's end, and just after PILoT and spred have pruned."""


@pytest.fixture(scope="module")
def masks(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "masks.pt"
    write_masks(path)
    return path


@pytest.mark.parametrize("case", CASES, ids=str)
def test_contract(case, masks):
    training = Training(case, masks, data=digits())
    watch = Watch(training)
    saved, prints = {}, {}
    for event, number in training.steps():
        watch.look(event, number)
        if event != "perturbed":
            prints[event, number] = training.fingerprint()
        last_of_epoch = number % STEPS == STEPS - 1
        if number in RESUME_AFTER and event == ("ended" if last_of_epoch else "stepped"):
            saved[number] = training.save()
    watch.look_back()
    final = training.fingerprint()
    check_export(training)

    assert list(saved) == list(RESUME_AFTER)
    for number, state in saved.items():
        resumed = Training(case, masks, data=digits(), saved=state, seed=1)
        for event, at in resumed.steps(start=number + 1):
            assert event == "perturbed" or same(resumed.fingerprint(), prints[event, at]), (event, at)
        assert same(resumed.fingerprint(), final)


def same(one: dict, other: dict) -> bool:
    odd = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
    assert not odd, f"differ after a resume: {sorted(odd)}"
    return True


class Watch:
    """Holds a training to the contract, event by event."""

    def __init__(self, training: Training) -> None:
        self.training, self.case, self.rule = training, training.case, training.case.rule
        self.first = self.values = training.values()
        self.first_kept = self.kept = training.kept()
        self.rewired = 0
        if self.rule.phases[0] == "s":
            self.look_at_masks()
            self.look_at_pruned()

    def look(self, event: str, number: int) -> None:
        kept, values = self.training.kept(), self.training.values()
        if event == "started" and self.case.product:
            self.look_at_factors(number // STEPS)
        if event == "rewired":
            self.look_at_rewiring(kept, values)
        elif self.rule.fixed or event in ("stepped", "perturbed"):
            assert self.case.method == "str" or all_equal(kept, self.kept)
        if self.rule.phases[number // STEPS] == "d" and self.case.method != "str":
            assert all(mask.all() for mask in kept.values())
        else:
            self.kept = kept
            self.look_at_masks()
            self.look_at_pruned(stepped=event == "stepped")
        if event == "stepped":
            moved = torch.cat([(values[n] != self.values[n])[kept[n]] for n in kept]).float().mean()
            assert moved > 0.6
        if event != "perturbed":
            self.kept, self.values = kept, values

    def look_at_masks(self) -> None:
        if self.case.method == "str":
            assert all_equal(self.kept, {n: v != 0 for n, v in self.training.values().items()})
            return
        on = {name: int(mask.sum()) for name, mask in self.training.kept().items()}
        assert (sum(on.values()) if isinstance(self.rule.kept, int) else on) == self.rule.kept
        assert {name: count for name, count, _ in self.training.sparsifier.counts()} == on
        assert self.training.sparsifier.achieved_sparsity() == pytest.approx(1 - sum(on.values()) / TOTAL)

    def look_at_pruned(self, stepped: bool = False) -> None:
        values = self.training.values()
        for name, kept in self.training.kept().items():
            assert is_positive_zero(values[name][~kept]), name
            if self.case.method == "str":
                continue
            if stepped:  # nothing that is on hides at zero: the number of nonzeros is exact
                assert values[name][kept].all(), name
            parameters = self.training.parameters(name)
            assert len(parameters) == 1 + (self.case.product or self.case.method in ("pilot", "spred"))
            for parameter, rest in zip(reversed(parameters), (0.0, 1.0), strict=False):
                assert is_positive_zero(parameter.detach()[~kept] - rest), name
                if stepped:
                    assert is_positive_zero(parameter.grad[~kept]), name
                for key, state in self.training.optimizer.state[parameter].items():
                    if state.shape == kept.shape:
                        assert is_positive_zero(state[~kept]), (name, key)

    def look_at_rewiring(self, kept: dict[str, Tensor], values: dict[str, Tensor]) -> None:
        self.rewired += 1
        for name in kept:
            grown, stayed = kept[name] & ~self.kept[name], kept[name] & self.kept[name]
            assert is_positive_zero(values[name][grown]), name
            assert torch.equal(values[name][stayed], self.values[name][stayed]), name
        assert not all_equal(kept, self.kept)

    def look_at_factors(self, epoch: int) -> None:
        scaling = [m.double() ** 2 - w.double() ** 2 for m, w in map(self.training.parameters, self.kept)]
        off_balance = max(float((s - 1).abs().max()) for s in scaling)
        if epoch in (0, *RESETS):
            assert off_balance < 1e-6
        else:
            assert off_balance > 1e-5

    def look_back(self) -> None:
        """After the last step."""
        self.kept = self.training.kept()
        self.look_at_masks()
        self.look_at_pruned()
        values = self.training.values()
        assert all(v.isfinite().all() for v in self.training.model.state_dict().values())
        moved = torch.cat([(values[n] != self.first[n])[self.kept[n]] for n in values]).float().mean()
        assert moved > 0.9
        assert self.rewired == (3 if self.case.method == "rigl" else 0)
        if self.case.method == "str":
            assert self.training.sparsifier.achieved_sparsity() > 0.3
        if self.case.method == "mask_from":
            assert all_equal(self.kept, load_masks(self.training.sparsifier.source)[0])
        if self.rule.fixed:
            assert all_equal(self.kept, self.first_kept)


def check_export(training: Training) -> None:
    plain = network(seed=2)
    plain.load_state_dict(plain_state_dict(training.model), strict=True)
    training.model.eval(), plain.eval()
    images, _ = digits()[0]
    with torch.no_grad():
        assert torch.equal(plain(images), training.model(images))
    training.model.train()


def all_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def is_positive_zero(tensor: Tensor) -> bool:
    return not tensor.contiguous().view(torch.int32).any()


@pytest.mark.parametrize("method", [name for name, rule in METHODS.items() if not rule.plain])
def test_methods_with_a_parameterization_of_their_own_take_no_other(method, masks):
    sparsifier = METHODS[method].make(masks)
    line = f"{type(sparsifier).__name__} parametrizes weights itself: use parameterization=plain"
    with pytest.raises(ValueError) as caught:
        sparsifier.attach(network(0), total_epochs=EPOCHS, steps_per_epoch=STEPS, parameterization=Product())
    assert str(caught.value) == line


def test_the_schedule_of_this_contract_reaches_every_change():
    assert LAST == 15
    assert {"ds", "sd"} <= {METHODS["acdc"].phases[k : k + 2] for k in range(EPOCHS - 1)}
