"""Which parameters HAM acts on when the model or the optimizer changes later, and values that it refuses."""

from __future__ import annotations

import io
import math
import warnings

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from two_step_sam import TwoStepSAM

from ham import HAM, param_groups
from ham.optim.implementations import IMPLEMENTATIONS
from pruning import STR

DECAY = {"alpha": 0, "beta": 1.0}
"""With the rate 0.1, HAM multiplies weights by exp(-0.1)."""


def factors(optimizer: Optimizer) -> list[float]:
    """By what a step without gradients multiplies each parameter, which is 1 before it."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    with torch.no_grad():
        for p in params:
            p.fill_(1.0)
            p.grad = torch.zeros_like(p)
    optimizer.step()
    return [p.detach().mean().item() for p in params]


def acted(optimizer: Optimizer) -> list[bool]:
    return [value == pytest.approx(0.904837, rel=1e-5) for value in factors(optimizer)]


def test_what_the_model_does_not_have_is_left_alone_with_a_warning() -> None:
    model, other = nn.Linear(4, 4), nn.Linear(4, 4)
    optimizer = SGD([*model.parameters(), *other.parameters()], lr=0.1)
    with pytest.warns(UserWarning, match=r"parameters that are not in model=.*of shape \(4, 4\)"):
        HAM(optimizer, model=model, select="weight", **DECAY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert acted(optimizer) == [True, False, False, False]


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("not_norm", [True, True, False, False]),
        ("0.*", [False] * 4),
        ("*.weight", [True, False, True, False]),
        ("everything", [True] * 4),
    ],
)
def test_layers_that_the_model_gets_later_are_selected_as_its_own(select: str, expected: list[bool]) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    optimizer = SGD(model.parameters(), lr=0.1)
    HAM(optimizer, model=model, select=select, **DECAY)
    model.append(nn.Linear(4, 4))
    model.append(nn.LayerNorm(4))
    optimizer.add_param_group({"params": [*model[1].parameters(), *model[2].parameters()]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert acted(optimizer)[2:] == expected


def test_a_parameter_in_the_memory_of_one_that_is_gone_is_another_one() -> None:
    for _ in range(40):
        model = nn.ModuleDict(
            {"body": nn.Linear(4, 4), "head": nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))}
        )
        optimizer = SGD(model["body"].parameters(), lr=0.1)
        HAM(optimizer, model=model, **DECAY)
        model["head"] = nn.Identity()
        model["head"] = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
        optimizer.add_param_group({"params": list(model["head"].parameters())})
        assert acted(optimizer) == [True, True, True, True, False, False, True, True]


def test_a_model_may_end_before_its_optimizer() -> None:
    model = nn.Linear(4, 4)
    optimizer = SGD(model.parameters(), lr=0.1)
    HAM(optimizer, model=nn.Sequential(model), **DECAY)
    assert acted(optimizer) == [True, True]
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3, 3))]})
    with pytest.warns(UserWarning, match="that are not in model"):
        assert acted(optimizer) == [True, True, False]


@pytest.mark.filterwarnings("ignore:HAM does not change one-dimensional")
def test_thresholds_are_named_where_ham_does_not_know_the_model() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    STR(sparsity=0.5).attach(model, total_epochs=1)
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="also acts on single numbers, such as STR's thresholds"):
        HAM(optimizer).remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HAM(optimizer, model=model)


def test_a_later_pre_hook_that_drops_gradients_skips_a_step() -> None:
    model = nn.Linear(4, 4)
    optimizer = SGD(model.parameters(), lr=0.1)
    HAM(optimizer, model=model, **DECAY)
    optimizer.register_step_pre_hook(lambda optimizer, *_: optimizer.zero_grad())
    for _ in range(3):
        assert factors(optimizer) == [1.0, 1.0]


def test_an_optimizer_through_whose_step_autograd_goes_is_refused() -> None:
    optimizer = SGD([torch.ones(3, 3, requires_grad=True).clone()], lr=0.1, differentiable=True)
    with pytest.raises(ValueError, match="set differentiable=False"):
        HAM(optimizer)
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("ham_alpha", float("nan"), "ham_alpha of a group must be finite, got nan"),
        ("ham_alpha", float("inf"), "ham_alpha of a group must be finite, got inf"),
        ("ham_beta", -1.0, "ham_beta of a group must be finite and not negative, got -1.0"),
        ("ham_beta", numpy.float32("nan"), "ham_beta of a group must be finite and not negative"),
        ("ham_beta", torch.tensor(-1.0), "ham_beta of a group must be finite and not negative, got -1.0"),
        ("ham_alpha", torch.tensor([math.nan]), "ham_alpha of a group must be finite, got nan"),
        ("ham_alpha", "200", "ham_alpha of a group must be a number or a tensor with one, got '200'"),
    ],
)
def test_values_of_a_group_are_checked_before_each_step(key: str, value: object, words: str) -> None:
    model = nn.Linear(4, 4)
    optimizer = SGD(model.parameters(), lr=0.1)
    HAM(optimizer, model=model)
    optimizer.param_groups[0][key] = value
    with pytest.raises(ValueError, match=words):
        factors(optimizer)
    assert all((p == 1).all() for p in model.parameters())


class Normalized(Optimizer):
    """A step of its own under the names of SGD's options."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        super().__init__(params, dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0, foreach=True))

    @torch.no_grad()
    def step(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.sub_(0.1 * p.grad.sign())


def test_options_with_the_names_of_sgds_are_not_taken_for_sgds() -> None:
    model = nn.Linear(4, 4)
    optimizer = Normalized(list(model.parameters()))
    HAM(optimizer, model=model, **DECAY)
    assert acted(optimizer) == [True, True]
    with pytest.raises(ValueError, match="overwrites the gradient"):
        HAM(SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=True), model=model)


def weights_after(alpha: object, scheduled: object = None) -> Tensor:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = SGD(model.parameters(), lr=0.1)
    HAM(optimizer, model=model, alpha=alpha)
    if scheduled is not None:
        optimizer.param_groups[0]["ham_alpha"] = scheduled
    model(torch.ones(2, 4)).square().mean().backward()
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    torch.load(file, weights_only=True)
    return model.weight.detach()


@pytest.mark.parametrize("alpha", [numpy.float64(20), numpy.float32(20), torch.tensor(20.0), 20])
def test_alpha_may_be_any_kind_of_number(alpha: object) -> None:
    expected = weights_after(20.0)
    assert torch.equal(weights_after(alpha), expected)
    if not isinstance(alpha, numpy.floating):  # torch.load does not take numpy's
        assert torch.equal(weights_after(1.0, scheduled=alpha), expected)


@pytest.mark.parametrize("keys", [["ham_alpha"], ["ham_beta"], ["ham_alpha", "ham_beta"]])
@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1, device="meta")])
def test_values_in_a_device_tensor_are_not_read_in_a_step(keys, rate, monkeypatch) -> None:
    """A tensor on meta has no value to read; the step gets both as 0-dim tensors on its device."""
    seen: list[Tensor] = []
    monkeypatch.setitem(IMPLEMENTATIONS, "foreach", lambda *args: seen.extend(args[2:4]))
    with torch.device("meta"):
        model = nn.Linear(4, 4)
        optimizer = SGD(model.parameters(), lr=0.1)
        HAM(optimizer, model=model, max_weight_norm=1.0, lr=lambda group: rate)
        optimizer.param_groups[0].update({key: torch.ones(1) for key in keys})
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(2):
        optimizer.step()
    assert [(x.shape, x.device.type) for x in seen] == [((), "meta")] * 4


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("implementation", ["foreach", "reference", "fused"])
def test_values_in_tensors_count_as_their_numbers(shape, implementation) -> None:
    """Against the formula in float64; a group with zeros in tensors is skipped."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(5, 3, generator=generator, dtype=torch.float64)) for _ in range(2)]
    optimizer = SGD([{"params": [p]} for p in params], lr=0.1)
    HAM(optimizer, implementation=implementation)
    for group, (alpha, beta) in zip(optimizer.param_groups, [(-20.0, 0.5), (0.0, 0.0)], strict=True):
        group.update(ham_alpha=torch.full(shape, alpha), ham_beta=torch.full(shape, beta))
    for p in params:
        p.grad = 0.1 * torch.randn(5, 3, generator=generator, dtype=torch.float64)
    half = [p.detach() - 0.1 * p.grad for p in params]
    expected = half[0] * (-0.1 * (-20 * half[0].sign() * params[0].grad + 0.5)).exp()
    optimizer.step()
    torch.testing.assert_close(params[0].detach(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(params[1].detach(), half[1], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_gradient_of_another_dtype_is_refused_before_the_base_step(dtype: torch.dtype) -> None:
    model = nn.Linear(4, 4)
    for p in model.parameters():
        p.grad_dtype = dtype
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = SGD(model.parameters(), lr=0.1)
    HAM(optimizer, model=model)
    line = (
        rf"weight torch.float32 and gradient {dtype} must match in HAM: leave p\.grad_dtype at the weight's"
    )
    for step in (optimizer.step, lambda: optimizer.step(lambda: model(torch.ones(2, 4)).sum().backward())):
        model(torch.ones(2, 4)).sum().backward()
        with pytest.raises(ValueError, match=line) as error:
            step()
        assert "\n" not in str(error.value)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    optimizer.param_groups[0].update(ham_alpha=0, ham_beta=0)
    optimizer.step()


def test_a_gradient_that_gets_another_dtype_later_is_refused_too() -> None:
    model = nn.Linear(4, 4)
    optimizer = SGD(model.parameters(), lr=0.1)
    HAM(optimizer, model=model)
    assert factors(optimizer)
    for p in model.parameters():
        p.grad = None
        p.grad_dtype = torch.bfloat16
    model(torch.ones(2, 4)).sum().backward()
    with pytest.raises(ValueError, match=r"leave p\.grad_dtype at the weight's dtype"):
        optimizer.step()


def test_text_is_no_number() -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(TypeError):
        HAM(SGD(model.parameters(), lr=0.1), model=model, alpha="200")


def test_counts_are_restored_where_the_first_group_is_empty() -> None:
    model = nn.Linear(4, 4)
    optimizer = SGD([{"params": []}, {"params": list(model.parameters())}], lr=0.1)
    ham = HAM(optimizer, model=model, track_clamped=True)
    ham.load_state_dict({"clamped": 1, "seen": 4})
    assert ham.clamped_share() == 0.25


def with_norm() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))


def single(model: nn.Module) -> list[dict[str, object]]:
    return [{"params": list(model.parameters())}]


def in_two(model: nn.Module) -> list[dict[str, object]]:
    return [{"params": list(layer.parameters())} for layer in model]


ALL, ALL_BUT_NORM = [True] * 4, [True, True, False, False]
GROUPS = {
    "everything": lambda model: param_groups(model, weight_decay=0.0, select="everything"),
    "not_norm": lambda model: param_groups(model, weight_decay=0.0, select="not_norm"),
}
CHOICES = {
    "model, one group": (single, True, ALL_BUT_NORM),
    "model, two groups": (in_two, True, ALL_BUT_NORM),
    "everything": (GROUPS["everything"], False, ALL),
    "not_norm": (GROUPS["not_norm"], False, ALL_BUT_NORM),
}
PAIRS = [
    (saved, loaded)
    for names in (("model, one group", "everything"), ("model, two groups", "not_norm"))
    for saved in names
    for loaded in names
]


def with_ham(choice: str, beta: float, sam: bool = False) -> Optimizer:
    groups, by_model, _ = CHOICES[choice]
    model = with_norm()
    optimizer = TwoStepSAM(groups(model), SGD, lr=0.1) if sam else SGD(groups(model), lr=0.1)
    HAM(optimizer, model=model if by_model else None, alpha=0.0, beta=beta)
    optimizer.model = model
    return optimizer


@pytest.mark.parametrize("sam", [False, True])
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(("saved", "loaded"), PAIRS)
def test_the_choice_of_a_loaded_state_does_not_replace_the_present_one(saved, loaded, older, sam) -> None:
    state = with_ham(saved, beta=0.5, sam=sam).state_dict()
    if older:
        for group in state["param_groups"]:
            group["ham_chosen"] = group.pop("ham_explicit")
    optimizer = with_ham(loaded, beta=1.0, sam=sam)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        optimizer.load_state_dict(state)
    [message] = [str(warning.message) for warning in seen]
    assert "\n" not in message
    assert ("HAM keeps its current selection" in message) == (saved != loaded)
    assert ("keeps the values of the loaded state (beta=0.5 instead of 1.0)" in message) == (saved == loaded)
    beta = 0.5 if saved == loaded else 1.0
    results = factors(optimizer.base_optimizer if sam else optimizer)
    expected = [math.exp(-0.1 * beta) if acts else 1.0 for acts in CHOICES[loaded][2]]
    assert results == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mark", ["ham_explicit", "ham_chosen"])
def test_groups_of_a_state_that_was_loaded_before_ham_and_hold_more_than_the_model_selects_are_named(mark):
    state = with_ham("everything", beta=1.0).state_dict()
    for group in state["param_groups"]:
        group[mark] = group.pop("ham_explicit")
    model = with_norm()
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.load_state_dict(state)
    with pytest.warns(
        UserWarning, match=r"\(ham_explicit=True\) override model= .* would exclude, e\.g\. shape \(4,"
    ) as seen:
        HAM(optimizer, model=model, **DECAY).remove()
    assert len(seen) == 1 and seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HAM(optimizer).remove()
        HAM(optimizer, model=model, select="everything").remove()
        for group in optimizer.param_groups:
            group["ham_explicit"] = False
            group.pop("ham_chosen", None)
        HAM(optimizer, model=model, **DECAY)
    assert acted(optimizer) == ALL_BUT_NORM


@pytest.mark.parametrize("select", ["not_norm", "ndim2", "0.weight"])
def test_groups_within_what_the_model_selects_are_no_reason_to_warn(select: str) -> None:
    model = with_norm()
    groups = param_groups(model, weight_decay=0.0, select=select)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HAM(SGD(groups, lr=0.1), model=model)
