"""Our convolutions against PyTorch Geometric's, and subgraphs against the full graph."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from ham.models import gnn, graph_layers, receptive
from ham.models.gnn import GNN, Attention, Conv, Norm
from ham.models.receptive import Subgraph, edge_weights, sparse
from ham.models.sparse import Csr

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pyg = pytest.importorskip("torch_geometric.nn", reason="needs pip install -e '.[gnn]'")

WIDTH, HIDDEN, NODES = 6, 8, 40
KINDS = ("gcn", "sage", "v1", "v2")


def random_edges(seed: int) -> Tensor:
    """Directed edges with self-loops and repetitions; some nodes have none."""
    draw = torch.Generator().manual_seed(seed)
    edges = torch.randint(NODES - 5, (2, 150), generator=draw)
    loops = torch.tensor([[3, 4, 4], [3, 4, 4]])
    return torch.cat([edges, edges[:, :10], loops], dim=1)


def spec(kind: str, **more: object) -> GNN:
    conv = Conv.gat if kind in ("v1", "v2") else Conv(kind)
    attention = Attention(kind) if conv is Conv.gat else Attention.v2
    return GNN(conv=conv, attention=attention, hidden=HIDDEN, **more)


def ours_and_theirs(kind: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, dict[str, str]]:
    """Both layers with equal weights, and the names of the weights: ours -> theirs (transposed if 2-d)."""
    ours = gnn.convolution(spec(kind), WIDTH).to(dtype)
    plain = dict(heads=1, add_self_loops=False, bias=False)
    theirs, names = {
        "gcn": lambda: (pyg.GCNConv(WIDTH, HIDDEN), {"weight": "lin.weight", "bias": "bias"}),
        "sage": lambda: (
            pyg.SAGEConv(WIDTH, HIDDEN),
            {"left.weight": "lin_l.weight", "left.bias": "lin_l.bias", "right": "lin_r.weight"},
        ),
        "v1": lambda: (
            pyg.GATConv(WIDTH, HIDDEN, **plain),
            {"weight": "lin.weight", "att_source": "att_src", "att_target": "att_dst"},
        ),
        "v2": lambda: (
            pyg.GATv2Conv(WIDTH, HIDDEN, **plain),
            {"left": "lin_l.weight", "right": "lin_r.weight", "att": "att"},
        ),
    }[kind]()
    theirs = theirs.to(dtype)
    assert {n for n, _ in ours.named_parameters()} == set(names)
    assert {n for n, _ in theirs.named_parameters()} == set(names.values())
    ours_named, theirs_named = dict(ours.named_parameters()), dict(theirs.named_parameters())
    with torch.no_grad():
        for own, other in names.items():
            theirs_named[other].copy_(like(ours_named[own], theirs_named[other]))
    return ours, theirs, names


def like(own: Tensor, other: Tensor) -> Tensor:
    return own.view_as(other) if own.numel() == own.shape[-1] else own.t().reshape(other.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("inputs", ["dense", "sparse"])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_equal_pyg(
    kind: str, inputs: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ham.models.attention._CHUNK", 37 * HIDDEN)  # several chunks
    near = dict(atol=1e-5, rtol=1e-5) if dtype is torch.float32 else dict(atol=1e-12, rtol=1e-10)
    for seed in range(3):
        torch.manual_seed(seed)
        ours, theirs, names = ours_and_theirs(kind, dtype)
        edges, weights = random_edges(seed), torch.randn(NODES, HIDDEN, dtype=dtype)
        x = torch.randn(NODES, WIDTH, dtype=dtype) * (torch.rand(NODES, WIDTH) < 0.5)
        x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        edges_used, edge_values = edge_weights(ours_kind(kind), edges, NODES, dtype)
        all_nodes = torch.arange(NODES)
        block = Subgraph(x, edges_used, edge_values, all_nodes, 1, full_graph=True).blocks[0]
        out = ours(sparse(x) if inputs == "sparse" else x_ours, block)
        reference = theirs(x_theirs, edges)
        torch.testing.assert_close(out, reference, **near)
        (out * weights).sum().backward()
        (reference * weights).sum().backward()
        if inputs == "dense":
            torch.testing.assert_close(x_ours.grad, x_theirs.grad, **near)
        other = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            theirs_grad = other[names[name]].grad
            torch.testing.assert_close(like(parameter.grad, theirs_grad), theirs_grad, **near)


def ours_kind(kind: str) -> str:
    return "gat" if kind in ("v1", "v2") else kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [{}, {"residual": True, "norm": Norm.layer}, {"pre_linear": True}], ids=str)
@pytest.mark.parametrize("density", [0.1, 0.9], ids=["sparse", "dense"])
def test_leaving_out_nodes_outside_the_receptive_field_changes_nothing(
    kind: str, more: dict, density: float
) -> None:
    """The receptive field of some nodes gives the same logits and gradients as the full graph."""
    torch.manual_seed(0)
    x = torch.randn(NODES, WIDTH, dtype=torch.float64) * (torch.rand(NODES, WIDTH) < density)
    edges = random_edges(1)[:, :60]
    output_nodes = torch.tensor([7, 3, 39, 0])
    model = spec(kind, layers=3, dropout=0.0, **more).build(num_features=WIDTH, num_classes=3).double()
    edges_used, edge_values = edge_weights(ours_kind(kind), edges, NODES, x.dtype)
    gradients = []
    for subgraph in (
        Subgraph(x, edges_used, edge_values, output_nodes, 3, full_graph=full_graph)
        for full_graph in (False, True)
    ):
        model.zero_grad()
        for _ in range(2):  # the second time from the cache
            out = model(subgraph)
        out.square().sum().backward()
        gradients.append([out.detach(), *(p.grad.clone() for p in model.parameters())])
    for part, full in zip(*gradients, strict=True):
        torch.testing.assert_close(part, full)
    small = Subgraph(x, edges_used, edge_values, output_nodes, 3, full_graph=False)
    assert small.blocks[-1].num_targets == 4 and small.features.shape[0] < NODES


def test_the_subgraph_of_a_path_by_hand() -> None:
    """0 - 1 - 2 - 3 - 4: node 0 depends on 1 after one layer and on 2 after two."""
    edges = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4], [1, 0, 2, 1, 3, 2, 4, 3]])
    x = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]])
    subgraph = Subgraph(
        x, *edge_weights("sage", edges, 5, torch.float32), torch.tensor([0]), 2, full_graph=False
    )
    assert subgraph.features.flatten().tolist() == [1, 2, 4]
    assert [block.operator.shape for block in subgraph.blocks] == [(2, 3), (1, 2)]
    means = subgraph.blocks[0].gather(x[:3]).flatten()
    assert means.tolist() == [2, 2.5]  # of 2 for node 0, of 1 and 4 for node 1


def test_rows_of_a_sparse_matrix_by_hand() -> None:
    dense = torch.tensor([[0.0, 1, 0], [0, 0, 0], [2, 0, 3], [0, 4, 0]])
    rows = torch.tensor([2, 1, 0, 2])
    assert torch.equal(sparse(dense).select(rows) @ torch.eye(3), dense[rows])
    assert torch.equal(sparse(dense).head(2) @ torch.eye(3), dense[:2])


def test_dropout_has_its_probability_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 1001, requires_grad=True)
    for probability in (0.2, 0.5, 0.7):
        out = graph_layers.dropout(x, probability, True)
        dropped = float((out == 0).float().mean())
        assert abs(dropped - probability) < 2e-3
        assert float(out.detach().max()) == pytest.approx(1 / (1 - probability), rel=1e-4)
        (gradient,) = torch.autograd.grad(out.sum(), x)
        assert torch.equal(gradient, out.detach())
        groups_of_four = (out.detach() != 0).float().view(-1)[: 4 * 250000].view(-1, 4)
        correlation = torch.corrcoef(groups_of_four.t()) - torch.eye(4)
        assert float(correlation.abs().max()) < 0.01  # the four draws of a random number are independent
    assert graph_layers.dropout(x, 0.5, False) is x and graph_layers.dropout(x, 0.0, True) is x


@pytest.mark.parametrize("shape", [(7, 5), (1, 1), (0, 4), (64, 33)])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relu_and_dropout_together_equal_one_after_the_other(
    shape: tuple[int, int], probability: float, dtype: torch.dtype
) -> None:
    x = torch.randn(shape, dtype=dtype)
    gradient = torch.randn(shape, dtype=dtype)
    results = []
    for forward in (
        lambda x: graph_layers.dropout(torch.relu(x), probability, True),
        lambda x: graph_layers.relu_dropout(x, probability, True),
    ):
        torch.manual_seed(3)
        leaf = x.clone().requires_grad_()
        out = forward(leaf)
        results.append((out.detach(), *torch.autograd.grad(out, leaf, gradient)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    for off in ((0.0, True), (probability, False)):
        assert torch.equal(graph_layers.relu_dropout(x, *off), torch.relu(x))


def test_all_rows_are_taken_without_a_slice() -> None:
    x, matrix = torch.randn(4, 3), sparse(torch.eye(4))
    assert graph_layers.head(x, 4) is x and graph_layers.head(x, None) is x
    assert graph_layers.head(matrix, 4) is matrix and graph_layers.head(matrix, 2).shape == (2, 4)
    assert torch.equal(graph_layers.head(x, 2), x[:2])


def test_initial_weights_have_the_bounds_of_pyg() -> None:
    """Equal bounds: glorot for GCN and GAT, kaiming with a = sqrt(5) for SAGE and linear maps."""
    torch.manual_seed(0)
    for kind in KINDS:
        ours = dict(gnn.convolution(spec(kind), 300).named_parameters())
        theirs = {
            "gcn": lambda: pyg.GCNConv(300, HIDDEN),
            "sage": lambda: pyg.SAGEConv(300, HIDDEN),
            "v1": lambda: pyg.GATConv(300, HIDDEN, bias=False),
            "v2": lambda: pyg.GATv2Conv(300, HIDDEN, bias=False),
        }[kind]()
        bounds = sorted(float(p.detach().abs().max()) for p in ours.values() if p.numel() > 100)
        others = sorted(float(p.detach().abs().max()) for p in theirs.parameters() if p.numel() > 100)
        assert bounds == pytest.approx(others, rel=0.02), kind
        for p in (own.detach() for own in ours.values() if own.numel() > 100):
            assert float(p.min()) == pytest.approx(-float(p.max()), rel=0.02)
            assert abs(float(p.mean())) < 0.15 * float(p.max())


def test_a_linear_map_starts_like_torchs() -> None:
    """Weights and biases are uniform within 1 / sqrt(inputs)."""
    torch.manual_seed(0)
    layer = graph_layers.SparseLinear(4, 5000)
    assert layer.weight.shape == (4, 5000)
    for p in (layer.weight.detach(), layer.bias.detach()):
        assert -0.5 <= float(p.min()) < -0.499 and 0.499 < float(p.max()) <= 0.5
        assert abs(float(p.mean())) < 0.02
    x = torch.randn(3, 4)
    torch.testing.assert_close(layer(sparse(x)), layer(x))
    torch.testing.assert_close(layer(x), x @ layer.weight + layer.bias)


def test_a_network_has_the_layers_of_its_spec() -> None:
    network = spec("gcn", layers=3, norm=Norm.batch, residual=True, pre_linear=True).build(
        num_features=WIDTH, num_classes=5
    )
    assert len(network.convs) == len(network.skips) == len(network.norms) == 3
    assert network.first is not None and network.classifier.weight.shape == (5, HIDDEN)
    assert all(isinstance(norm, nn.BatchNorm1d) for norm in network.norms)
    plain = spec("sage", layers=2).build(num_features=WIDTH, num_classes=5)
    assert plain.first is None and not plain.skips
    names = {name.split(".")[0] for name, _ in plain.named_parameters()}
    assert names == {"convs", "classifier"}


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("pre_linear", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_a_network_is_its_layers_one_after_the_other(
    norm: Norm, pre_linear: bool, residual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropouts multiply by 2 after the first linear layer and by 3 after a convolution."""
    monkeypatch.setattr(gnn, "dropout", lambda x, probability, training: x * 2 * probability * training)
    monkeypatch.setattr(
        gnn,
        "relu_dropout",
        lambda x, probability, training, inplace: x.relu() * 3 * probability * training,
    )
    torch.manual_seed(0)
    edges, x = random_edges(2), torch.randn(NODES, WIDTH)
    network = spec("sage", layers=2, dropout=0.5, norm=norm, pre_linear=pre_linear, residual=residual).build(
        num_features=WIDTH, num_classes=3
    )
    edges_used, edge_values = edge_weights("sage", edges, NODES, x.dtype)
    subgraph = Subgraph(x, edges_used, edge_values, torch.arange(NODES), 2, full_graph=True)
    expected = x
    if pre_linear:
        expected = network.first(x) * 2 * 0.5
    for k, (conv, block) in enumerate(zip(network.convs, subgraph.blocks, strict=True)):
        z = conv(expected, block)
        z = z + network.skips[k](expected) if residual else z
        expected = network.norms[k](z).relu() * 3 * 0.5
    torch.testing.assert_close(network(subgraph), network.classifier(expected))
    deeper = Subgraph(x, edges_used, edge_values, torch.arange(NODES), 3, full_graph=True)
    with pytest.raises(ValueError, match="longer"):
        network(deeper)


def test_the_defaults_are_two_gcn_layers_of_512_channels() -> None:
    plain = GNN()
    assert (plain.conv, plain.attention, plain.norm) == (Conv.gcn, Attention.v2, Norm.none)
    assert (plain.hidden, plain.layers, plain.dropout) == (512, 2, 0.5)
    assert not plain.residual and not plain.pre_linear
    smallest = GNN(hidden=1, layers=1, dropout=0.0)
    smallest.check(0)
    assert len(smallest.build(num_classes=2, num_features=3).convs) == 1


def test_weights_of_edges_by_hand() -> None:
    """0 -> 1 twice, 2 -> 1, and a self-loop of 2; node 0 has no source."""
    edges = torch.tensor([[0, 0, 2, 2], [1, 1, 1, 2]])
    used, weights = edge_weights("gcn", edges, 3, torch.float64)
    assert used.tolist() == [[0, 0, 2, 0, 1, 2], [1, 1, 1, 0, 1, 2]], "one self-loop for each node"
    assert weights.tolist() == pytest.approx([0.5, 0.5, 0.5, 1, 0.25, 1])  # in-degrees 1, 4 and 1
    used, weights = edge_weights("sage", edges, 3, torch.float64)
    assert torch.equal(used, edges) and weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
    used, weights = edge_weights("gat", edges, 3, torch.float32)
    assert torch.equal(used, edges) and weights.tolist() == [1, 1, 1, 1] and weights.dtype is torch.float32


@pytest.mark.parametrize(
    ("nonzero", "is_sparse"), [(3, True), (4, False), (5, False), (20, False), (0, True)]
)
def test_features_are_stored_as_a_sparse_matrix_below_a_density_of_a_fifth(
    nonzero: int, is_sparse: bool
) -> None:
    features = torch.zeros(20)
    features[:nonzero] = -1.5
    found = receptive.inputs(features.view(5, 4))
    assert isinstance(found, Csr) == is_sparse
    assert torch.equal(found @ torch.eye(4), features.view(5, 4))
    assert receptive.inputs(found) is found


def test_the_product_with_constant_inputs_is_computed_once() -> None:
    class Operator:
        shape, calls = (2, 3), 0

        def __matmul__(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x[:2] * 10

    constant = torch.ones(3, 1)
    block = receptive.Block(Operator(), constant)
    assert block.num_targets == 2
    assert block.gather(constant).tolist() == block.gather(constant).tolist() == [[10], [10]]
    assert block.operator.calls == 1
    assert block.gather(constant * 2).tolist() == [[20], [20]]
    block.gather(constant * 2)
    assert block.operator.calls == 3


def test_layers_of_the_full_graph_share_a_block_and_outputs_come_first() -> None:
    x = torch.arange(5.0)[:, None] + 1
    edges = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]])
    weights = edge_weights("sage", edges, 5, torch.float32)
    subgraph = Subgraph(x, *weights, torch.tensor([3, 1]), 3, full_graph=True)
    assert subgraph.features.flatten().tolist() == [4, 2, 1, 3, 5] and subgraph.num_outputs == 2
    assert subgraph.blocks[1] is subgraph.blocks[2] is not subgraph.blocks[0]
    assert subgraph.blocks[0].constant is subgraph.features and subgraph.blocks[1].constant is None
    sparse_features = Subgraph(torch.eye(5, 20), *weights, torch.tensor([3]), 1, full_graph=True)
    assert isinstance(sparse_features.features, Csr) and sparse_features.blocks[0].constant is None


@pytest.mark.parametrize(
    ("values", "word"),
    [
        *(({"dropout": 1.0}, "dropout"), ({"layers": 0}, "layers"), ({"hidden": 0}, "hidden")),
        ({"dropout": -0.1}, r"must be in \[0, 1\), got -0.1"),
    ],
    ids=str,
)
def test_impossible_sizes_are_refused(values: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        GNN(**values)
    with pytest.raises(ValueError, match="reads graphs"):
        GNN().check(32)
