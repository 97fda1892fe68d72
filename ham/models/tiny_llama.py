"""A random Llama of two layers with a tokenizer of its own, for smoke tests: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch

from ham.data.commonsense_files import RESPONSE, TASKS

_WEIGHTS_SEED = 0
_CONTEXT = 4096
_PAD, _EOS = "<pad>", "<eos>"
_FRAME = (
    "Below is an instruction that describes a task",
    ". Write a response that appropriately completes the request.",
    *(" " * 16, "### Instruction:", RESPONSE, "Answer format:", "the correct answer is "),
)


def tiny_tokenizer() -> Any:
    """A tokenizer of UTF-8 bytes, with one token for each fixed part of a prompt and for each answer.

    Every text can be encoded, and decoding returns it. Padding has id 0 and is on the left.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [_PAD, _EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_PAD, _EOS])
    answers = dict.fromkeys(option for facts in TASKS.values() for option in facts.options)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*_FRAME, *answers)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_EOS,
        pad_token=_PAD,
        padding_side="left",
        model_max_length=_CONTEXT,
    )


def tiny_config(tokenizer: Any) -> Any:
    """The LlamaConfig: 2 layers, 32 channels, 4 heads."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_CONTEXT,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def tiny_llama(config: Any) -> torch.nn.Module:
    """The network in float32; its weights are the same in every run, like those of a checkpoint."""
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_WEIGHTS_SEED)
        return LlamaForCausalLM(config)
