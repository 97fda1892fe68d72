"""One contract for every sparsifier, parameterization and optimizer, held in short real trainings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from contract import (
    CASES,
    EPOCHS,
    METHODS,
    RESETS,
    STEPS,
    TOTAL,
    Training,
    digits,
    network,
    write_masks,
)
from torch import Tensor

from pruning import Product
from pruning.export import load_masks, plain_state_dict

EPS = torch.finfo(torch.float32).eps
RESUME_AFTER = {4: "stepped", 7: "ended", 12: "stepped"}
"""Inside AC/DC's first sparse epoch and GMP's rise, between epochs, just after PILoT and spred prune."""


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
        if event in ("stepped", "updated"):
            prints[number] = training.fingerprint()
        if RESUME_AFTER.get(number) == event:
            saved[number] = training.save()
    final = training.fingerprint()
    watch.look_back()
    check_export(training)

    assert saved.keys() == RESUME_AFTER.keys()
    for number, state in saved.items():
        resumed = Training(case, masks, data=digits(), saved=state, seed=1)
        for event, at in resumed.steps(start=number + 1):
            if event in ("stepped", "updated"):
                assert not differences(resumed.fingerprint(), prints[at]), at
        assert not differences(resumed.fingerprint(), final)


class Watch:
    """Holds a training to the contract, event by event."""

    def __init__(self, training: Training) -> None:
        self.training, self.case, self.rule = training, training.case, training.case.rule
        self.first = self.values = self.dense = training.values()
        self.kept = training.kept()
        self.mask_updates = 0
        if self.rule.phases[0] == "s":
            self.check_masks("s")
            self.check_pruned(optimizer_stepped=False)

    def look(self, event: str, number: int) -> None:
        epoch = number // STEPS
        before, old = self.kept, self.values
        self.kept, self.values = self.training.kept(), self.training.values()
        self.check_masks(self.rule.phases[epoch])
        if self.rule.phases[epoch] in "sg":
            self.check_pruned(optimizer_stepped=event == "stepped")
        if self.rule.fixed or event in ("stepped", "perturbed", "ended"):
            if (
                self.rule.phases[epoch] == "g"
            ):  # a schedule prunes before the optimizer step, and revives none
                assert all((self.kept[name] <= before[name]).all() for name in before)
            else:
                assert self.case.method == "str" or all_equal(self.kept, before)
        if event in ("stepped", "perturbed"):
            moved = torch.cat([(self.values[n] != old[n])[self.kept[n]] for n in old])
            assert moved.float().mean() > 0.6
        if event == "perturbed":
            self.values = old
        if event == "started" and self.case.product:
            self.check_factors(epoch)
        if event == "updated":
            self.check_mask_update(before, old)
        if event == "started" and epoch > 0:
            self.check_phase_change(self.rule.phases[epoch - 1 : epoch + 1], before, old)

    def check_masks(self, phase: str) -> None:
        on = {name: int(mask.sum()) for name, mask in self.kept.items()}
        expected = self.rule.kept
        if phase == "d":
            assert sum(on.values()) == TOTAL
        elif phase == "s":
            assert (on if isinstance(expected, dict) else sum(on.values())) == expected
        else:
            assert all_equal(self.kept, {n: v != 0 for n, v in self.values.items()})
        assert all(is_positive_zero(v[~self.kept[n]]) for n, v in self.values.items())
        nonzero = {name: int(value.count_nonzero()) for name, value in self.values.items()}
        assert {name: count for name, count, _ in self.training.sparsifier.counts()} == nonzero
        sparsity = self.training.sparsifier.achieved_sparsity()
        assert sparsity == pytest.approx(1 - sum(nonzero.values()) / TOTAL)

    def check_pruned(self, *, optimizer_stepped: bool) -> None:
        factored = self.case.product or self.case.method in ("pilot", "spred")
        for name, kept in self.kept.items():
            parameters = self.training.parameters(name)
            for parameter, rest in zip(parameters, (1.0, 0.0) if factored else (0.0,), strict=True):
                assert is_positive_zero(parameter.detach()[~kept] - rest), name
                for key, state in self.training.optimizer.state[parameter].items():
                    if state.shape == kept.shape:
                        assert is_positive_zero(state[~kept]), (name, key)
                if optimizer_stepped:
                    assert is_positive_zero(parameter.grad[~kept]), name
            if optimizer_stepped:
                # what is on is not zero, but where RigL or SET has grown a weight that nothing has pushed yet
                idle = kept & (self.values[name] == 0)
                assert not idle.any() or self.rule.updates > 0
                assert not parameters[-1].grad[idle].any(), name

    def check_phase_change(self, phases: str, before: dict[str, Tensor], old: dict[str, Tensor]) -> None:
        if phases == "ds":
            self.dense = old
        if phases != "sd":
            return
        for name, value in self.values.items():
            revived = ~before[name]
            stale = self.dense[name] if self.case.method == "acdc_stale" else torch.zeros_like(value)
            torch.testing.assert_close(value[revived], stale[revived], rtol=1e-6, atol=0)  # m * w is rounded

    def check_mask_update(self, before: dict[str, Tensor], old: dict[str, Tensor]) -> None:
        self.mask_updates += 1
        assert not all_equal(self.kept, before)
        for name, kept in self.kept.items():
            grown, stayed = kept & ~before[name], kept & before[name]
            assert is_positive_zero(self.values[name][grown]), name
            assert torch.equal(self.values[name][stayed], old[name][stayed]), name  # no optimizer step

    def check_factors(self, epoch: int) -> None:
        """In balance m^2 - w^2 is 1 to the rounding of m and w, at most 3 eps of m^2 + w^2 (`rebalance`)."""
        pairs = [[p.detach().double() for p in self.training.parameters(name)] for name in self.kept]
        off = max(float(((m**2 - w**2 - 1).abs() / (m**2 + w**2)).max()) for m, w in pairs)
        assert off < 3 * EPS if epoch in (0, *RESETS) else off > 100 * EPS

    def look_back(self) -> None:
        """After the last step."""
        if self.case.method == "str":  # its end shifts the thresholds to the exact target
            assert self.training.sparsifier.achieved_sparsity() == pytest.approx(0.8, abs=1 / TOTAL)
        else:
            assert all_equal(self.kept, self.training.kept())
            assert all_equal(self.values, self.training.values())
        assert all(v.isfinite().all() for v in self.training.model.state_dict().values())
        moved = torch.cat([(self.values[n] != self.first[n])[self.kept[n]] for n in self.kept])
        assert moved.float().mean() > 0.9
        assert self.mask_updates == self.rule.updates
        if self.case.method == "mask_from":
            assert all_equal(self.kept, load_masks(self.training.sparsifier.source)[0])


def check_export(training: Training) -> None:
    plain = network(seed=2)
    plain.load_state_dict(plain_state_dict(training.model), strict=True)
    images, _ = digits()[0]
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), training.model.eval()(images))


def differences(one: dict, other: dict) -> list[str]:
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def all_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def is_positive_zero(tensor: Tensor) -> bool:
    return not tensor.contiguous().view(torch.int32).any()


@pytest.mark.parametrize("method", [name for name, rule in METHODS.items() if not rule.plain])
def test_methods_with_a_parameterization_of_their_own_take_no_other(method, masks):
    sparsifier = METHODS[method].make(masks)
    with pytest.raises(ValueError) as caught:
        sparsifier.attach(network(0), total_epochs=EPOCHS, steps_per_epoch=STEPS, parameterization=Product())
    line = f"{type(sparsifier).__name__} parametrizes weights itself: use parameterization=plain"
    assert str(caught.value) == line
