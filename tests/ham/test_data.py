"""The registry of data sets, and the order in which ranks read them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ham.data import (
    DATASETS,
    OGBG,
    Cifar100,
    Commonsense,
    Digits,
    Graph,
    ImageData,
    ImageNetFFCV,
    ImageNetFolder,
)
from ham.data.base import RankSampler
from ham.data.commonsense_tiny import TinyCommonsense
from ham.data.graph_files import SETS


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
