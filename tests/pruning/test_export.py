from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning import STR, Dense, PILoT, Product, RandomPruning, Sparsifier, Spred
from pruning.export import (
    load_masks,
    plain_state_dict,
    remove_parametrizations_,
    save_masks,
    semi_structured,
    semi_structured_error,
    sparse_csr,
)

METHODS = {
    "plain": (lambda: RandomPruning(sparsity=0.7), lambda: None),
    "product": (lambda: RandomPruning(sparsity=0.7), lambda: Product()),
    "dense product": (lambda: Dense(), lambda: Product(scaling=2.0)),
    "str": (lambda: STR(sparsity=0.5, initial=-2.5), lambda: None),
    "str but one": (lambda: STR(sparsity=0.5, initial=-2.5, exclude=["head.weight"]), lambda: None),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.register_buffer("scale", torch.tensor(2.0))
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1)) * self.scale


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def images() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def trained(kind: str) -> tuple[Net, Sparsifier]:
    """Three steps old."""
    model = net()
    make, parameterization = METHODS[kind]
    sparsifier = make()
    sparsifier.attach(model, total_epochs=1, parameterization=parameterization())
    train(model, sparsifier)
    return model, sparsifier


def train(model: nn.Module, sparsifier: Sparsifier) -> None:
    optimizer = torch.optim.SGD(sparsifier.param_groups(model.parameters()), lr=0.05, momentum=0.9)
    for step in range(3):
        optimizer.zero_grad()
        model(images()).square().sum().backward()
        sparsifier.after_backward(step, optimizer)
        sparsifier.add_decay()
        optimizer.step()
        sparsifier.after_step()


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


@pytest.mark.parametrize("kind", METHODS)
def test_the_plain_model_loads_it_and_computes_the_same(kind):
    model, sparsifier = trained(kind)
    state = plain_state_dict(model)
    plain = net(seed=1)
    assert state.keys() == plain.state_dict().keys()
    plain.load_state_dict(state, strict=True)
    for mode in (True, False):
        model.train(mode), plain.train(mode)
        assert torch.equal(model(images()), plain(images()))
    for name, kept in sparsifier.kept().items():
        assert torch.equal(state[name] != 0, kept)
        assert not state[name][~kept].signbit().any()
    if kind != "dense product":
        assert any(not kept.all() for kept in sparsifier.kept().values())


@pytest.mark.parametrize("kind", METHODS)
def test_the_model_is_untouched_and_trains_on(kind):
    model, sparsifier = trained(kind)
    before = {name: bits(value) for name, value in model.state_dict().items()}
    parameters = list(model.parameters())
    gradients = [None if p.grad is None else bits(p.grad) for p in parameters]
    state = plain_state_dict(model)
    assert {name: bits(value) for name, value in model.state_dict().items()} == before
    assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))
    assert [None if p.grad is None else bits(p.grad) for p in parameters] == gradients
    for value in state.values():
        assert not value.requires_grad and value.device.type == "cpu" and value.is_contiguous()
        value.fill_(7)
    assert {name: bits(value) for name, value in model.state_dict().items()} == before
    old = {name: value.clone() for name, value in sparsifier.masks.values().items()}
    train(model, sparsifier)
    assert all(not torch.equal(old[n], value) for n, value in sparsifier.masks.values().items())


def test_negative_zeros_become_positive_and_the_model_keeps_them():
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-0.0, 1.0], [0.0, -1.0]]))
        layer.bias.fill_(-0.0)
    state = plain_state_dict(layer)
    assert not state["weight"][0].signbit().any() and not state["bias"].signbit().any()
    assert state["weight"].tolist() == [[0, 1], [0, -1]]
    assert layer.weight[0, 0].signbit() and layer.bias.signbit().all()


def test_integer_buffers_keep_their_type():
    state = plain_state_dict(nn.BatchNorm1d(2))
    assert state["num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize(
    ("make", "parameterization"),
    [
        (lambda: Dense(), Product()),
        (lambda: STR(0.5, initial=-2.0), None),
        (lambda: PILoT(0.5), None),
        (lambda: Spred(0.5), None),
    ],
    ids=["product", "str", "pilot", "spred"],
)
def test_a_module_with_two_names_is_plain_under_each(make, parameterization):
    def heads() -> nn.ModuleDict:
        head = nn.Sequential(nn.Linear(4, 4))
        return nn.ModuleDict({"first": head, "second": head, "inner": head[0]})

    model, plain = heads(), heads()
    make().attach(model, total_epochs=2, steps_per_epoch=1, parameterization=parameterization)
    state, names = plain_state_dict(model), plain.state_dict().keys()
    plain.load_state_dict(state)
    assert state.keys() == names and len(names) == 6
    assert torch.equal(plain["second"][0].weight, model["first"][0].weight)


@pytest.mark.parametrize("root", ["product", "str"])
def test_a_layer_that_is_the_entire_model(root):
    layer = nn.Linear(3, 2)
    old = layer.weight.detach().clone()
    sparsifier = Dense() if root == "product" else STR(sparsity=0.5, initial=-100.0)
    parameterization = Product() if root == "product" else None
    sparsifier.attach(layer, total_epochs=1, parameterization=parameterization)
    state = plain_state_dict(layer)
    assert state.keys() == {"weight", "bias"}
    torch.testing.assert_close(state["weight"], old)


def test_channels_last_models_export_contiguous_rows():
    model = net().to(memory_format=torch.channels_last)
    state = plain_state_dict(model)
    assert state["stem.0.weight"].is_contiguous()
    assert torch.equal(state["stem.0.weight"], model.stem[0].weight)


def rebuilt(found: dict[str, Tensor], name: str) -> Tensor:
    shape = found[f"{name}.shape"].tolist()
    rows = torch.sparse_csr_tensor(
        found[f"{name}.crow"],
        found[f"{name}.col"],
        found[f"{name}.values"],
        (shape[0], torch.tensor(shape[1:]).prod().item()),
        check_invariants=True,
    )
    return rows.to_dense().view(shape)


def test_compressed_rows_by_hand():
    weight = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    found = sparse_csr({"w": weight, "b": torch.ones(4)}, ["w"])
    assert {name: (value.tolist(), value.dtype) for name, value in found.items()} == {
        "w.crow": ([0, 1, 1, 3, 3], torch.int32),
        "w.col": ([1, 0, 2], torch.int32),
        "w.values": ([2.0, -1.0, 3.0], torch.float32),
        "w.shape": ([4, 3], torch.int64),
    }


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@given(
    st.sampled_from([(4, 3), (1, 5), (5, 1), (4, 3, 2), (4, 2, 3, 3), (3, 1, 1, 1)]),
    st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    st.integers(0, 9),
)
@settings(max_examples=60)
def test_compressed_rows_round_trip(shape, density, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    weight.masked_fill_(torch.rand(shape, generator=generator) >= density, 0.0)
    weight[0] = 0.0
    if weight.ndim == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    found = sparse_csr({"w": weight}, ["w"])
    assert torch.equal(rebuilt(found, "w"), weight)
    assert len(found["w.values"]) == weight.count_nonzero()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", ["plain", "product", "str"])
def test_safetensors_keep_both_forms(kind, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model, sparsifier = trained(kind)
    state = plain_state_dict(model)
    names = list(sparsifier.kept())
    content = {**state, **sparse_csr(state, names)}
    safetensors.save_file(content, tmp_path / "model.safetensors")
    loaded = safetensors.load_file(tmp_path / "model.safetensors")
    assert loaded.keys() == content.keys()
    assert all(bits(value) == bits(content[name]) for name, value in loaded.items())
    assert all(torch.equal(rebuilt(loaded, name), state[name]) for name in names)


@pytest.mark.parametrize("kind", ["plain", "product", "str"])
def test_masks_and_margins_come_back(kind, tmp_path):
    _, sparsifier = trained(kind)
    save_masks(tmp_path / "masks.pt", sparsifier, {"seed": 1, "method": kind})
    for source in (tmp_path, tmp_path / "masks.pt", str(tmp_path)):
        kept, margins, origin = load_masks(source)
        assert kept.keys() == sparsifier.kept().keys()
        assert all(
            mask.dtype == torch.bool and torch.equal(mask, kept[n]) for n, mask in sparsifier.kept().items()
        )
        assert origin == {"seed": 1, "method": kind}
        assert bool(margins) == (kind == "str")
        assert all(torch.equal(margins[n] > 0, kept[n]) for n in margins)
    save_masks(tmp_path / "bare.pt", sparsifier)
    assert load_masks(tmp_path / "bare.pt")[2] == {}


def test_deep_copies_export_alike():
    model, _ = trained("product")
    copied = copy.deepcopy(model)
    ours, theirs = plain_state_dict(model), plain_state_dict(copied)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


# 2:4


def two_of_four(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """Ones at the first two of every four inputs."""
    return torch.tensor([1, 1, 0, 0]).repeat(*shape[:-1], shape[-1] // 4).to(dtype)


@pytest.mark.parametrize(
    ("weight", "error"),
    [
        (two_of_four(64, 128), ""),
        (two_of_four(64, 128, dtype=torch.bfloat16), ""),
        (two_of_four(64, 128, dtype=torch.int8), ""),
        (torch.zeros(64, 128, dtype=torch.float16), ""),
        (two_of_four(8, 4, 3, 4), "has 4 dimensions: only matrices [out, in] have a 2:4 sparse form"),
        (
            two_of_four(64, 128, dtype=torch.float32),
            "is float32: pass dtype=torch.float16 or torch.bfloat16",
        ),
        (
            two_of_four(64, 128).roll(1, dims=1) + two_of_four(64, 128),
            "has more than two non-zero entries of four: train with granularity='2:4' and sparsity=0.5",
        ),
    ],
)
def test_which_weights_have_a_two_of_four_form(weight, error):
    assert semi_structured_error(weight) == error


@pytest.mark.parametrize("shape", [(63, 128), (64, 124), (8, 128), (0, 128)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_sides_must_be_multiples_of_what_torch_packs(shape, dtype):
    from torch.sparse.semi_structured import SparseSemiStructuredTensorCUSPARSELT

    least = SparseSemiStructuredTensorCUSPARSELT._DTYPE_SHAPE_CONSTRAINTS[dtype]
    sides = f"{least.sparse_min_rows} and {least.sparse_min_cols}"
    error = semi_structured_error(two_of_four(*shape, dtype=dtype))
    assert error == f"is {list(shape)}: its sides must be multiples of {sides}; leave it dense"


def test_without_a_gpu_the_export_names_the_reason(monkeypatch):
    """A weight that does not qualify is named first; then the missing device is."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 10))
    sparsifier = RandomPruning(0.5, granularity="2:4", allocation="uniform")
    sparsifier.attach(model, total_epochs=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^2:4 sparse matrices need an NVIDIA GPU of compute"):
        semi_structured(model, ["0.weight"], dtype=torch.float16)
    with pytest.raises(ValueError, match=r"^0\.weight is float32: pass dtype="):
        semi_structured(model, ["0.weight"])
    with pytest.raises(ValueError, match=r"^1\.weight is \[10, 64\]: its sides must be multiples of"):
        semi_structured(plain_state_dict(model), ["0.weight", "1.weight"], dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"^unknown weight 2\.weight"):
        semi_structured(model, ["2.weight"])


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_a_gpu_must_have_sparse_tensor_cores(monkeypatch, capability):
    state = {"weight": two_of_four(64, 128)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda weight: ("packed", weight))
    if capability < (8, 0):
        with pytest.raises(ValueError, match=r"need an NVIDIA GPU of compute capability 8\.0 or more"):
            semi_structured(state, ["weight"])
        return
    packed = semi_structured(state, iter(["weight"]))
    assert packed["weight"][0] == "packed" and torch.equal(packed["weight"][1], state["weight"])
    halves = semi_structured({"weight": state["weight"].float()}, ["weight"], torch.bfloat16)
    assert halves["weight"][1].dtype == torch.bfloat16


def test_a_vector_is_one_row():
    found = sparse_csr({"v": torch.tensor([0.0, 2.0, 0.0, 3.0])}, ["v"])
    assert {name: value.tolist() for name, value in found.items()} == {
        "v.crow": [0, 2],
        "v.col": [1, 3],
        "v.values": [2.0, 3.0],
        "v.shape": [4],
    }


def test_the_origin_of_saved_masks_is_optional(tmp_path):
    _, sparsifier = trained("plain")
    for origin in (None, {"run": "a", "seed": 1}):
        save_masks(tmp_path / "masks.pt", sparsifier, origin)
        for source in (tmp_path, str(tmp_path / "masks.pt")):
            masks, margins, found = load_masks(source)
            assert found == (origin or {}) and margins == {}
            assert all(torch.equal(mask, sparsifier.kept()[name]) for name, mask in masks.items())


class Doubled(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return 2 * value


OWN = {
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "bias": lambda layer: nn.utils.parametrize.register_parametrization(layer, "bias", Doubled()),
}


@pytest.mark.parametrize("norm", OWN)
@pytest.mark.parametrize("kind", ["product", "str", "plain"])
def test_a_parametrization_of_the_user_stays(norm, kind):
    def with_norm() -> nn.Sequential:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        OWN[norm](model[2])
        model[4].register_buffer("scale", torch.tensor([1.0, -3.0]))
        nn.utils.parametrize.register_parametrization(model[4], "scale", Doubled())
        return model.eval()

    model, plain, inputs = with_norm(), with_norm(), torch.randn(3, 4)
    make, parameterization = METHODS[kind]
    make().attach(model, total_epochs=1, parameterization=parameterization(), exclude=["2.weight"])
    outputs, state = model(inputs), plain_state_dict(model)
    plain.load_state_dict(state)
    assert state.keys() == plain.state_dict().keys()
    assert torch.equal(plain(inputs), outputs)
    remove_parametrizations_(model)
    assert model.state_dict().keys() == state.keys() and torch.equal(model(inputs), outputs)
