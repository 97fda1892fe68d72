"""GCN+ and its batches, against plain loops over edges and graphs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ham import HAM
from ham.data.ogbg import files as ogbg_files
from ham.data.ogbg.sets import SETS
from ham.models import gcn_plus, graph_kernels, sparse
from ham.models import messages as message_module
from ham.models.gcn_plus import GCNPlus, GraphBatch, Head, Network
from ham.models.graph_encoders import ATOMS, BONDS, Encoder, SumOfEmbeddings, edge_encoder
from ham.models.messages import Messages, plain_sum_messages, sum_messages
from ham.models.sparse import Csr
from ham.tasks.graph_batches import GraphTensors, batches_of_similar_size, distinct_rows

STEPS = 3


def draw_set(seed: int, sizes: tuple[int, ...] = (5, 1, 7, 2, 4), density: float = 0.5) -> dict[str, Tensor]:
    """Graphs with repeated edges, self-loops, single nodes, and graphs without edges."""
    generator = torch.Generator().manual_seed(seed)
    pieces: dict[str, list[Tensor]] = {"sources": [], "targets": [], "edges": []}
    counts = []
    for size in sizes:
        count = int(torch.poisson(torch.tensor(density * size * 2), generator=generator))
        ends = torch.randint(size, (2, count), generator=generator)
        order = (ends[1] * size + ends[0]).argsort(stable=True)
        pieces["sources"].append(ends[0][order])
        pieces["targets"].append(ends[1][order])
        pieces["edges"].append(
            torch.stack([torch.randint(2, (count,), generator=generator) for _ in BONDS], 1)
        )
        counts.append(count)
    total = sum(sizes)
    columns = [torch.randint(category, (total,), generator=generator) for category in ATOMS]
    return {
        "node_starts": torch.tensor([0, *sizes]).cumsum(0),
        "edge_starts": torch.tensor([0, *counts]).cumsum(0),
        "nodes": torch.stack(columns, dim=1),
        "walks": torch.rand(total, STEPS, generator=generator),
        **{name: torch.cat(tensors) for name, tensors in pieces.items()},
    }


def joined(drawn: dict[str, Tensor], graphs: list[int]) -> tuple[Tensor, Tensor, Tensor, int]:
    """Sources, targets and features of the edges of some graphs, put together one by one; number of nodes."""
    sources, targets, edges, nodes = [], [], [], 0
    for graph in graphs:
        own = slice(*drawn["edge_starts"][graph : graph + 2].tolist())
        sources.append(drawn["sources"][own] + nodes)
        targets.append(drawn["targets"][own] + nodes)
        edges.append(drawn["edges"][own])
        nodes += int(drawn["node_starts"][graph + 1] - drawn["node_starts"][graph])
    return torch.cat(sources), torch.cat(targets), torch.cat(edges), nodes


def to_double(batch: GraphBatch) -> GraphBatch:
    matrices = {
        field.name: Csr(m.row_starts, m.columns, m.values.double(), m.shape[1])
        for field in fields(Messages)
        if isinstance(m := getattr(batch.messages, field.name), Csr)
    }
    p = batch.pooling
    exact = p.values.double().reciprocal().round().reciprocal()  # 1 / number of nodes
    pooling = Csr(p.row_starts, p.columns, exact, p.shape[1])
    return replace(
        batch, walks=batch.walks.double(), messages=replace(batch.messages, **matrices), pooling=pooling
    )


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    graphs=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    density=st.sampled_from([0.0, 0.3, 1.5]),
    has_c=st.booleans(),
    channels=st.sampled_from([1, 6, 64, 101, 128]),
)
def test_messages_are_a_plain_loop_over_the_edges(
    seed: int, graphs: list[int], density: float, has_c: bool, channels: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in (message_module, sparse) if not has_c else ():
            patch.setattr(module, "for_tensors", lambda *tensors: None)
        check_messages(seed, graphs, density, channels)


def check_messages(seed: int, graphs: list[int], density: float, channels: int) -> None:
    drawn = draw_set(seed, density=density)
    sources, targets, edges, nodes = joined(drawn, graphs)
    batch = GraphTensors(**drawn).batch(torch.tensor(graphs))
    generator = torch.Generator().manual_seed(seed)
    tables = [torch.randn(size, channels, dtype=torch.double, generator=generator) for size in BONDS]
    x = torch.randn(nodes, channels, dtype=torch.double, generator=generator)
    pull = torch.randn(nodes, channels, dtype=torch.double, generator=generator)
    for dtype, tolerance in ((torch.double, 1e-12), (torch.float, 1e-5)):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (x, *tables)]
        exact = [tensor.clone().requires_grad_() for tensor in (x, *tables)]
        embed = lambda tables, rows: sum(table[rows[:, i]] for i, table in enumerate(tables))  # noqa: E731
        messages = (to_double(batch) if dtype is torch.double else batch).messages
        ours = sum_messages(leaves[0], embed(leaves[1:], batch.edges), messages)
        plain = plain_sum_messages(exact[0], embed(exact[1:], edges), sources, targets)
        torch.testing.assert_close(ours.double(), plain, rtol=tolerance, atol=tolerance)
        if not len(sources):
            continue
        gradients = torch.autograd.grad((ours * pull.to(dtype)).sum(), leaves)
        for got, expected in zip(gradients, torch.autograd.grad((plain * pull).sum(), exact), strict=True):
            torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


def some_messages(channels: int = 5) -> tuple[GraphBatch, Tensor, Tensor]:
    batch = GraphTensors(**draw_set(3, density=1.5)).batch(torch.tensor([0, 2]))
    generator = torch.Generator().manual_seed(0)
    return batch, *(torch.randn(len(t), channels, generator=generator) for t in (batch.nodes, batch.edges))


@pytest.mark.parametrize("channels", [5, 70])
def test_messages_and_gradients_of_nan_are_nan_in_c_and_in_torch(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sum of nan is no positive number and no other one: neither it nor its gradient becomes 0."""
    batch, x, edges = some_messages(channels)
    x[batch.messages.senders[0], 2] = torch.nan
    results = []
    for has_c in (True, False):
        if not has_c:
            monkeypatch.setattr(message_module, "for_tensors", lambda *tensors: None)
        leaves = [x.clone().requires_grad_(), edges.clone().requires_grad_()]
        out = sum_messages(*leaves, batch.messages)
        results.append([out.detach(), *torch.autograd.grad(out.nansum(), leaves)])
        assert out.isnan().any() and not out.isnan().all()
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


@pytest.mark.parametrize("channels", [5, 64, 200])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_messages_have_equal_bits_with_any_number_of_threads(
    threads: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, x, edges = some_messages(channels)
    results = []
    for number in (1, threads):
        monkeypatch.setattr(graph_kernels, "_SMALLEST_SHARE", 8)
        monkeypatch.setattr(torch, "get_num_threads", lambda number=number: number)
        leaves = [x.clone().requires_grad_(), edges.clone().requires_grad_()]
        out = sum_messages(*leaves, batch.messages)
        results.append([out.detach(), *torch.autograd.grad((out * out.detach()).sum(), leaves)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("make", [torch._neg_view, lambda t: torch._efficientzerotensor(t.shape)])
def test_gradients_whose_values_are_not_in_memory_go_through_messages(
    make: Callable[[Tensor], Tensor],
) -> None:
    batch, x, edges = some_messages()
    leaves = [x.requires_grad_(), edges.requires_grad_()]
    gradient = make(torch.ones(len(x), 5))
    out = sum_messages(*leaves, batch.messages)
    ours = torch.autograd.grad(out, leaves, gradient, retain_graph=True)
    plain = torch.autograd.grad(out, leaves, gradient.clone().resolve_neg() + torch.zeros(len(x), 5))
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other)


def test_sizes_that_do_not_fit_the_batch_are_refused() -> None:
    batch, x, edges = some_messages()
    for nodes, kinds, words in ((x[1:], edges, "x has"), (x, edges[1:], "edges has")):
        with pytest.raises(ValueError, match=f"^{words} .* rows, and the batch "):
            sum_messages(nodes, kinds, batch.messages)
    for columns in (1, 4):
        with pytest.raises(ValueError, match=f"^x has 5 channels, and edges {columns}$"):
            sum_messages(x, edges[:, :columns], batch.messages)


def test_equal_messages_are_sent_once() -> None:
    """Node 0 sends to 1 and 2 over equal bonds, to 3 over another one: two messages."""
    ends = torch.tensor([[0, 0, 0], [1, 2, 3]])
    edges = torch.tensor([[1, 0, 0], [1, 0, 0], [2, 0, 0]])
    starts = {"node_starts": torch.tensor([0, 4]), "edge_starts": torch.tensor([0, 3])}
    nodes = {"nodes": torch.zeros(4, len(ATOMS)).long(), "walks": torch.zeros(4, 0)}
    tensors = GraphTensors(**starts, **nodes, sources=ends[0], targets=ends[1], edges=edges)
    messages = tensors.batch(torch.tensor([0])).messages
    assert messages.senders.tolist() == [0, 0]
    assert messages.incoming.tensor().to_dense().tolist() == [[0, 0], [1, 0], [1, 0], [0, 1]]


def test_distinct_rows_are_those_of_unique() -> None:
    rows = torch.randint(3, (200, 3), generator=torch.Generator().manual_seed(0))
    table, index = distinct_rows(rows)
    assert torch.equal(table, torch.unique(rows, dim=0)) and torch.equal(table[index], rows)


def test_numbers_on_edges_are_kept_edge_by_edge() -> None:
    drawn = draw_set(1)
    drawn["edges"] = torch.rand(len(drawn["sources"]), 7, generator=torch.Generator().manual_seed(0))
    batch = GraphTensors(**drawn).batch(torch.tensor([2, 0]))
    sources, targets, edges, nodes = joined(drawn, [2, 0])
    linear = nn.Linear(7, 4)
    x = torch.randn(nodes, 4)
    plain = plain_sum_messages(x, linear(edges), sources, targets)
    torch.testing.assert_close(sum_messages(x, linear(batch.edges), batch.messages), plain)


def test_a_batch_is_its_graphs_one_by_one() -> None:
    tensors, network = GraphTensors(**draw_set(0)), small().eval()
    graphs = [4, 1, 0, 2, 2]
    with torch.no_grad():
        together = network(tensors.batch(torch.tensor(graphs)))
        alone = torch.cat([network(tensors.batch(torch.tensor([graph]))) for graph in graphs])
    torch.testing.assert_close(together, alone)


def small(**options: object) -> Network:
    spec = GCNPlus(
        **{"hidden": 12, "layers": 2, "dropout": 0.0, "walk_channels": 4, "head": "halving"} | options
    )
    torch.manual_seed(0)
    return spec.build(num_classes=1, walk_steps=STEPS if spec.walk_channels else 0)


def by_formula(network: Network, drawn: dict[str, Tensor], graphs: list[int], spec: GCNPlus) -> Tensor:
    """GNNPlus's network in training, with a loop over edges; a layer's dropouts multiply by 2, 3 and 4."""
    weights = network.state_dict()

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def norm(name: str, x: Tensor) -> Tensor:
        scaled = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    sources, targets, edges, _ = joined(drawn, graphs)
    rows = torch.cat([torch.arange(*drawn["node_starts"][g : g + 2].tolist()) for g in graphs])
    nodes, walks = drawn["nodes"][rows], drawn["walks"][rows].double()
    x = sum(weights[f"nodes.tables.{i}.weight"][nodes[:, i]] for i in range(len(ATOMS)))
    x = torch.cat([x, linear("walks.linear", norm("walks.norm", walks))], dim=1)
    e = sum(weights[f"edges.tables.{i}.weight"][edges[:, i]] for i in range(len(BONDS)))
    for k in range(len(network.convs)):
        z = (
            plain_sum_messages(linear(f"convs.{k}.linear", x), e, sources, targets)
            + weights[f"convs.{k}.bias"]
        )
        z = 2 * torch.relu(norm(f"blocks.{k}.norm", z))
        z = z + x if spec.residual else z
        if spec.feed_forward:
            z = norm(f"blocks.{k}.norm_before", z)
            z = z + 4 * linear(f"blocks.{k}.down", 3 * torch.relu(linear(f"blocks.{k}.up", z)))
            z = norm(f"blocks.{k}.norm_after", z)
        x = z
    sizes = drawn["node_starts"].diff()[graphs].tolist()
    h = torch.stack([part.mean(0) for part in x.split(sizes)])
    return linear("head.4", torch.relu(linear("head.2", torch.relu(linear("head.0", h)))))


@pytest.mark.parametrize("feed_forward", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_the_network_is_that_of_the_code_base(
    residual: bool, feed_forward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, graphs = draw_set(3), [0, 2, 4, 1]
    options = {"residual": residual, "feed_forward": feed_forward, "dropout": 0.5}
    network = small(**options).double().train()
    for parameter in network.parameters():  # norms and biases start as ones and zeros, which hide mistakes
        torch.nn.init.normal_(parameter)
    factors = iter((2.0, 3.0, 4.0) * 2 if feed_forward else (2.0,) * 2)
    monkeypatch.setattr(gcn_plus, "dropout", lambda x, probability, training: x * next(factors))
    monkeypatch.setattr(gcn_plus, "relu_dropout", lambda x, probability, training: x.relu() * next(factors))
    batch = to_double(GraphTensors(**drawn).batch(torch.tensor(graphs)))
    with torch.no_grad():
        expected = by_formula(network, drawn, graphs, GCNPlus(hidden=12, walk_channels=4, **options))
        torch.testing.assert_close(network(batch), expected, rtol=1e-10, atol=1e-12)
    assert next(factors, None) is None


def test_a_convolution_adds_its_bias() -> None:
    """The norm that follows takes a constant away in training, but not in evaluation."""
    drawn, graphs = draw_set(1), [0, 2, 3]
    batch = to_double(GraphTensors(**drawn).batch(torch.tensor(graphs)))
    conv = gcn_plus.EdgeConv(4).double()
    torch.nn.init.normal_(conv.bias)
    x = torch.randn(len(batch.nodes), 4).double()
    kinds = torch.randn(len(batch.edges), 4).double()
    with torch.no_grad():
        without = sum_messages(conv.linear(x), kinds, batch.messages)
        torch.testing.assert_close(conv(x, kinds, batch.messages), without + conv.bias, rtol=1e-12, atol=0)


def test_the_initial_weights_are_those_of_the_code_base() -> None:
    """OGB's encoders of molecules are Xavier uniform, other embeddings N(0, 1); GCNConv's bias is zero."""
    molecules, code = small(hidden=64), small(encoder="code", walk_channels=0, hidden=64)
    for table in (*molecules.nodes.tables, *molecules.edges.tables):
        bound = math.sqrt(6 / sum(table.weight.shape))
        assert 0.8 * bound < float(table.weight.detach().abs().max()) <= bound
    attributes = code.nodes.tables[1].weight
    assert float(attributes.detach().std()) == pytest.approx(1, abs=0.02)
    assert not any(conv.bias.any() for conv in molecules.convs)
    for module in molecules.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert (module.eps, module.momentum, module.track_running_stats) == (1e-5, 0.1, True)
        if isinstance(module, nn.Linear):  # torch's own: uniform within 1 / sqrt(inputs)
            assert float(module.weight.detach().abs().max()) <= 1 / math.sqrt(module.in_features)


@pytest.mark.parametrize(
    ("head", "shape"), [(Head.linear, (3, 5)), (Head.normalized, (3, 5)), (Head.positions, (3, 5, 5))]
)
def test_heads_give_logits_of_every_graph(head: Head, shape: tuple[int, ...]) -> None:
    network = GCNPlus(hidden=8, layers=1, head=head).build(num_classes=5, walk_steps=0)
    assert network(GraphTensors(**draw_set(0)).batch(torch.tensor([0, 2, 4]))).shape == shape
    if head is Head.positions:
        x = torch.randn(3, 8)
        for position, layer in enumerate(network.head.layers):
            torch.testing.assert_close(network.head(x)[:, position], x @ layer.weight.T + layer.bias)
    if head is Head.normalized:  # GraphGym's default head with two layers
        x = torch.randn(3, 8)
        hidden = torch.relu(x @ network.head[0].weight.T + network.head[0].bias)
        scaled = hidden / hidden.norm(dim=1, keepdim=True)
        torch.testing.assert_close(network.head(x), scaled @ network.head[3].weight.T + network.head[3].bias)


def test_categories_are_those_of_ogb() -> None:
    if find_spec("ogb") is None:
        pytest.skip("needs pip install -e '.[run,ogb]'")
    features = ogbg_files.import_ogb("utils.features")
    assert tuple(features.get_atom_feature_dims()) == ATOMS
    assert tuple(features.get_bond_feature_dims()) == BONDS


def test_a_convolutions_weight_with_zero_gradient_is_bit_identical_after_ham() -> None:
    """G.6.1: beta acts where the gradient is not zero."""
    drawn, network = draw_set(5), small()
    with torch.no_grad():
        network.blocks[0].norm_after.weight[3], network.blocks[0].norm_after.bias[3] = 0, 0  # a dead input
    optimizer = torch.optim.SGD(network.convs.parameters(), lr=0.1)
    HAM(optimizer, alpha=200.0, beta=0.1, model=network, mask_zero_grad=True)
    loss = network(GraphTensors(**drawn).batch(torch.tensor([0, 2, 4]))).square().sum()
    loss.backward()
    weight = network.convs[1].linear.weight
    before, zero = weight.detach().clone(), weight.grad == 0
    assert zero[:, 3].all() and not zero.all()
    optimizer.step()
    assert torch.equal(weight.detach()[zero], before[zero])
    moved = before - 0.1 * weight.grad
    exponent = (-0.1 * (200 * moved.sign() * weight.grad + 0.1)).clamp(-5, 5)
    expected = torch.where(zero, before, moved * exponent.exp())
    torch.testing.assert_close(weight.detach(), expected)


@settings(max_examples=50)
@given(sizes=st.lists(st.integers(1, 50), max_size=30), bound=st.integers(1, 100))
def test_groups_of_evaluation_cover_every_graph_in_order(sizes: list[int], bound: int) -> None:
    groups = batches_of_similar_size(torch.tensor(sizes, dtype=torch.long), bound)
    assert [place for group in groups for place in group.tolist()] == list(range(len(sizes)))
    for group in groups:
        assert len(group) == 1 or sum(sizes[place] for place in group.tolist()) <= bound


def test_the_defaults_are_four_layers_of_256_channels_for_molecules() -> None:
    plain = GCNPlus()
    assert (plain.encoder, plain.head) == (Encoder.molecules, Head.linear)
    assert (plain.hidden, plain.layers, plain.dropout, plain.walk_channels) == (256, 4, 0.1, 0)
    assert plain.feed_forward and not plain.residual
    plain.check(0)
    with pytest.raises(ValueError, match=r"^model=gcn_plus reads graphs, not images: choose an experiment"):
        plain.check(1)


def test_the_smallest_sizes_are_possible() -> None:
    spec = GCNPlus(hidden=1, layers=1, dropout=0.0)
    assert len(spec.build(num_classes=2, walk_steps=0).convs) == 1
    assert GCNPlus(hidden=2, walk_channels=1).walk_channels == 1
    network = GCNPlus(hidden=4, layers=1, head="halving").build(num_classes=3, walk_steps=0)
    sizes = [(own.in_features, own.out_features) for own in network.head if isinstance(own, nn.Linear)]
    assert sizes == [(4, 2), (2, 1), (1, 3)]


@pytest.mark.parametrize(
    ("kind", "nodes", "edges"),
    [
        ("molecules", ATOMS, BONDS),
        ("proteins", (1,), None),
        ("code", SETS["ogbg-code2"].node_sizes, SETS["ogbg-code2"].edge_sizes),
    ],
)
def test_encoders_have_a_table_for_each_category_of_the_set(
    kind: str, nodes: tuple[int, ...], edges: tuple[int, ...] | None
) -> None:
    network = GCNPlus(hidden=3, layers=1, encoder=kind).build(num_classes=2, walk_steps=0)
    assert tuple(table.num_embeddings for table in network.nodes.tables) == nodes
    if edges is None:  # proteins have seven numbers per edge
        assert (network.edges.in_features, network.edges.out_features) == (7, 3)
    else:
        assert tuple(table.num_embeddings for table in network.edges.tables) == edges


def test_a_sum_of_embeddings_is_by_hand() -> None:
    own = SumOfEmbeddings((2, 3), 2, xavier=False)
    with torch.no_grad():
        own.tables[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        own.tables[1].weight.copy_(torch.tensor([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]]))
    assert own(torch.tensor([[1, 2], [0, 0]])).tolist() == [[53, 64], [11, 22]]
    with pytest.raises(ValueError, match="longer"):
        own(torch.tensor([[1, 2, 0]]))


def test_embeddings_of_code_are_normal_and_those_of_molecules_are_bounded() -> None:
    torch.manual_seed(0)
    code, bond = edge_encoder(Encoder.code, 3000), edge_encoder(Encoder.molecules, 3000)
    for table in code.tables:
        assert float(table.weight.detach().std()) == pytest.approx(1, abs=0.05)
    for table in bond.tables:
        bound = math.sqrt(6 / sum(table.weight.shape))
        assert 0.99 * bound < float(table.weight.detach().abs().max()) <= bound


def test_a_batch_on_a_device_is_the_same_batch() -> None:
    batch = GraphTensors(**draw_set(0)).batch([4, 0])
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved, GraphBatch) and isinstance(moved.messages, Messages)
    assert all(
        torch.equal(getattr(batch, name), getattr(moved, name)) for name in ("nodes", "walks", "edges")
    )
    network = small().eval()
    with torch.no_grad():
        assert torch.equal(network(moved), network(batch))
    for name in ("senders", "kinds"):
        assert torch.equal(getattr(batch.messages, name), getattr(moved.messages, name))
    for name in ("incoming", "outgoing", "by_sender", "by_kind"):
        one, other = (getattr(own.messages, name).tensor().to_dense() for own in (batch, moved))
        assert torch.equal(one, other)
    pooling = moved.pooling.transpose.tensor().to_dense()
    assert torch.equal(pooling, batch.pooling.tensor().to_dense().t())


def test_gradients_are_computed_where_they_are_needed_alone() -> None:
    batch = GraphTensors(**draw_set(2)).batch([0, 2])
    x, edges = torch.randn(12, 4), torch.randn(len(batch.edges), 4)
    for needs in (0, 1):
        inputs = [own.clone().requires_grad_(place == needs) for place, own in enumerate((x, edges))]
        sum_messages(*inputs, batch.messages).sum().backward()
        assert inputs[needs].grad is not None and inputs[1 - needs].grad is None


@pytest.mark.parametrize(
    ("sizes", "bound", "groups"),
    [
        ([2, 3, 5], 5, [[0, 1], [2]]),
        ([2, 4, 5], 5, [[0], [1], [2]]),
        ([9, 1, 1], 5, [[0], [1, 2]]),
        ([5], 5, [[0]]),
        ([], 5, []),
        ([1, 1, 1, 1, 1], 2, [[0, 1], [2, 3], [4]]),
    ],
)
def test_groups_of_evaluation_are_filled_up_to_their_bound(
    sizes: list[int], bound: int, groups: list[list[int]]
) -> None:
    found = batches_of_similar_size(torch.tensor(sizes, dtype=torch.long), bound)
    assert [own.tolist() for own in found] == groups


def test_rows_of_no_edges_and_of_numbers_are_their_own() -> None:
    for edges in (torch.zeros(0, 3).long(), torch.tensor([[0.5], [0.5]])):
        table, index = distinct_rows(edges)
        assert table is edges and index.tolist() == list(range(len(edges)))
    table, index = distinct_rows(torch.tensor([[1, 0], [0, 2], [1, 0]]))
    assert table.tolist() == [[0, 2], [1, 0]] and index.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        ({"hidden": 0}, "must be positive, got 0, 4"),
        ({"layers": 0}, "must be positive, got 256, 0"),
        ({"dropout": -0.5}, r"in \[0, 1\), got -0.5"),
        ({"walk_channels": -1}, r"model.walk_channels must be in \[0, model.hidden\), got -1 of 256"),
        ({"dropout": 1.0}, r"in \[0, 1\)"),
        ({"walk_channels": 256}, "walk_channels must be in"),
        ({"hidden": 3, "head": "halving"}, "at least 4"),
    ],
)
def test_impossible_sizes_are_one_line(options: dict, cure: str) -> None:
    with pytest.raises(ValueError, match=cure):
        GCNPlus(**options)


def test_the_mean_over_nodes_is_pooled() -> None:
    batch = GraphTensors(**draw_set(0)).batch(torch.tensor([2, 1, 0]))
    x = torch.randn(13, 3)
    means = torch.stack([part.mean(0) for part in x.split([7, 1, 5])])
    torch.testing.assert_close(batch.pooling @ x, means)
