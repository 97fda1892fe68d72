"""Which weights are prunable in models of every kind, under which names, and which can be parametrized."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from small_networks import LanguageModel
from torch import nn
from torch.nn.utils import parametrize, prune

from pruning import Product, RandomPruning, prunable_weights
from pruning.product import PointwiseProduct


def attached(model: nn.Module, **options: object) -> RandomPruning:
    sparsifier = RandomPruning(0.5)
    sparsifier.attach(model, total_epochs=1, **options)
    return sparsifier


def input_dims(model: nn.Module) -> dict[str, int]:
    return {name: weight.input_dim for name, weight in prunable_weights(model).items()}


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(2, 3),
        nn.Conv2d(2, 3, 3),
        nn.ConvTranspose1d(2, 3, 3),
        nn.ConvTranspose2d(2, 3, 3),
        nn.RNNCell(2, 3),
        nn.LSTM(2, 3),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_input_dimension_is_the_one_as_long_as_the_inputs(layer):
    for name, weight in prunable_weights(layer).items():
        expected = 3 if "_hh" in name else 2
        assert weight.shape[weight.input_dim] == expected
        assert weight.input_dim == int(not isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d))


@pytest.mark.parametrize("factored", [False, True])
def test_gpt2_is_pruned_in_its_conv1d_layers_and_not_in_its_embedding(factored):
    """Its head is tied to the token embedding; all else are 4 matrices a block, stored [inputs, outputs]."""
    model = gpt2()
    attached(model, parameterization=Product() if factored else None)
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert input_dims(model) == {f"transformer.h.0.{layer}.weight": 0 for layer in layers}
    weights = prunable_weights(model)
    assert weights["transformer.h.0.mlp.c_fc.weight"].shape == (8, 32)  # 4 * width outputs


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    GPT2Config, GPT2LMHeadModel = transformers.GPT2Config, transformers.GPT2LMHeadModel
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=0
        )
    )


def test_the_tied_embedding_of_gpt2_is_pruned_once_where_it_is_included():
    names = list(prunable_weights(gpt2(), include=["*.wte.weight"]))
    assert names[0] == "transformer.wte.weight"
    assert len(names) == 5


def test_a_hooked_conv1d_is_refused_and_not_left_out():
    model = gpt2()
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(model.transformer.h[0].mlp.c_fc)
    with pytest.raises(
        ValueError, match=r"c_fc\.weight is not a parameter but computed .* or exclude the weight$"
    ):
        prunable_weights(model)


@pytest.mark.parametrize("factored", [False, True])
def test_fused_experts_are_pruned_matrix_by_matrix(factored):
    """Mixtral stores [experts, outputs, inputs]; GPT-OSS stores [experts, inputs, outputs]."""
    pytest.importorskip("transformers")
    from transformers import GptOssConfig, MixtralConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_local_experts": 3}
    for kind, config in ((MixtralExperts, MixtralConfig), (GptOssExperts, GptOssConfig)):
        layer = kind(config(**sizes))
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        attached(layer, parameterization=Product() if factored else None)
        inputs = {n: w.shape[w.input_dim] for n, w in prunable_weights(layer).items()}
        assert inputs == {"gate_up_proj": 8, "down_proj": 12}


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_are_pruned_in_all_weights_and_no_bias(kind):
    layer = kind(2, 3, num_layers=2, bidirectional=True)
    expected = [name for name, p in layer.named_parameters() if p.ndim == 2]
    assert list(prunable_weights(layer)) == expected
    assert len(expected) == 8  # input and hidden, two layers, two directions


def test_an_lstm_with_projections_is_pruned_in_these_too():
    assert "weight_hr_l0" in prunable_weights(nn.LSTM(2, 4, proj_size=3))


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_recurrent_cells_are_pruned_and_parametrized(kind):
    torch.manual_seed(0)
    cell, x = kind(2, 3), torch.randn(4, 2)
    before = cell(x)
    sparsifier = RandomPruning(0.0)
    sparsifier.attach(cell, total_epochs=1, parameterization=Product())
    assert list(sparsifier.kept()) == ["weight_ih", "weight_hh"]
    torch.testing.assert_close(cell(x), before)


def test_masks_on_an_lstm_act_in_its_forward_pass():
    """The layer computes with the list `_flat_weights`: it must hold the tensors that are masked."""
    torch.manual_seed(0)
    layer, x = nn.LSTM(2, 3), torch.randn(4, 1, 2)
    layer.load_state_dict(nn.LSTM(2, 3).state_dict(), assign=True)
    sparsifier = attached(layer)
    plain = nn.LSTM(2, 3)
    plain.load_state_dict({k: v.clone() for k, v in layer.state_dict().items()})
    assert 0.45 < sparsifier.achieved_sparsity() < 0.55
    assert torch.equal(layer(x)[0], plain(x)[0])


def test_an_lstm_is_not_parametrized_because_its_list_of_weights_holds_results():
    """After a forward pass `_flat_weights` holds what that pass has computed: no copy can be made."""
    layer = nn.LSTM(2, 3)
    with pytest.raises(
        ValueError, match=r"^weight_ih_l0 cannot be parametrized, because its layer keeps a list"
    ):
        attached(layer, parameterization=Product())
    parametrize.register_parametrization(layer, "weight_ih_l0", PointwiseProduct(1.0))
    layer(torch.randn(4, 1, 2))
    assert not layer._flat_weights[0].is_leaf
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(layer)


def test_an_lstm_under_hooked_weight_norm_is_refused():
    layer = nn.LSTM(2, 3)
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(layer, "weight_hh_l0")
    with pytest.raises(ValueError, match=r"^weight_hh_l0 is not a parameter but computed"):
        prunable_weights(layer)


def test_embeddings_are_left_out_with_what_is_tied_to_them():
    assert list(prunable_weights(LanguageModel(tied=False))) == ["hidden.weight", "head.weight"]
    assert list(prunable_weights(LanguageModel(tied=True))) == ["hidden.weight"]


def test_include_brings_an_embedding_in_once():
    included = prunable_weights(LanguageModel(tied=True), include=["embed.*", "head.*"])
    assert list(included) == ["embed.weight", "hidden.weight"]
    assert list(prunable_weights(LanguageModel(tied=True), include=["head.*"])) == [
        "hidden.weight",
        "head.weight",
    ]


def test_include_takes_any_parameter_and_exclude_has_the_last_word():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    assert list(prunable_weights(model, include=["*"])) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert list(prunable_weights(model, ["1.bias", "0.*"], ["1.*"])) == ["1.weight"]


def test_an_include_that_matches_nothing_raises():
    with pytest.raises(ValueError, match=r"^include='embed' matches no prunable weight; names are like"):
        prunable_weights(LanguageModel(tied=False), include=["embed"])


@pytest.mark.filterwarnings("ignore:the prunable weights are")
@pytest.mark.parametrize("parametrized", [False, True])
@pytest.mark.parametrize("factored", [False, True])
def test_an_excluded_weight_may_be_computed(parametrized, factored):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    if parametrized:
        nn.utils.parametrizations.weight_norm(model[0])
    else:
        prune.l1_unstructured(model[0], "weight", 0.5)
    sparsifier = attached(model, exclude=["0.*"], parameterization=Product() if factored else None)
    assert list(sparsifier.kept()) == ["1.weight"]


COMPUTED: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore:the prunable weights are", "ignore:`torch.nn.utils.weight_norm`")
@pytest.mark.parametrize("how", COMPUTED)
@pytest.mark.parametrize("make", [nn.Linear, lambda *_: nn.Conv2d(2, 2, 1)], ids=["linear", "conv"])
@pytest.mark.parametrize("has_run", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_a_weight_that_a_hook_computes_is_refused_or_excluded(how, make, has_run, own):
    """Before the first forward pass, spectral_norm leaves a tensor without requires_grad in its place."""
    model = nn.Sequential(make(2, 2), nn.Linear(2, 2))
    COMPUTED[how](model[0])
    if has_run:
        model[0](torch.ones(1, 2, 1, 1) if isinstance(model[0], nn.Conv2d) else torch.ones(1, 2))
    with pytest.raises(ValueError) as error:
        attached(model)
    assert str(error.value) == (
        "0.weight is not a parameter but computed from others, as by torch.nn.utils.spectral_norm, "
        "weight_norm or torch.nn.utils.prune: undo that first (remove_spectral_norm, remove_weight_norm, "
        "prune.remove), or exclude the weight"
    )
    sparsifier = RandomPruning(0.5, exclude=["0.weight"] if own else [])
    sparsifier.attach(model, total_epochs=1, exclude=[] if own else ["0.weight"])
    assert list(sparsifier.kept()) == ["1.weight"]


class Wrapped(nn.Module):
    """A user's model with a layer of his own called `module`."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.head = nn.Linear(2, 2), nn.Linear(2, 2)


def test_wrappers_leave_names_as_they_are_and_a_layer_called_module_keeps_its_name():
    names = ["module.weight", "head.weight"]
    assert list(prunable_weights(Wrapped())) == names
    assert list(prunable_weights(nn.DataParallel(Wrapped()))) == names
    assert list(prunable_weights(torch.compile(nn.DataParallel(Wrapped()), backend="eager"))) == names
    inside = nn.Sequential(nn.DataParallel(Wrapped()), nn.Linear(2, 2))
    assert list(prunable_weights(inside)) == [*(f"0.{name}" for name in names), "1.weight"]


def test_an_embedding_model_that_leaves_nothing_names_include():
    class Bigram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(4, 3), nn.Linear(3, 4)
            self.head.weight = self.embed.weight

    with pytest.raises(ValueError, match=r"^nothing to prune: .*; embeddings and .* need include=\[globs\]$"):
        attached(Bigram())
    with pytest.raises(ValueError, match=r"^head\.weight shares its weight with embed\.weight: untie them"):
        attached(Bigram(), include=["embed.weight"], parameterization=Product())
