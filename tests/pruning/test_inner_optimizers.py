"""Optimizer state that is not in `optimizer.state`: on other ranks, in a wrapper, quantized, unnamed."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from pruning import ACDC, SET, Product, RandomPruning, RigL, Sparsifier, SparsityWarning
from pruning.masks import MaskSet
from pruning.optimizer_state import (
    elementwise_state,
    fill_second_moments_,
    holders_of_state,
    reset_first_moments_,
)

EPOCHS, STEPS, RANKS = 8, 3, 2
X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    with torch.no_grad():
        model[2].weight.mul_(1e-4)  # pruned as a whole by ACDC
    return model


METHODS: dict[str, tuple[Any, Any]] = {
    "rigl": (lambda: RigL(0.5, interval=2), lambda: None),
    "set": (lambda: SET(0.5, interval=2), lambda: None),
    "acdc": (lambda: ACDC(0.5), lambda: None),
    "acdc_product": (lambda: ACDC(0.5), lambda: Product(reset_every=3, carry_momentum=False)),
}
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "adam": (torch.optim.Adam, {"lr": 0.01}),
}


def train(method: str, make: Any) -> dict[str, Tensor]:
    """The weights after every step, with `make(groups)` as the optimizer."""
    model, (sparsifier, parameterization) = network(), (part() for part in METHODS[method])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SparsityWarning)  # a layer of which nothing is left
        options = {"total_epochs": EPOCHS, "steps_per_epoch": STEPS, "parameterization": parameterization}
        sparsifier.attach(model, **options)
        optimizer = make(sparsifier.param_groups(model.parameters()))
        sparsifier.hook(optimizer)
        states = {}
        for step in range(EPOCHS * STEPS):
            if step % STEPS == 0:
                sparsifier.on_epoch_start(step // STEPS, optimizer)
            model(X).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            states |= {f"{step} {name}": value.clone() for name, value in model.state_dict().items()}
    return states


def main(rank: int, folder: Path) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=(folder / "rendezvous").as_uri(),
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(minutes=5),
    )
    report: dict[str, Any] = {}
    for method in METHODS:
        for name, (kind, options) in OPTIMIZERS.items():
            plain = train(method, lambda groups, k=kind, o=options: k(groups, **o))
            zero = train(method, lambda groups, k=kind, o=options: ZeroRedundancyOptimizer(groups, k, **o))
            report[f"{method} {name}"] = (plain, zero)
    sparsifier, model = RandomPruning(0.5), network()
    sparsifier.attach(model, total_epochs=1, parameterization=Product(reset_every=1))
    groups = sparsifier.param_groups(model.parameters())
    try:
        sparsifier.hook(ZeroRedundancyOptimizer(groups, torch.optim.SGD, lr=0.1, momentum=0.9))
    except ValueError as error:
        report["carried"] = str(error)
    torch.save(report, folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> list[dict[str, Any]]:
    """What two ranks have written."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, __file__, str(rank), str(folder)] for rank in range(RANKS)]
    processes = [subprocess.Popen(c, env=environment, stderr=subprocess.PIPE, text=True) for c in commands]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        pytest.fail("\n".join(errors), pytrace=False)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_state_that_is_split_over_ranks_trains_as_the_whole_one(reports, method, optimizer):
    """Both ranks see the same batches, so that the optimizer alone, on one rank, is the reference."""
    for report in reports:
        plain, zero = report[f"{method} {optimizer}"]
        torch.testing.assert_close(zero, plain, rtol=1e-5, atol=1e-7)


def test_momenta_of_factors_on_different_ranks_cannot_be_combined(reports):
    assert [report["carried"] for report in reports] == 2 * [
        "ZeroRedundancyOptimizer keeps the momenta of the two factors on different ranks: set "
        "Product(carry_momentum=False), or use another optimizer"
    ]


class Wrapper(torch.optim.Optimizer):
    """Holds its optimizer under a name of its own, and a state of its own, as timm's Lookahead does."""

    def __init__(self, inner: torch.optim.Optimizer, name: str) -> None:
        super().__init__(inner.param_groups, {})
        setattr(self, name, inner)
        self._name = name

    def step(self, closure: Any = None) -> Any:
        return getattr(self, self._name).step(closure)


@pytest.mark.parametrize("name", ["optim", "optimizer", "_base_optimizer", "anything"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_the_state_inside_wrappers_is_that_of_the_training(method, depth, name):
    def wrapped(groups: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
        for _ in range(depth):
            optimizer = Wrapper(optimizer, name)
        return optimizer

    plain = train(method, lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9))
    torch.testing.assert_close(train(method, wrapped), plain, rtol=0, atol=0)


def test_holders_come_from_outside_to_inside_once_each():
    inner = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    middle = Wrapper(inner, "a")
    outer = Wrapper(middle, "b")
    outer.again, inner.back = inner, outer
    assert [id(holder) for holder in holders_of_state(outer)] == [id(outer), id(middle), id(inner)]
    p = inner.param_groups[0]["params"][0]
    middle.state[p] = {"copy": torch.ones(2), "exp_avg": torch.zeros(2)}
    outer.state[p] = None  # as ZeroRedundancyOptimizer leaves it
    inner.state[p] = {"exp_avg": torch.ones(2), "step": torch.ones(2)}
    found = elementwise_state(outer, p)
    assert found.keys() == {"copy", "exp_avg"} and found["exp_avg"] is inner.state[p]["exp_avg"]
    reset_first_moments_(outer)
    assert not inner.state[p]["exp_avg"].any() and middle.state[p]["copy"].all()


# quantized


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
@pytest.mark.parametrize("key", ["state1", "exp_avg"])
def test_quantized_state_is_refused_before_it_is_changed(dtype, key):
    p = nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.AdamW([p])
    codes = torch.arange(6, dtype=dtype).view(2, 3)
    optimizer.state[p] = {key: codes.clone(), "absmax": torch.ones(1)}
    masks = MaskSet({"w": p})
    masks.set({"w": torch.tensor([[True, False, True], [False, True, True]])})
    acts = [lambda: masks.apply_to_optimizer_(optimizer), lambda: fill_second_moments_(optimizer, masks)]
    for act in acts + [lambda: reset_first_moments_(optimizer)] * (key == "exp_avg"):
        with pytest.raises(ValueError) as error:
            act()
        assert str(error.value) == (
            f"AdamW keeps '{key}' in {dtype} codes, which cannot be set to zero: use an optimizer with "
            "floating-point state for the pruned weights"
        )
    assert torch.equal(optimizer.state[p][key], codes)


# under other names


class Renamed(torch.optim.SGD):
    """SGD with momentum that keeps it under another name, as bitsandbytes does."""

    def __init__(self, params: Any, name: str) -> None:
        super().__init__(params, lr=0.05, momentum=0.9)
        self.name = name

    def step(self, closure: Any = None) -> Any:
        for state in self.state.values():
            state["momentum_buffer"] = state.pop(self.name)
        loss = super().step(closure)
        for state in self.state.values():
            state[self.name] = state.pop("momentum_buffer")
        return loss


@pytest.mark.parametrize("name", ["state1", "velocity"])
@pytest.mark.parametrize(
    ("sparsifier", "parameterization", "reset"),
    [
        (ACDC(0.5), None, "ACDC's reset_momentum"),
        (RandomPruning(0.5), Product(reset_every=2), "the reset of Product"),
    ],
    ids=["acdc", "product"],
)
def test_a_momentum_under_an_unknown_name_is_reported_once(sparsifier, parameterization, reset, name):
    caught = resets(sparsifier, parameterization, lambda groups: Renamed(groups, name))
    assert caught == [
        f"Renamed has the state {name}, and none with the name of a momentum (momentum_buffer, exp_avg, "
        f"grad_avg): {reset} leaves it unchanged, use an optimizer of torch.optim"
    ]


@pytest.mark.parametrize(
    "kind",
    [torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.Rprop, torch.optim.ASGD]
    + [torch.optim.RMSprop, torch.optim.Adam, torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam],
)
def test_the_optimizers_of_torch_have_no_momentum_that_is_missed(kind):
    assert resets(ACDC(0.5), None, lambda groups: kind(groups, lr=0.01)) == []


def resets(sparsifier: Sparsifier, parameterization: Product | None, make: Any) -> list[str]:
    """The warnings of a training with several resets."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    sparsifier.attach(model, total_epochs=12, steps_per_epoch=1, parameterization=parameterization)
    optimizer = make(sparsifier.param_groups(model.parameters()))
    sparsifier.hook(optimizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in range(12):
            sparsifier.on_epoch_start(epoch, optimizer)
            model(X).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return [str(warning.message) for warning in caught if warning.category is SparsityWarning]


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
