from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from pruning import Plain, Product, RigL
from pruning.allocate import kept_counts
from pruning.optimizer_state import elementwise_state
from pruning.rigl import update_mask
from pruning.topk import NotFinite

# A layer of 3x3 weights, 5 on. Two are dropped: .05, then -.1.
THETA = [0.9, -0.1, 0.0, 0.0, 0.5, -0.2, 0.05, 0.0, 0.0]
ON = [0, 1, 4, 5, 6]
# Gradients of kept weights are larger, which must not matter. Of those off, place 3 has the largest by size;
# then comes place 1, which was just dropped.
GRADIENT = [0.1, 3.0, 0.5, -5.0, -90.0, 80.0, 0.2, 2.9, -2.8]
ON_AFTER = [0, 1, 3, 4, 5]


def square(values: list) -> Tensor:
    return torch.tensor(values).view(3, 3)


def mask(places: list[int], size: int = 9) -> Tensor:
    return torch.tensor([place in places for place in range(size)])


def places(kept: Tensor) -> list[int]:
    return kept.flatten().nonzero().flatten().tolist()


def bits(tensor: Tensor) -> list[int]:
    """The floats as integers; +0.0 is 0 and -0.0 is not."""
    return tensor.detach().contiguous().view(torch.int32).flatten().tolist()


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, ON),
        (1, [0, 1, 3, 4, 5]),  # 6 off, 3 on
        (2, ON_AFTER),  # 6 and 1 off, 3 and 1 on
        (3, ON_AFTER),  # 5 off too, and on again for its gradient of 80
        (5, [1, 3, 4, 5, 7]),  # all off: the five largest gradients
    ],
)
def test_update_mask_by_hand(count, expected):
    found = update_mask(square(THETA), square(GRADIENT), mask(ON).view(3, 3), count)
    assert found.shape == (3, 3) and found.dtype == torch.bool
    assert places(found) == expected


def test_ties_keep_and_grow_the_lower_index():
    theta, gradient = torch.tensor([2.0, 2, -2, 2, 0, 0, 0, 0]), torch.tensor([1.0, 1, 1, 1, 1, -1, 1, 1])
    kept = mask([0, 1, 2, 3], 8)
    assert places(update_mask(theta, gradient, kept, 0)) == [0, 1, 2, 3]
    gradient[2:4] = 0.0
    assert places(update_mask(theta, gradient, kept, 2)) == [0, 1, 4, 5]


def test_a_kept_zero_counts_as_the_smallest_weight_and_not_as_off():
    theta, gradient = torch.tensor([0.0, 0.0, 3.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert places(update_mask(theta, gradient, mask([1, 2], 4), 0)) == [1, 2]
    assert places(update_mask(theta, gradient, mask([1, 2], 4), 1)) == [2, 3]


@pytest.mark.parametrize("diverged", ["weight", "gradient"])
def test_a_diverged_layer_is_named(diverged):
    theta, gradient = square(THETA), square(GRADIENT)
    (theta if diverged == "weight" else gradient)[0, 0] = float("nan")
    with pytest.raises(NotFinite, match=r"^the scores of conv\.weight contain nan: did training diverge\?$"):
        update_mask(
            theta, gradient, mask([1, 4, 5] if diverged == "gradient" else ON).view(3, 3), 1, "conv.weight"
        )


def test_no_gradient_anywhere_still_keeps_the_size():
    found = update_mask(square(THETA), torch.zeros(3, 3), mask(ON).view(3, 3), 2)
    assert places(found) == [0, 1, 2, 4, 5]  # the survivors and the first two that are off


def test_the_mean_over_ranks_comes_before_the_absolute_value():
    """Where ranks disagree in sign, |mean| is small and the mean of |.| is not: another weight grows."""
    theta, kept = torch.tensor([1.0, 0.1, 0.0, 0.0]), mask([0, 1], 4)
    ranks = torch.tensor([[0.0, 0.0, 3.0, 1.0], [0.0, 0.0, -3.0, 1.0]])
    assert places(update_mask(theta, ranks.mean(0), kept, 1)) == [0, 3]
    assert places(update_mask(theta, ranks.abs().mean(0), kept, 1)) == [0, 2]


def updated_by_sorting(theta: Tensor, gradient: Tensor, kept: Tensor, count: int) -> list[int]:
    theta, gradient = theta.flatten().tolist(), gradient.flatten().tolist()
    on = sorted(places(kept), key=lambda place: (-abs(theta[place]), place))
    survivors = on[: len(on) - count]
    off = sorted(set(range(len(theta))) - set(survivors), key=lambda place: (-abs(gradient[place]), place))
    return sorted(survivors + off[:count])


@settings(max_examples=200)
@given(st.data(), st.integers(1, 12))
def test_update_mask_equals_two_plain_sorts(data, size):
    numbers = st.lists(
        st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, float("inf")]) | st.floats(-9, 9, width=32),
        min_size=size,
        max_size=size,
    )
    theta, gradient = (torch.tensor(data.draw(numbers)) for _ in range(2))
    kept = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    count = data.draw(st.integers(0, int(kept.sum())))
    found = update_mask(theta, gradient, kept, count)
    assert places(found) == updated_by_sorting(theta, gradient, kept, count)
    assert int(found.sum()) == int(kept.sum())


def scheduled(epochs: int, steps_per_epoch: int, **options: object) -> RigL:
    rigl = RigL(sparsity=0.5, **options)
    rigl.attach(nn.Linear(2, 2), total_epochs=epochs, steps_per_epoch=steps_per_epoch)
    return rigl


def test_updates_of_a_run_of_100_epochs_on_imagenet():
    rigl = scheduled(100, 1251)
    updates = [step for step in range(125_100) if rigl.is_update_step(step)]
    assert len(updates) == 938
    assert updates == list(range(100, 93_801, 100))  # none at 0, the last before .75 * 125,100 = 93,825
    assert sum(map(scheduled(100, 1251, interval=400).is_update_step, range(125_100))) == 234


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"interval": 5}, [5, 10]),  # .75 * 20 = 15 is the end, and no step of it
        ({"interval": 5, "until": 1.0}, [5, 10, 15]),
        ({"interval": 5, "until": 0.76}, [5, 10, 15]),
        ({"interval": 1, "until": 0.2}, [1, 2, 3]),
        ({"interval": 20, "until": 1.0}, []),
        ({"interval": 1, "until": 0.0}, []),
        ({"interval": 5, "update_at_start": True}, [0, 5, 10]),
        ({"interval": 20, "update_at_start": True}, [0]),
        ({"interval": 1, "until": 0.0, "update_at_start": True}, []),
    ],
)
def test_updates_of_a_short_run(options, expected):
    rigl = scheduled(4, 5, **options)
    assert [step for step in range(40) if rigl.is_update_step(step)] == expected


def test_drop_fraction_falls_along_half_a_cosine():
    rigl = scheduled(100, 1251)
    end = 93_825
    # .15 (1 + cos(pi x)): cos is sqrt(1/2) at a quarter, 1/2 at a third
    for share, expected in {0: 0.3, 1 / 4: 0.15 * (1 + 0.5**0.5), 1 / 3: 0.225, 1 / 2: 0.15, 1: 0.0}.items():
        assert rigl.drop_fraction_at(share * end) == pytest.approx(expected, abs=1e-12)
    assert scheduled(100, 1251, drop_fraction=0.5).drop_fraction_at(end / 2) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval must be at least 1 step, got 0"),
        ({"drop_fraction": 1.5}, r"drop_fraction must be in \[0, 1\], got 1\.5"),
        ({"drop_fraction": 30}, r"drop_fraction must be in \[0, 1\], got 30"),
        ({"until": -0.1}, r"until must be in \[0, 1\], got -0\.1"),
        ({"until": float("nan")}, "until must be finite, got nan"),
        ({"sparsity": 90}, r"sparsity must be in \[0, 1\), got 90; did you mean 0\.9\?"),
        ({"allocation": "global"}, r"allocation must be one of .*'global'"),
    ],
)
def test_options_out_of_range_raise(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        RigL(**{"sparsity": 0.5, **options})


def test_rigl_plans_by_steps():
    with pytest.raises(ValueError, match="RigL requires steps_per_epoch: pass attach"):
        RigL(sparsity=0.5).attach(nn.Linear(2, 2), total_epochs=1)


OPTIMIZERS: dict[str, Callable] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1),
}
PARAMETERIZATIONS = {"plain": Plain, "product": Product}


# 8 steps, the last update before step 8; at step 4 the share is .9 / 2, and int(5 * .45) = 2
HAND = {"sparsity": 0.5, "interval": 4, "until": 1.0, "drop_fraction": 0.9}


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_update_by_hand(kind, parameterization):
    model = nn.Linear(3, 3, bias=False)
    rigl = RigL(**HAND)
    rigl.attach(
        model, total_epochs=1, steps_per_epoch=8, parameterization=PARAMETERIZATIONS[parameterization]()
    )
    rigl.load_state_dict({"masks": {"kept": {"weight": mask(ON).view(3, 3)}}})
    weight = rigl.masks.weights["weight"]
    optimizer = OPTIMIZERS[kind](rigl.param_groups(model.parameters()))
    weight.assign_(square(THETA))
    for step in range(1, 3):
        give_gradient(weight, square(GRADIENT).cos() * step)
        assert rigl.after_backward(step, optimizer)
        rigl.add_decay()
        optimizer.step()
        rigl.after_step()
    weight.assign_(square(THETA))
    values = [p.detach().clone() for p in weight.parameters]
    states = [clones(elementwise_state(optimizer, p)) for p in weight.parameters]
    give_gradient(weight, square(GRADIENT))

    assert rigl.after_backward(4, optimizer) is False
    assert places(rigl.kept()["weight"]) == ON_AFTER
    assert weight.value.flatten().tolist() == pytest.approx([0.9, -0.1, 0, 0, 0.5, -0.2, 0, 0, 0], rel=1e-6)
    trained = [0, 1, 4, 5]  # 1 was dropped and grown: nothing of it changes
    clean = [2, 3, 6, 7, 8]
    assert bits(weight.value.flatten()[clean]) == [0] * 5
    for p, value, state, rest in zip(weight.parameters, values, states, weight.pruned_value, strict=True):
        flat = p.detach().flatten()
        assert bits(flat[trained]) == bits(value.flatten()[trained])
        assert bits(flat[clean]) == bits(torch.full((5,), rest))
        now = elementwise_state(optimizer, p)
        assert now.keys() == state.keys() and state
        for key, old in state.items():
            assert bits(now[key].flatten()[trained]) == bits(old.flatten()[trained])
            assert bits(now[key].flatten()[clean]) == [0] * 5
            assert old.flatten()[trained].all()
            assert old.flatten()[6] != 0  # the dropped weight had some


def give_gradient(weight: object, gradient: Tensor) -> None:
    """What backward leaves behind where the loss has this gradient with respect to theta."""
    if len(weight.parameters) == 1:
        weight.parameters[0].grad = gradient.clone()
    else:
        m, w = weight.parameters
        m.grad, w.grad = w.detach() * gradient, m.detach() * gradient


def clones(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.Conv2d(6, 2, 1),  # ERK keeps it dense: the sides add up to 10, over 12 weights
        nn.Flatten(),
        nn.Linear(18, 4),
    ).to(dtype)


DENSE = "3.weight"


def batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(8, 2, 5, 5, generator=generator, dtype=dtype)
    return images, torch.randint(4, (8,), generator=generator)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_update_of_a_run(kind, parameterization):
    model, total, interval = network(), 40, 3
    rigl = RigL(sparsity=0.7, interval=interval)
    rigl.attach(
        model, total_epochs=4, steps_per_epoch=10, parameterization=PARAMETERIZATIONS[parameterization]()
    )
    optimizer = OPTIMIZERS[kind](rigl.param_groups(model.parameters()))
    shapes = {name: tuple(weight.shape) for name, weight in rigl.masks.weights.items()}
    sizes = kept_counts(shapes, 0.7, "erk")
    assert sizes[DENSE] == 12 and 0 < sizes["0.weight"] < 108 and 0 < sizes["5.weight"] < 72
    updates, moved = [], 0
    for step in range(total):
        optimizer.zero_grad()
        images, labels = batch(step)
        nn.functional.cross_entropy(model(images), labels).backward()
        kept = rigl.kept()
        values = clones(rigl.masks.values())
        gradients = {name: weight.gradient.clone() for name, weight in rigl.masks.weights.items()}
        old = clones(dict(model.named_parameters()))
        states = {id(p): clones(elementwise_state(optimizer, p)) for p in model.parameters()}
        if rigl.after_backward(step, optimizer):
            assert all(torch.equal(now, kept[name]) for name, now in rigl.kept().items())
            rigl.add_decay()
            optimizer.step()
            rigl.after_step()
        else:
            updates.append(step)
            for name, weight in rigl.masks.weights.items():
                now = rigl.kept()[name]
                count = int(sizes[name] * rigl.drop_fraction_at(step))
                assert places(now) == updated_by_sorting(values[name], gradients[name], kept[name], count)
                grown, both = now & ~kept[name], now & kept[name]
                moved += int(grown.sum())
                assert int(grown.sum()) <= count
                assert torch.equal(weight.value[both], values[name][both])
                assert bits(weight.value[grown]) == [0] * int(grown.sum())
                for p in weight.parameters:
                    for key, state in elementwise_state(optimizer, p).items():
                        assert bits(state[grown]) == [0] * int(grown.sum())
                        assert torch.equal(state[both], states[id(p)][key][both])
            weights = {id(p) for weight in rigl.masks.weights.values() for p in weight.parameters}
            for name, p in model.named_parameters():  # no step is taken: all else is as it was
                if id(p) not in weights or name.startswith("3."):
                    assert torch.equal(p, old[name]), name
                    for key, state in elementwise_state(optimizer, p).items():
                        assert torch.equal(state, states[id(p)][key])
        assert {name: int(mask.sum()) for name, mask in rigl.kept().items()} == sizes
        nonzero = {name: int(value.count_nonzero()) for name, value in rigl.masks.values().items()}
        assert {name: count for name, count, _ in rigl.counts()} == nonzero
        for name, weight in rigl.masks.weights.items():
            off = ~rigl.kept()[name]
            assert bits(weight.value[off]) == [0] * int(off.sum())
            for p in weight.parameters:
                for state in elementwise_state(optimizer, p).values():
                    assert bits(state[off]) == [0] * int(off.sum())
    assert updates == list(range(3, 30, 3))
    assert moved > 20


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_growth_follows_the_finite_differences_of_the_loss(parameterization):
    """Where a weight is off the loss still has a slope; it is that of the effective weight."""
    model, plain = network(torch.float64).eval(), network(torch.float64).eval()
    rigl = RigL(sparsity=0.7, interval=1, until=1.0)
    rigl.attach(
        model, total_epochs=1, steps_per_epoch=4, parameterization=PARAMETERIZATIONS[parameterization]()
    )
    # weights alone move: the plain twin has the same biases
    optimizer = OPTIMIZERS["sgd"]([p for weight in rigl.masks.weights.values() for p in weight.parameters])
    images, labels = batch(0, torch.float64)

    @torch.no_grad()
    def loss_at(name: str, theta: Tensor) -> float:
        tensors = {**dict(plain.named_parameters()), **values, name: theta}
        return float(nn.functional.cross_entropy(functional_call(plain, tensors, (images,)), labels))

    nn.functional.cross_entropy(model(images), labels).backward()
    assert rigl.after_backward(0, optimizer)
    rigl.add_decay()
    optimizer.step()  # takes factors out of balance
    rigl.after_step()
    model.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    kept, values = rigl.kept(), clones(rigl.masks.values())
    slopes, step = {}, 1e-5
    for name, theta in values.items():
        slopes[name] = torch.zeros_like(theta)
        for place in range(theta.numel()):
            nudge = torch.zeros(theta.numel(), dtype=theta.dtype)
            nudge[place] = step
            up, down = (loss_at(name, theta + sign * nudge.view_as(theta)) for sign in (1, -1))
            slopes[name].view(-1)[place] = (up - down) / (2 * step)
    for name, weight in rigl.masks.weights.items():
        assert torch.allclose(weight.gradient, slopes[name], rtol=1e-6, atol=1e-9)
        assert name == DENSE or slopes[name][~kept[name]].abs().min() > 0
    assert not rigl.after_backward(1, optimizer)
    for name in kept:
        count = int(int(kept[name].sum()) * rigl.drop_fraction_at(1))
        assert name == DENSE or count > 3
        assert places(rigl.kept()[name]) == updated_by_sorting(values[name], slopes[name], kept[name], count)


def test_a_layer_without_gradient_keeps_its_mask():
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 4)})
    rigl = RigL(sparsity=0.5, interval=1, until=1.0, drop_fraction=1.0)
    rigl.attach(model, total_epochs=1, steps_per_epoch=8)
    before = rigl.kept()
    model["used"].weight.grad = (~before["used.weight"]).float()
    assert not rigl.after_backward(1, OPTIMIZERS["sgd"](model.parameters()))
    assert torch.equal(rigl.kept()["unused.weight"], before["unused.weight"])
    assert not torch.equal(rigl.kept()["used.weight"], before["used.weight"])


def test_an_update_at_the_start_drops_and_grows_the_full_fraction():
    model = nn.Linear(3, 3, bias=False)
    rigl = RigL(sparsity=0.5, drop_fraction=0.45, update_at_start=True)
    rigl.attach(model, total_epochs=1, steps_per_epoch=8)
    rigl.load_state_dict({"masks": {"kept": {"weight": mask(ON).view(3, 3)}}})
    with torch.no_grad():
        model.weight.copy_(square(THETA))
    model.weight.grad = square(GRADIENT)
    assert rigl.uses_gradients(0) and not rigl.after_backward(0, OPTIMIZERS["sgd"](model.parameters()))
    assert places(rigl.kept()["weight"]) == ON_AFTER  # int(0.45 * 5) = 2, without any fall of the cosine
    assert places(model.weight != 0) == [0, 1, 4, 5]  # 3 grew at zero


def test_gradients_are_masked_between_updates():
    model = nn.Linear(3, 3, bias=False)
    rigl = RigL(**HAND)
    rigl.attach(model, total_epochs=1, steps_per_epoch=8)
    rigl.load_state_dict({"masks": {"kept": {"weight": mask(ON).view(3, 3)}}})
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    for step in (0, 1, 3, 5, 8, 12):  # 0 is no update, nor is any step from the end on
        model.weight.grad = square(GRADIENT)
        assert rigl.after_backward(step, optimizer) is True
        assert torch.equal(model.weight.grad, square(GRADIENT) * mask(ON).view(3, 3))
    assert places(rigl.kept()["weight"]) == ON


def test_a_resumed_run_continues_bit_for_bit():
    def steps(model: nn.Module, rigl: RigL, optimizer: torch.optim.Optimizer, some: range) -> None:
        for step in some:
            optimizer.zero_grad()
            images, labels = batch(step)
            nn.functional.cross_entropy(model(images), labels).backward()
            if rigl.after_backward(step, optimizer):
                optimizer.step()
                rigl.after_step()

    def start(seed: int) -> tuple[nn.Module, RigL, torch.optim.Optimizer]:
        model, rigl = network(), RigL(sparsity=0.7, interval=3)
        rigl.attach(model, total_epochs=2, steps_per_epoch=10, seed=seed)
        return model, rigl, OPTIMIZERS["adamw"](model.parameters())

    run = start(0)
    steps(*run, range(8))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in run], file)
    file.seek(0)
    other = start(1)
    for part, state in zip(other, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    for each in (run, other):
        steps(*each, range(8, 20))
    for one, same in zip(run[0].state_dict().values(), other[0].state_dict().values(), strict=True):
        assert torch.equal(one, same)
    assert all(torch.equal(kept, other[1].kept()[name]) for name, kept in run[1].kept().items())


def test_the_defaults_are_those_published():
    rigl = RigL(0.5)
    assert (rigl.interval, rigl.drop_fraction, rigl.until) == (100, 0.3, 0.75)
    assert (rigl.update_at_start, rigl.allocation) == (False, "erk")
