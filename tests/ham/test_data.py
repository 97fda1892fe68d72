"""The registry of data sets, and the order in which ranks read them."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from ham.data import (
    DATASETS,
    OGBG,
    Cifar100,
    Commonsense,
    Data,
    DataError,
    Digits,
    Graph,
    ImageData,
    ImageNetFFCV,
    ImageNetFolder,
    Loader,
    derived_seed,
    register,
)
from ham.data.base import RankSampler, explain_killed_workers
from ham.data.cifar import Augmentation, CifarLoader, Flip
from ham.data.commonsense_files import TASKS
from ham.data.commonsense_tiny import TinyCommonsense
from ham.data.digits import TensorLoader
from ham.data.graph_files import SETS
from ham.data.graphs import Split
from ham.data.imagenet_ffcv import FFCVLoader
from ham.data.imagenet_folder import FolderLoader


def test_every_data_set_is_registered() -> None:
    images = {
        "digits": Digits,
        "cifar100": Cifar100,
        "imagenet_ffcv": ImageNetFFCV,
        "imagenet_folder": ImageNetFolder,
    }
    texts = {"commonsense": Commonsense, "commonsense_tiny": TinyCommonsense}
    assert {**images, **texts, "graph": Graph, "ogbg": OGBG} == DATASETS
    assert all(issubclass(data, ImageData) for data in images.values())


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("epoch", [0, 4])
def test_the_ranks_split_each_training_batch_of_the_single_process(world_size: int, epoch: int) -> None:
    """41 images in batches of 12: 3 batches, and 5 images are dropped."""
    single = RankSampler(41, 12, seed=7)
    assert len(single) == 3 and len(set(single.indices(epoch).tolist())) == 36
    samplers = [RankSampler(41, 12, 7, rank, world_size) for rank in range(world_size)]
    assert {(len(sampler), sampler.local_batch_size) for sampler in samplers} == {(3, 12 // world_size)}
    parts = torch.stack([sampler.indices(epoch).view(3, -1) for sampler in samplers], dim=1)
    assert torch.equal(parts.flatten(), single.indices(epoch))


def test_the_order_of_an_epoch_is_the_permutation_of_its_stream() -> None:
    seed = int(hashlib.blake2b(b"7/order 3", digest_size=8).hexdigest(), 16) % 2**63
    order = torch.randperm(41, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(RankSampler(41, 12, seed=7).indices(3), order[:36])


def test_without_a_seed_the_ranks_read_every_image_once_in_order() -> None:
    samplers = [RankSampler(7, 4, None, rank, 2) for rank in range(2)]
    assert [sampler.indices(epoch).tolist() for epoch, sampler in enumerate(samplers)] == [
        [0, 2, 4, 6],
        [1, 3, 5],
    ]
    assert [len(sampler) for sampler in samplers] == [2, 2]


def test_the_page_of_data_has_the_numbers_of_all_graphs() -> None:
    """Tables 14 and 15 print nodes and edges; `graph_files.read` compares them with the files."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
    rows = re.findall(r"^\| ([a-z-]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| (\d+) \|$", page, re.MULTILINE)
    stated = {name: tuple(int(number.replace(",", "")) for number in rest) for name, *rest in rows}
    assert stated == {name: (s.nodes, s.edges, s.features, s.classes) for name, s in SETS.items()}


IMAGENET = {"num_classes": 1000, "image_size": 224, "min_crop": 0.08, "workers": 8, "root": ""}
DEFAULTS: dict[Any, dict[str, Any]] = {
    Data: {"num_classes": 0, "image_size": 0},
    Digits: {"num_classes": 10, "image_size": 8},
    Cifar100: {
        **{"num_classes": 100, "image_size": 32, "flip": Flip.alternating, "translate": 2, "root": ""},
        **{"per_class": 0, "validation_per_class": 0},
    },
    ImageNetFolder: IMAGENET,
    ImageNetFFCV: {
        **IMAGENET,
        **{"train": "train_500_0.50_90.beton", "val": "val_500_0.50_90.beton"},
    },
    Commonsense: {"eval_every": 80, "load_best": True, "score_before": False, "split_seed": 42},
}


@pytest.mark.parametrize("data", DEFAULTS)
def test_the_defaults_are_those_of_the_paper_s_code_base(data: type[Data]) -> None:
    actual = vars(data())
    assert {key: actual[key] for key in DEFAULTS[data]} == DEFAULTS[data]


def test_all_runs_have_one_random_split_of_a_graph() -> None:
    """tunedGNN's seed of the split is 123."""
    data = Graph(name="cora", split=Split.per_class)
    assert (data.split_seed, data.num_classes, data.root) == (123, 7, "")
    ogbg = OGBG(name="ogbg-molpcba")
    assert (ogbg.walk_steps, ogbg.num_classes, ogbg.root) == (0, 128, "")


@pytest.mark.parametrize("data", [ImageData, Digits, Cifar100, ImageNetFolder, ImageNetFFCV])
def test_images_are_loaded_as_those_of_a_single_process_unless_ranks_are_given(data: type[ImageData]) -> None:
    parameters = inspect.signature(data.load).parameters
    assert (parameters["rank"].default, parameters["world_size"].default) == (0, 1)


@pytest.mark.parametrize("loader", [Loader, TensorLoader, CifarLoader, FolderLoader, FFCVLoader])
def test_an_epoch_starts_with_its_first_batch_unless_another_is_given(loader: Any) -> None:
    assert inspect.signature(loader.batches).parameters["start"].default == 0
    assert Augmentation(Flip.none, translate=0).seed == 0


def test_a_name_that_is_taken_is_refused() -> None:
    before = dict(DATASETS)
    with pytest.raises(ValueError, match=r"^'digits' is already registered for Digits: choose another name$"):
        register("digits")(Cifar100)
    assert before == DATASETS


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error"), RuntimeError(), ValueError("DataLoader worker (pid")]
)
def test_errors_of_other_kinds_are_not_taken_for_killed_workers(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explain_killed_workers():
        raise error
    assert caught.value is error


def test_a_killed_worker_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"set a smaller data\.workers$"), explain_killed_workers():
        raise RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed.")


def test_derived_seeds_are_digests_below_2_to_the_63() -> None:
    """BLAKE2b of 8 bytes, read from the most significant one."""
    seeds = []
    for seed, name in ((0, "order 0"), (5, 3), (2**62, "crops")):
        digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).hexdigest()
        seeds.append(derived_seed(seed, name))
        assert seeds[-1] == int(digest, 16) & (2**63 - 1)
    assert max(derived_seed(0, number) for number in range(100)) > 2**62


def test_made_up_records_are_56_examples_and_4_questions_per_task() -> None:
    data = TinyCommonsense(val_set_size=0)
    examples = data.load_examples().train
    assert len(examples) == 56
    formats = [record.instruction.partition("Answer format: ")[2] for record in examples]
    assert Counter(formats) == Counter("/".join(facts.options) for facts in TASKS.values() for _ in range(7))
    for record in examples:
        assert record.output == f"the correct answer is {record.answer}" and record.input == ""
    questions = TinyCommonsense(questions=4).load_questions("social_i_qa")
    assert [question.answer for question in questions] == ["answer1", "answer2", "answer3", "answer4"]
    assert [question.index for question in questions] == [0, 1, 2, 3]
    assert questions[0].options == TASKS["social_i_qa"].options
    (first, *_, last) = TinyCommonsense(questions=4).load_questions("boolq")
    assert (first.answer, last.answer) == ("true", "false")
    assert "Please choose the option of 3: \n\nAnswer format: true/false" in last.prompt
