"""GraSP's score against the Hessian of torch.func, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jvp
from torch.nn.functional import cross_entropy

from pruning import GraSP, Product, prunable_weights
from pruning.grasp import grasp


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)
    ).double()
    with torch.no_grad():
        model[1].running_mean.uniform_(-1, 1)
        model[1].running_var.uniform_(0.5, 2)
    return model


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(n, 4, dtype=torch.float64, generator=generator),
            torch.randint(3, (n,), generator=generator),
        )
        for n in sizes
    ]


def mean_loss(model: nn.Module, data: list, temperature: float):
    """theta of both layers, flat -> the mean over the batches of their mean losses."""
    names = ["0.weight", "4.weight"]
    shapes = [model.get_parameter(name).shape for name in names]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        tensors = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        each = [cross_entropy(functional_call(model, tensors, (x,)) / temperature, y) for x, y in data]
        return torch.stack(each).mean()

    return loss, torch.cat([model.get_parameter(name).detach().flatten() for name in names])


def flat(scores: dict[str, Tensor]) -> Tensor:
    return torch.cat([score.flatten() for score in scores.values()])


@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_the_score_is_theta_times_hessian_times_gradient(temperature):
    """Against the full Hessian and against a forward-over-reverse product of torch.func."""
    model, data = mlp(), batches(6, 3)
    scores = flat(grasp(model, prunable_weights(model), data, cross_entropy, temperature))
    loss, theta = mean_loss(model.eval().requires_grad_(False), data, temperature)
    gradient = torch.func.grad(loss)(theta)
    expected = theta * (hessian(loss)(theta) @ gradient)
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-12 * largest)
    _, product = jvp(torch.func.grad(loss), (theta,), (gradient,))
    torch.testing.assert_close(scores, theta * product, rtol=1e-9, atol=1e-12 * largest)


def test_the_score_is_the_change_of_gradient_flow_as_a_weight_shrinks():
    """d/dc of |g(theta - c theta_i e_i)|^2 at c = 0 is -2 theta_i (H g)_i: S(-theta), Eq. 7 and 8."""
    model, data, step = mlp(), batches(6), 1e-6
    scores = flat(grasp(model, prunable_weights(model), data, cross_entropy, 1.0))
    loss, theta = mean_loss(model.eval(), data, 1.0)
    flow = lambda at: torch.func.grad(loss)(at).square().sum()  # noqa: E731
    nudges = torch.diag(theta) * step
    found = torch.stack([(flow(theta - nudge) - flow(theta + nudge)) / (2 * step) for nudge in nudges])
    torch.testing.assert_close(found, -2 * scores, rtol=1e-6, atol=1e-8)


def test_a_large_batch_is_computed_in_parts_and_scored_as_one():
    model, data = mlp(), batches(150)  # 64 + 64 + 22
    seen: list[int] = []
    handle = model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    scores = flat(grasp(model, prunable_weights(model), data, cross_entropy))
    handle.remove()
    assert seen == [64, 64, 22] * 2  # one pass for g, one for H g
    loss, theta = mean_loss(model.eval(), data, 200.0)
    expected = theta * (hessian(loss)(theta) @ torch.func.grad(loss)(theta))
    torch.testing.assert_close(scores, expected, rtol=1e-8, atol=1e-10 * float(expected.detach().abs().max()))


def test_a_product_is_scored_as_the_plain_weight():
    plain, product = mlp(), mlp()
    Product().attach(product, total_epochs=1)
    one, other = (grasp(m, prunable_weights(m), batches(6), cross_entropy) for m in (plain, product))
    assert one.keys() == other.keys()
    for name, score in one.items():
        torch.testing.assert_close(other[name], score, rtol=1e-9, atol=1e-18)


def test_it_leaves_the_model_as_it_is():
    def look(model: nn.Module) -> list[object]:
        return [
            {name: value.numpy().tobytes() for name, value in model.state_dict().items()},
            {name: p.grad is None for name, p in model.named_parameters()},
            [module.training for module in model.modules()],
        ]

    model = mlp()
    model[1].eval()
    before = look(model)
    grasp(model, prunable_weights(model), batches(6), cross_entropy)
    assert look(model) == before


def test_it_keeps_the_largest_scores_of_the_first_batches():
    model = mlp()
    scores = flat(grasp(model, prunable_weights(model), batches(6, 4), cross_entropy))
    sparsifier = GraSP(0.8, batches=2)
    sparsifier.attach(model, total_epochs=1)
    sparsifier.initialize(iter(batches(6, 4, 9)), cross_entropy)
    kept = torch.cat([mask.flatten() for mask in sparsifier.kept().values()])
    assert int(kept.sum()) == 7  # 35 - ceil(28)
    assert scores[kept].min() > scores[~kept].max()


def test_a_network_that_is_linear_in_its_loss_has_no_curvature():
    model = nn.Linear(3, 2).double()
    data = [(torch.ones(4, 3, dtype=torch.float64), torch.ones(4, 2, dtype=torch.float64))]
    scores = grasp(model, prunable_weights(model), data, lambda outputs, targets: (outputs * targets).mean())
    assert not scores["weight"].any()


def test_missing_data_and_wrong_options_raise():
    sparsifier = GraSP(0.5, batches=3)
    sparsifier.attach(mlp(), total_epochs=1)
    with pytest.raises(ValueError, match=r"^GraSP needs 3 batches, got 2: lower its batches$"):
        sparsifier.initialize(batches(4, 4), cross_entropy)
    with pytest.raises(ValueError, match=r"^GraSP needs a loss"):
        sparsifier.initialize(batches(4, 4, 4))
    with pytest.raises(RuntimeError, match="GraSP has not pruned yet"):
        sparsifier.after_backward(0, torch.optim.SGD(sparsifier.model.parameters(), lr=0.1))
    for options, message in (
        ({"batches": 0}, "batches must be"),
        ({"temperature": 0.0}, "temperature must be"),
    ):
        with pytest.raises(ValueError, match=message):
            GraSP(0.5, **options)


class Attention(nn.Module):
    """One head on tokens [N, 3, 4]: by torch's function, or written out."""

    def __init__(self, is_fused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.head, self.is_fused = nn.Linear(4, 12), nn.Linear(4, 3), is_fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)
        if self.is_fused:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.mT / 2).softmax(dim=-1) @ v
        return self.head(mixed.squeeze(1).mean(dim=1))


def test_attention_of_torch_is_scored_as_attention_written_out():
    """The fused kernels of scaled_dot_product_attention have no second derivative."""
    data = [(torch.randn(5, 3, 4, dtype=torch.float64), torch.randint(3, (5,)))]
    one, other = (Attention(is_fused).double() for is_fused in (True, False))
    fused, plain = (flat(grasp(m, prunable_weights(m), data, cross_entropy, 1.0)) for m in (one, other))
    assert plain.abs().max() > 1e-6
    torch.testing.assert_close(fused, plain, rtol=1e-9, atol=1e-14)


def test_the_defaults_are_ten_batches_and_the_temperature_of_the_authors():
    sparsifier = GraSP(0.5)
    assert (sparsifier.batches, sparsifier.temperature) == (10, 200.0)
    model = mlp()
    given, default = (
        flat(grasp(model, prunable_weights(model), batches(6), cross_entropy, *temperature))
        for temperature in ((200.0,), ())
    )
    assert torch.equal(given, default)


def test_one_batch_and_any_positive_temperature_are_enough():
    sparsifier = GraSP(0.5, batches=1, temperature=0.5)
    sparsifier.attach(mlp(), total_epochs=1)
    sparsifier.initialize(batches(6), cross_entropy)
    assert sparsifier.achieved_sparsity() == pytest.approx(18 / 35)  # 17.5 of 35, rounded up
    assert sparsifier.after_backward(0, torch.optim.SGD(sparsifier.model.parameters(), lr=0.1))


def test_inputs_that_are_not_tensors_are_refused():
    sparsifier = GraSP(0.5, batches=1)
    sparsifier.attach(mlp(), total_epochs=1)
    with pytest.raises(ValueError, match=r"^GraSP needs tensors as inputs, got object: choose SNIP$"):
        sparsifier.initialize([(object(), torch.zeros(2))], cross_entropy)
