"""timm's DeiT-Small (Touvron et al., 2021), without distillation token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .base import Model, register


@register("deit")
@dataclass
class DeiT(Model):
    """timm's deit_small_patch16_224; the defaults are DeiT-Small.

    Args:
        patch_size: pixels per side of a patch.
        embed_dim: width of a token.
        depth: number of blocks.
        num_heads: attention heads; must divide embed_dim.
        drop_path: stochastic depth; the paper does not mention it.
    """

    patch_size: int = 16
    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for sizes that do not make a ViT."""
        for name in ("patch_size", "embed_dim", "depth", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} must divide embed_dim={self.embed_dim}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")

    def check(self, image_size: int) -> None:
        """Images must split into patches of `patch_size`, more than one."""
        if image_size % self.patch_size or image_size == self.patch_size:
            raise ValueError(
                f"images of {image_size} px do not split into patches of {self.patch_size}: "
                "choose a model.patch_size that divides them, or +demo=digits to scale"
            )

    def build(self, *, num_classes: int, image_size: int) -> nn.Module:
        """The network of timm for images of `image_size` pixels per side."""
        import timm

        return timm.create_model(
            "deit_small_patch16_224",
            pretrained=False,
            num_classes=num_classes,
            img_size=image_size,
            patch_size=self.patch_size,
            embed_dim=self.embed_dim,
            depth=self.depth,
            num_heads=self.num_heads,
            drop_path_rate=self.drop_path,
        )

    def building_lines(self, num_classes: int, image_size: int) -> tuple[list[str], list[str]]:
        """Lines that build the network with only timm."""
        sizes = f"num_classes={num_classes}, img_size={image_size}, patch_size={self.patch_size}"
        shape = f"embed_dim={self.embed_dim}, depth={self.depth}, num_heads={self.num_heads}"
        return ["import timm"], [f'model = timm.create_model("deit_small_patch16_224", {sizes}, {shape})']
