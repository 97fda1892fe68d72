"""ResNets of torchvision, with the CIFAR stem and the initialisation as switches."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from torch import nn

from .base import Model


class Stem(StrEnum):
    """First layers: torchvision's 7x7 stride 2 with max-pooling, or 3x3 stride 1 without for small images."""

    imagenet = "imagenet"
    cifar = "cifar"


class Init(StrEnum):
    """Initial convolution weights.

    `pytorch` is nn.Conv2d's own default (kaiming_uniform, a = sqrt 5), which the paper's code base ends up
    with because it replaces torchvision's layers; `torchvision` is kaiming_normal over fan_out.
    """

    pytorch = "pytorch"
    torchvision = "torchvision"


@dataclass
class ResNet(Model):
    """torchvision's ResNet; the state_dict has torchvision's names.

    Args:
        depth: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        stem: see `Stem`.
        init: see `Init`.
        width: channels of the first stage, 64 in the original; the others follow.
        layers: blocks per stage; empty for those that `depth` stands for.
    """

    depth: int = 50
    stem: Stem = Stem.imagenet
    init: Init = Init.pytorch
    width: int = 64
    layers: list[int] = field(default_factory=list)

    _BLOCKS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}

    def __post_init__(self) -> None:
        """Raise ValueError on a shape that is no ResNet."""
        if self.depth not in self._BLOCKS:
            raise ValueError(f"depth must be one of {', '.join(map(str, self._BLOCKS))}, got {self.depth}")
        if self.width < 1:
            raise ValueError(f"width must be positive, got {self.width}; the original has 64")
        if self.layers and (len(self.layers) != 4 or min(self.layers) < 1):
            raise ValueError(
                f"layers must name the blocks of four stages, such as [3,4,6,3], got {self.layers}"
            )
        self.stem, self.init = Stem(self.stem), Init(self.init)

    def check(self, image_size: int) -> None:
        """The ImageNet stem shrinks images 32 times over the network: it needs 64 pixels at least."""
        if self.stem is Stem.imagenet and image_size < 64:
            raise ValueError(
                f"images of {image_size} px are too small for the imagenet stem: "
                "use model.stem=cifar, or +demo=digits to scale"
            )

    def build(self, *, num_classes: int, image_size: int) -> nn.Module:
        """The network of torchvision, its stem and width exchanged where asked for."""
        from torchvision.models import resnet

        block = resnet.BasicBlock if self.depth < 50 else resnet.Bottleneck
        layers = self.layers or self._BLOCKS[self.depth]
        net = resnet.ResNet(block, layers, num_classes=num_classes)
        if self.width != 64:
            _set_width(net, block, layers, self.width, num_classes)
        if self.stem is Stem.cifar:
            net.conv1 = nn.Conv2d(3, self.width, kernel_size=3, stride=1, padding=1, bias=False)
            net.maxpool = nn.Identity()
        _initialise(net, self.init)
        return net


def _set_width(
    net: nn.Module, block: type[nn.Module], layers: list[int], width: int, num_classes: int
) -> None:
    net.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
    net.bn1, net.inplanes = nn.BatchNorm2d(width), width
    for stage, blocks in enumerate(layers):
        layer = net._make_layer(block, width * 2**stage, blocks, stride=1 if stage == 0 else 2)
        setattr(net, f"layer{stage + 1}", layer)
    net.fc = nn.Linear(width * 8 * block.expansion, num_classes)


def _initialise(net: nn.Module, init: Init) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            if init is Init.pytorch:
                module.reset_parameters()
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
