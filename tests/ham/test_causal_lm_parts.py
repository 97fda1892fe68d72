"""Language models with LoRA: values of a configuration, what is loaded, digests; a tiny Llama."""

from __future__ import annotations

import hashlib
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ham.models import causal_lm
from ham.models.causal_lm import TINY, CausalLM, Dtype, adapter_digest, trained_weights
from ham.models.pretrained import (
    Source,
)
from ham.models.tiny_llama import tiny_config, tiny_llama, tiny_tokenizer

CPU = torch.device("cpu")


class Layers(nn.Module):
    """Two layers of one name, one of another, and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.ModuleDict(), nn.ModuleDict()
        self.first["q"], self.second["q"] = nn.Linear(2, 3, bias=False), nn.Linear(4, 5, bias=False)
        self.first["k"], self.table = nn.Linear(6, 7, bias=False), nn.Embedding(2, 2)


def test_a_gguf_file_needs_four_more_bytes_for_each_value_while_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(causal_lm, "locate", lambda checkpoint, gguf: Source(checkpoint, "", gguf))
    for name, found in (("read_config", None), ("read_tokenizer", "tokenizer"), ("meta_model", Layers())):
        monkeypatch.setattr(causal_lm, name, lambda source, found=found: found)
    monkeypatch.setattr(causal_lm, "read_weights", lambda source, dtype: ("weights", dtype))
    monkeypatch.setattr(causal_lm, "check_memory", lambda *args, **options: asked.append((*args, options)))
    for gguf in ("", "a.gguf"):
        for dtype in Dtype:
            spec = CausalLM(checkpoint="net", gguf=gguf, rank=3, targets=["q"], dtype=dtype)
            assert spec._load_base(CPU) == (("weights", getattr(torch, dtype)), "tokenizer")
    assert asked == [
        ("net", 72 * size + 42 * 16, CPU, {"while_loading": 72 * (size + more)})
        for more in (0, 4)
        for size in (2, 4)
    ]


def test_the_defaults_of_lora_are_those_of_dora() -> None:
    spec = CausalLM()
    assert (spec.checkpoint, spec.gguf, spec.rank, spec.lora_alpha, spec.lora_dropout) == (
        "",
        "",
        32,
        64,
        0.05,
    )
    assert spec.targets == ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    assert (spec.dtype, spec.lora_dtype) == (Dtype.bfloat16, Dtype.float32) and spec.gradient_checkpointing


def test_the_smallest_values_of_lora_are_possible() -> None:
    CausalLM(rank=1, lora_alpha=0.5, lora_dropout=0.0, targets=["q_proj"])
    for options, message in (
        ({"lora_dropout": -0.1}, r"must be in \[0, 1\), got -0.1"),
        ({"targets": ["q_proj", "q_proj"]}, "must list each layer once: got"),
        ({"rank": 0}, "must be positive, got 0, 64$"),
    ):
        with pytest.raises(ValueError, match=message):
            CausalLM(**options)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_loaded_model_has_the_values_of_its_configuration(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []
    monkeypatch.setattr(causal_lm, "_checkpoint_activations", called.append)
    options = dict(rank=2, lora_alpha=8.0, lora_dropout=0.25, targets=["q_proj", "up_proj"])
    spec = CausalLM(checkpoint=TINY, gradient_checkpointing=checkpointing, **options)
    loaded = spec.load(0, CPU)
    config = loaded.model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 8, 0.25)
    assert (config.target_modules, config.bias, config.task_type) == (
        {"q_proj", "up_proj"},
        "none",
        "CAUSAL_LM",
    )
    base = loaded.model.get_base_model()
    assert called == [base] * checkpointing and base.config.use_cache is False
    assert (loaded.tokenizer.pad_token_id, loaded.tokenizer.padding_side) == (0, "left")
    named = trained_weights(loaded.model)
    assert named and all("lora_" in name and p.requires_grad for name, p in named.items())
    assert len(named) == sum(p.requires_grad for p in loaded.model.parameters())


@pytest.mark.parametrize("names", [("gradient",), ("gradient", "activation")])
def test_activations_are_recomputed_by_the_method_s_old_or_new_name(names: tuple[str, ...]) -> None:
    calls: list[Any] = []
    methods = {
        f"{name}_checkpointing_enable": lambda options, name=name: calls.append((name, options))
        for name in names
    }
    base = SimpleNamespace(**methods, enable_input_require_grads=lambda: calls.append("inputs"))
    causal_lm._checkpoint_activations(base)
    assert calls == [(names[-1], {"use_reentrant": False}), "inputs"]


def test_warnings_of_peft_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import peft

    monkeypatch.setattr(peft, "get_peft_model", lambda base, config, **_: warnings.warn("no", stacklevel=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CausalLM(checkpoint=TINY)._add_lora(nn.Module(), 0) is None


class Adapter(nn.Module):
    """A matrix B of ones and a matrix A by another name."""

    def __init__(self, name: str = "lora_A", rows: int = 2) -> None:
        super().__init__()
        self.lora_B = nn.Parameter(torch.ones(1, 6))
        setattr(self, name, nn.Parameter(torch.arange(6.0).view(rows, -1)))
        self.other = nn.Parameter(torch.rand(3))


def test_the_digest_of_an_adapter_is_of_names_shapes_and_values_in_the_order_of_names() -> None:
    before = adapter_digest(Adapter())
    assert before == adapter_digest(Adapter()) == adapter_digest(Adapter().double())
    others = [adapter_digest(own) for own in (Adapter("lora_C"), Adapter(rows=3), Adapter("lora_A", 1))]
    assert len({before, *others}) == 4 and len(before) == 64
    content = b"".join(
        f"{name} {shape}\0".encode() + np.array(values, dtype="<f4").tobytes()
        for name, shape, values in (("lora_A", (2, 3), range(6)), ("lora_B", (1, 6), [1] * 6))
    )
    assert before == hashlib.sha256(content).hexdigest()
    empty = Adapter()
    nn.init.zeros_(empty.lora_B)
    assert adapter_digest(empty) == hashlib.sha256().hexdigest()


def test_the_tiny_llama_has_two_layers_of_32_channels_and_the_same_weights_always() -> None:
    tokenizer = tiny_tokenizer()
    config = tiny_config(tokenizer)
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (2, 32, 64)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    assert config.max_position_embeddings == tokenizer.model_max_length == 4096
    assert (config.vocab_size, config.bos_token_id) == (len(tokenizer), None)
    assert (
        (config.pad_token_id, config.eos_token_id)
        == (0, 1)
        == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    )
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    weights = tiny_llama(config).lm_head.weight
    assert torch.equal(torch.get_rng_state(), expected), "the global random state stays"
    torch.manual_seed(5)
    assert torch.equal(tiny_llama(config).lm_head.weight, weights) and weights.dtype is torch.float32
