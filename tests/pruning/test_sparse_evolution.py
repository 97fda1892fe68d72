"""SET: drop by magnitude, grow at random."""

from __future__ import annotations

from itertools import pairwise
from math import floor, prod

import pytest
import torch
from torch import Tensor, nn

from pruning import SET


def attached(sparsifier: SET, seed: int = 0, widths: tuple[int, ...] = (30, 40, 20)) -> SET:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(a, b) for a, b in pairwise(widths)])
    sparsifier.attach(model, total_epochs=4, steps_per_epoch=5, seed=seed)
    return sparsifier


def updated(sparsifier: SET, step: int) -> dict[str, Tensor]:
    """The masks after an update, with an optimizer whose state is one where a weight is on."""
    optimizer = torch.optim.SGD(sparsifier.model.parameters(), lr=0.1, momentum=0.9)
    before = sparsifier.kept()
    for name, weight in sparsifier.masks.weights.items():
        optimizer.state[weight.parameters[0]]["momentum_buffer"] = before[name].float()
    assert sparsifier.after_backward(step, optimizer) is False
    for name, mask in sparsifier.kept().items():
        parameter = sparsifier.masks.weights[name].parameters[0]
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"] != 0, mask & before[name])
    return sparsifier.kept()


def test_layers_have_one_epsilon_of_the_papers_density():
    """p = epsilon (n_k + n_{k-1}) / (n_k n_{k-1}): connections in proportion to n_k + n_{k-1} (Eq. 1)."""
    sparsifier = attached(SET(0.9), widths=(300, 200, 400))
    epsilons = [
        kept / sum(sparsifier.shapes()[name]) for name, kept, _ in sparsifier.counts()
    ]  # connections = epsilon (n_k + n_{k-1})
    assert epsilons[0] == pytest.approx(epsilons[1], rel=1e-3)
    assert epsilons[0] == pytest.approx(0.1 * (300 * 200 + 200 * 400) / (500 + 600), rel=1e-3)


def test_the_default_is_zeta_of_the_paper_after_each_epoch_but_the_last():
    sparsifier = attached(SET(0.8))
    assert sparsifier.drop_fraction == 0.3 and sparsifier.drop_fraction_at(17) == 0.3
    assert [step for step in range(20) if sparsifier.is_update_step(step)] == [5, 10, 15]
    sparsifier = attached(SET(0.8, interval=3, until=0.5))
    assert [step for step in range(20) if sparsifier.is_update_step(step)] == [3, 6, 9]


def test_an_update_drops_the_smallest_magnitudes_of_each_layer_and_grows_elsewhere():
    sparsifier = attached(SET(0.8))
    before = sparsifier.kept()
    values = {name: value.clone() for name, value in sparsifier.masks.values().items()}
    after = updated(sparsifier, 5)
    for name, mask in after.items():
        kept = int(before[name].sum())
        dropped, grown = before[name] & ~mask, mask & ~before[name]
        assert int(dropped.sum()) == int(grown.sum()) == floor(0.3 * kept)
        assert values[name][dropped].abs().max() <= values[name][mask & before[name]].abs().min()
        now, stayed = sparsifier.masks.values()[name], mask & before[name]
        assert not now[grown].any() and torch.equal(now[stayed], values[name][stayed])


def test_growth_is_uniform_over_what_was_off():
    """400 updates of the same masks: each of 80 places that are off grows in 6 / 80 of them."""
    sparsifier = attached(SET(0.8, allocation="uniform"), widths=(10, 10))
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask.view(-1)[:20] = True
    total = torch.zeros(10, 10)
    for _ in range(400):
        sparsifier.load_state_dict(
            {"masks": {"kept": {"0.weight": mask}}, "generator": sparsifier.state_dict()["generator"]}
        )
        sparsifier.masks.weights["0.weight"].assign_(torch.where(mask, 1.0, 0.0))
        total += updated(sparsifier, 5)["0.weight"] & ~mask
    grown = total[~mask]
    assert float(grown.sum()) == 400 * 6
    expected, spread = 400 * 6 / 80, (400 * 6 / 80 * (1 - 6 / 80)) ** 0.5
    assert (grown - expected).abs().max() < 5 * spread
    assert (grown - expected).square().mean() < 2 * spread**2


def test_a_dense_layer_has_nowhere_to_grow_and_stays():
    sparsifier = attached(SET(0.1, allocation="uniform", drop_fraction=0.5), widths=(10, 10))
    before = sparsifier.kept()["0.weight"]
    after = updated(sparsifier, 5)["0.weight"]
    assert int(before.sum()) == int(after.sum()) == 90
    assert after[~before].all()  # the ten that were off


def test_seeds_decide_and_a_resumed_run_draws_what_the_first_would():
    def masks(seed: int, state: dict | None = None) -> list[dict[str, Tensor]]:
        sparsifier = attached(SET(0.8), seed=seed)
        if state is None:
            updated(sparsifier, 5)
            state = sparsifier.state_dict()
        else:
            sparsifier.load_state_dict(state)
        for name, weight in sparsifier.masks.weights.items():  # the same weights in all runs
            values = torch.linspace(-1, 1, prod(weight.shape)).view(weight.shape)
            weight.assign_(values * state["masks"]["kept"][name])
        return [state, updated(sparsifier, 10)]

    state, first = masks(0)
    _, same = masks(0)
    _, other = masks(1)
    _, resumed = masks(7, state)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert all(torch.equal(first[name], resumed[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval must be at least 1 step, got 0"),
        ({"drop_fraction": 1.5}, r"drop_fraction must be in \[0, 1\], got 1\.5"),
        ({"until": -1}, r"until must be in \[0, 1\], got -1"),
    ],
)
def test_options_out_of_range_raise(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        SET(0.5, **options)


def test_defaults_and_the_ends_of_the_ranges():
    sparsifier = SET(0.5)
    assert (sparsifier.interval, sparsifier.until, sparsifier.allocation) == (None, 1.0, "erk")
    for options in ({"interval": 1}, {"drop_fraction": 0.0}, {"drop_fraction": 1.0}, {"until": 0.0}):
        assert vars(SET(0.5, **options)).items() >= options.items()


def test_the_first_masks_and_the_growth_have_streams_of_their_own():
    sparsifier = attached(SET(0.5, allocation="uniform"), seed=3, widths=(10, 10))
    first = torch.randperm(100, generator=torch.Generator().manual_seed(3))[:50]
    assert set(sparsifier.kept()["0.weight"].flatten().nonzero().flatten().tolist()) == set(first.tolist())
    seeded = torch.Generator().manual_seed(4)
    assert torch.equal(sparsifier.state_dict()["generator"], seeded.get_state())
