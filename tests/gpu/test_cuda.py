"""What only a GPU can show: equal implementations on the device and no host sync in a training step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from cells import CELLS, Around, train, write_masks
from probes import DOES_NOT_WAIT, PROBES, WAITS
from recorder import tensors_of
from runs import RUNS, GraphFiles, run
from torch import nn

from ham import HAM, hyperbolic_step_
from ham.optim.implementations import fastest
from pruning import RandomPruning
from pruning.export import semi_structured

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def no_sync() -> Iterator[None]:
    fastest(torch.ones(3, device="cuda"), 0.1)  # HAM's first step on a device waits, to check the kernel
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def tensors(count: int, scale: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [(torch.randn(3 + 17 * i, 5, generator=generator) * scale).cuda() for i in range(count)]


@pytest.fixture
def weights() -> list[torch.Tensor]:
    return tensors(5, 1.0)


@pytest.mark.parametrize("implementation", ["foreach", "compiled", "triton"])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
def test_the_step_equals_the_reference_on_the_cpu(implementation: str, lr: float | torch.Tensor):
    weights, grads = tensors(9, 1.0), tensors(9, 0.3)
    expected = [w.double().cpu() for w in weights]
    hyperbolic_step_(expected, [g.double().cpu() for g in grads], lr=0.1, alpha=200, beta=1e-3)
    rate = lr.cuda() if isinstance(lr, torch.Tensor) else lr
    options = dict(lr=rate, alpha=200, beta=1e-3, implementation=implementation)
    hyperbolic_step_(weights, grads, **options)
    for w, e in zip(weights, expected, strict=True):
        torch.testing.assert_close(w.cpu().double(), e, rtol=64 * torch.finfo(torch.float32).eps, atol=0)


def test_triton_is_the_default():
    assert fastest(torch.ones(3, device="cuda"), 0.1) == "triton"


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
def test_a_cuda_graph_replays_the_triton_step(lr: float | torch.Tensor):
    rate = lr.cuda() if isinstance(lr, torch.Tensor) else lr
    options = dict(lr=rate, alpha=20, beta=1e-3)
    weights, grads = tensors(9, 1.0), tensors(9, 0.3)
    expected = [w.clone() for w in weights]
    for _ in range(3):
        hyperbolic_step_(expected, grads, **options, implementation="reference")
    warm_up = torch.cuda.Stream()
    with torch.cuda.stream(warm_up):
        hyperbolic_step_([w.clone() for w in weights], grads, **options, implementation="triton")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hyperbolic_step_(weights, grads, **options, implementation="triton")
    for _ in range(3):
        graph.replay()
    for w, e in zip(weights, expected, strict=True):
        torch.testing.assert_close(w, e, rtol=1e-5, atol=0)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_the_step_does_not_wait_for_the_device(
    make: type[torch.optim.Optimizer], weights: list[torch.Tensor], no_sync: None
):
    params = [torch.nn.Parameter(w) for w in weights]
    optimizer = make(params, lr=0.01, fused=True)
    ham = HAM(optimizer, alpha=20, track_clamped=True)
    for _ in range(3):
        for p, g in zip(params, tensors_like(params), strict=True):
            p.grad = g
        optimizer.step()
    assert ham.clamped_share().is_cuda


def tensors_like(params: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [torch.full_like(p, 0.01) for p in params]


def test_overflow_of_a_fused_step_changes_nothing():
    params = [torch.nn.Parameter(w) for w in tensors(4, 1.0)]
    optimizer = torch.optim.AdamW(params, lr=0.01, fused=True)
    HAM(optimizer)
    scaler = torch.amp.GradScaler("cuda")
    before = [p.detach().clone() for p in params]
    scaler.scale(sum(p.sum() for p in params) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))


METHODS = [
    "acdc_ham_s90",
    "acdc_sign_in_s90",
    "rigl_ham_s90",
    "str_ham_s90",
    "random_sign_in_s90",
    "snip_ham_s90",
    "synflow_s90",
    "pilot_s90",
    "spred_s90",
]


@pytest.mark.parametrize("name", METHODS)
def test_a_training_step_does_not_wait_for_the_device(name: str, tmp_path: Path):
    from ham.run.build import build
    from ham.run.config import config_hash, load
    from ham.run.logger import RunLogger
    from ham.run.loop import train_step
    from ham.tasks.images import ImageClassification

    cfg = load([f"+exp={name}", "+demo=digits", "optimizer.sam_rho=0.05", f"runs_dir={tmp_path}"])
    device = torch.device("cuda")
    loaders = cfg.data.load(batch_size=cfg.batch_size, seed=0, device=device)
    record = RunLogger(tmp_path, cfg)
    run = build(cfg, config_hash(cfg), ImageClassification(cfg, device, loaders), record, device)
    record.start_progress(4, 0)
    batches = iter(loaders.train.batches(epoch=0))
    run.sparsifier.initialize(loaders.train.batches(epoch=0), torch.nn.functional.cross_entropy)
    if name.startswith("acdc"):
        run.sparsifier._phases[0] = "sparse"
    run.sparsifier.on_epoch_start(0, run.optimizer)
    train_step(run, next(batches))  # the first step allocates and tunes
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3):
            run.metrics.update_loss(step, train_step(run, next(batches)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    masks = run.sparsifier.masks
    for weight_name, weight in masks.weights.items():
        assert weight.value.is_cuda
        if masks.active:
            assert not weight.value[~masks.masks[weight_name]].any()
    state = {key: value.clone() for key, value in run.flips.state_dict().items()}
    run.sparsifier.load_state_dict(run.sparsifier.state_dict())
    run.flips.load_state_dict({key: value.cpu() for key, value in state.items()})
    assert 0 <= run.flips.on_epoch_end(run.flips.every)["sign_flips"] <= 1
    record.close()


def test_the_two_of_four_form_multiplies_as_the_dense_weight():
    model = nn.Linear(128, 64)
    sparsifier = RandomPruning(0.5, granularity="2:4", allocation="uniform")
    sparsifier.attach(model, total_epochs=1)
    sparse = semi_structured(model, ["weight"], dtype=torch.float16)["weight"]
    dense, inputs = model.weight.detach().half().cuda(), torch.randn(32, 128).half().cuda()
    torch.testing.assert_close(
        nn.functional.linear(inputs, sparse), nn.functional.linear(inputs, dense), rtol=1e-2, atol=1e-2
    )


# The trainings of tests/simulated, on a real card


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def anywhere(number: int) -> nullcontext:
    """Any step may wait for the device."""
    return nullcontext()


def only_in(allowed: set[int]) -> Around:
    """Steps other than the allowed ones raise RuntimeError where they wait for the device."""

    @contextmanager
    def around(number: int) -> Iterator[None]:
        torch.cuda.set_sync_debug_mode("default" if number in allowed else "error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return around


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "masks.pt"
    write_masks(path)
    return path


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_training_stays_on_the_device_and_its_steps_do_not_wait(cell, masks):
    """The masks change at the steps at which they do on the CPU; the first step allocates and tunes."""
    updates = train(cell, masks, CPU, anywhere).updates
    outcome = train(cell, masks, CUDA, only_in({0, *updates}))
    assert not outcome.stray
    assert outcome.updates == updates


@pytest.mark.parametrize("name", RUNS)
def test_a_run_and_its_resume_stay_on_the_device_and_their_steps_do_not_wait(name, tmp_path):
    """Epochs of a graph are one step: its run is resumed at step 2, which transposes the edges again."""
    with GraphFiles(tmp_path):
        updates = run(name, tmp_path / "cpu", CPU, anywhere).updates
        first = {0, 2} if name.startswith("node/") else {0}
        outcome = run(name, tmp_path / "cuda", CUDA, only_in(first | updates))
    assert not outcome.stray
    assert outcome.updates == updates


@pytest.mark.parametrize("name", ["top_k", "graph", "cifar"])
def test_results_are_on_the_device(name):
    assert all(tensor.is_cuda for _, tensor in tensors_of(PROBES[name](CUDA)))


def test_tensors_of_two_devices_do_not_mix():
    with pytest.raises(RuntimeError, match="same device"):
        PROBES["mixed_devices"](CUDA)


def test_the_fused_step_of_ham_refuses_a_gpu():
    with pytest.raises(ValueError, match="implementation='fused' is for CPU weights"):
        PROBES["fused_step_of_ham"](CUDA)


@pytest.mark.parametrize("name", [*WAITS, *DOES_NOT_WAIT])
def test_the_simulated_device_waits_where_cuda_does(name):
    """The rules of tests/simulated/device.py are those of a real card."""
    x = torch.ones(3, 2, device=CUDA)
    with pytest.raises(RuntimeError) if name in WAITS else nullcontext(), only_in(set())(0):
        (WAITS | DOES_NOT_WAIT)[name](x)
