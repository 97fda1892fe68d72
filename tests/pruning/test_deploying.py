"""Sparse models after training: torch.export and ONNX compute the same outputs; copies and their zeros."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pruning import STR, Dense, Product, RandomPruning, RigL, Sparsifier
from pruning.export import plain_state_dict, remove_parametrizations_


def sparse(kind: str) -> tuple[nn.Module, Sparsifier]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)).eval()
    sparsifier: Sparsifier = STR(sparsity=0.5, initial=-3.0) if kind == "str" else RandomPruning(sparsity=0.7)
    sparsifier.attach(model, total_epochs=1, parameterization=Product() if kind == "product" else None)
    return model, sparsifier


def inputs() -> Tensor:
    return torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["plain", "product", "str"])
def test_an_exported_program_has_the_models_outputs_and_zeros(kind):
    model, sparsifier = sparse(kind)
    program, kept = torch.export.export(model, (inputs(),)), sparsifier.kept()
    module = program.module()
    torch.testing.assert_close(module(inputs()), model(inputs()))
    if kind == "plain":
        assert all(torch.equal(program.state_dict[name] != 0, mask) for name, mask in kept.items())
    else:
        plain = torch.export.export(remove_parametrizations_(model), (inputs(),))
        assert all(torch.equal(plain.state_dict[name] != 0, mask) for name, mask in kept.items())
        torch.testing.assert_close(plain.module()(inputs()), module(inputs()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["product", "str"])
def test_onnx_of_a_parametrized_model_computes_the_plain_weights(kind):
    """ONNX's reference evaluator computes the outputs; the graph holds each weight, multiplied out."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    model, sparsifier = sparse(kind)
    graph = torch.onnx.export(model, (inputs(),), dynamo=True, verbose=False).model_proto
    onnx.checker.check_model(graph)
    [outputs] = ReferenceEvaluator(graph).run(None, {graph.graph.input[0].name: inputs().numpy()})
    torch.testing.assert_close(torch.from_numpy(outputs.copy()), model(inputs()).detach())
    stored = [torch.tensor(onnx.numpy_helper.to_array(tensor)) for tensor in graph.graph.initializer]
    state = plain_state_dict(model)
    for name, mask in sparsifier.kept().items():
        [found] = [value for value in stored if value.shape == mask.shape]
        torch.testing.assert_close(found, state[name])
        assert torch.equal(found != 0, mask)


def test_a_copy_keeps_its_zeros_with_a_sparsifier_of_its_own() -> None:
    """And without one loses them, as docs/deploying.md says."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    sparsifier = RigL(sparsity=0.9, interval=5)
    sparsifier.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), total_epochs=1, steps_per_epoch=30)
    kept = sparsifier.kept()["0.weight"]
    for is_attached in (True, False):
        copied = copy.deepcopy(model)
        optimizer = torch.optim.SGD(copied.parameters(), lr=0.1)
        if is_attached:
            Dense().attach(copied, optimizer, total_epochs=1, masks=sparsifier.kept())
        for _ in range(3):
            loss = torch.nn.functional.cross_entropy(copied(torch.randn(32, 8)), torch.randint(2, (32,)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert bool((copied[0].weight[~kept] == 0).all()) == is_attached
