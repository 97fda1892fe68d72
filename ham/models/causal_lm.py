"""A pretrained causal language model of which only LoRA adapters are trained (Table 11)."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import nn

from .base import Model, register
from .pretrained import (
    BUILTIN,
    INSTALL,
    ModelError,
    check_memory,
    locate,
    lora_layers,
    meta_model,
    needed_bytes,
    read_config,
    read_tokenizer,
    read_weights,
)
from .tiny_llama import tiny_config, tiny_llama, tiny_tokenizer

TINY = f"{BUILTIN}tiny"
PAD_ID = 0
"""Token of the padding, as in DoRA's finetune.py; attention masks and labels exclude it."""


class Dtype(StrEnum):
    """Type of stored weights."""

    bfloat16 = "bfloat16"
    float32 = "float32"


@dataclass(frozen=True)
class LanguageModel:
    """A model ready to train.

    Args:
        model: a `peft.PeftModel` on the device; the LoRA weights require gradients, the others do not.
        tokenizer: a tokenizer of transformers; it pads on the left with id 0.
    """

    model: Any
    tokenizer: Any


@register("causal_lm")
@dataclass
class CausalLM(Model):
    """Any causal language model of transformers; the values of LoRA are those of DoRA's set-up.

    Args:
        checkpoint: a model of the hub, a folder, package:NAME for the folder of an installed Python package,
            or builtin:tiny for a random two-layer Llama.
        gguf: name of a GGUF file in that folder; empty: safetensors files.
        rank: rank of the LoRA matrices.
        lora_alpha: LoRA's output is scaled by lora_alpha / rank.
        lora_dropout: probability, on the input of LoRA.
        targets: names of the linear layers that LoRA adapts.
        dtype: dtype of the frozen weights.
        lora_dtype: dtype of the LoRA weights; only float32 is supported.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
    """

    checkpoint: str = ""
    gguf: str = ""
    rank: int = 32
    lora_alpha: float = 64.0
    lora_dropout: float = 0.05
    targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"])
    dtype: Dtype = Dtype.bfloat16
    lora_dtype: Dtype = Dtype.float32
    gradient_checkpointing: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError on values out of range, and on LoRA weights that HAM's decay cannot change."""
        if self.rank < 1 or self.lora_alpha <= 0:
            raise ValueError(
                f"model.rank and model.lora_alpha must be positive, got {self.rank}, {self.lora_alpha:g}"
            )
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"model.lora_dropout must be in [0, 1), got {self.lora_dropout:g}")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"model.targets must list each layer once: got {list(self.targets)}")
        self.dtype, self.lora_dtype = Dtype(self.dtype), Dtype(self.lora_dtype)
        if self.lora_dtype is not Dtype.float32:
            raise ValueError(
                "model.lora_dtype=bfloat16 would undo HAM's decay: a factor such as exp(-2.5e-4) "
                "rounds to 1; use float32"
            )

    def check(self, image_size: int) -> None:
        """Raise ValueError if the data are images."""
        if image_size:
            raise ValueError(
                "a language model reads text, not images: choose an experiment of train.py --list"
            )

    def load(self, seed: int, device: torch.device) -> LanguageModel:
        """The checkpoint with new LoRA weights.

        Args:
            seed: seed of the LoRA weights; the global random state is not changed.
            device: device of the model.

        Raises:
            ModelError: the checkpoint is missing, gated, damaged, too large, or a package is missing.
        """
        _check_packages()
        base, tokenizer = self._load_tiny() if self.checkpoint == TINY else self._load_base(device)
        tokenizer.pad_token_id, tokenizer.padding_side = PAD_ID, "left"
        base.config.use_cache = False  # in training; `generate` enables it
        model = self._add_lora(base, seed).to(device)
        if self.gradient_checkpointing:
            _checkpoint_activations(model.get_base_model())
        return LanguageModel(model, tokenizer)

    def _load_tiny(self) -> tuple[nn.Module, Any]:
        tokenizer = tiny_tokenizer()
        base = tiny_llama(tiny_config(tokenizer)).to(getattr(torch, self.dtype))
        lora_layers(base, self.targets)
        return base, tokenizer

    def _load_base(self, device: torch.device) -> tuple[nn.Module, Any]:
        """Everything that can be wrong is checked before the weights are read."""
        source, dtype = locate(self.checkpoint, self.gguf), getattr(torch, self.dtype)
        config = read_config(source)
        tokenizer = read_tokenizer(source)
        empty = meta_model(config)
        needed = needed_bytes(empty, lora_layers(empty, self.targets), self.rank, dtype)
        values = sum(p.numel() for p in empty.parameters())
        # transformers dequantizes all tensors of a GGUF file to float32 before it builds the model
        loading = values * (dtype.itemsize + (4 if self.gguf else 0))
        check_memory(self.checkpoint, needed, device, while_loading=loading)
        return read_weights(source, dtype), tokenizer

    def _add_lora(self, base: nn.Module, seed: int) -> Any:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=list(self.targets),
            bias="none",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.default_generator.manual_seed(seed)
            return get_peft_model(base, config, autocast_adapter_dtype=True)  # LoRA's weights are float32


def _check_packages() -> None:
    from importlib.util import find_spec

    for name in ("transformers", "peft", "accelerate"):
        if find_spec(name) is None:
            raise ModelError(f"language models need the package {name}: {INSTALL}")


def _checkpoint_activations(base: Any) -> None:
    """Recompute activations; the inputs require gradients, which frozen embeddings would not pass on."""
    # transformers 5.24 renamed it
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    base.enable_input_require_grads()


def adapter_digest(model: nn.Module) -> str:
    """SHA-256 of the LoRA weights, names and values; equal for equal adapters on any device.

    An adapter whose matrices B are all zero, as before training, changes nothing whatever its matrices A are:
    all such adapters have the digest of the model without an adapter.
    """
    digest = hashlib.sha256()
    weights = [(name, param) for name, param in sorted(model.named_parameters()) if "lora_" in name]
    if any(bool(param.any()) for name, param in weights if "lora_B" in name):
        for name, param in weights:
            digest.update(f"{name} {tuple(param.shape)}\0".encode())
            digest.update(param.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Name -> trained parameter."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
