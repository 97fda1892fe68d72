"""Where the rows and columns of a weight are, and what units of several weights keep."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pruning.granularity import granularity
from pruning.units import Element, Layout, layouts


@pytest.mark.parametrize(
    ("layout", "matrix", "group"),
    [
        (Layout((6, 4)), (6, 4), (6, 4)),
        (Layout((6, 4, 3, 2)), (6, 4, 3, 2), (6, 4)),
        (Layout((6, 2, 3, 3), groups=2), (6, 2, 3, 3), (3, 2)),
        (Layout((4, 6), input_dim=0), (6, 4), (6, 4)),
        (Layout((4, 3, 5), input_dim=0, groups=2), (3, 4, 5), (3, 2)),  # a transposed convolution
        (Layout((2, 6, 4), input_dim=2), (2, 4, 6), (2, 4)),  # fused experts
    ],
)
def test_rows_columns_and_groups(layout, matrix, group):
    assert layout.matrix == matrix and layout.group_matrix == group
    values = torch.arange(torch.Size(layout.shape).numel()).view(layout.shape)
    rows = layout.rows_first(values)
    assert rows.shape == matrix and torch.equal(layout.restore(rows), values)
    assert rows.data_ptr() == values.data_ptr()
    if layout.input_dim == 0:
        assert rows[1, 2].tolist() == values[2, 1].tolist()


def test_an_unknown_input_dimension_is_an_error():
    layout = Layout((2, 3, 4), input_dim=None)
    for use in (lambda: layout.matrix, lambda: layout.rows_first(torch.zeros(2, 3, 4))):
        with pytest.raises(ValueError, match=r"^the input dimension of a weight \[2, 3, 4\] is unknown$"):
            use()


def test_layouts_are_read_from_weights_that_state_them():
    stated = SimpleNamespace(shape=torch.Size((4, 2)), input_dim=0, groups=2)
    assert layouts({"a": stated, "b": SimpleNamespace(shape=[3, 3])}) == {
        "a": Layout((4, 2), 0, 2),
        "b": Layout((3, 3), 1, 1),
    }


@pytest.mark.parametrize(
    ("text", "layout", "described"),
    [
        ("4x4", Layout((6, 4)), "[6, 4]"),
        ("2x2", Layout((6, 3, 3, 3), groups=2), "[6, 3, 3, 3] in 2 groups"),
        ("2x2", Layout((4,)), "[4]"),
        (
            "2:4",
            Layout((2, 4, 4), input_dim=None),
            "[2, 4, 4] whose input dimension is unknown (granularity=element needs none)",
        ),
    ],
)
def test_weights_that_units_do_not_fit_are_described(text, layout, described):
    units = granularity(text)
    fitting = Layout((8, 8))
    units.check({"fits": fitting}, 0.5)
    with pytest.raises(ValueError) as error:
        units.check({"fits": fitting, "a": layout, "b": layout}, 0.5)
    needed = "inputs divisible by 4" if text == "2:4" else None
    needed = needed or f"outputs divisible by {text[0]} and inputs by {text[0]}"
    assert str(error.value) == (
        f"granularity {text} needs {needed}, unlike a {described}, b {described}: keep them dense by "
        'exclude=["a", "b"]'
    )


@pytest.mark.parametrize(
    ("text", "total", "sparsity", "kept"),
    [
        ("element", 10, 0.5, 5),
        ("element", 10, 0.55, 4),
        ("2x2", 32, 0.5, 16),
        ("2x2", 32, 0.45, 16),  # 17 weights are four blocks
        ("2x3", 36, 0.5, 18),
        ("2:4", 32, 0.5, 16),
        ("1:4", 32, 0.75, 8),
        ("1:3", 33, 0.666667, 11),
        ("1:4", 30, 0.5, 15),  # on the way
    ],
)
def test_how_many_weights_are_kept_in_entire_units(text, total, sparsity, kept):
    assert granularity(text).kept_count(total, sparsity) == kept


@pytest.mark.parametrize(
    ("text", "size", "name"),
    [("element", 1, "element"), ("4x2", 8, "4x2"), ("10x1", 10, "10x1"), ("2:4", 1, "2:4")],
)
def test_the_text_of_a_granularity_gives_its_units(text, size, name):
    units = granularity(text)
    assert (units.unit_size, units.text) == (size, name)
    assert isinstance(units, Element) == (text == "element")
    assert units.fits(Layout((20, 20)))


@pytest.mark.parametrize(
    "text", ["", "2", "0x2", "2x0", "4:4", "4:2", "0:4", "2:4:8", "a", "2 x 2", "-1x2", 4]
)
def test_other_texts_are_no_granularity(text):
    with pytest.raises(ValueError) as error:
        granularity(text)
    assert str(error.value) == (
        'granularity must be "element", "N:M" with N < M such as "2:4", or "RxC" such as "4x4", got '
        + repr(text)
    )


def test_blocks_are_reduced_to_sums_and_expanded_again():
    units, layout = granularity("2x3"), Layout((4, 6))
    scores = torch.arange(24.0).view(4, 6)
    sums = units.reduce(scores, layout)
    assert sums.tolist() == [[24, 42], [96, 114]]  # 0 + 1 + 2 + 6 + 7 + 8 and so on
    mask = units.expand(torch.tensor([[True, False], [False, True]]), layout)
    assert mask.int().tolist() == [[1, 1, 1, 0, 0, 0]] * 2 + [[0, 0, 0, 1, 1, 1]] * 2


def test_n_of_m_needs_its_own_sparsity():
    units = granularity("1:4")
    units.check({"a": Layout((2, 4))}, 0.75 + 9e-7)
    for sparsity in (0.75 + 2e-6, 0.75 - 2e-6, 0.5):
        with pytest.raises(
            ValueError, match=r"^granularity 1:4 prunes 0.75 of each layer, got sparsity="
        ) as error:
            units.check({"a": Layout((2, 4))}, sparsity)
        assert str(error.value).endswith(f"got sparsity={sparsity:g}: set sparsity=0.75")
