"""torchvision's ResNets, with options for the CIFAR stem and the initialization."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from torch import nn

from .base import Model, register


class Stem(StrEnum):
    """First layers: torchvision's 7x7 stride 2 and max-pooling, or only 3x3 stride 1 for small images."""

    imagenet = "imagenet"
    cifar = "cifar"


class Init(StrEnum):
    """Initial convolution weights.

    `pytorch` is nn.Conv2d's default (kaiming_uniform, a = sqrt 5), which results in the paper's code base
    because it replaces torchvision's layers; `torchvision` is kaiming_normal over fan_out.
    """

    pytorch = "pytorch"
    torchvision = "torchvision"


@register("resnet")
@dataclass
class ResNet(Model):
    """torchvision's ResNet; the state_dict has torchvision's names.

    Args:
        depth: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        stem: see `Stem`.
        init: see `Init`.
        width: channels of the first stage, 64 in the original; each later stage has twice as many.
        layers: blocks of each of the four stages; empty: those of `depth`.
    """

    depth: int = 50
    stem: Stem = Stem.imagenet
    init: Init = Init.pytorch
    width: int = 64
    layers: list[int] = field(default_factory=list)

    min_batch_size: ClassVar[int] = 2  # BatchNorm needs a variance over the batch

    _BLOCKS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}

    def __post_init__(self) -> None:
        """Raise ValueError for sizes that do not make a ResNet."""
        if self.depth not in self._BLOCKS:
            raise ValueError(f"depth must be one of {', '.join(map(str, self._BLOCKS))}, got {self.depth}")
        if self.width < 1:
            raise ValueError(f"width must be positive, got {self.width}; the original has 64")
        if self.layers and (len(self.layers) != 4 or min(self.layers) < 1):
            raise ValueError(
                f"layers must give the blocks of four stages, such as [3,4,6,3], got {self.layers}"
            )
        self.stem, self.init = Stem(self.stem), Init(self.init)

    def check(self, image_size: int) -> None:
        """The ImageNet stem needs at least 64 pixels per side: the network downsamples 32 times."""
        if self.stem is Stem.imagenet and image_size < 64:
            raise ValueError(
                f"images of {image_size} px are too small for the imagenet stem: "
                "use model.stem=cifar, or +demo=digits to scale"
            )

    def build(self, *, num_classes: int, image_size: int) -> nn.Module:
        """The network of torchvision with the stem, width and initialization of this configuration."""
        from torchvision.models import resnet

        block = resnet.BasicBlock if self.depth < 50 else resnet.Bottleneck
        layers = self.layers or self._BLOCKS[self.depth]
        net = resnet.ResNet(block, layers, num_classes=num_classes)
        if self.width != 64:
            _set_width(net, block, layers, self.width, num_classes)
        if self.stem is Stem.cifar:
            net.conv1 = nn.Conv2d(3, self.width, kernel_size=3, stride=1, padding=1, bias=False)
            net.maxpool = nn.Identity()
        _initialize(net, self.init)
        return net

    def building_lines(self, num_classes: int, image_size: int) -> tuple[list[str], list[str]]:
        """Lines that build the network, with only torchvision unless its width or depth is changed."""
        if self.width != 64 or self.layers:
            fields = f'depth={self.depth}, stem="{self.stem}", width={self.width}, layers={self.layers}'
            build = f"model = ResNet({fields}).build(num_classes={num_classes}, image_size={image_size})"
            return ["from ham.models import ResNet"], [build]
        imports = ["import torchvision"]
        statements = [f"model = torchvision.models.resnet{self.depth}(num_classes={num_classes})"]
        if self.stem is Stem.cifar:
            imports.append("from torch import nn")
            statements.append(
                "model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)"
            )
            statements.append("model.maxpool = nn.Identity()")
        return imports, statements


def _set_width(
    net: nn.Module, block: type[nn.Module], layers: list[int], width: int, num_classes: int
) -> None:
    net.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
    net.bn1, net.inplanes = nn.BatchNorm2d(width), width
    for stage, blocks in enumerate(layers):
        layer = net._make_layer(block, width * 2**stage, blocks, stride=1 if stage == 0 else 2)
        setattr(net, f"layer{stage + 1}", layer)
    net.fc = nn.Linear(width * 8 * block.expansion, num_classes)


def _initialize(net: nn.Module, init: Init) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            if init is Init.pytorch:
                module.reset_parameters()
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
