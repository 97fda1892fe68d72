"""The table of a sparsifier: a golden one worked by hand, and totals that are those of the model."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning import ACDC, STR, Dense, PILoT, Product, RandomPruning, RigL, Sparsifier, Spred
from pruning.checks import NotAttachedError
from pruning.cost import cost
from pruning.report import WIDTH, _align, _shorten


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def attached(sparsifier: Sparsifier, model: nn.Module, **options: object) -> Sparsifier:
    sparsifier.attach(model, total_epochs=10, steps_per_epoch=10, **options)
    return sparsifier


def masked(model: nn.Module) -> Sparsifier:
    """The convolution keeps the upper row of each kernel, 4 of 12 are zero by value; the head is empty."""
    sparsifier = attached(Dense(), model)
    with torch.no_grad():
        model[0].weight.fill_(0.5)
        model[0].weight[1, 0, 0] = 0.0
        model[0].weight[2, 0, 0, 1] = -0.0
    rows = torch.zeros(4, 1, 3, 3, dtype=torch.bool)
    rows[:, :, 0] = True
    with pytest.warns(UserWarning, match=r"3\.weight"):
        sparsifier.set_masks({"0.weight": rows, "3.weight": torch.zeros(3, 64, dtype=torch.bool)})
    return sparsifier


# By hand: 36 entries, 12 in upper rows, 4 of these zero: 28 zeros, 8 others. A convolution at 4 x 4 pixels
# has 16 positions, so 2 * 16 * 8 = 256 FLOPs; 4 * 8 + ceil(36 / 8) = 37 bytes. The head: 192 bits = 24 bytes.
# Parameters: 8 and the biases 4 + 3 = 15; 4 * 15 + ceil((36 + 192) / 8) = 89 bytes. Dense FLOPs:
# 2 * (16 * 36 + 192) = 1536, of which 256 are 0.1667.
GOLDEN = """\
Dense()
layer       shape    weights  kept  density  zeros  FLOPs  bytes
0.weight    4x1x3x3       36    12   0.3333     28    256     37
3.weight *  3x64         192     0   0.0000    192      0     24
total                    228    12   0.0526    220    256     61
* empty: no weight of this layer is kept
other parameters, not pruned: 7
entire model: 15 parameters, 89 bytes, 256 FLOPs (0.1667 of dense)"""


def test_the_table_by_hand():
    assert masked(small()).report(input_shape=(1, 1, 4, 4)) == GOLDEN


def test_without_an_input_shape_the_costs_are_left_out():
    lines = masked(small()).report().splitlines()
    assert lines[1] == "layer       shape    weights  kept  density  zeros"
    assert lines[2] == "0.weight    4x1x3x3       36    12   0.3333     28"
    assert lines[-1] == "other parameters, not pruned: 7"


METHODS = {
    "no masks yet": lambda model: attached(ACDC(sparsity=0.5), model),
    "masks": lambda model: attached(RigL(sparsity=0.8), model),
    "product": lambda model: attached(RandomPruning(sparsity=0.8), model, parameterization=Product()),
    "str": lambda model: attached(STR(sparsity=0.5, initial=-3.0), model),
    "pilot": lambda model: attached(PILoT(sparsity=0.5), model),
    "spred": lambda model: attached(Spred(sparsity=0.5), model),
}


def numbers(report: str) -> dict[str, list[float]]:
    """First word -> the numbers of each row of the table."""
    rows = [line.split() for line in report.splitlines() if re.match(r"\d\.weight|total", line)]
    return {row[0]: [float(n.replace(",", "")) for n in row if re.fullmatch(r"[\d,.]+", n)] for row in rows}


@pytest.mark.parametrize("kind", METHODS)
def test_rows_and_totals_are_those_of_the_model(kind):
    model = small()
    sparsifier = METHODS[kind](model)
    rows = numbers(sparsifier.report(input_shape=(1, 1, 4, 4)))
    counts = {name: (nonzero, size) for name, nonzero, size in sparsifier.counts()}
    kept = sparsifier.kept()
    for name, (nonzero, size) in counts.items():
        assert rows[name][:2] == [size, int(kept[name].sum())]
        assert rows[name][3] == size - nonzero
    total, full = rows["total"], cost(model, {n: k for n, (k, _) in counts.items()}, (1, 1, 4, 4))
    assert total[0] - total[3] == sum(nonzero for nonzero, _ in counts.values())
    assert total[0] == sum(size for _, size in counts.values())
    assert total[4] == pytest.approx(full.flops, abs=0.5)
    assert abs(total[2] - total[1] / total[0]) <= 5e-5
    assert total[5] == rows["0.weight"][5] + rows["3.weight"][5]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 60)), min_size=1, max_size=5),
    st.text("abcdefgh_", min_size=1, max_size=120),
    st.floats(0, 0.999),
)
@settings(max_examples=30)
def test_columns_align_in_at_most_110_columns(shapes, prefix, sparsity):
    model = nn.Module()
    for index, shape in enumerate(shapes):
        model.add_module(f"{prefix}{index}", nn.Linear(*shape, bias=False))
    sparsifier = Dense()
    sparsifier.attach(model, total_epochs=1)
    lines = sparsifier.report().splitlines()
    table = lines[1 : len(shapes) + 3]
    assert max(map(len, lines)) <= WIDTH
    assert len({len(line) for line in table}) == 1
    assert all(f"{index}.weight" in line for index, line in enumerate(table[1:-1]))


def test_a_long_list_of_hyperparameters_is_wrapped():
    sparsifier = attached(ACDC(sparsity=0.5, scope="layerwise"), small(), parameterization=Product())
    lines = sparsifier.report().splitlines()
    head = " ".join(line.strip() for line in lines[: lines.index(next(x for x in lines if x[:5] == "layer"))])
    assert head.startswith("ACDC(sparsity=0.5, granularity=element, scope=layerwise, revive=zero, ")
    assert "parameterization=Product(scaling=1.0, " in head
    assert max(map(len, lines)) <= WIDTH


# print


def test_before_attach_str_is_the_repr_and_report_raises():
    sparsifier = RigL(sparsity=0.9)
    assert str(sparsifier) == repr(sparsifier)
    with pytest.raises(NotAttachedError, match="call attach"):
        sparsifier.report()


def test_print_shows_the_table_and_repr_stays(capsys):
    sparsifier = masked(small())
    print(sparsifier)
    assert capsys.readouterr().out == f"{sparsifier.report()}\n"
    assert repr(sparsifier) == "Dense()"


def test_a_terminal_shows_empty_layers_in_bold(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    sparsifier = masked(small())
    bold = re.findall(r"^\033\[1m(.*)\033\[0m$", str(sparsifier), re.MULTILINE)
    assert [line.split()[:2] for line in bold] == [["3.weight", "*"]]
    assert re.sub(r"\033\[\dm", "", str(sparsifier)) == sparsifier.report()
    monkeypatch.setenv("NO_COLOR", "1")
    assert str(sparsifier) == sparsifier.report()


def test_each_column_takes_one_host_sync(monkeypatch):
    sparsifier = masked(small())
    reads: list[Tensor] = []
    original = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: reads.append(self) or original(self))
    for name in ("item", "__int__", "__bool__", "__float__"):
        monkeypatch.setattr(Tensor, name, lambda self: pytest.fail("a host sync for one layer"))
    sparsifier.report()
    assert len(reads) == 2


def test_a_model_without_content_or_a_replaced_weight_is_an_error():
    with pytest.raises(RuntimeError, match="meta device"):
        attached(Dense(), small().to("meta")).report()
    model = small()
    sparsifier = attached(Dense(), model)
    model[3] = nn.Linear(64, 3)
    with pytest.raises(RuntimeError, match=r"3\.weight is no longer"):
        str(sparsifier)


def test_an_included_embedding_has_no_flops():
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 4))
    sparsifier = Dense()
    sparsifier.attach(model, total_epochs=1, include=["0.weight"])
    assert set(numbers(sparsifier.report())) == {"0.weight", "1.weight", "total"}
    rows = numbers(sparsifier.report(input_shape=(1, 5)))
    assert rows["0.weight"][4] == 0
    assert rows["1.weight"][4] == 2 * 5 * 32


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (26, "abcdefghijklmnopqrstuvwxyz"),
        (25, "abcdefghijk...pqrstuvwxyz"),
        (12, "abcd...vwxyz"),
        (9, "abc...xyz"),
    ],
)
def test_the_middle_of_a_long_name_is_left_out(width, shown):
    assert _shorten("abcdefghijklmnopqrstuvwxyz", width) == shown


def test_large_numbers_have_commas_and_the_total_has_no_share_of_its_own():
    model = nn.Sequential(nn.Linear(1000, 2, bias=False))
    sparsifier = attached(Dense(), model)
    lines = sparsifier.report(input_shape=(1, 1000)).splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["layer", "shape", "weights", "kept", "density", "zeros", "FLOPs", "bytes"],
        ["0.weight", "2x1000", "2,000", "2,000", "1.0000", "0", "4,000", "8,000"],
        ["total", "2,000", "2,000", "1.0000", "0", "4,000", "8,000"],
    ]
    assert lines[4:] == [
        "other parameters, not pruned: 0",
        "entire model: 2,000 parameters, 8,000 bytes, 4,000 FLOPs (1.0000 of dense)",
    ]
    assert not any("empty" in line for line in lines)


def test_a_long_name_is_shortened_until_its_line_is_full():
    """Two spaces stand between columns."""
    (line,) = _align([["n" * 300, "64x3", "1", "22"]])
    assert len(line) == WIDTH and line.endswith("n  64x3  1  22")
