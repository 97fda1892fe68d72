"""How a language model answers a question: generated text, or the most likely option; in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from ham.data.commonsense import Scoring
from ham.data.commonsense_files import RESPONSE, Question
from ham.models.causal_lm import PAD_ID
from pruning.scores import evaluation_mode

from .beam_cache import repeat_for_beams

BEAMS, NEW_TOKENS = 4, 32
"""commonsense_evaluate.py of NVlabs/DoRA."""

_STATEMENT = "the correct answer is "
_TOKENS = {"cuda": 65536, "cpu": 16384}
"""Tokens in a batch with its padding, its beams and its new tokens; they bound the memory of the cache."""


def answer(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    scoring: Scoring,
    *,
    tokens_per_batch: int = 0,
) -> Iterator[list[tuple[Question, str]]]:
    """Answer questions in batches of similar length, the longest first.

    beam and greedy generate up to 32 tokens. likelihood chooses the option X for which the text
    "the correct answer is X" after the prompt has the highest log-likelihood, summed over its tokens. In
    float32 the texts equal those of one prompt at a time; in bfloat16 rounding depends on the size of a
    batch, and nearly equal beams can change places.

    Args:
        model: a model from `CausalLM.load`; its mode is not changed.
        tokenizer: tokenizer of the model.
        questions: questions to answer.
        scoring: options of the answers.
        tokens_per_batch: bound of a batch's tokens with padding and beams; 0: 65536 on a GPU, 16384 on a CPU.
            A single question may have more.

    Yields:
        The questions of a batch, each with its text after the last "### Response:", without outer blanks.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    bound = tokens_per_batch or _TOKENS.get(base.device.type, _TOKENS["cpu"])
    if scoring is Scoring.likelihood:
        statements = [_statements(tokenizer, question) for question in questions]
        sizes = [(len(rows), max(map(len, rows))) for rows in statements]
    else:
        prompts = [list(tokenizer(question.prompt)["input_ids"]) for question in questions]
        beams = BEAMS if scoring is Scoring.beam else 1
        sizes = [(beams, len(row) + NEW_TOKENS) for row in prompts]
    with evaluation_mode(model), torch.no_grad():
        for batch in batches(sizes, bound):
            if scoring is Scoring.likelihood:
                best = _most_likely(base, [statements[i] for i in batch])
                texts = [_STATEMENT + questions[i].options[k] for i, k in zip(batch, best, strict=True)]
            else:
                texts = _generate(base, tokenizer, [prompts[i] for i in batch], beams)
            yield [(questions[i], text) for i, text in zip(batch, texts, strict=True)]


def batches(sizes: Sequence[tuple[int, int]], bound: int) -> list[list[int]]:
    """Group samples of similar length, the longest first.

    Args:
        sizes: rows and length of each sample; a batch pads all rows to its longest one.
        bound: rows x length of a batch; a batch of one sample may exceed it.

    Returns:
        indices of the samples by batch.
    """
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i][1], i))
    grouped: list[list[int]] = []
    rows, longest = 0, 0
    for i in order:
        if not grouped or (rows + sizes[i][0]) * longest > bound:
            grouped.append([])
            rows, longest = 0, sizes[i][1]
        grouped[-1].append(i)
        rows += sizes[i][0]
    return grouped


def _pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, int64 [rows, longest]."""
    width = max(map(len, rows))
    ids = torch.tensor([[PAD_ID] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _positions(mask: Tensor) -> Tensor:
    """Each row's first token has position 0, whatever its padding."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _generate(base: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], beams: int) -> list[str]:
    """Continue prompts with transformers' `generate`.

    `generate` would compute a prompt once per beam. Here the cache of the prompt without its last token is
    computed once and repeated.
    """
    from transformers import GenerationConfig

    ids, mask = _pad_left(prompts, base.device)
    cached = {}
    if ids.shape[1] > 1:
        prefill = base(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=_positions(mask)[:, :-1],
            use_cache=True,
            logits_to_keep=1,
        )
        name = "cache" if "cache" in prefill else "past_key_values"  # transformers 5.24 renamed it
        cached = {name: prefill[name]}
        repeat_for_beams(cached[name], beams, NEW_TOKENS)
    stops = _stop_tokens(base, tokenizer)
    config = GenerationConfig(
        num_beams=beams,
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=stops,
        pad_token_id=PAD_ID,
        use_cache=True,
        **dict(temperature=1.0, top_k=50, top_p=1.0),  # a checkpoint's values would only cause warnings
    )
    output = base.generate(input_ids=ids, attention_mask=mask, generation_config=config, **cached)
    return [_response(tokenizer, row, stops) for row in output[:, ids.shape[1] :].tolist()]


def _stop_tokens(base: Any, tokenizer: Any) -> list[int]:
    """The EOS of the tokenizer, which training appends, and those of the checkpoint."""
    configured = base.generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    return sorted({tokenizer.eos_token_id, *configured} - {None})


def _response(tokenizer: Any, tokens: list[int], stops: Sequence[int]) -> str:
    """The text of new tokens up to the first stop token: a batch pads shorter answers after it."""
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return tokenizer.decode(tokens[:end], skip_special_tokens=True).rpartition(RESPONSE)[2].strip()


def _statements(tokenizer: Any, question: Question) -> list[list[int]]:
    """Tokens of the prompt with "the correct answer is X" for each option X."""
    texts = [question.prompt + _STATEMENT + option for option in question.options]
    return [list(tokenizer(text)["input_ids"]) for text in texts]


def _common_prefix_length(rows: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all rows begin with."""
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False)))


def _most_likely(base: Any, statements: Sequence[Sequence[list[int]]]) -> list[int]:
    """For each question the number of its most likely statement; the first one of equal ones.

    The tokens that the statements of a question begin with have the same likelihood and are left out.
    """
    rows = [row for group in statements for row in group]
    counts = [len(row) - max(_common_prefix_length(group), 1) for group in statements for row in group]
    ids, mask = _pad_left(rows, base.device)
    last = max(counts)
    logits = base(
        input_ids=ids,
        attention_mask=mask,
        position_ids=_positions(mask),
        use_cache=False,
        logits_to_keep=last + 1,
    ).logits[:, :-1]
    likelihoods = logits.float().log_softmax(dim=-1).gather(2, ids[:, ids.shape[1] - last :, None])[..., 0]
    positions = torch.arange(last, device=base.device)
    scored = positions >= last - torch.tensor(counts, device=base.device)[:, None]
    sums = likelihoods.where(scored, 0.0).sum(dim=1)
    return [int(group.argmax()) for group in sums.split([len(group) for group in statements])]
