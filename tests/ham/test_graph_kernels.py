"""The C code of graph networks against dense float64 formulas and against the same operations of torch."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ham import c_code
from ham.models import attention, gnn, graph_kernels, graph_layers, sparse
from ham.models.receptive import Block
from ham.models.sparse import Csr

pytestmark = pytest.mark.skipif(not c_code.has_compiler(), reason="needs a C compiler")
MODULES = (sparse, attention, graph_layers)
SIZES = st.tuples(
    st.integers(1, 9), st.integers(1, 9), st.integers(0, 40), st.sampled_from((1, 3, 16, 64, 67))
)


def random_matrix(rows: int, columns: int, entries: int, dtype: torch.dtype, seed: int) -> Csr:
    """Entries anywhere, also repeated; rows may be empty."""
    draw = torch.Generator().manual_seed(seed)
    places = (
        torch.randint(rows, (entries,), generator=draw),
        torch.randint(columns, (entries,), generator=draw),
    )
    values = torch.randn(entries, dtype=dtype, generator=draw)
    return Csr.from_entries(*places, values, (rows, columns))


def randn(*shape: int, dtype: torch.dtype, seed: int = 0, grad: bool = False) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_(grad)


def without_c(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in MODULES:
        monkeypatch.setattr(module, "for_tensors", lambda *tensors: None)


def dense_attention(values: Tensor, scores: Tensor, edges: Csr) -> Tensor:
    """A loop over the rows."""
    out = values.new_zeros(edges.shape[0], values.shape[1]) + 0 * (values.sum() + scores.sum())
    for row in edges.rows.unique().tolist():
        of_row = edges.rows == row
        weights = torch.softmax(scores[of_row], dim=0)
        out = out.index_add(0, torch.tensor([row]), (weights @ values[edges.columns[of_row]])[None])
    return out


def dense_scores(left: Tensor, right: Tensor, weights: Tensor, edges: Csr, slope: float) -> Tensor:
    sums = left[edges.columns] + right[edges.rows]
    return torch.where(sums > 0, sums, slope * sums) @ weights


def gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = randn(*out.shape, dtype=out.dtype, seed=99)
    found = torch.autograd.grad((out * weights).sum(), inputs, allow_unused=True, materialize_grads=True)
    return [out.detach(), *found]


def assert_equal(ours: list[Tensor], theirs: list[Tensor], dtype: torch.dtype) -> None:
    for one, other in zip(ours, theirs, strict=True):
        tolerance = 1e-12 if dtype is torch.float64 else 2e-5
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@settings(max_examples=60)
@given(SIZES, st.integers(0, 1000), st.sampled_from((torch.float32, torch.float64)), st.integers(1, 3))
def test_every_operation_equals_its_dense_formula(sizes, seed, dtype, threads):
    rows, columns, entries, channels = sizes
    edges = random_matrix(rows, columns, entries, dtype, seed)
    x, left = (randn(columns, channels, dtype=dtype, seed=seed + k, grad=True) for k in (1, 2))
    right = randn(rows, channels, dtype=dtype, seed=seed + 3, grad=True)
    weights = randn(channels, dtype=dtype, seed=seed + 4, grad=True)
    scores = randn(entries, dtype=dtype, seed=seed + 5, grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_kernels, "_SMALLEST_SHARE", 16)
        patch.setattr(torch, "get_num_threads", lambda: threads)
        dense = edges.tensor().to_dense() if entries else x.new_zeros(rows, columns)
        assert_equal(gradients(edges @ x, [x]), gradients(dense @ x, [x]), dtype)
        pairs = (
            (attention.attend(x, scores, edges), dense_attention(x, scores, edges), [x, scores]),
            (
                attention.additive_scores(left, right, weights, edges, 0.2),
                dense_scores(left, right, weights, edges, 0.2),
                [left, right, weights],
            ),
        )
        for ours, formula, inputs in pairs:
            assert_equal(gradients(ours, inputs), gradients(formula, inputs), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_code_and_torch_agree_on_a_larger_graph_with_any_number_of_threads(dtype, threads, monkeypatch):
    edges = random_matrix(3000, 2500, 20_000, dtype, 1)
    left, right = randn(2500, 32, dtype=dtype, grad=True), randn(3000, 32, dtype=dtype, seed=1, grad=True)
    weights = randn(32, dtype=dtype, seed=2, grad=True)

    def outputs() -> list[Tensor]:
        scores = attention.additive_scores(left, right, weights, edges, 0.2)
        torch.manual_seed(5)
        out = graph_layers.relu_dropout(attention.attend(left, scores, edges) + edges @ left, 0.3, True)
        return gradients(out, [left, right, weights])

    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    ours = outputs()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = outputs()
    assert all(torch.equal(one, other) for one, other in zip(ours[:3], alone[:3], strict=True))
    without_c(monkeypatch)
    theirs = outputs()
    scales = [float(t.abs().max()) for t in theirs]
    for others in (alone, theirs):  # the gradient of `weights` is a sum over all rows, in parts
        pairs = ([t / scale for t, scale in zip(each, scales, strict=True)] for each in (ours, others))
        assert_equal(*pairs, dtype)


@pytest.mark.parametrize("chunk", [1, 40, 1 << 16])
def test_torchs_operations_equal_the_dense_formulas_in_chunks_of_any_size(chunk, monkeypatch):
    without_c(monkeypatch)
    monkeypatch.setattr(attention, "_CHUNK", chunk)
    dtype = torch.float64
    edges = random_matrix(5, 6, 30, dtype, 2)
    x, left = (randn(6, 4, dtype=dtype, seed=k, grad=True) for k in (1, 2))
    right, weights = randn(5, 4, dtype=dtype, seed=3, grad=True), randn(4, dtype=dtype, seed=4, grad=True)
    scores = randn(30, dtype=dtype, seed=5, grad=True)
    assert_equal(gradients(edges @ x, [x]), gradients(edges.tensor().to_dense() @ x, [x]), dtype)
    ours = attention.attend(x, scores, edges)
    assert_equal(
        gradients(ours, [x, scores]), gradients(dense_attention(x, scores, edges), [x, scores]), dtype
    )
    ours = attention.additive_scores(left, right, weights, edges, 0.2)
    formula = dense_scores(left, right, weights, edges, 0.2)
    inputs = [left, right, weights]
    assert_equal(gradients(ours, inputs), gradients(formula, inputs), dtype)


@pytest.mark.parametrize("has_code", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_a_draw_at_the_threshold_is_kept_and_one_below_is_dropped(has_code, inplace, monkeypatch):
    if not has_code:
        without_c(monkeypatch)
    draws = torch.tensor([-3, -2, -1, 5, 5], dtype=torch.int16)
    monkeypatch.setattr(graph_layers, "_draws", lambda x, probability: (draws, -2, 4.0))
    x = torch.tensor([1.0, 1.0, 2.0, 3.0, -1.0], requires_grad=True)
    out = graph_layers.relu_dropout(x * 1, 0.5, True, inplace=inplace)
    assert out.tolist() == [0, 4, 8, 12, 0]
    (gradient,) = torch.autograd.grad((out * torch.arange(1.0, 6.0)).sum(), x)
    assert gradient.tolist() == [0, 8, 12, 16, 0]


def test_types_that_cannot_hold_a_draw_are_dropped_after_relu():
    x, results = torch.randn(200, 100).bfloat16(), []
    for forward in (
        lambda x: graph_layers.relu_dropout(x, 0.3, True),
        lambda x: graph_layers.dropout(torch.relu(x), 0.3, True),
    ):
        torch.manual_seed(1)
        results.append(forward(x))
    assert results[0].dtype is torch.bfloat16 and torch.equal(*results)


def test_code_is_for_plain_cpu_tensors_of_one_float_type_that_autograd_does_not_record(monkeypatch):
    one, other = torch.ones(2), torch.ones(3)
    assert graph_kernels.for_tensors(one) is None, "autograd may record"
    with torch.no_grad():
        found = graph_kernels.for_tensors(one, other)
        assert isinstance(found, graph_kernels.GraphKernels) and found is graph_kernels.for_tensors(one)
        assert graph_kernels.for_tensors(one.double()) not in (None, found)
        for tensors in (
            (one.half(),),
            (one.long(),),
            (one, other.double()),
            (one.double(), other),
            (one, other.to("meta")),
            (one, torch._neg_view(other)),
        ):
            assert graph_kernels.for_tensors(*tensors) is None
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert graph_kernels.for_tensors(one) is None


PATTERN = graph_kernels.Pattern(torch.tensor([0, 2, 3]), torch.tensor([0, 1, 2]), 3)
WIDE, ROWS, ENTRIES, CHANNELS = torch.ones(3, 4), torch.ones(2, 4), torch.ones(3), torch.ones(4)
ORDER, DRAWS = torch.arange(3), torch.ones(4, dtype=torch.int16)
RIGHT = {  # operation -> arguments that fit, of which those at these places are checked
    "multiply": ((PATTERN, ENTRIES, ORDER, WIDE), (1, 2, 3)),
    "attend": ((PATTERN, ENTRIES, WIDE), (1, 2)),
    "attend_backward": ((PATTERN, ENTRIES, WIDE, ROWS, ROWS), (3, 4)),
    "additive_scores": ((PATTERN, WIDE, ROWS, CHANNELS, 0.2), (1, 2, 3)),
    "additive_scores_backward": ((PATTERN, PATTERN, ORDER, (WIDE, WIDE, CHANNELS), 0.2, ENTRIES), (2, 5)),
    "relu_dropout": ((CHANNELS, DRAWS, 0, 2.0, torch.empty(4)), (1, 4)),
    "relu_dropout_backward": ((CHANNELS, CHANNELS, 2.0), (0,)),
}


@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name, (_, places) in RIGHT.items() for place in places]
)
def test_an_operation_refuses_each_tensor_of_another_size(name, place):
    """C code would read or write behind it."""
    with torch.no_grad():
        call = getattr(graph_kernels.for_tensors(WIDE), name)
        arguments = list(RIGHT[name][0])
        call(*arguments)
        small = arguments[place][:-1]
        with pytest.raises(ValueError) as caught:
            call(*arguments[:place], small, *arguments[place + 1 :])
    assert str(caught.value).startswith(f"a tensor has the shape {tuple(small.shape)}, and (")
    assert str(caught.value).endswith(") is needed")


def test_rows_are_divided_so_that_parts_have_about_as_many_entries(monkeypatch):
    starts = torch.tensor([0, 6, 6, 8, 12])
    pattern = graph_kernels.Pattern(starts, torch.zeros(12).long(), 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(graph_kernels, "_SMALLEST_SHARE", 1)
    assert pattern.rows == 4
    assert graph_kernels.GraphKernels._bounds(pattern, 3) == [0, 1, 4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert graph_kernels.GraphKernels._bounds(pattern, 3) == [0, 1, 3, 4]
    monkeypatch.setattr(graph_kernels, "_SMALLEST_SHARE", 100)
    assert graph_kernels.GraphKernels._bounds(pattern, 3) == [0, 4]


class OnAnotherDevice:
    """Stands for a tensor of a device, and records how it is copied."""

    def __init__(self, kind, is_pinned=False):
        self.device, self.is_pinned = torch.device(kind), is_pinned

    def pin_memory(self):
        return OnAnotherDevice(self.device.type, True)

    def to(self, device, non_blocking=False):
        return self.is_pinned, device.type, non_blocking

    def __rmatmul__(self, matrix):
        return "their product"


@pytest.mark.parametrize(
    ("kind", "device", "is_pinned"), [("cpu", "cuda", True), ("cuda", "cuda", False), ("cpu", "cpu", False)]
)
def test_a_copy_to_a_gpu_is_from_pinned_memory_and_does_not_wait(kind, device, is_pinned):
    copied = sparse.to_device(OnAnotherDevice(kind), torch.device(device))
    assert copied == (is_pinned, device, True)


def test_on_a_gpu_torchs_product_is_used():
    assert sparse._multiply(torch.ones(1).numpy, OnAnotherDevice("cuda")) == "their product"


def test_parts_of_a_matrix_are_made_once_and_all_of_it_is_itself():
    matrix = random_matrix(4, 5, 20, torch.float32, 0)
    assert matrix.head(4) is matrix and matrix.head(4, 5) is matrix
    part = matrix.head(2)
    assert part is matrix.head(2, 5) and part.shape == (2, 5) and matrix.head(0).shape == (0, 5)
    dense = matrix.tensor().to_dense()
    assert torch.equal(part.tensor().to_dense(), dense[:2])
    narrow = Csr(torch.tensor([0, 1, 2]), torch.tensor([0, 2]), torch.ones(2), 3).head(1, 2)
    assert narrow.tensor().to_dense().tolist() == [[1, 0]]


def test_a_matrix_on_a_device_keeps_its_transpose():
    matrix = random_matrix(4, 5, 20, torch.float32, 0)
    assert matrix.to(torch.device("cpu")).transpose is None
    transpose = Csr(matrix.column_starts, matrix.rows_by_column, matrix.values[matrix.by_column], 4)
    given = Csr(matrix.row_starts, matrix.columns, matrix.values, 5, transpose).to(torch.device("cpu"))
    assert given.shape == (4, 5) and given.transpose.shape == (5, 4)
    x = torch.randn(4, 2)
    expected = matrix.tensor().to_dense().t() @ x
    torch.testing.assert_close(given.transposed_times(x), expected)
    torch.testing.assert_close(matrix.transposed().to_dense(), matrix.tensor().to_dense().t())
    others = torch.randn(20)
    other = matrix.tensor(others).to_dense()
    torch.testing.assert_close(given.transposed_times(x, others), other.t() @ x)
    torch.testing.assert_close(matrix.transposed(others).to_dense(), other.t())
    torch.testing.assert_close(matrix.times(torch.eye(5), others), other)


def test_the_warning_that_csr_tensors_are_in_beta_is_not_seen(monkeypatch):
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sparse._silence_beta_warning.__wrapped__()
    finally:
        torch.set_warn_always(before)
    calls = []
    monkeypatch.setattr(sparse, "_silence_beta_warning", lambda: calls.append(1))
    random_matrix(2, 2, 1, torch.float32, 0).tensor()
    assert calls == [1]


@pytest.mark.parametrize(
    "call",
    [
        lambda edges, x: edges @ x[:3],
        lambda edges, x: edges @ torch.cat([x, x]),
        lambda edges, x: attention.attend(x[:3], torch.ones(6), edges),
        lambda edges, x: attention.attend(x, torch.ones(5), edges),
        lambda edges, x: attention.additive_scores(x, x[:1], torch.ones(4), edges, 0.2),
        lambda edges, x: attention.additive_scores(x[:4], x[:2], torch.ones(4), edges, 0.2),
        lambda edges, x: attention.additive_scores(x, x[:2], torch.ones(3), edges, 0.2),
    ],
)
def test_sizes_that_do_not_fit_are_refused(call):
    """C code would read what lies behind a tensor that is too small."""
    edges = random_matrix(2, 5, 6, torch.float32, 0)
    with pytest.raises((ValueError, RuntimeError)):
        call(edges, torch.randn(5, 4))


def test_other_types_and_layouts_of_indices_and_values_are_read_right():
    edges, x = random_matrix(4, 5, 20, torch.float32, 0), torch.randn(5, 3)
    expected = edges.tensor().to_dense() @ x
    strided = torch.stack([edges.columns, edges.columns - 1], dim=1)[:, 0]
    for columns in (edges.columns.int(), strided):
        other = Csr(edges.row_starts, columns, edges.values, 5)
        torch.testing.assert_close(other @ x, expected)
        torch.testing.assert_close(other @ x.t().contiguous().t(), expected)
    ones = Csr(edges.row_starts, edges.columns, torch.ones(1).expand(20), 5)
    torch.testing.assert_close(ones @ x, ones.tensor().to_dense() @ x)
    torch.testing.assert_close(edges @ torch._neg_view(x), -expected)
    assert not (edges @ torch._efficientzerotensor(5, 3)).any()


def test_the_default_device_does_not_matter(monkeypatch):
    edges, x = random_matrix(40, 40, 300, torch.float32, 0), randn(40, 3, dtype=torch.float32)
    expected = edges.tensor().to_dense() @ x
    monkeypatch.setattr(graph_kernels, "_SMALLEST_SHARE", 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    graph_kernels._kernels.cache_clear()
    with torch.device("meta"):
        torch.testing.assert_close(edges @ x, expected)


def test_layers_take_part_in_autocast():
    torch.manual_seed(0)
    for kind in ("gcn", "sage"):
        layer = gnn.convolution(gnn.GNN(conv=gnn.Conv(kind), hidden=5), 4)
        skip, block, x = (
            graph_layers.SparseLinear(4, 5),
            Block(random_matrix(8, 8, 30, torch.float32, 3)),
            torch.randn(8, 4),
        )
        expected = layer(x, block, skip)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(layer(x, block, skip).float(), expected, rtol=0.05, atol=0.05)


def test_nan_stays_visible():
    edges = Csr.from_entries(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), torch.ones(3), (2, 2))
    x = torch.tensor([[torch.nan, 1.0], [2.0, 3.0]])
    assert torch.equal((edges @ x).isnan(), torch.tensor([[True, False], [False, False]]))
    out = attention.attend(torch.ones(2, 2), torch.tensor([torch.nan, 0.0, 0.0]), edges)
    assert torch.equal(out.isnan(), torch.tensor([[True, True], [False, False]]))
    scores = attention.additive_scores(x, torch.zeros(2, 2), torch.ones(2), edges, 0.2)
    assert torch.equal(scores.isnan(), torch.tensor([True, False, False]))
    kept = graph_layers.relu_dropout(torch.full((1000,), torch.nan), 0.5, True)
    assert 400 < int(kept.isnan().sum()) < 600


@pytest.mark.parametrize("probability", [1e-6, 0.5, 0.99999])
def test_dropout_of_any_probability_keeps_its_share(probability):
    x = torch.ones(400_000)
    kept = int((graph_layers.relu_dropout(x, probability, True) != 0).sum())
    rounded = round(probability * 65536) / 65536
    expected = len(x) * (1 - rounded)
    assert abs(kept - expected) <= 5 * (len(x) * rounded * (1 - rounded)) ** 0.5


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("probability", [0.0, 0.4])
def test_relu_in_place_gives_the_same(training, probability):
    x, results = randn(50, 7, dtype=torch.float32), []
    for inplace in (False, True):
        leaf = x.clone().requires_grad_()
        before = leaf * 2
        torch.manual_seed(0)
        out = graph_layers.relu_dropout(before, probability, training, inplace=inplace)
        assert (out.data_ptr() == before.data_ptr()) == inplace
        results.append([out.detach(), *torch.autograd.grad(out.sum(), leaf)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("kind", ["gcn", "sage", "v1", "v2"])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_a_skip_inside_a_layer_is_the_sum_of_both(kind, is_sparse):
    torch.manual_seed(0)
    conv = gnn.Conv.gat if kind in ("v1", "v2") else gnn.Conv(kind)
    version = gnn.Attention(kind) if conv is gnn.Conv.gat else gnn.Attention.v2
    layer = gnn.convolution(gnn.GNN(conv=conv, attention=version, hidden=5), 4).double()
    skip = graph_layers.SparseLinear(4, 5).double()
    block = Block(random_matrix(6, 8, 30, torch.float64, 3))
    x = randn(8, 4, dtype=torch.float64)
    x = sparse.Csr.from_entries(*x.nonzero(as_tuple=True), x.flatten(), (8, 4)) if is_sparse else x
    inputs = [*layer.parameters(), *skip.parameters()]
    together = gradients(layer(x, block, skip), inputs)
    apart = gradients(layer(x, block) + skip(graph_layers.head(x, 6)), inputs)
    assert_equal(together, apart, torch.float64)


def test_second_derivatives_are_those_of_torchs_operations():
    """Where autograd records the backward pass, as for a Hessian-vector product, torch's operations run."""
    edges = random_matrix(5, 5, 12, torch.float64, 0)
    x = randn(5, 3, dtype=torch.float64, grad=True)

    def gradient(x: Tensor) -> Tensor:
        return torch.autograd.grad(((edges @ (x**2)) ** 2).sum(), x, create_graph=True)[0]

    dense = edges.tensor().to_dense()
    direction = randn(5, 3, dtype=torch.float64, seed=4)
    (ours,) = torch.autograd.grad(gradient(x), x, direction)
    (formula,) = torch.autograd.grad(
        torch.autograd.grad(((dense @ (x**2)) ** 2).sum(), x, create_graph=True)[0], x, direction
    )
    torch.testing.assert_close(ours, formula, rtol=1e-12, atol=1e-12)


def test_without_a_compiler_torch_computes_the_same_and_a_broken_one_is_named(monkeypatch):
    edges, x = random_matrix(6, 7, 20, torch.float32, 0), randn(7, 4, dtype=torch.float32)
    expected = edges @ x
    with monkeypatch.context() as patch:
        patch.setattr(c_code, "has_compiler", lambda: False)
        graph_kernels._kernels.cache_clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.testing.assert_close(edges @ x, expected)
    with monkeypatch.context() as patch:
        patch.setenv("CC", "false")
        graph_kernels._kernels.cache_clear()
        c_code.load.cache_clear()
        with pytest.warns(
            UserWarning, match=r"^the C code of graph networks does not work: the C compiler false fails"
        ):
            torch.testing.assert_close(edges @ x, expected)
    graph_kernels._kernels.cache_clear()
    c_code.load.cache_clear()


@pytest.mark.parametrize("fault", ["multiply", "attend"])
def test_code_with_wrong_results_is_not_used(fault, monkeypatch):
    edges, x = random_matrix(6, 7, 20, torch.float32, 0), randn(7, 4, dtype=torch.float32)
    expected = edges @ x
    right = getattr(graph_kernels.GraphKernels, fault)

    def wrong(self, *arguments):
        out = right(self, *arguments)
        return tuple(t.nan_to_num() for t in out) if isinstance(out, tuple) else out.nan_to_num()

    monkeypatch.setattr(graph_kernels.GraphKernels, fault, wrong)
    graph_kernels._kernels.cache_clear()
    with pytest.warns(UserWarning, match="its results are wrong"):
        torch.testing.assert_close(edges @ x, expected)
    graph_kernels._kernels.cache_clear()


def test_without_c_code_a_cpu_uses_torchs_own_sparse_product(monkeypatch):
    """Its kernel is up to eight times as fast as MKL's, which `matrix @ dense` calls."""
    without_c(monkeypatch)
    edges, x = random_matrix(6, 7, 20, torch.float32, 0), randn(7, 4, dtype=torch.float32)
    expected, calls, product = edges.tensor().to_dense() @ x, [], torch.sparse.mm
    monkeypatch.setattr(torch.sparse, "mm", lambda *given: calls.append(given[2:]) or product(*given))
    torch.testing.assert_close(edges @ x, expected)
    assert calls == [("sum",)]
