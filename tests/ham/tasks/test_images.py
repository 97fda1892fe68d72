"""Image classification: weights of parts, loss, accuracies over all images, summary and warnings."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ham.models import ResNet
from ham.tasks import images
from ham.tasks.images import ImageClassification

CPU = torch.device("cpu")


def task(batches: list[tuple[Tensor, Tensor]] = (), *, smoothing: float = 0.0, **compute: bool) -> Any:
    """A task of made-up images, without a data set's files."""
    compute = {"channels_last": False, "amp": False, "sync_bn": False} | compute
    loader = SimpleNamespace(batches=lambda epoch, start=0: iter(batches[start:]))
    cfg = SimpleNamespace(
        compute=SimpleNamespace(**compute), optimizer=SimpleNamespace(label_smoothing=smoothing)
    )
    return ImageClassification(cfg, CPU, SimpleNamespace(train=loader, test=loader))


def test_parts_of_a_batch_are_weighted_by_their_number_of_images() -> None:
    images, labels = torch.arange(7.0).reshape(7, 1, 1, 1), torch.arange(7)
    parts = list(task().microbatches((images, labels), 3))
    assert [(own.flatten().tolist(), chosen.tolist()) for (own, chosen), _ in parts] == [
        ([0, 1, 2], [0, 1, 2]),
        ([3, 4, 5], [3, 4, 5]),
        ([6], [6]),
    ]
    assert [weight for _, weight in parts] == [3 / 7, 3 / 7, 1 / 7]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_mean_cross_entropy_with_smoothed_labels(smoothing: float) -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.0]])
    labels = torch.tensor([0, 2])
    loss, shown, kept = task(smoothing=smoothing).loss(lambda images: logits, (torch.zeros(2), labels))
    expected = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total = math.log(sum(map(math.exp, row)))
        for place, value in enumerate(row):
            target = smoothing / 3 + (1 - smoothing) * (place == label)
            expected -= target * (value - total) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert torch.equal(shown, logits) and kept is labels


class Scores(nn.Module):
    """The logits of an image are its channels."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return images.flatten(1)


def test_every_image_counts_once_in_percent_whatever_the_batches() -> None:
    """Of three images of six classes one is right at once, one among the five best, one is the worst."""
    scores = torch.tensor([[9.0, 1, 2, 3, 4, 5], [1, 2, 3, 9, 8, 7], [6, 5, 4, 3, 2, 1]])[..., None, None]
    labels = torch.tensor([0, 1, 5])
    model = Scores().train()
    run = SimpleNamespace(model=model, network=model)
    found = task([(scores[:2], labels[:2]), (scores[2:], labels[2:])]).evaluate(run)
    losses = [
        math.log(sum(map(math.exp, row))) - row[label]
        for row, label in zip(scores.flatten(1).tolist(), labels.tolist(), strict=True)
    ]
    assert found["test_loss"] == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert (found["top1"], found["top5"]) == (pytest.approx(100 / 3), pytest.approx(200 / 3))
    assert model.training, "the mode stays as it is"


def test_with_three_classes_every_label_is_among_the_five_best() -> None:
    model = Scores()
    batch = (torch.tensor([[3.0, 2.0, 1.0]])[..., None, None], torch.tensor([2]))
    found = task([batch]).evaluate(SimpleNamespace(model=model, network=model))
    assert (found["top1"], found["top5"]) == (0, 100)


def test_images_are_in_channels_last_and_in_bfloat16_where_asked_and_logits_are_float32() -> None:
    seen: list[tuple[bool, bool]] = []
    linear = nn.Linear(8, 3)

    def network(images: Tensor) -> Tensor:
        own = linear(images.flatten(1))
        last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
        seen.append((last, own.dtype is torch.bfloat16))
        return own

    images = torch.arange(16.0).reshape(2, 2, 2, 2)
    outputs = [
        task(**options).forward(network, images).dtype
        for options in ({}, {"channels_last": True}, {"amp": True})
    ]
    assert seen == [(False, False), (True, False), (False, True)]
    assert outputs == [torch.float32] * 3


def test_the_images_are_loaded_for_the_rank_and_evaluated_with_the_first_rank_s_buffers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []
    batch = (torch.zeros(2, 3, 1, 1), torch.tensor([0, 1]))
    loader = Loader([batch, batch, batch])
    loaders = SimpleNamespace(train=loader, test=loader)
    data = SimpleNamespace(load=lambda **options: asked.append(options) or loaders)
    cfg = SimpleNamespace(data=data, batch_size=8, compute=SimpleNamespace(channels_last=False, amp=False))
    own = ImageClassification.load(cfg, CPU, seed=5, rank=1, world_size=2)
    assert asked == [{"batch_size": 8, "seed": 5, "device": CPU, "rank": 1, "world_size": 2}]
    assert own.cfg is cfg and own.device == CPU and own.loaders is loaders
    assert own.steps_per_epoch == 3
    assert len(list(own.batches(4))) == 3 and len(list(own.batches(4, start=2))) == 1
    assert len(list(own.initialization_batches())) == 3 and loader.epochs == [4, 4, 0]
    sent: list[nn.Module] = []
    monkeypatch.setattr(images.distributed, "broadcast_buffers", sent.append)
    model = Scores()
    own.evaluate(SimpleNamespace(model=model, network=model))
    assert sent == [model] and loader.epochs[3:] == [0]


class Loader:
    """Batches in a list, which remembers the epochs that are read."""

    def __init__(self, content: list[tuple[Tensor, Tensor]]) -> None:
        self.content, self.epochs = content, []

    def __len__(self) -> int:
        return len(self.content)

    def batches(self, epoch: int, start: int = 0) -> Any:
        self.epochs.append(epoch)
        return iter(self.content[start:])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("sync_bn", [False, True])
def test_a_network_has_the_layout_and_the_norms_of_the_configuration(
    channels_last: bool, sync_bn: bool
) -> None:
    own = task(channels_last=channels_last, sync_bn=sync_bn)
    own.cfg.model = ResNet(depth=18, stem="cifar", width=2, layers=[1, 1, 1, 1])
    own.cfg.data = SimpleNamespace(num_classes=7, image_size=8)
    model = own.build_model(torch.Generator().manual_seed(0))
    assert model.fc.out_features == 7
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    kinds = {type(module) for module in model.modules()}
    assert (nn.SyncBatchNorm in kinds) == sync_bn and (nn.BatchNorm2d in kinds) == (not sync_bn)
    ImageClassification.check(own.cfg)
    own.cfg.model = ResNet()
    with pytest.raises(ValueError, match="images of 8 px are too small"):
        ImageClassification.check(own.cfg)


LINE = {"train_loss": 0.5, "test_loss": 1.5, "top5": 99.0}


def summary(history: list[dict[str, Any]]) -> dict[str, Any]:
    sparsifier = SimpleNamespace(sparsity=0.5, counts=lambda: [("fc", 1, 2)], achieved_sparsity=lambda: 0.5)
    return task().summarize(SimpleNamespace(history=history, sparsifier=sparsifier))


def test_the_best_epoch_is_one_that_is_as_sparse_as_the_last_within_a_thousandth() -> None:
    history = [
        LINE | {"top1": own, "sparsity": sparsity}
        for own, sparsity in ((90.0, 0.0), (80.0, 0.498), (75.0, 0.4995), (70.0, 0.9), (60.0, 0.5))
    ]
    found = summary(history)
    assert found["metrics"] == {
        "train_loss": 0.5,
        "test_loss": 1.5,
        "top1_last": 60.0,
        "top1_best": 75.0,
        "top5_last": 99.0,
    }
    assert found["sparsity"] == {
        "target": 0.5,
        "overall": 0.5,
        "kept": 1,
        "total": 2,
        "layers": {"fc": 0.5},
        "masks_from": None,
    }
    assert summary([*history[:-1], history[-1] | {"masks_from": "x"}])["sparsity"]["masks_from"] == "x"


def described(**sparsity: Any) -> list[str]:
    values = {"overall": 0.9, "kept": 10, "total": 100, "target": 0.9, "layers": {"fc": 0.9}} | sparsity
    metrics = {"top1_last": 70.123, "top1_best": 71.0}
    return ImageClassification.describe({"metrics": metrics, "sparsity": values})


def test_accuracy_and_sparsity_are_reported() -> None:
    assert described() == [
        "test top-1   70.12 %   (best epoch 71.00 %)",
        "sparsity     90.00 %   (10 of 100 weights kept; target 90 %)",
    ]


@pytest.mark.parametrize(
    ("overall", "is_missed"), [(0.8949, True), (0.8951, False), (0.9049, False), (0.9051, True)]
)
def test_a_sparsity_that_is_half_a_percent_off_its_target_is_missed(overall: float, is_missed: bool) -> None:
    missed = "missed       its target sparsity: train longer, or for STR use sparsifier.calibrate=ramp"
    assert described(overall=overall)[2:] == [missed] * is_missed
    assert described(overall=overall, target=0.0)[2:] == [], "without a target none is missed"


def test_layers_without_a_weight_are_named() -> None:
    assert described(layers={"a": 1.0, "b": 0.999, "c": 1.0})[2:] == [
        "fully pruned a, c: lower the sparsity, exclude them, or prune layerwise"
    ]


def test_images_have_the_best_epoch_as_second_metric_and_scales_below_the_paper_s() -> None:
    assert ImageClassification.reported == ("top1_last", "top1_best")
    assert ImageClassification.demos == {"cifar16", "digits", "tiny"}
    assert ImageClassification.smooths_labels and ImageClassification.stores_history
