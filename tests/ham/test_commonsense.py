"""Commonsense data: texts are the sources' character by character, splits are fixed, bad files are named."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import script
from commonsense_files import record, write, write_folder
from hypothesis import given
from hypothesis import strategies as st

from ham.data.base import DATASETS, DataError
from ham.data.commonsense import Commonsense, Scoring, collate, encode_examples, tokenize
from ham.data.commonsense_files import (
    SOURCE,
    TASKS,
    TRAIN_FILE,
    Record,
    describe,
    evaluation_prompt,
    offered_options,
    read_records,
    training_text,
)

REAL = Path(os.environ.get("HAM_DATA", "."), "commonsense")
PLAIN = Record("What is 1 + 1?\n\nAnswer format: true/false", "", "the correct answer is true", "true")
WITH_INPUT = Record("Add.", "1 and 1", "the correct answer is true", "true")


def test_the_training_text_is_that_of_finetune_py():
    assert training_text(PLAIN) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.  \n"
        "\n"
        "                ### Instruction:\n"
        "                What is 1 + 1?\n"
        "\n"
        "Answer format: true/false\n"
        "                \n"
        "                ### Response:\n"
        "                the correct answer is true"
    )
    assert training_text(WITH_INPUT) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request. \n"
        "\n"
        "                ### Instruction:\n"
        "                Add.\n"
        "                \n"
        "                ### Input:\n"
        "                1 and 1\n"
        "                \n"
        "                ### Response:\n"
        "                the correct answer is true"
    )


def test_the_prompt_is_that_of_commonsense_evaluate_py():
    assert evaluation_prompt(PLAIN) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request. \n"
        "\n"
        "                ### Instruction:\n"
        "                What is 1 + 1?\n"
        "\n"
        "Answer format: true/false\n"
        "\n"
        "                ### Response:\n"
        "                "
    )
    assert evaluation_prompt(WITH_INPUT) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n"
        "\n"
        "                ### Instruction:\n"
        "                Add.\n"
        "\n"
        "                ### Input:\n"
        "                1 and 1\n"
        "\n"
        "                ### Response:\n"
        "                "
    )


@given(
    text=st.text(alphabet="trufalse ", max_size=30)
    | st.lists(st.sampled_from(["true", "fals", "e", "answer", "1", "6", "5", "option2", " "])).map("".join),
    task=st.sampled_from(sorted(TASKS)),
)
def test_the_prediction_is_the_option_that_begins_first(text: str, task: str):
    """The reference looks at every position for every option."""
    starts = [
        option for i in range(len(text)) for option in TASKS[task].options if text[i:].startswith(option)
    ]
    assert TASKS[task].find(text) == (starts[0] if starts else "")


def test_the_prediction_of_worked_examples():
    assert TASKS["boolq"].find("the correct answer is false, not true") == "false"
    assert TASKS["boolq"].find("untrue") == "true", "the sources match anywhere"
    assert TASKS["ARC-Easy"].find("Answer1") == "", "and case counts"
    assert TASKS["openbookqa"].find("answer6 answer5") == "answer5"


def test_a_question_offers_the_options_that_its_last_line_names():
    options = TASKS["ARC-Easy"].options
    assert offered_options("Is answer5 right?\n\nAnswer format: answer1/answer2/answer3", options) == (
        *("answer1", "answer2", "answer3"),
    )
    assert offered_options("no such line, answer2", options) == options
    assert offered_options("Answer format: anything", options) == options


class WordTokenizer:
    """Ids of words by length; `eos` is 99."""

    eos_token_id = 99

    def __call__(self, text: str, truncation: bool, max_length: int) -> dict[str, list[int]]:
        ids = [len(word) for word in text.split()]
        return {"input_ids": ids[:max_length] if truncation else ids}


def test_eos_is_appended_where_there_is_room():
    tokenizer = WordTokenizer()
    assert tokenize(tokenizer, "a bb ccc", 4) == [1, 2, 3, 99]
    assert tokenize(tokenizer, "a bb ccc", 3) == [1, 2, 3], "no room"
    assert tokenize(tokenizer, "a bb ccc", 2) == [1, 2], "cut off"
    assert tokenize(tokenizer, f"a {'x' * 99}", 4) == [1, 99], "not twice"
    assert tokenize(tokenizer, f"a bb {'x' * 99}", 5) == [1, 2, 99], "not twice"
    assert tokenize(tokenizer, f"{'x' * 99} bb", 5) == [99, 2, 99], "it is not the last one"
    assert tokenize(tokenizer, "", 1) == [99]


def test_labels_are_the_entire_text():
    (example,) = encode_examples([PLAIN], WordTokenizer(), 256)
    assert example["labels"] == example["input_ids"] == tokenize(WordTokenizer(), training_text(PLAIN), 256)
    assert example["attention_mask"] == [1] * len(example["labels"])


@given(
    rows=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=20), min_size=1, max_size=4),
    multiple=st.sampled_from([1, 8]),
)
def test_padding_is_on_the_left_and_counts_nowhere(rows: list[list[int]], multiple: int):
    """A real token 0 keeps its label; only padding is masked."""
    examples = [{"input_ids": row, "attention_mask": [1] * len(row), "labels": list(row)} for row in rows]
    batch = collate(examples, multiple=multiple)
    width = batch["input_ids"].shape[1]
    assert width % multiple == 0 and 0 <= width - max(map(len, rows)) < multiple
    for row, ids, mask, labels in zip(
        rows, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
    ):
        pad = width - len(row)
        assert ids.tolist() == [0] * pad + row
        assert mask.tolist() == [0] * pad + [1] * len(row)
        assert labels.tolist() == [-100] * pad + row
        assert ids.dtype == mask.dtype == labels.dtype == torch.int64


def test_batches_equal_those_of_transformers_collator():
    from transformers import DataCollatorForSeq2Seq

    from ham.models.tiny_llama import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    records = [Record(**record("boolq", number)) for number in range(5)]
    examples = encode_examples(records, tokenizer, 256)
    expected = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8)([dict(e) for e in examples])
    batch = collate(examples)
    assert set(batch) == set(expected)
    assert all(torch.equal(batch[key], expected[key]) for key in batch)


def small(root: Path, **options: object) -> Commonsense:
    return Commonsense(**{"root": str(root), "train": ["train.json"], "tests": ["boolq"], **options})


def test_the_held_out_examples_are_those_of_a_seeded_permutation(tmp_path: Path):
    """As in `train_test_split` of the library datasets: numpy's permutation, first the test part."""
    write_folder(tmp_path, train=40)
    everything = read_records(tmp_path / "train.json")
    order = np.random.default_rng(42).permutation(40)
    examples = small(tmp_path, val_set_size=7).load_examples()
    assert examples.valid == [everything[i] for i in order[:7]]
    assert examples.train == [everything[i] for i in order[7:]]
    subset = small(tmp_path, val_set_size=7, examples=5).load_examples()
    assert subset.valid == examples.valid and subset.train == examples.train[:5]
    none = small(tmp_path, val_set_size=0).load_examples()
    assert none.valid == [] and len(none.train) == 40
    other = small(tmp_path, val_set_size=7, split_seed=1).load_examples()
    assert other.valid != examples.valid


def test_several_training_files_are_one_set(tmp_path: Path):
    write(tmp_path / "a.json", [record("boolq", 0), record("boolq", 1)])
    write(tmp_path / "b.json", [record("piqa", 2)])
    examples = small(tmp_path, train=["a.json", "b.json"], val_set_size=1).load_examples()
    assert sorted(r.answer for r in [*examples.train, *examples.valid]) == ["false", "solution1", "true"]


def test_questions_are_a_seeded_slice_in_the_order_of_the_file(tmp_path: Path):
    write_folder(tmp_path, test=12)
    everything = read_records(tmp_path / "boolq" / "test.json")
    questions = small(tmp_path, questions=5).load_questions("boolq")
    indices = [question.index for question in questions]
    assert len(set(indices)) == 5 and indices == sorted(indices)
    for question in questions:
        assert question.prompt == evaluation_prompt(everything[question.index])
        assert (question.answer, question.options) == (everything[question.index].answer, ("true", "false"))
    assert questions == small(tmp_path, questions=5).load_questions("boolq")
    stream = int(hashlib.blake2b(b"42/questions boolq", digest_size=8).hexdigest(), 16) % 2**63
    assert indices == sorted(np.random.default_rng(stream).permutation(12)[:5].tolist())
    other = small(tmp_path, questions=5, split_seed=7).load_questions("boolq")
    assert [question.index for question in other] != indices


def test_a_full_test_set_has_its_known_size(tmp_path: Path):
    write_folder(tmp_path, test=12)
    with pytest.raises(DataError, match=r"has 12 questions, not the 3270 of boolq.*set data.questions"):
        small(tmp_path).load_questions("boolq")
    with pytest.raises(DataError, match=r"has 12 questions: lower data.questions=13"):
        small(tmp_path, questions=13).load_questions("boolq")
    assert len(small(tmp_path, questions=12).load_questions("boolq")) == 12


def test_too_few_examples_are_refused(tmp_path: Path):
    write_folder(tmp_path, train=10)
    assert len(small(tmp_path, val_set_size=9).load_examples().train) == 1
    for options in ({"val_set_size": 10}, {"val_set_size": 5, "examples": 6}):
        with pytest.raises(DataError, match=r"10 examples are fewer than the 11 of data.examples"):
            small(tmp_path, **options).load_examples()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"instruction": ""}, "has an empty instruction"),
        ({"output": " \n"}, "has an empty output"),
        ({"answer": "maybe"}, "has answer = 'maybe', which is not one of true/false"),
        ({"input": None}, "has input = 'None', which is not a string"),
    ],
)
def test_the_first_bad_record_is_named(tmp_path: Path, changes: dict[str, str], problem: str):
    records = [record("boolq", number) for number in range(5)]
    records[2] |= changes
    records[4] = "bad as well"
    path = write(tmp_path / "boolq" / "test.json", records)
    with pytest.raises(DataError, match=re.escape(f"{path}: record 2 (from 0) {problem}; fix the record")):
        small(tmp_path, questions=5).load_questions("boolq")


def test_other_damage_is_one_line_with_the_cure(tmp_path: Path):
    path = tmp_path / "file.json"
    whole = json.dumps([record("boolq", 0)])
    lacking = {key: value for key, value in record("boolq", 0).items() if key != "output"}
    cases = {
        whole[:-5]: "is not valid JSON",
        "[" * 100_000: "is not valid JSON",
        "[]": "is not a list of at least one example",
        "{}": "is not a list of at least one example",
        "[3]": r"record 0 \(from 0\) is a int, not an object",
        json.dumps([record("boolq", 0), lacking]): r"record 1 \(from 0\) has no field 'output'",
    }
    for content, problem in cases.items():
        path.write_text(content)
        with pytest.raises(DataError, match=f"{problem}.*LLM-Adapters") as caught:
            read_records(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is not valid JSON"):
        read_records(path)


def test_a_missing_file_names_its_place_and_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HAM_DATA", str(tmp_path))
    cure = f"prepare_data.py commonsense --to {tmp_path}"
    with pytest.raises(DataError, match=f"{tmp_path}/commonsense/{TRAIN_FILE} is missing.*{cure}"):
        Commonsense().load_examples()
    with pytest.raises(DataError, match=f"{tmp_path}/commonsense/piqa/test.json is missing.*{cure}"):
        Commonsense().load_questions("piqa")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tests": ["arc"]}, "unknown task data.tests='arc': choose from boolq, piqa"),
        ({"tests": ["boolq", "boolq"]}, "data.tests must list each name once"),
        ({"train": []}, "data.train must list each name once, and at least one"),
        ({"cutoff_len": 0}, "data.cutoff_len must be at least 1 token, got 0"),
        ({"eval_every": 0}, "data.eval_every must be at least 1 step, got 0"),
        ({"questions": -1}, "data.questions must not be negative, got -1"),
        ({"examples": -1}, "data.examples must not be negative, got -1"),
        ({"val_set_size": -1}, "data.val_set_size must not be negative, got -1"),
        ({"split_seed": -1}, "data.split_seed must not be negative, got -1"),
        ({"scoring": "guess"}, "'guess' is not a valid Scoring"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], problem: str):
    with pytest.raises(ValueError, match=re.escape(problem)):
        Commonsense(**options)


def test_the_smallest_options_are_accepted():
    data = Commonsense(cutoff_len=1, eval_every=1, val_set_size=0, split_seed=0, scoring="greedy")
    assert (data.cutoff_len, data.eval_every, data.val_set_size, data.split_seed) == (1, 1, 0, 0)
    assert data.scoring is Scoring.greedy


def test_the_options_of_the_tasks_are_those_that_their_expressions_accept():
    """commonsense_evaluate.py: r'true|false', r'solution1|solution2', r'answer1|...|answer5' and so on."""
    counts = {"piqa": ("solution", 2), "hellaswag": ("ending", 4), "winogrande": ("option", 2)}
    counts |= dict.fromkeys(("social_i_qa", "ARC-Easy", "ARC-Challenge", "openbookqa"), ("answer", 5))
    assert TASKS["boolq"].options == ("true", "false")
    for task, (word, count) in counts.items():
        assert TASKS[task].options == tuple(f"{word}{number + 1}" for number in range(count))


def test_the_first_option_of_the_last_format_counts_once():
    options = TASKS["ARC-Easy"].options
    text = "Answer format: answer5\n\nAnswer format: answer2/answer1/answer2"
    assert offered_options(text, options) == ("answer2", "answer1")


def test_batches_are_padded_to_a_multiple_of_8_with_token_0_unless_others_are_given():
    example = {"input_ids": [5, 6], "attention_mask": [1, 1], "labels": [5, 6]}
    assert collate([example])["input_ids"].tolist() == [[0] * 6 + [5, 6]]
    assert collate([example], pad_id=9, multiple=3)["input_ids"].tolist() == [[9, 5, 6]]
    assert collate([example], multiple=2)["labels"].tolist() == [[5, 6]]


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        read_records(tmp_path)
    assert str(caught.value) == f"{tmp_path} cannot be read (Is a directory): check the file"


@pytest.mark.usefixtures("small_sizes")
def test_a_folder_is_described_by_its_files_and_what_is_missing(tmp_path: Path):
    """Training files of single tasks are optional; names are in the order of Table 11."""
    with pytest.raises(DataError, match=f"^{tmp_path} has none of the files of {SOURCE}$"):
        describe(tmp_path)
    write(tmp_path / "piqa" / "test.json", [record("piqa", number) for number in range(12)])
    write(tmp_path / "piqa" / "train.json", [record("piqa", number) for number in range(8)])
    missing = ["commonsense_170k.json", "boolq/test.json", "social_i_qa/test.json", "hellaswag/test.json"]
    missing += [f"{task}/test.json" for task in ("winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa")]
    assert describe(tmp_path) == (
        f"piqa: 12 questions; piqa/train.json: 8 examples; missing: {', '.join(missing)}"
    )
    write_source(tmp_path)
    tasks = (*("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande"),)
    tasks += (*("ARC-Easy", "ARC-Challenge", "openbookqa"),)
    files = [f"{task}: 12 questions; {task}/train.json: 8 examples" for task in tasks]
    assert describe(tmp_path) == "; ".join(["commonsense_170k.json: 64 examples", *files])
    write(tmp_path / "boolq" / "train.json", [record("boolq", number) for number in range(9)])
    with pytest.raises(DataError) as caught:
        describe(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/boolq/train.json has 9 records, not 8: get it again from {SOURCE}"
    )


def test_the_defaults_are_those_of_dora():
    data = Commonsense()
    assert DATASETS["commonsense"] is Commonsense
    assert (data.train, data.cutoff_len, data.val_set_size) == (["commonsense_170k.json"], 256, 120)
    assert (data.examples, data.questions, data.scoring) == (0, 0, Scoring.beam)
    assert data.tests == [
        *(
            "boolq",
            "piqa",
            "social_i_qa",
            "hellaswag",
            "winogrande",
            "ARC-Easy",
            "ARC-Challenge",
            "openbookqa",
        )
    ]
    assert sum(facts.test for facts in TASKS.values()) == 22419
    assert sum(facts.train for facts in TASKS.values()) == 170420


@pytest.mark.skipif(not REAL.is_dir(), reason="HAM_DATA has no folder commonsense")
def test_the_real_files_are_valid():
    """Each answer is among its question's options, and every output is the answer's sentence."""
    data = Commonsense()
    tests = [task for task in TASKS if (REAL / task / "test.json").is_file()]
    assert tests
    for task in tests:
        questions = data.load_questions(task)
        assert all(question.answer in question.options for question in questions)
        assert all(TASKS[task].find(f"the correct answer is {q.answer}") == q.answer for q in questions)
    train = [str(path.relative_to(REAL)) for path in sorted(REAL.glob("*/train.json"))]
    examples = Commonsense(train=train).load_examples()
    assert all(e.output == f"the correct answer is {e.answer}" for e in [*examples.train, *examples.valid])


@pytest.fixture
def prepare(capsys: pytest.CaptureFixture[str]):
    module = script("prepare_data")

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = module.main(["commonsense", *map(str, argv)])
        return (status, *capsys.readouterr())

    return run


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test and training sets of 12 and 8 records."""
    from dataclasses import replace

    for task, facts in list(TASKS.items()):
        monkeypatch.setitem(TASKS, task, replace(facts, test=12, train=8))


def test_prepare_says_where_to_get_the_files(prepare, tmp_path: Path):
    status, out, err = prepare("--to", tmp_path)
    assert (status, out) == (2, "") and len(err.splitlines()) == 1
    assert "git clone" in err and "LLM-Adapters" in err and "--from" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize("layout", ["clone", "flat"])
def test_prepare_copies_what_a_folder_has(prepare, tmp_path: Path, layout: str):
    source, to = tmp_path / "source", tmp_path / "to"
    is_clone = layout == "clone"
    for task in ("boolq", "piqa"):
        folder = source / "dataset" if is_clone else source
        write(folder / task / "test.json", [record(task, number) for number in range(12)])
    write(source / ("ft-training_set" if is_clone else "") / TRAIN_FILE, [record("boolq", 0)] * 64)
    (source / "LICENSE").write_text("not copied")
    status, out, err = prepare("--from", source, "--to", to)
    assert (status, err) == (0, "")
    assert "boolq: 12 questions" in out and f"{TRAIN_FILE}: 64 examples" in out
    assert re.search("missing: .*hellaswag/test.json", out)
    copied = sorted(str(p.relative_to(to)) for p in to.rglob("*") if p.is_file())
    assert copied == [f"commonsense/{name}" for name in ("boolq/test.json", TRAIN_FILE, "piqa/test.json")], (
        "and nothing is written beside them"
    )
    status, out, err = prepare("--to", to)
    assert (status, err) == (0, "") and "already there" in out and "boolq: 12 questions" in out


@pytest.mark.usefixtures("small_sizes")
def test_prepare_refuses_wrong_files(prepare, tmp_path: Path):
    source, to = tmp_path / "source", tmp_path / "to"
    path = write(source / "boolq" / "test.json", [record("boolq", number) for number in range(11)])
    status, out, err = prepare("--from", source, "--to", to)
    assert (status, out) == (2, "") and len(err.splitlines()) == 1
    assert "boolq/test.json has 11 records, not 12" in err
    write(path, [record("boolq", number, answer="no") for number in range(12)])
    status, out, err = prepare("--from", source, "--to", to)
    assert (status, out) == (2, "") and "record 0 (from 0) has answer = 'no'" in err
    assert not to.exists() or not list(to.iterdir())
    status, out, err = prepare("--from", tmp_path / "nowhere", "--to", to)
    assert (status, out) == (2, "") and "nowhere" in err and len(err.splitlines()) == 1


def write_source(root: Path) -> Path:
    for task in TASKS:
        write(root / task / "test.json", [record(task, number) for number in range(12)])
        write(root / task / "train.json", [record(task, number) for number in range(8)])
    write(root / TRAIN_FILE, [record("boolq", 0)] * 64)
    return root


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize(
    "name", [TRAIN_FILE, "boolq/test.json", "boolq/train.json", "ARC-Easy/test.json", "piqa/train.json"]
)
def test_prepare_adds_what_an_existing_folder_lacks(prepare, tmp_path: Path, name: str):
    source, folder = write_source(tmp_path / "source"), tmp_path / "to" / "commonsense"
    assert prepare("--from", source, "--to", tmp_path / "to")[0] == 0
    kept = write(folder / "piqa" / "test.json", [record("piqa", number + 1) for number in range(12)])
    content = kept.read_bytes()
    (folder / name).unlink()
    status, out, err = prepare("--from", source, "--to", tmp_path / "to")
    assert (status, err) == (0, "") and "missing" not in out
    assert (folder / name).read_bytes() == (source / name).read_bytes() and kept.read_bytes() == content


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize("damage", [b"", b"[", b"{}", b"[1]", b"[]", b"[" * 100_000, b"\xff\xfe"])
def test_prepare_replaces_a_damaged_folder(prepare, tmp_path: Path, damage: bytes):
    source, folder = write_source(tmp_path / "source"), tmp_path / "to" / "commonsense"
    assert prepare("--from", source, "--to", tmp_path / "to")[0] == 0
    (folder / "boolq" / "test.json").write_bytes(damage)
    status, out, err = prepare("--to", tmp_path / "to")
    assert (status, out) == (2, "") and "boolq/test.json" in err and "it cannot be replaced: " in err
    assert len(err.splitlines()) == 1 and "--from LLM-Adapters" in err
    status, out, err = prepare("--from", source, "--to", tmp_path / "to")
    assert (status, err) == (0, "") and "replaces a damaged one" in out
    assert (tmp_path / "to" / "commonsense.damaged" / "boolq" / "test.json").read_bytes() == damage
    assert prepare("--to", tmp_path / "to")[0] == 0


@pytest.mark.skipif(not REAL.is_dir(), reason="HAM_DATA has no folder commonsense")
def test_prepare_checks_the_real_files_without_writing(prepare):
    before = sorted(REAL.rglob("*"))
    status, out, err = prepare("--to", REAL.parent)
    assert (status, err) == (0, "") and "openbookqa: 500 questions" in out
    assert sorted(REAL.rglob("*")) == before
