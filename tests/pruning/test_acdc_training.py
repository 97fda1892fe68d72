"""Whole runs of AC/DC with weight decay, SAM and HAM: what each step leaves is kept and checked later."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ham import HAM, param_groups, perturbed
from ham.models import ResNet, build_model
from pruning import ACDC

pytestmark = pytest.mark.filterwarnings("ignore:all weights of")  # a small layer of a small network

EPOCHS, STEPS, BATCH, CLASSES = 12, 4, 16, 5
PHASES = "ddsdsdsddsss"

OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.02, momentum=0.9),
    "nesterov": lambda groups: torch.optim.SGD(groups, lr=0.02, momentum=0.9, nesterov=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=2e-3),
}


@dataclass
class Step:
    """One optimizer step; each tensor holds all prunable weights in one row."""

    pruned: Tensor
    start: Tensor  # weights before the step
    ascended: Tensor  # weights inside SAM's block
    gradient: Tensor  # as the optimizer saw it
    weights: Tensor  # after the step
    state: dict[str, Tensor]  # of the optimizer, after the step


@dataclass
class Epoch:
    """What the sparsifier did between the epochs, and the steps that followed."""

    before: Tensor
    after: Tensor
    pruned: Tensor
    active: bool
    steps: list[Step] = field(default_factory=list)


@dataclass
class Trace:
    epochs: list[Epoch]
    final: Tensor  # the model's whole state_dict in one row

    def of(self, phase: str) -> list[Epoch]:
        return [epoch for epoch, letter in zip(self.epochs, PHASES, strict=True) if letter == phase]

    def changes(self, phases: str) -> list[tuple[Epoch, Epoch]]:
        """Pairs of epochs with a change from phases[0] to phases[1] between them."""
        pairs = zip(pairwise(self.epochs), pairwise(PHASES), strict=True)
        return [epochs for epochs, letters in pairs if "".join(letters) == phases]

    def sparse_steps(self) -> list[Step]:
        return [step for epoch in self.of("s") for step in epoch.steps]


def row(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors]).clone()


def is_positive_zero(weights: Tensor) -> Tensor:
    return weights.view(torch.int32) == 0


def train(kind: str, ham: str = "on") -> Trace:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(STEPS, BATCH, 3, 8, 8, generator=generator)
    classes = torch.randint(CLASSES, (STEPS, BATCH), generator=generator)
    network = ResNet(depth=50, width=4, layers=[1, 1, 1, 1], stem="cifar")
    model = build_model(network, num_classes=CLASSES, image_size=8, generator=generator)
    sparsifier = ACDC(sparsity=0.8)
    sparsifier.attach(model, total_epochs=EPOCHS, steps_per_epoch=STEPS)
    optimizer = OPTIMIZERS[kind](param_groups(model, weight_decay=0.01))
    if ham == "on":
        HAM(optimizer, alpha=200.0, beta=1e-3)
    elif ham == "zero":
        HAM(optimizer, alpha=0.0, beta=0.0)
    elif ham == "removed":
        HAM(optimizer, alpha=200.0, beta=1e-3).remove()

    weights = [p for p in model.parameters() if p.ndim >= 2]

    def pruned() -> Tensor:
        masks = (
            sparsifier.masks.masks.values()
            if sparsifier.masks.active
            else [w.new_ones(w.shape) for w in weights]
        )
        return ~row(masks).bool()

    epochs, number = [], 0
    for epoch in range(EPOCHS):
        before = row(weights)
        sparsifier.on_epoch_start(epoch, optimizer)
        epochs.append(Epoch(before, row(weights), pruned(), sparsifier.masks.active))
        for x, y in zip(images, classes, strict=True):
            start = row(weights)
            cross_entropy(model(x), y).backward()
            assert sparsifier.after_backward(number, optimizer)
            with perturbed(model.parameters(), rho=0.05, freeze_bn=model):
                cross_entropy(model(x), y).backward()
                sparsifier.mask_gradients()
                ascended = row(weights)
            sparsifier.add_decay()
            optimizer.step()
            sparsifier.after_step()
            gradient, state = row(w.grad for w in weights), weights_state(optimizer, weights)
            epochs[-1].steps.append(Step(pruned(), start, ascended, gradient, row(weights), state))
            optimizer.zero_grad()
            number += 1
    sparsifier.on_end()
    return Trace(epochs, row(value.double() for value in model.state_dict().values()))


def weights_state(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter]) -> dict[str, Tensor]:
    keys = [k for k, v in optimizer.state[weights[0]].items() if v.shape == weights[0].shape]
    return {key: row(optimizer.state[w][key] for w in weights) for key in keys}


@pytest.fixture(scope="module", params=OPTIMIZERS)
def trace(request: pytest.FixtureRequest) -> Trace:
    return train(request.param)


def test_every_kind_of_phase_was_run(trace):
    assert "".join("s" if epoch.active else "d" for epoch in trace.epochs) == PHASES
    assert len(trace.changes("ds")) == 4 and len(trace.changes("sd")) == 3
    assert len(trace.sparse_steps()) == 6 * STEPS
    assert all(step.state and step.start.any() and step.gradient.any() for step in trace.sparse_steps())


def test_the_number_of_nonzero_weights_is_exact(trace):
    total = trace.epochs[0].before.numel()
    for epoch in trace.of("s"):
        for weights in (epoch.after, *(step.weights for step in epoch.steps)):
            assert int(weights.count_nonzero()) == total * 2 // 10


def test_compression_keeps_the_largest_of_all_layers_together(trace):
    for _, epoch in trace.changes("ds"):
        size, pruned = epoch.before.abs(), epoch.pruned
        assert int(pruned.sum()) == pruned.numel() - pruned.numel() * 2 // 10
        assert size[~pruned].min() >= size[pruned].max()
        assert torch.equal(epoch.after[~pruned], epoch.before[~pruned])


def test_masks_stay_within_a_sparse_phase(trace):
    for first, second in trace.changes("ss"):
        assert torch.equal(first.pruned, second.pruned)
        assert torch.equal(second.before, second.after)
    for epoch in trace.of("s"):
        assert all(torch.equal(step.pruned, epoch.pruned) for step in epoch.steps)


@pytest.mark.parametrize("when", ["start", "ascended", "weights"])
def test_pruned_weights_are_positive_zero_at_all_times(trace, when):
    for step in trace.sparse_steps():
        assert is_positive_zero(getattr(step, when)[step.pruned]).all()


def test_sam_ascends_and_steps_move_the_kept_weights(trace):
    for step in trace.sparse_steps():
        assert (step.ascended != step.start).any()
        assert (step.weights != step.start)[~step.pruned].float().mean() > 0.5


def test_pruned_weights_have_no_gradient_and_no_optimizer_state(trace):
    for step in trace.sparse_steps():
        assert not step.gradient[step.pruned].any()
        for key, state in step.state.items():
            assert not state[step.pruned].any(), key
            assert state[~step.pruned].any(), key


def test_decompression_turns_all_on_at_zero(trace):
    for sparse, dense in trace.changes("sd"):
        assert not dense.pruned.any()
        assert torch.equal(dense.after, dense.before)
        assert is_positive_zero(dense.after[sparse.pruned]).all()


def test_revived_weights_move_where_they_have_a_gradient(trace):
    for sparse, dense in trace.changes("sd"):
        first = dense.steps[0]
        moved, pushed = first.weights[sparse.pruned] != 0, first.gradient[sparse.pruned] != 0
        assert torch.equal(moved, pushed)
        assert moved.float().mean() > 0.4  # at 1x1 pixels most taps of a 3x3 kernel see padding only


def test_in_dense_phases_no_mask_is_on(trace):
    for epoch in trace.of("d"):
        assert not any(step.pruned.any() for step in epoch.steps)


def test_the_run_ends_finite(trace):
    assert trace.final.isfinite().all()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_ham_at_zero_or_removed_is_no_ham(kind):
    absent, zero, removed = (train(kind, ham).final for ham in ("absent", "zero", "removed"))
    assert torch.equal(absent, zero)
    assert torch.equal(absent, removed)


def test_ham_changes_the_training(trace, request):
    kind = request.node.callspec.params["trace"]
    assert not torch.equal(trace.final, train(kind, ham="absent").final)
