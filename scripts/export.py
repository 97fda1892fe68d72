"""Write a trained run as plain files: dense weights, masks and compressed rows.

    python scripts/export.py runs/acdc_ham_s90/seed0 [--to DIR]

model.safetensors holds the state_dict of the plain model, whatever parameterized it in training; masks hold
1 where a weight is on; csr.safetensors holds each prunable weight as compressed rows.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from ham.models import DeiT, Model, ResNet
from ham.models.resnet import Stem
from ham.run.checkpoint import CheckpointError
from ham.run.reopen import reopen
from ham.run.schema import Config, ConfigError
from pruning.cost import Cost, cost
from pruning.export import plain_state_dict, sparse_csr


def main(argv: list[str] | None = None) -> int:
    """Export one run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run directory, such as runs/acdc_ham_s90/seed0")
    parser.add_argument("--to", type=Path, help="folder to write to; RUN/export if not given")
    args = parser.parse_args(argv)
    try:
        export(args.run, args.to or args.run / "export")
    except (ConfigError, CheckpointError, ValueError) as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"export.py: cannot write: {error}", file=sys.stderr)
        return 1
    return 0


def export(run: Path, to: Path) -> None:
    """Write the three files and print their sizes, the network's cost and how to load it."""
    cfg, model, sparsifier = reopen(run)
    if not (run / "summary.json").exists():
        print(f"export.py: {run} is not done: this is its last checkpoint", file=sys.stderr)
    state = plain_state_dict(model)
    kept = sparsifier.kept()
    files = {
        "model.safetensors": state,
        "masks.safetensors": {name: mask.to("cpu", torch.uint8).contiguous() for name, mask in kept.items()},
        "csr.safetensors": sparse_csr(state, kept),
    }
    to.mkdir(parents=True, exist_ok=True)
    for name, tensors in files.items():
        save_file(tensors, to / name)
        print(f"{to / name}   {(to / name).stat().st_size / 1e6:.2f} MB")
    side = cfg.data.image_size
    counts = {name: count for name, count, _ in sparsifier.counts()}
    print(_told(cost(model, counts, (1, 3, side, side)), sparsifier.achieved_sparsity()))
    print("\nload it with\n")
    print(loading_lines(cfg, to / "model.safetensors"))


def loading_lines(cfg: Config, path: Path) -> str:
    """Python lines that make `model`, the plain network with the exported weights."""
    head, build = _build_lines(cfg.model, cfg.data.num_classes, cfg.data.image_size)
    lines = [
        "from safetensors.torch import load_file",
        *head,
        "",
        *build,
        f'model.load_state_dict(load_file("{path}"))',
        "model.eval()",
    ]
    return "\n".join(lines)


def _build_lines(model: Model, classes: int, side: int) -> tuple[list[str], list[str]]:
    if isinstance(model, DeiT):
        sizes = f"num_classes={classes}, img_size={side}, patch_size={model.patch_size}"
        shape = f"embed_dim={model.embed_dim}, depth={model.depth}, num_heads={model.num_heads}"
        return ["import timm"], [f'model = timm.create_model("deit_small_patch16_224", {sizes}, {shape})']
    if not isinstance(model, ResNet):
        raise ValueError(f"no lines are known that load a {type(model).__name__}")
    if model.width != 64 or model.layers:
        fields = f'depth={model.depth}, stem="{model.stem}", width={model.width}, layers={model.layers}'
        build = f"model = ResNet({fields}).build(num_classes={classes}, image_size={side})"
        return ["from ham.models import ResNet"], [build]
    head = ["import torchvision"]
    build = [f"model = torchvision.models.resnet{model.depth}(num_classes={classes})"]
    if model.stem is Stem.cifar:
        head.append("from torch import nn")
        build.append("model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)")
        build.append("model.maxpool = nn.Identity()")
    return head, build


def _told(counted: Cost, sparsity: float) -> str:
    return (
        f"sparsity {100 * sparsity:.2f} %, {counted.parameters:,} parameters, {counted.megabytes:.3f} MB "
        f"with bit masks, {counted.flops / 1e9:.4g} GFLOPs per image ({counted.flops_ratio:.3f} x dense)"
    )


if __name__ == "__main__":
    sys.exit(main())
