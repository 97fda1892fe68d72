"""The cache of keys and values of beams, without the copies that transformers makes after each token."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor


def repeat_for_beams(prompts: Any, beams: int, new_tokens: int) -> None:
    """Repeat each row of a cache for `beams` beams, in place.

    Args:
        prompts: a `DynamicCache` of transformers that holds prompts.
        beams: rows for each prompt.
        new_tokens: number of tokens that can be added.
    """
    from transformers.cache_utils import DynamicLayer

    for number, layer in enumerate(prompts.layers):
        if type(layer) is DynamicLayer:
            prompts.layers[number] = _beam_layer()(layer, beams, new_tokens)
        else:  # such as one with a sliding window
            layer.batch_repeat_interleave(beams)


@cache
def _beam_layer() -> type:
    """The class, defined at its first use because its base class is that of transformers."""
    from transformers.cache_utils import DynamicLayer

    class BeamLayer(DynamicLayer):
        """Keys and values in a buffer with space for new tokens: adding one copies nothing else.

        Beams replace each other only within a prompt, and all beams of a prompt have the same keys and values
        of the prompt. Reordering therefore copies only the new tokens.

        Args:
            layer: keys or values of the prompts, [prompts, heads, tokens, channels].
            beams: rows for each prompt.
            new_tokens: number of tokens that can be added.
        """

        def __init__(self, layer: Any, beams: int, new_tokens: int) -> None:
            super().__init__()
            self.lazy_initialization(layer.keys, layer.values)
            self.prompt = self.length = layer.keys.shape[-2]
            self.buffers = [_allocate(states, beams, new_tokens) for states in (layer.keys, layer.values)]
            self._set_views()

        def _set_views(self) -> None:
            self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            """Add tokens; returns all keys and values."""
            end = self.length + key_states.shape[-2]
            for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
                buffer[:, :, self.length : end] = states
            self.length = end
            self._set_views()
            return self.keys, self.values

        def reorder_cache(self, beam_idx: Tensor) -> None:
            """Continue row i with the tokens of row `beam_idx[i]`, a beam of the same prompt."""
            for buffer in self.buffers:
                added = buffer[:, :, self.prompt : self.length]
                added.copy_(added.index_select(0, beam_idx.to(added.device)))

    return BeamLayer


def _allocate(states: Tensor, beams: int, new_tokens: int) -> Tensor:
    """Rows repeated for beams, and zeros for the new tokens, [prompts x beams, heads, tokens, channels]."""
    prompts, heads, tokens, channels = states.shape
    buffer = states.new_zeros(prompts * beams, heads, tokens + new_tokens, channels)
    buffer[:, :, :tokens] = torch.repeat_interleave(states, beams, dim=0)
    return buffer
