from __future__ import annotations

import functools
import io
import math
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import ham
from pruning import STR, Product
from pruning.soft_threshold import SoftThreshold
from pruning.str import stable_decay
from pruning.threshold_control import ThresholdControl

BOUND = 0.0026334  # (1 - sqrt(0.9))^2
W = [0.5, -0.2, 0.05, -0.3]


def bits(tensor: Tensor) -> list[int]:
    """The floats as integers; +0.0 is 0 and -0.0 is not."""
    return tensor.detach().contiguous().view(torch.int32).flatten().tolist()


def logistic(s: float) -> float:
    return 1 / (1 + math.exp(-s))


def linear(weight: list[float]) -> nn.Sequential:
    layer = nn.Linear(len(weight), 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weight]))
    return nn.Sequential(layer)


def convnet(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, width, stride in zip((1, *widths), widths, (2, 2, 1, 1), strict=False):
        layers += [
            nn.Conv2d(before, width, 3, padding=1, stride=stride, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def attached(model: nn.Module, *, epochs: int = 1, steps: int | None = None, **options: object) -> STR:
    sparsifier = STR(**{"sparsity": 0.9, "initial": -8.0, **options})
    sparsifier.attach(model, total_epochs=epochs, steps_per_epoch=steps)
    return sparsifier


def thresholds(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if name.endswith("threshold")}


def sgd(model: nn.Module, sparsifier: STR, lr: float = 0.1, **options: float) -> torch.optim.SGD:
    return torch.optim.SGD(
        sparsifier.param_groups(model.parameters()),
        lr=lr,
        **{"momentum": 0.9, "weight_decay": 1e-4, **options},
    )


def test_worked_example():
    soft = SoftThreshold(-2.0)
    w = torch.tensor(W, requires_grad=True)
    value = soft(w)
    assert value.tolist() == pytest.approx([0.380797078, -0.080797078, 0, -0.180797078], abs=1e-7)
    value.sum().backward()
    assert soft.threshold.shape == (1, 1)
    assert soft.threshold.grad.item() == pytest.approx(0.104993585, abs=1e-7)
    assert w.grad.tolist() == [1, 1, 0, 1]


@given(
    st.lists(st.floats(-2, 2).filter(lambda x: abs(abs(x) - logistic(-1.5)) > 1e-3), min_size=1, max_size=8)
)
@settings(max_examples=30)
def test_gradcheck(values):
    soft = SoftThreshold(-1.5).double()
    s = soft.threshold.detach().requires_grad_()
    w = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    call = torch.func.functional_call
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda w, s: call(soft, {"threshold": s}, (w,)), (w, s))


def test_a_pruned_weight_takes_no_part_whatever_comes_from_above():
    soft, w = SoftThreshold(0.0), torch.tensor([0.2, -2.0], requires_grad=True)  # the level is 0.5
    soft(w).backward(torch.tensor([float("inf"), 3.0]))
    assert w.grad.tolist() == [0.0, 3.0]
    assert soft.threshold.grad.item() == 0.25 * 3.0  # -sigmoid'(0) sign(-2) 3


@pytest.mark.parametrize("logit", [-2.0, -3200.0], ids=["open", "vanishing"])
def test_zeros_are_positive(logit):
    w = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 0.05, -0.05] * 7)
    value = SoftThreshold(logit)(w)
    assert all(b == 0 for b, v in zip(bits(value), value, strict=True) if v == 0)
    assert (value == 0).sum() == (42 if logit == -2.0 else 14)


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20), st.floats(-30, 10), st.floats(0, 20))
@settings(max_examples=50)
def test_a_larger_logit_keeps_no_weight_that_a_smaller_one_prunes(values, logit, rise):
    w = torch.tensor(values)
    smaller, larger = SoftThreshold(logit)(w), SoftThreshold(logit + rise)(w)
    assert not (larger[smaller == 0] != 0).any()
    assert (larger.abs() <= smaller.abs()).all()
    assert (larger * w >= 0).all()


def test_first_convolution_and_classifier_have_thresholds_too_and_excluded_weights_none():
    model = convnet(8, 16)
    sparsifier = attached(model)
    names = ["0.weight", "3.weight", "8.weight"]
    assert [name.split(".")[0] for name in thresholds(model)] == ["0", "3", "8"]
    assert [name for name, *_ in sparsifier.counts()] == names
    model = convnet(8, 16)
    assert [name for name, *_ in attached(model, exclude=["0.*"]).counts()] == names[1:]
    assert [name.split(".")[0] for name in thresholds(model)] == ["3", "8"]


def test_masks_margins_and_counts_by_hand():
    model = linear(W)
    sparsifier = attached(model, initial=-2.0)
    assert sparsifier.kept()["0.weight"].tolist() == [[True, True, False, True]]
    expected = [0.380797078, 0.080797078, -0.069202922, 0.180797078]
    assert sparsifier.margins()["0.weight"][0].tolist() == pytest.approx(expected, abs=1e-7)
    assert list(sparsifier.counts()) == [("0.weight", 3, 4)]
    assert sparsifier.achieved_sparsity() == 0.25
    assert sparsifier.stats() == {"sparsity": 0.25, "kept": 3}
    assert float(sparsifier.current_sparsity()) == 0.25
    # sigmoid(-1) = .269 is above .2 and below .3
    assert float(sparsifier.current_sparsity(0.5)) == 0.5


def test_thresholds_have_their_own_weight_decay():
    model = convnet(8, 16)
    sparsifier = attached(model, threshold_decay=3e-4)
    ours = {id(p) for p in thresholds(model).values()}
    decays = {
        (id(p) in ours, group["weight_decay"], group["lr"])
        for group in sgd(model, sparsifier).param_groups
        for p in group["params"]
    }
    assert decays == {(True, 3e-4, 0.1), (False, 1e-4, 0.1)}
    assert sum(len(group["params"]) for group in sgd(model, sparsifier).param_groups) == len(
        list(model.parameters())
    )
    model = convnet(8, 16)
    ramp = attached(model, calibrate="ramp", steps=10)
    assert ramp.weight_decays() == dict.fromkeys(thresholds(model).values(), 0.0)


def idle(model: nn.Module, sparsifier: STR, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """The logit after each step under gradients that are all zero."""
    (logit,) = thresholds(model).values()
    seen = []
    for step in range(steps):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        sparsifier.after_backward(step, optimizer)
        sparsifier.add_decay()
        optimizer.step()
        sparsifier.after_step()
        seen.append(logit.item())
    return seen


@pytest.mark.parametrize(("decay", "momentum"), [(2e-4, 0.9), (2e-3, 0.0), (5e-4, 0.8)])
def test_without_a_gradient_decay_alone_shrinks_the_logit(decay, momentum):
    """ln(s_0 / s_end) = sum(lr) * decay / (1 - momentum), here over a triangle of learning rates."""
    steps, peak, model = 1000, 0.5, linear(W)
    sparsifier = attached(model, threshold_decay=decay)
    optimizer = sgd(model, sparsifier, lr=peak, momentum=momentum)
    rates = [peak * min(t / 200, (steps - t) / 800) for t in range(steps)]
    (logit,) = thresholds(model).values()
    for group in optimizer.param_groups:
        group["initial_lr"] = peak
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        sparsifier.after_backward(step, optimizer)
        sparsifier.add_decay()
        optimizer.step()
    shrink = math.log(-8 / logit.item())
    assert shrink == pytest.approx(sum(rates) * decay / (1 - momentum), rel=0.02)
    assert shrink > 0.4


@pytest.mark.parametrize("share", [0.5, 0.98, 1.05, 2.0])
def test_the_bound_on_the_decay_is_tight(share):
    lr, model = 0.1, linear(W)
    sparsifier = attached(model, threshold_decay=share * BOUND / lr)
    optimizer = sgd(model, sparsifier, lr=lr)
    for group in optimizer.param_groups:
        group["initial_lr"] = 1e-9 if share > 1 else lr  # a peak so low that the check lets it pass
    seen = idle(model, sparsifier, optimizer, 400)
    assert (max(seen) > 0) == (share > 1)
    if share < 1:
        assert all(a <= b for a, b in zip([-8.0, *seen], seen, strict=False))
    else:
        first = next(i for i, s in enumerate(seen) if s > 0)
        assert seen[first - 1] < 0


@pytest.mark.parametrize(
    ("lr", "momentum", "bound"), [(0.1, 0.9, 0.026334), (0.25, 0.9, 0.0105336), (2, 0, 0.5)]
)
def test_stable_decay_by_hand(lr, momentum, bound):
    assert stable_decay(lr, momentum) == pytest.approx(bound, rel=1e-4)


def test_an_unstable_decay_is_refused_in_one_line():
    model = linear(W)
    sparsifier = attached(model, threshold_decay=0.03)
    message = r"^threshold_decay=0\.03 .* rate 0\.1 and momentum 0\.9: keep it below 0\.0263, or [^\n]*ramp$"
    with pytest.raises(ValueError, match=message):
        sparsifier.check_stability(0.1, 0.9)
    with pytest.raises(ValueError, match=message):
        sparsifier.after_backward(0, sgd(model, sparsifier))
    sparsifier.check_stability(0.08, 0.9)
    attached(linear(W), threshold_decay=0.03, calibrate="ramp", steps=9).check_stability(0.1, 0.9)


def one_cycle(groups: list[dict], peak: float) -> torch.optim.SGD:
    """Under a schedule that begins at a 25th of its peak."""
    optimizer = torch.optim.SGD(groups, lr=peak, momentum=0.9)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=10, cycle_momentum=False)
    assert all(group["lr"] == pytest.approx(peak / 25) for group in optimizer.param_groups)
    return optimizer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda groups: torch.optim.SGD(groups, lr=0.01), None),
        (lambda groups: torch.optim.AdamW(groups, lr=0.01), None),
        (lambda groups: torch.optim.AdamW(groups, lr=0.1), "momentum 0.9"),
        (
            lambda groups: torch.optim.SGD([{**g, "initial_lr": 0.5} for g in groups], lr=1e-9, momentum=0.9),
            "0.5",
        ),
        (lambda groups: one_cycle(groups, peak=0.08), None),
        (lambda groups: one_cycle(groups, peak=0.1), "learning rate 0.1 and momentum 0.9"),
    ],
    ids=[
        "without momentum",
        "first beta",
        "unstable first beta",
        "warmup",
        "one cycle",
        "unstable one cycle",
    ],
)
def test_the_first_backward_checks_at_the_peak_learning_rate(make, message):
    model = linear(W)
    sparsifier = attached(model, threshold_decay=0.03)
    optimizer = make(sparsifier.param_groups(model.parameters()))
    if message is None:
        assert sparsifier.after_backward(0, optimizer)
        return
    with pytest.raises(ValueError, match=message):
        sparsifier.after_backward(0, optimizer)


def test_an_optimizer_without_the_thresholds_is_refused():
    model = linear(W)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"does not train STR.s own parameters.*: create it after"):
        attached(model).after_backward(0, optimizer)


@pytest.mark.parametrize("select", [None, "not_norm", "ndim2"])
def test_ham_leaves_thresholds_alone_by_default(select):
    """The authors' rule (two and more dimensions) also multiplies the logits, by exp(-lr * beta) here."""
    model, lr, beta, steps = linear(W), 0.1, 0.05, 10
    sparsifier = attached(model, threshold_decay=0.0)
    chosen = {} if select is None else {"select": select}
    groups = sparsifier.param_groups(ham.param_groups(model, weight_decay=0.0, **chosen))
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    ham.HAM(optimizer, alpha=200, beta=beta)
    (weight,) = (p for p in model.parameters() if p.shape == (1, 4))
    (logit,) = idle(model, sparsifier, optimizer, steps)[-1:]
    shrink = math.exp(-lr * beta * steps)
    assert weight[0].tolist() == pytest.approx([w * shrink for w in W], rel=1e-5)
    assert logit == pytest.approx(-8 * shrink, rel=1e-5) if select == "ndim2" else logit == -8.0


def test_first_decay_by_hand():
    # ln(8 / 3.6) = 0.7985077
    assert attached(linear(W)).first_decay(20.0, 0.9) == pytest.approx(0.7985077 * 0.1 / 20)
    assert attached(linear(W), initial=-3.0).first_decay(20.0, 0.9) == 0.0


@pytest.mark.parametrize("factor", [0.2, 0.6, 1.0, 1.5, 1.9])
@pytest.mark.parametrize("decay", [0.02, 0.001])
def test_next_decay_by_hand(factor, decay):
    """|w| = sigmoid(-u), u even in (0, 12): logits -6 c prune all with u >= 6 c, a share of 1 - c / 2."""
    count = 3000
    model = linear([(-1) ** i * logistic(-12 * (i + 0.5) / count) for i in range(count)])
    sparsifier = attached(model, initial=-6.0, sparsity=1 - factor / 2, threshold_decay=decay)
    assert float(sparsifier.current_sparsity()) == pytest.approx(0.5, abs=1e-3)
    assert float(sparsifier.current_sparsity(factor)) == pytest.approx(sparsifier.sparsity, abs=1e-3)
    expected = max(decay - math.log(factor) * (1 - 0.9) / 30, 0)
    assert sparsifier.next_decay(30.0, 0.9) == pytest.approx(expected, abs=1e-5)


def test_the_ramp_is_cubic_and_then_level():
    sparsifier = attached(linear(W), sparsity=0.8, calibrate="ramp", epochs=4, steps=25)
    # 1 - (2/3)^3 = 19/27 after a third of the 75 steps, 1 - (1/3)^3 = 26/27 after two thirds
    expected = {0: 0, 25: 0.8 * 19 / 27, 50: 0.8 * 26 / 27, 75: 0.8, 76: 0.8, 99: 0.8}
    assert {step: sparsifier.target_sparsity_at(step) for step in expected} == pytest.approx(expected)
    full = attached(linear(W), sparsity=0.8, calibrate="ramp", ramp_until=1.0, epochs=4, steps=25)
    assert full.target_sparsity_at(50) == pytest.approx(0.8 * 7 / 8)


def test_the_ramps_shift_by_hand():
    """With y(S) = ln(-ln(1 - S)) and e = y(target) - y(S): e itself, and the sum of all e / 4."""
    model = linear([0.9**k for k in range(100)])
    sparsifier = attached(model, sparsity=0.8, calibrate="ramp", steps=100, initial=-3.0, ramp_every=3)
    (logit,) = thresholds(model).values()
    # sigmoid(-3) = 0.0474 is between 0.9^28 = 0.0523 and 0.9^29 = 0.0471: 71 of 100 are pruned
    # after step 59 the target is 0.8 (1 - (1 - 60 / 75)^3) = 0.7936
    first = math.log(math.log(1 - 0.7936) / math.log(0.29))
    assert first == pytest.approx(0.24272, abs=1e-5)
    step_without_gradients(model, sparsifier, 59)
    assert logit.item() == pytest.approx(-3 + 1.25 * first, abs=1e-5)
    for step in (60, 61):
        step_without_gradients(model, sparsifier, step)
        assert logit.item() == pytest.approx(-3 + 1.25 * first, abs=1e-5), "measured too early"
    # sigmoid(-2.6966) = 0.0632 is between 0.9^26 = 0.0646 and 0.9^27 = 0.0581: 73 are pruned
    # after step 62 the target is 0.8 (1 - (1 - 63 / 75)^3) = 0.7967232
    second = math.log(math.log(1 - 0.7967232) / math.log(0.27))
    step_without_gradients(model, sparsifier, 62)
    assert logit.item() == pytest.approx(-3 + 1.5 * first + 1.25 * second, abs=1e-5)


def step_without_gradients(model: nn.Module, sparsifier: STR, step: int) -> None:
    """What a loop calls around a step that changes nothing."""
    sparsifier.after_backward(step, sgd(model, sparsifier))
    sparsifier.add_decay()
    assert all(p.grad is None for p in model.parameters()), "HAM reads the loss gradient alone"
    sparsifier.after_step()
    if "ramp" in (state := sparsifier.state_dict()):
        control = [value for value in state["ramp"].values() if isinstance(value, Tensor)]
        assert control and not any(value.requires_grad for value in control), "a graph would stay in memory"


@given(
    st.floats(-3200, -1),
    st.lists(st.floats(1e-4, 0.35), min_size=1, max_size=3),
    st.integers(1, 3),
    st.sampled_from([40, 150]),
    st.floats(-0.03, 0.03),
    st.sampled_from([0.0, 0.5, 0.9, 0.98]),
)
@settings(max_examples=15)
def test_the_control_holds_the_target_against_a_drift(initial, scales, every, steps, drift, target):
    """From any start, while something else moves the logits at each step.

    For layers of any scale at which the target needs thresholds below 1: 98 % of a normal distribution of
    deviation 0.35 lies below 0.82.
    """
    steps *= every
    model = nn.Sequential(*(nn.Linear(40, 25) for _ in scales))
    with torch.no_grad():
        for number, (layer, scale) in enumerate(zip(model, scales, strict=True)):
            layer.weight.normal_(generator=torch.Generator().manual_seed(number)).mul_(scale)
    sparsifier = attached(
        model, sparsity=target, calibrate="ramp", steps=steps, initial=initial, ramp_every=every
    )
    optimizer, logits = sgd(model, sparsifier), list(thresholds(model).values())
    for step in range(steps):
        sparsifier.after_backward(step, optimizer)
        with torch.no_grad():
            for logit in logits:
                logit.add_(drift)
        sparsifier.after_step()
    assert abs(sparsifier.achieved_sparsity() - target) < 0.01
    sparsifier.on_end()
    assert sparsifier.achieved_sparsity() == pytest.approx(target, abs=1e-6)


def test_a_control_that_waited_at_a_bound_follows_at_once():
    """Zeros keep the sparsity above the ramp for long; the logits stop at a floor, not at -100,000."""
    model = linear([0.0] * 50 + [0.01 * k for k in range(1, 51)])
    sparsifier = attached(model, sparsity=0.9, calibrate="ramp", steps=4000, ramp_every=1)
    optimizer, (logit,) = sgd(model, sparsifier), thresholds(model).values()
    for step in range(600):
        sparsifier.after_backward(step, optimizer)
        sparsifier.after_step()
    assert sparsifier.target_sparsity_at(600) < 0.5
    assert logit.item() == pytest.approx(math.log(1e-3 * 0.1275), abs=1e-3)  # the mean is 0.1275
    for step in range(2985, 3000):
        sparsifier.after_backward(step, optimizer)
        sparsifier.after_step()
    assert sparsifier.achieved_sparsity() == pytest.approx(0.9, abs=0.011)


def test_a_step_that_is_skipped_delays_the_measurement():
    """A GradScaler skips a step with inf gradients; here it skips each step at which one is due."""
    model = linear([0.9**k for k in range(100)])
    sparsifier = attached(model, sparsity=0.8, calibrate="ramp", steps=100, ramp_every=2)
    optimizer = sgd(model, sparsifier)
    for step in range(100):
        sparsifier.after_backward(step, optimizer)
        if step % 2:
            sparsifier.after_step()
    assert sparsifier.achieved_sparsity() == pytest.approx(0.8, abs=0.01)


def test_a_ramp_that_does_not_know_the_step_is_refused():
    sparsifier = attached(linear(W), calibrate="ramp", steps=10)
    with pytest.raises(ValueError, match=r"call after_backward\(step, optimizer\) first"):
        sparsifier.after_step()


@pytest.mark.parametrize("pruned", [791, 793, 800, 806, 809])
def test_the_end_corrects_the_last_point_exactly(pruned):
    model = linear([0.99**k for k in range(1000)])
    # the threshold lies between the absolute values number 999 - pruned and 1000 - pruned
    level = 0.99 ** (999.5 - pruned)
    sparsifier = attached(
        model, sparsity=0.8, calibrate="ramp", steps=10, initial=math.log(level / (1 - level))
    )
    assert sparsifier.achieved_sparsity() == pytest.approx(pruned / 1000, abs=1e-9)
    sparsifier.on_end()
    assert sparsifier.achieved_sparsity() == pytest.approx(0.8, abs=1e-9)
    assert sum(int(mask.sum()) for mask in sparsifier.kept().values()) == 200


@pytest.mark.parametrize(
    ("values", "last", "message"),
    [
        (
            [0.9**k for k in range(100)],
            40,
            "sparsity 0.2400, but its target is 0.8: training ended after 41 of the 100",
        ),
        ([0.9**k for k in range(100)], 99, "sparsity 0.2400, but its target is 0.8: call after_step"),
        ([1.5] * 50 + [1e-6] * 50, 99, "sparsity 0.5000, but its target is 0.8: thresholds are below 1"),
    ],
    ids=["too early", "not stepped", "large weights"],
)
def test_a_ramp_that_missed_its_target_says_so(values, last, message):
    model = linear(values)
    sparsifier = attached(model, sparsity=0.8, calibrate="ramp", steps=100)
    sparsifier.after_backward(last, sgd(model, sparsifier))
    before = [p.clone() for p in model.parameters()]
    with pytest.warns(UserWarning, match=re.escape(message)) as caught:
        sparsifier.on_end()
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_without_the_ramp_the_end_changes_and_says_nothing():
    model = linear([0.9**k for k in range(100)])
    sparsifier = attached(model, initial=-2.0, sparsity=0.8)
    before = [p.clone() for p in model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step_without_gradients(model, sparsifier, 0)
        sparsifier.on_end()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "nesterov": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "adamw 1e-3": lambda groups: torch.optim.AdamW(groups, lr=1e-3),
    "adamw 1e-2": lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-3),
    "adam": lambda groups: torch.optim.Adam(groups, lr=1e-3),
}
SCHEDULES = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
    "warm-up": lambda done: min(1.0, 10 * done + 0.02) * (0.5 + 0.5 * math.cos(math.pi * done)),
}


def trained_perceptron(optimizer: str, schedule: str, target: float, steps: int) -> STR:
    """Two hidden layers of 128 on the digits, five epochs, up to the call of `on_end`."""
    torch.manual_seed(steps)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
    model.append(nn.Linear(128, 10))
    sparsifier = attached(model, sparsity=target, calibrate="ramp", epochs=5, steps=steps // 5)
    made = OPTIMIZERS[optimizer](sparsifier.param_groups(model.parameters()))
    for group in made.param_groups:
        group["initial_lr"] = group["lr"]
    train(model, sparsifier, made, range(steps), steps, SCHEDULES[schedule])
    return sparsifier


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_ramp_reaches_its_target_with_any_optimizer_in_50_steps(optimizer, schedule):
    """Each optimizer and each schedule has each of three targets."""
    place = list(OPTIMIZERS).index(optimizer) + list(SCHEDULES).index(schedule)
    target = (0.5, 0.9, 0.98)[place % 3]
    sparsifier = trained_perceptron(optimizer, schedule, target, 50)
    assert sparsifier.achieved_sparsity() == pytest.approx(target, abs=0.01), "before the correction"
    sparsifier.on_end()
    assert sparsifier.achieved_sparsity() == pytest.approx(target, abs=1e-4)


@pytest.mark.parametrize(
    ("optimizer", "schedule", "target"),
    [("sgd", "constant", 0.98), ("adamw 1e-2", "constant", 0.9), ("rmsprop", "warm-up", 0.9)],
)
def test_the_ramp_reaches_its_target_with_any_optimizer_in_300_steps(optimizer, schedule, target):
    sparsifier = trained_perceptron(optimizer, schedule, target, 300)
    assert sparsifier.achieved_sparsity() == pytest.approx(target, abs=0.005), "before the correction"
    sparsifier.on_end()
    assert sparsifier.achieved_sparsity() == pytest.approx(target, abs=1e-4)


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    data = pytest.importorskip("sklearn.datasets").load_digits()
    return (torch.from_numpy(data.images).float()[:, None] - 4.9) / 6, torch.from_numpy(data.target)


def triangular(done: float) -> float:
    return min(0.2 + 4 * done, 1.25 * (1 - done))


def train(
    model: nn.Module,
    sparsifier: STR,
    optimizer: torch.optim.Optimizer,
    steps: range,
    total: int,
    schedule: Callable[[float], float] = triangular,
) -> None:
    images, classes = digits()
    for step in steps:
        rate = schedule(step / total)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
        batch = torch.randperm(len(images), generator=torch.Generator().manual_seed(step))[:64]
        optimizer.zero_grad()
        cross_entropy(model(images[batch]), classes[batch]).backward()
        sparsifier.after_backward(step, optimizer)
        sparsifier.add_decay()
        optimizer.step()
        sparsifier.after_step()


@pytest.mark.parametrize(
    ("sparsity", "widths", "hyperbolic"),
    [
        (0.8, (16, 32, 64), False),
        pytest.param(0.9, (16, 64, 128), False, marks=pytest.mark.slow),
        pytest.param(0.95, (16, 32, 64, 64), False, marks=pytest.mark.slow),
        pytest.param(0.95, (16, 32, 64, 64), True, marks=pytest.mark.slow),
    ],
    ids=["80", "90", "95", "95 ham"],
)
def test_the_ramp_reaches_its_target_on_digits(sparsity, widths, hyperbolic):
    steps, model = 500, convnet(*widths)
    sparsifier = attached(model, sparsity=sparsity, calibrate="ramp", epochs=5, steps=steps // 5)
    optimizer = sgd(model, sparsifier, lr=0.05, weight_decay=5e-4)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    if hyperbolic:
        ham.HAM(optimizer, model=model, alpha=20, beta=1e-3)
    train(model, sparsifier, optimizer, range(steps), steps)
    assert sparsifier.achieved_sparsity() == pytest.approx(sparsity, abs=0.005)
    assert all(0 < kept < total for _, kept, total in sparsifier.counts())
    model.eval()
    images, classes = digits()
    assert (model(images).argmax(1) == classes).float().mean() > 0.95


@pytest.mark.parametrize("stop", [12, 13])
def test_a_resumed_ramp_continues_bit_for_bit(stop):
    def start() -> tuple[nn.Module, STR, torch.optim.SGD]:
        model = convnet(8, 16)
        sparsifier = attached(model, calibrate="ramp", steps=30, ramp_every=4, initial=-4.0)
        optimizer = sgd(model, sparsifier)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return model, sparsifier, optimizer

    straight = start()
    train(*straight, range(stop), 30)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in straight], file)
    train(*straight, range(stop, 30), 30)
    file.seek(0)
    resumed = start()
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*resumed, range(stop, 30), 30)
    for a, b in zip(straight[0].state_dict().values(), resumed[0].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert 0.05 < straight[1].achieved_sparsity() == resumed[1].achieved_sparsity()


def test_the_state_of_an_earlier_version_starts_the_control_again():
    model = linear([0.9**k for k in range(100)])
    sparsifier = attached(model, sparsity=0.8, calibrate="ramp", steps=100)
    sparsifier.load_state_dict({**STR.__mro__[1].state_dict(sparsifier), "decay": torch.tensor(-0.02)})
    for step in range(40, 100):
        step_without_gradients(model, sparsifier, step)
    assert sparsifier.achieved_sparsity() == pytest.approx(0.8, abs=0.01)


def test_the_ramp_needs_to_know_its_steps():
    with pytest.raises(ValueError, match="STR requires steps_per_epoch: pass attach"):
        attached(linear(W), calibrate="ramp")


def test_another_parameterization_is_refused():
    model = linear(W)
    with pytest.raises(ValueError, match="STR parametrizes weights itself: use parameterization=plain"):
        STR(sparsity=0.5).attach(model, total_epochs=1, parameterization=Product())
    assert list(dict(model.named_parameters())) == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold_decay": -1e-5}, "threshold_decay must not be negative, got -1e-05"),
        ({"ramp_every": 0}, "ramp_every must be at least 1 step, got 0"),
        ({"ramp_until": 0.0}, r"ramp_until must be in \(0, 1\], got 0"),
        ({"ramp_until": 1.5}, r"ramp_until must be in \(0, 1\], got 1\.5"),
        ({"calibrate": "ramp", "initial": 0.0}, "initial must be negative, such as -8, got 0"),
        ({"calibrate": "search", "initial": 2.0}, "initial must be negative, such as -8, got 2"),
        ({"calibrate": "yes"}, "yes"),
        ({"sparsity": 90}, "did you mean 0.9"),
    ],
    ids=str,
)
def test_values_out_of_range_raise(options, message):
    with pytest.raises(ValueError, match=message):
        STR(**{"sparsity": 0.9, **options})


def test_a_first_learning_rate_of_zero_defers_the_check():
    """A warm-up from 0 has no bound at its first step; the first positive rate is checked."""
    assert stable_decay(0.0, 0.9) == math.inf
    model = linear(W)
    sparsifier = attached(model, threshold_decay=0.03)
    optimizer = sgd(model, sparsifier, lr=0.0)
    sparsifier.after_backward(0, optimizer)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    with pytest.raises(ValueError, match="keep it below"):
        sparsifier.after_backward(1, optimizer)


def test_the_ramp_starts_at_a_learning_rate_of_zero():
    model = linear(W)
    sparsifier = attached(model, calibrate="ramp", steps=9)
    assert sparsifier.after_backward(0, sgd(model, sparsifier, lr=0.0))


@pytest.mark.parametrize(
    ("values", "start", "message"),
    [
        ([1.5] * 105 + [0.01 + k / 1000 for k in range(895)], 1.0, "sparsity 0.8950.*thresholds are below 1"),
        ([0.5] * 105 + [0.3] * 10 + [0.01] * 885, 0.4, "sparsity 0.8950.*the same absolute value"),
    ],
    ids=["large weights", "equal weights"],
)
def test_an_end_near_the_target_that_no_threshold_reaches_says_so(values, start, message):
    """The warning points at the caller's line, not into the package."""
    model = linear(values)
    logit = 8.0 if start == 1.0 else math.log(start / (1 - start))
    sparsifier = attached(model, calibrate="ramp", steps=10, initial=-1.0)
    with torch.no_grad():
        for own in thresholds(model).values():
            own.fill_(logit)
    with pytest.warns(UserWarning, match=message) as caught:
        sparsifier.on_end()
    assert len(caught) == 1 and caught[0].filename == __file__


def test_the_defaults_are_the_published_recipe():
    sparsifier = STR(sparsity=0.9)
    assert (sparsifier.initial, sparsifier.threshold_decay) == (-3200.0, 2.251757813e-5)
    assert (sparsifier.calibrate, sparsifier.ramp_every, sparsifier.ramp_until) == ("none", 2, 0.75)


@pytest.mark.parametrize(
    "options", [{"threshold_decay": 0.0}, {"ramp_every": 1}, {"ramp_until": 1.0}, {"initial": 2.0}], ids=str
)
def test_values_at_the_ends_of_their_ranges_are_accepted(options):
    assert vars(STR(sparsity=0.9, **options)).items() >= options.items()


def test_the_last_step_measures_three_times_and_others_once_where_it_is_due(monkeypatch):
    measured = []
    monkeypatch.setattr(
        ThresholdControl,
        "update_",
        lambda self, pairs, target, step, last: measured.append((step, target, last)),
    )
    monkeypatch.setattr(ThresholdControl, "is_due", lambda self, step, every: step % every == 0)
    model = linear(W)
    sparsifier = attached(model, sparsity=0.8, calibrate="ramp", steps=5, ramp_every=2, ramp_until=0.8)
    for step in range(5):
        step_without_gradients(model, sparsifier, step)
    end = 4  # 0.8 of 5 steps
    ramp = [0.8 * (1 - (1 - done / end) ** 3) for done in (1, 3)]
    assert measured == [
        (0, pytest.approx(ramp[0]), False),
        (2, pytest.approx(ramp[1]), False),
        *[(4, 0.8, True)] * 3,
    ]


def test_thresholds_without_a_ramp_are_never_measured(monkeypatch):
    monkeypatch.setattr(ThresholdControl, "update_", lambda *args, **options: pytest.fail("measured"))
    model = linear(W)
    sparsifier = attached(model, sparsity=0.8, steps=1)
    step_without_gradients(model, sparsifier, 0)
    assert "ramp" not in sparsifier.state_dict()


def test_the_state_of_a_ramp_holds_its_control_and_the_step():
    model = linear(W)
    sparsifier = attached(model, sparsity=0.8, calibrate="ramp", steps=5)
    step_without_gradients(model, sparsifier, 0)
    ramp = sparsifier.state_dict()["ramp"]
    assert ramp["step"] == 0 and ramp["measured_at"] == 0
    other = attached(linear(W), sparsity=0.8, calibrate="ramp", steps=5)
    assert other.state_dict()["ramp"]["step"] == -1
    other.load_state_dict(sparsifier.state_dict())
    assert other.state_dict()["ramp"]["measured_at"] == 0 and other._step == 0
    state = {key: value for key, value in sparsifier.state_dict().items() if key != "ramp"}
    attached(linear(W), sparsity=0.8, calibrate="ramp", steps=5).load_state_dict(
        state
    )  # of an earlier version
