from __future__ import annotations

import io
import math
from collections import OrderedDict
from itertools import groupby

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning import ACDC, Product, prunable_weights
from pruning.acdc import phases

# The epochs at which the authors' configs (IST-DASLab/ACDC) compress and decompress.
AUTHORS = {
    100: ([*range(10, 71, 10), 85], [*range(15, 66, 10), 75]),
    150: ([*range(10, 121, 10), 135], [*range(15, 116, 10), 125]),
    200: ([*range(10, 171, 10), 185], [*range(15, 166, 10), 175]),
    300: ([*range(10, 271, 10), 285], [*range(15, 266, 10), 275]),
}


@pytest.mark.parametrize("total", AUTHORS)
def test_phases_are_the_authors(total):
    compress, decompress = AUTHORS[total]
    expected, phase = [], "dense"
    for epoch in range(total):
        phase = "sparse" if epoch in compress else "dense" if epoch in decompress else phase
        expected.append(phase)
    assert phases(total) == expected
    assert phases(total).count("sparse") == total // 2


def test_phases_of_100_epochs_written_out():
    runs = [("dense", 10), *[("sparse", 5), ("dense", 5)] * 6, ("sparse", 5), ("dense", 10), ("sparse", 15)]
    assert phases(100) == [phase for phase, epochs in runs for _ in range(epochs)]


@pytest.mark.parametrize("total", [20, 30])
def test_an_epoch_of_a_short_run_stands_for_five(total):
    assert phases(total) == phases(5 * total)[::5]


@pytest.mark.parametrize(
    ("total", "letters"),
    [
        (1, "s"),
        (2, "ds"),
        (3, "dss"),
        (4, "dsss"),
        (5, "ddsss"),
        (8, "ddsddsss"),
        (20, "ddsdsdsdsdsdsdsddsss"),
    ],
)
def test_short_runs_written_out(total, letters):
    assert "".join(phase[0] for phase in phases(total)) == letters


@given(st.integers(1, 400))
def test_every_run_starts_dense_and_ends_sparse(total):
    run = phases(total)
    assert len(run) == total
    assert set(run) <= {"dense", "sparse"}
    assert run[-1] == "sparse"
    assert run[0] == "dense" or total == 1


@given(st.integers(8, 400))
@example(39)
@example(40)
@example(45)
def test_lengths_of_the_phases(total):
    """Units of 5 epochs, of one in runs under 40: 2 dense, 1 and 1 in turn, at least 2 dense, 3 sparse."""
    unit = 5 if total >= 40 else 1
    first, *between, last_dense, last_sparse = [len(list(epochs)) for _, epochs in groupby(phases(total))]
    assert (first, last_sparse) == (2 * unit, 3 * unit)
    assert set(between) == {unit}
    assert 2 * unit <= last_dense < 4 * unit


@pytest.mark.parametrize("total", [0, -1, -100])
def test_no_epochs_raise(total):
    with pytest.raises(ValueError, match=f"total_epochs must be positive, got {total}"):
        phases(total)


# With 8 epochs the phases are "ddsddsss".
COMPRESS, DECOMPRESS, COMPRESS_AGAIN = 2, 3, 5
A = [0.8, -0.1, 0.3, 0.02]
B = [-0.5, 0.05, 0.04, -0.01]


def small_model() -> nn.Module:
    model = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), norm=nn.BatchNorm1d(2), b=nn.Linear(2, 2)))
    write(model, A, B)
    return model


@torch.no_grad()
def write(model: nn.Module, a: list[float], b: list[float]) -> None:
    model.a.weight.copy_(torch.tensor(a).view(2, 2))
    model.b.weight.copy_(torch.tensor(b).view(2, 2))


def values(model: nn.Module) -> tuple[list[float], list[float]]:
    return rounded(model.a.weight), rounded(model.b.weight)


def rounded(tensor: Tensor) -> list[float]:
    return [round(value, 6) for value in tensor.flatten().tolist()]


def bits(tensor: Tensor) -> list[int]:
    """The floats as integers; +0.0 is 0 and -0.0 is not."""
    return tensor.detach().view(torch.int32).flatten().tolist()


def attached(model: nn.Module, **options: object) -> ACDC:
    acdc = ACDC(**{"sparsity": 0.5, **options})
    acdc.attach(model, total_epochs=8)
    return acdc


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def take_steps(model: nn.Module, acdc: ACDC, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    if not acdc.masks.active:  # announces the phase that the model is in
        acdc.on_epoch_start(0, optimizer)
    for step in range(steps):
        for position, p in enumerate(model.parameters()):
            p.grad = torch.linspace(0.1, 0.4, p.numel()).view_as(p) * (1 + position)
        acdc.after_backward(step, optimizer)
        acdc.add_decay()
        optimizer.step()
        acdc.after_step()


@pytest.mark.filterwarnings("ignore:all weights of")
@pytest.mark.parametrize(
    ("options", "a", "b"),
    [
        ({}, [0.8, -0.1, 0.3, 0], [-0.5, 0, 0, 0]),
        ({"scope": "global"}, [0.8, -0.1, 0.3, 0], [-0.5, 0, 0, 0]),
        ({"scope": "layerwise"}, [0.8, 0, 0.3, 0], [-0.5, 0.05, 0, 0]),
        ({"sparsity": 0.8}, [0.8, 0, 0, 0], [0, 0, 0, 0]),
        ({"sparsity": 0.75, "scope": "layerwise"}, [0.8, 0, 0, 0], [-0.5, 0, 0, 0]),
        ({"sparsity": 0.0}, A, B),
        ({"exclude": ["a.weight"]}, A, [-0.5, 0.05, 0, 0]),
        ({"exclude": ["b.*"], "scope": "layerwise"}, [0.8, 0, 0.3, 0], B),
    ],
)
def test_compression_by_hand(options, a, b):
    model = small_model()
    attached(model, **options).on_epoch_start(COMPRESS, sgd(model))
    assert values(model) == (a, b)
    for weight in (model.a.weight, model.b.weight):
        assert not weight[weight == 0].signbit().any()


def test_ties_at_the_threshold_keep_the_exact_count():
    model = small_model()
    write(model, [0.1, -0.1, 0.1, 0.1], [0.1, -0.1, 0.1, 0.2])
    attached(model).on_epoch_start(COMPRESS, sgd(model))
    assert values(model) == ([0.1, -0.1, 0.1, 0], [0, 0, 0, 0.2])


def test_counts_and_stats():
    model = small_model()
    acdc, optimizer = attached(model), sgd(model)
    assert acdc.stats() == {"sparsity": 0.0, "kept": 8, "phase": "dense"}
    acdc.on_epoch_start(COMPRESS, optimizer)
    assert list(acdc.counts()) == [("a.weight", 3, 4), ("b.weight", 1, 4)]
    assert acdc.stats() == {"sparsity": 0.5, "kept": 4, "phase": "sparse"}
    acdc.on_epoch_start(DECOMPRESS, optimizer)
    assert all(mask.all() for mask in acdc.kept().values())
    assert acdc.stats() == {"sparsity": 0.5, "kept": 4, "phase": "dense"}  # revived at zero, not trained yet


def test_excluded_weights_do_not_count_towards_the_target():
    model = small_model()
    acdc = attached(model, exclude=["a.weight"])
    acdc.on_epoch_start(COMPRESS, sgd(model))
    assert list(acdc.counts()) == [("b.weight", 2, 4)]
    assert acdc.achieved_sparsity() == 0.5


def test_masks_change_only_with_the_phase():
    model = small_model()
    acdc, optimizer = attached(model), sgd(model)
    patterns = []
    for epoch in range(8):
        eight = torch.arange(1.0, 9.0).roll(epoch).tolist()  # in each epoch other weights are the largest
        write(model, eight[:4], eight[4:])
        acdc.after_step()
        acdc.on_epoch_start(epoch, optimizer)
        patterns.append("".join(str(int(value != 0)) for layer in values(model) for value in layer))
    dense = "11111111"
    assert patterns == [dense, dense, "11000011", "11000011", dense, "01111000", "01111000", "01111000"]
    assert acdc.masks.active


def test_a_first_sparse_epoch_needs_no_optimizer_state():
    model = small_model()
    acdc = ACDC(sparsity=0.5)
    acdc.attach(model, total_epochs=1)
    acdc.on_epoch_start(0, sgd(model))
    assert values(model) == ([0.8, -0.1, 0.3, 0], [-0.5, 0, 0, 0])


def test_a_diverged_weight_raises():
    model = small_model()
    write(model, [0.8, math.nan, 0.3, 0.1], B)
    with pytest.raises(ValueError, match=r"a\.weight contain nan"):
        attached(model).on_epoch_start(COMPRESS, sgd(model))


@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_channels_last_models_compress(scope):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 3)).to(memory_format=torch.channels_last)
    acdc = ACDC(sparsity=0.5, scope=scope)
    acdc.attach(model, total_epochs=1)
    acdc.on_epoch_start(0, sgd(model))
    assert sum(int(layer.weight.count_nonzero()) for layer in model) == 72


def test_compression_cleans_the_optimizer_state_of_pruned_weights():
    model = small_model()
    acdc, optimizer = attached(model), sgd(model)
    take_steps(model, acdc, optimizer)
    write(model, A, B)
    bias = optimizer.state[model.a.bias]["momentum_buffer"].clone()
    acdc.on_epoch_start(COMPRESS, optimizer)
    a, b = (optimizer.state[layer.weight]["momentum_buffer"].flatten() for layer in (model.a, model.b))
    assert (a != 0).tolist() == [True, True, True, False]
    assert (b != 0).tolist() == [True, False, False, False]
    assert torch.equal(optimizer.state[model.a.bias]["momentum_buffer"], bias) and bias.all()


@pytest.mark.parametrize("revive", ["zero", "stale"])
def test_decompression_keeps_what_was_trained_and_revives_the_rest(revive):
    model = small_model()
    stale = [0.0375, -0.0, 0.05, 1e-40]  # a signed zero and a subnormal number come back bit for bit
    write(model, A, stale)
    stale_bits = bits(model.b.weight)
    acdc, optimizer = attached(model, revive=revive), sgd(model)
    acdc.on_epoch_start(COMPRESS, optimizer)
    assert values(model) == ([0.8, -0.1, 0.3, 0], [0, 0, 0.05, 0])
    take_steps(model, acdc, optimizer)
    trained_a, trained_b = bits(model.a.weight), bits(model.b.weight)
    acdc.on_epoch_start(DECOMPRESS, optimizer)
    old_a = bits(torch.tensor(A))[3] if revive == "stale" else 0
    assert bits(model.a.weight) == [*trained_a[:3], old_a]
    old = stale_bits if revive == "stale" else [0, 0, 0, 0]
    assert bits(model.b.weight) == [old[0], old[1], trained_b[2], old[3]]
    assert trained_b[2] != stale_bits[2]
    state = acdc.state_dict()
    assert state.pop("target") == "ACDC(sparsity=0.5, granularity=element)"
    assert state.pop("options") == {"scope": "global", "revive": revive, "sparsities": "{}"}
    assert state == {"masks": {"kept": {}}, "active": False, "epoch": DECOMPRESS, "stale": {}}


def test_stale_revival_of_products_leaves_active_factors_alone():
    model = small_model()
    acdc = ACDC(sparsity=0.5, revive="stale")
    acdc.attach(model, total_epochs=8, parameterization=Product())
    optimizer, weights = sgd(model), prunable_weights(model)
    take_steps(model, acdc, optimizer)  # out of balance, so that a rewriting would show
    stale = {name: weight.value for name, weight in weights.items()}
    acdc.on_epoch_start(COMPRESS, optimizer)
    kept = acdc.kept()
    take_steps(model, acdc, optimizer)
    trained = {name: [p.detach().clone() for p in weight.parameters] for name, weight in weights.items()}
    acdc.on_epoch_start(DECOMPRESS, optimizer)
    for name, weight in weights.items():
        on = kept[name]
        assert 0 < int(on.sum()) < 4, name
        m, w = (p.detach() for p in weight.parameters)
        assert ((m.square() - w.square() - 1)[on].abs() > 1e-3).all(), name
        assert all(bits(p[on]) == bits(old[on]) for p, old in zip((m, w), trained[name], strict=True)), name
        torch.testing.assert_close((m * w)[~on], stale[name][~on], rtol=1e-6, atol=0)
        torch.testing.assert_close((m.square() - w.square())[~on], torch.ones(int((~on).sum())))


def test_stale_values_outlast_a_long_sparse_phase():
    model = small_model()
    acdc, optimizer = ACDC(sparsity=0.5, revive="stale"), sgd(model)
    acdc.attach(model, total_epochs=40)
    for epoch in range(10, 16):  # sparse 10-14, dense again from 15
        acdc.on_epoch_start(epoch, optimizer)
        assert (values(model) == (A, B)) == (epoch == 15)


@pytest.mark.parametrize("revive", ["zero", "stale"])
def test_in_a_dense_phase_every_weight_trains(revive):
    model = small_model()
    acdc, optimizer = attached(model, revive=revive), sgd(model)
    for epoch in (COMPRESS, DECOMPRESS):
        acdc.on_epoch_start(epoch, optimizer)
    before = values(model)
    take_steps(model, acdc, optimizer)
    for old, new in zip(before, values(model), strict=True):
        assert all(x != y for x, y in zip(old, new, strict=True))


@pytest.mark.parametrize(
    ("make", "key"),
    [(sgd, "momentum_buffer"), (lambda model: torch.optim.AdamW(model.parameters()), "exp_avg")],
    ids=["sgd", "adamw"],
)
@pytest.mark.parametrize("reset", [True, False])
def test_reset_momentum_is_of_every_parameter(make, key, reset):
    model = small_model()
    acdc, optimizer = attached(model, reset_momentum=reset), make(model)
    acdc.on_epoch_start(COMPRESS, optimizer)
    take_steps(model, acdc, optimizer)
    before = {name: optimizer.state[p][key].clone() for name, p in model.named_parameters()}
    assert before.keys() == {f"{layer}.{kind}" for layer in ("a", "norm", "b") for kind in ("weight", "bias")}
    assert all(buffer.any() for buffer in before.values())
    acdc.on_epoch_start(DECOMPRESS, optimizer)
    for name, p in model.named_parameters():
        expected = torch.zeros_like(p) if reset else before[name]
        assert torch.equal(optimizer.state[p][key], expected), name


@pytest.mark.parametrize(
    ("policy", "a", "b"),
    [
        # the mean over the active entries of each tensor: (1 + 2 + 6) / 3 and 5 / 1
        ("mean", [1, 2, 6, 3], [5, 5, 5, 5]),
        ("zero", [1, 2, 6, 0], [5, 0, 0, 0]),
    ],
)
def test_adams_moments_after_a_revival(policy, a, b):
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    acdc = attached(model, revive_second_moment=policy)
    take_steps(model, acdc, optimizer)
    write(model, A, B)
    acdc.on_epoch_start(COMPRESS, optimizer)
    take_steps(model, acdc, optimizer)
    state = {name: optimizer.state[p] for name, p in model.named_parameters()}
    state["a.weight"]["exp_avg_sq"].copy_(torch.tensor([[1.0, 2.0], [6.0, 0.0]]))
    state["b.weight"]["exp_avg_sq"].copy_(torch.tensor([[5.0, 0.0], [0.0, 0.0]]))
    others = {n: s["exp_avg_sq"].clone() for n, s in state.items() if n not in ("a.weight", "b.weight")}
    acdc.on_epoch_start(DECOMPRESS, optimizer)
    assert state["a.weight"]["exp_avg_sq"].flatten().tolist() == a
    assert state["b.weight"]["exp_avg_sq"].flatten().tolist() == b
    assert all(torch.equal(state[name]["exp_avg_sq"], old) for name, old in others.items())
    assert not any(s["exp_avg"].any() for s in state.values())
    assert {s["step"].item() for s in state.values()} == {4}


BETA1, BETA2, LR, LONG = 0.9, 0.999, 1e-3, 6000


@pytest.mark.parametrize("policy", ["mean", "zero"])
def test_adams_first_update_of_a_revived_weight(policy):
    """Late in training: (1 - beta1) / sqrt(1 - beta2) = 3.16 learning rates from zero, 0.1 from the mean."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    weight = model[0].weight
    acdc = attached(model, revive_second_moment=policy)
    optimizer = torch.optim.AdamW([weight], lr=LR, betas=(BETA1, BETA2), weight_decay=0.0, foreach=True)
    generator = torch.Generator().manual_seed(0)
    acdc.on_epoch_start(COMPRESS, optimizer)
    pruned = weight.detach() == 0
    for step in range(LONG):  # gradients of size 1: the second moment of a kept weight tends to 1
        weight.grad = torch.randint(2, (8, 8), generator=generator) * 2.0 - 1
        acdc.after_backward(step, optimizer)
        acdc.add_decay()
        optimizer.step()
        acdc.after_step()
    acdc.on_epoch_start(DECOMPRESS, optimizer)
    weight.grad = torch.ones(8, 8)
    optimizer.step()
    first, steps = -weight.detach()[pruned] / LR, LONG + 1
    old = 1 - BETA2**LONG if policy == "mean" else 0.0
    second_moment = (BETA2 * old + (1 - BETA2)) / (1 - BETA2**steps)
    expected = (1 - BETA1) / (1 - BETA1**steps) / math.sqrt(second_moment)
    assert first.numel() == 32
    assert first.tolist() == pytest.approx([expected] * 32, rel=1e-3)
    assert expected == pytest.approx(
        {"mean": 0.1, "zero": (1 - 0.9) / math.sqrt(1 - 0.999)}[policy], rel=0.01
    )


@pytest.mark.parametrize("revive", ["zero", "stale"])
def test_state_dict_within_a_sparse_phase_round_trips(revive):
    model = small_model()
    acdc, optimizer = attached(model, revive=revive), sgd(model)
    acdc.on_epoch_start(COMPRESS, optimizer)
    take_steps(model, acdc, optimizer)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), acdc.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    other = small_model()
    other_optimizer = sgd(other)
    resumed = attached(other, revive=revive)
    for part, state in zip((other, other_optimizer, resumed), saved, strict=True):
        part.load_state_dict(state)
    assert list(resumed.counts()) == [("a.weight", 3, 4), ("b.weight", 1, 4)]
    runs = ((model, acdc, optimizer), (other, resumed, other_optimizer))
    for run in runs:
        take_steps(*run)
    assert bits(model.a.weight) == bits(other.a.weight) and bits(model.b.weight) == bits(other.b.weight)
    assert values(other)[0][3] == 0
    for m, sparsifier, opt in runs:
        sparsifier.on_epoch_start(DECOMPRESS, opt)
        assert values(m)[0][3] == (A[3] if revive == "stale" else 0)
        take_steps(m, sparsifier, opt)
        sparsifier.on_epoch_start(COMPRESS_AGAIN, opt)
    assert bits(model.a.weight) == bits(other.a.weight) and bits(model.b.weight) == bits(other.b.weight)
    assert list(acdc.counts()) == list(resumed.counts())


def test_state_dict_of_a_dense_phase_turns_all_on():
    model = small_model()
    acdc = attached(model)
    acdc.on_epoch_start(COMPRESS, sgd(model))
    acdc.load_state_dict(attached(small_model()).state_dict())
    assert all(mask.all() for mask in acdc.kept().values())
    assert not acdc.masks.active


@pytest.mark.parametrize(
    "options",
    [{"scope": "local"}, {"scope": "Global"}, {"revive": "mean"}, {"revive_second_moment": "stale"}],
    ids=str,
)
def test_wrong_choices_raise(options):
    with pytest.raises(ValueError, match=next(iter(options.values()))):
        ACDC(sparsity=0.5, **options)


@pytest.mark.parametrize("sparsity", [1.0, -0.1, math.nan])
def test_sparsity_outside_zero_to_one_raises(sparsity):
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\)"):
        ACDC(sparsity=sparsity)


def test_a_percentage_is_answered_with_the_fraction():
    with pytest.raises(ValueError, match=r"got 90; did you mean 0\.9\?"):
        ACDC(sparsity=90)


def test_choices_are_strings_too():
    acdc = ACDC(sparsity=0.5, scope="layerwise", revive="stale", revive_second_moment="zero")
    assert (acdc.scope, acdc.revive, acdc.revive_second_moment) == ("layerwise", "stale", "zero")
    default = ACDC(sparsity=0.5)
    assert (default.scope, default.revive, default.revive_second_moment) == ("global", "zero", "mean")
    assert default.reset_momentum and default.exclude == []


def test_an_unfit_model_raises_when_attached():
    with pytest.raises(ValueError, match=r"'c\.weight' matches no prunable weight"):
        attached(small_model(), exclude=["c.weight"])
    with pytest.raises(ValueError, match="nothing to prune"):
        attached(nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="total_epochs must be positive"):
        ACDC(sparsity=0.5).attach(small_model(), total_epochs=0)


@pytest.mark.parametrize(("epoch", "more"), [(-1, 0), (8, 9), (20, 21)])
def test_an_epoch_outside_the_schedule_is_refused(epoch, more):
    model = small_model()
    acdc = attached(model)
    with pytest.raises(ValueError) as error:
        acdc.on_epoch_start(epoch, sgd(model))
    assert str(error.value) == (
        f"epoch {epoch} is outside the schedule: attach with total_epochs={more} or more"
    )


def test_the_phase_of_each_epoch_is_among_the_stats():
    model = small_model()
    acdc = attached(model)
    found = []
    for epoch in range(8):
        acdc.on_epoch_start(epoch, sgd(model))
        assert acdc._announced_epoch == epoch
        found.append(acdc.stats()["phase"][0])
    assert "".join(found) == "ddsddsss"


def test_the_state_of_a_sparse_phase_holds_stale_values_where_they_come_back():
    for revive, stale in (("zero", set()), ("stale", {"a.weight", "b.weight"})):
        model = small_model()
        acdc = attached(model, revive=revive)
        acdc.on_epoch_start(COMPRESS, sgd(model))
        assert acdc.state_dict()["stale"].keys() == stale
        acdc.on_epoch_start(DECOMPRESS, sgd(model))
        assert acdc.state_dict()["stale"] == {}
