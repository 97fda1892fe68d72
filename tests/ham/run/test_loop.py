"""The training loop: order within a step, gradients, exact evaluation, and the end of runs that diverge."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ham import hyperbolic_step_, perturbed
from ham.data import derived_seed
from ham.run.build import build, optimizer_of, setup_device
from ham.run.config import CONFIGS, config_hash, load
from ham.run.config.optimization import OptimizerConfig
from ham.run.config.registry import SCHEMAS
from ham.run.logger import RunLogger
from ham.run.loop import forward_backward, train_step
from ham.run.metrics import EpochMetrics
from ham.run.state import Run
from ham.tasks.images import ImageClassification
from pruning import prunable_weights
from pruning.acdc import phases

EPOCHS = 10
RESNET = ["+exp=acdc_ham_s90", "+demo=digits", "model.width=4", "batch_size=64", f"epochs={EPOCHS}"]
DEIT = [
    "+exp=deit_acdc_ham_s50",
    "+demo=digits",
    "model.depth=2",
    "model.embed_dim=16",
    "model.num_heads=2",
    "batch_size=64",
    f"epochs={EPOCHS}",
]
SPARSE = phases(EPOCHS).index("sparse")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """`make(overrides)`: a run as it stands before its first step."""
    records: list[RunLogger] = []

    def run(*overrides: str) -> Run:
        cfg = load(overrides)
        device = setup_device(cfg)
        loaders = cfg.data.load(batch_size=cfg.batch_size, seed=derived_seed(cfg.seed, "data"), device=device)
        records.append(RunLogger(tmp_path / str(len(records)), cfg))
        built = build(cfg, config_hash(cfg), ImageClassification(cfg, device, loaders), records[-1], device)
        built.sparsifier.on_epoch_start(0, built.optimizer)
        return built

    yield run
    for record in records:
        record.close()


def batches(run: Run, count: int, epoch: int = 0) -> list[tuple[Tensor, Tensor]]:
    return [batch for batch, _ in zip(run.task.loaders.train.batches(epoch), range(count), strict=False)]


def in_a_sparse_phase(run: Run) -> Run:
    """A few steps dense, for momentum, then compressed and a few steps sparse."""
    for batch in batches(run, 2):
        train_step(run, batch)
    for epoch in range(1, SPARSE + 1):
        run.sparsifier.on_epoch_start(epoch, run.optimizer)
    for batch in batches(run, 2, epoch=1):
        train_step(run, batch)
    return run


def gradient(run: Run) -> Tensor:
    return torch.cat([p.grad.double().flatten() for p in run.params])


def step_by_hand(run: Run, batch: tuple[Tensor, Tensor]) -> None:
    """SAM, the base step, HYP* and the masks, in the order of the paper's algorithm and of AC/DC's code.

    The model must be in a sparse phase; HAM is detached and its formula applied to the groups that carry it.
    """
    cfg, images, classes = run.cfg, *batch
    chosen = [group["ham_alpha"] != 0 for group in run.optimizer.param_groups]
    run.ham.remove()
    pruned = {
        weight.parameters[0]: ~run.sparsifier.masks.masks[name]
        for name, weight in run.sparsifier.masks.weights.items()
    }

    def masked_gradient() -> None:
        cross_entropy(run.model(images), classes).backward()
        for weight, off in pruned.items():
            weight.grad[off] = 0.0

    masked_gradient()
    with perturbed(run.params, rho=cfg.optimizer.sam_rho, freeze_bn=run.model):
        masked_gradient()
    rates = [group["lr"] for group in run.optimizer.param_groups]
    run.optimizer.step()
    for group, rate, active in zip(run.optimizer.param_groups, rates, chosen, strict=True):
        if active:
            gradients = [p.grad for p in group["params"]]
            hyperbolic_step_(group["params"], gradients, lr=rate, alpha=cfg.ham.alpha, beta=cfg.ham.beta)
    with torch.no_grad():
        for weight, off in pruned.items():
            weight[off] = 0.0


@pytest.mark.parametrize("leaf", [RESNET, DEIT], ids=["sgd", "adamw"])
def test_a_step_is_gradient_mask_sam_mask_base_step_ham_mask(leaf: list[str], make: Callable) -> None:
    one, other = (in_a_sparse_phase(make(*leaf, "optimizer.sam_rho=0.05")) for _ in range(2))
    (batch,) = batches(one, 1, epoch=2)
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    rate = one.scheduler.get_last_lr()[0]
    train_step(one, batch)
    step_by_hand(other, batch)
    moved = 0
    for (name, found), expected in zip(
        one.model.state_dict().items(), other.model.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected), name
        moved += not torch.equal(found, before[name])
    assert moved > 10
    states = (run.optimizer.state_dict()["state"] for run in (one, other))
    for found, expected in zip(*(state.values() for state in states), strict=True):
        assert all(torch.equal(found[key], expected[key]) for key in expected if expected[key] is not None)
    assert all(p.grad is None for p in one.params)
    assert one.scheduler.get_last_lr()[0] != rate


def test_parts_of_a_batch_add_up_to_the_whole(make: Callable) -> None:
    whole, parts = make(*DEIT), make(*DEIT, "optimizer.accumulate=4")
    (batch,) = batches(whole, 1)
    losses = [float(forward_backward(run, batch)) for run in (whole, parts)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    expected = gradient(whole)
    assert torch.linalg.vector_norm(gradient(parts) - expected) < 1e-5 * torch.linalg.vector_norm(expected)


def test_ham_sees_the_clipped_gradient(make: Callable) -> None:
    run = make(*RESNET)
    (batch,) = batches(run, 1)
    forward_backward(run, batch)
    norm = float(torch.linalg.vector_norm(gradient(run)))
    run.optimizer.zero_grad()

    clipped = make(*RESNET, "optimizer.sam_rho=0.05", f"optimizer.clip_norm={norm / 2}")
    seen: list[Tensor] = []
    clipped.optimizer.register_step_post_hook(lambda *_: seen.append(gradient(clipped)))  # as HAM's own
    train_step(clipped, batch)
    assert float(torch.linalg.vector_norm(seen[0])) == pytest.approx(norm / 2, rel=1e-5)


@pytest.mark.parametrize("leaf", [RESNET, DEIT], ids=["resnet", "deit"])
def test_evaluation_is_exact_over_every_test_image(leaf: list[str], make: Callable) -> None:
    run = make(*leaf)
    for batch in batches(run, 15):
        train_step(run, batch)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    found = run.task.evaluate(run)
    assert run.model.training and all(module.training for module in run.model.modules())
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())

    images, classes = (torch.cat(column) for column in zip(*run.task.loaders.test.batches(0), strict=True))
    assert len(images) == 360 and 360 % run.cfg.batch_size, "the last batch is a ragged one"
    model = copy.deepcopy(run.model).double().eval()
    loss, right, among_five = 0.0, 0, 0
    with torch.no_grad():
        for image, label in zip(images.double(), classes.tolist(), strict=True):
            (logits,) = model(image[None]).tolist()
            loss += float(torch.tensor(logits, dtype=torch.float64).logsumexp(0)) - logits[label]
            better = sum(logit > logits[label] for logit in logits)
            right += better == 0
            among_five += better < 5
    assert found["test_loss"] == pytest.approx(loss / 360, rel=1e-5)
    assert found["top1"] == pytest.approx(100 * right / 360) and found["top5"] == pytest.approx(
        100 * among_five / 360
    )
    assert 0 < right < among_five


def finite_step(run: Run) -> None:
    """A step that moves the weights and leaves them float32 and finite."""
    (batch,) = batches(run, 1)
    before = [p.detach().clone() for p in run.params]
    assert torch.isfinite(train_step(run, batch))
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in run.params)
    assert any(not torch.equal(old, new) for old, new in zip(before, run.params, strict=True))


@pytest.mark.parametrize("leaf", [RESNET, DEIT], ids=["resnet", "deit"])
def test_amp_computes_in_bfloat16_and_keeps_float32(leaf: list[str], make: Callable) -> None:
    run, exact = make(*leaf, "compute.amp=true"), make(*leaf)
    seen: set[torch.dtype] = set()
    layer = next(m for m in run.model.modules() if isinstance(m, nn.Linear))
    layer.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    images, _ = batches(run, 1)[0]
    with torch.no_grad():
        logits, expected = run.task.forward(run.network, images), exact.task.forward(exact.network, images)
    assert logits.dtype == torch.float32
    error = float((logits - expected).norm() / expected.norm())
    assert 1e-5 < error < 0.1  # bfloat16 has 8 bits
    finite_step(run)
    assert seen == {torch.bfloat16}


def test_channels_last_reaches_weights_and_activations(make: Callable) -> None:
    run = make(*RESNET, "compute.channels_last=true")
    seen: list[bool] = []

    def look(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        seen.append(args[0].is_contiguous(memory_format=torch.channels_last))

    for module in run.model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
            module.register_forward_hook(look)
    in_a_sparse_phase(run)
    finite_step(run)
    assert seen and all(seen)


@pytest.mark.slow
def test_compile_trains_the_same_network(make: Callable) -> None:
    leaf = [*DEIT, "model.depth=1"]
    compiled, plain = make(*leaf, "compute.compile=true"), make(*leaf)
    assert compiled.network is not compiled.model
    for batch in batches(plain, 2):
        losses = [float(train_step(run, batch)) for run in (compiled, plain)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()
    losses = [run.task.evaluate(run)["test_loss"] for run in (compiled, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_divergence_that_shows_in_rigls_scores_first_names_the_layer(
    command: Callable, tmp_path: Path
) -> None:
    given = ["+exp=rigl_s90", "+demo=digits", "model.width=4", "epochs=10", "optimizer.lr=1e6"]
    outcome = command(*given, f"runs_dir={tmp_path}")
    assert outcome.status == 1
    (line,) = outcome.complaints
    found = re.search(r": diverged: the scores of (\S+) contain nan at step (\d+); no checkpoint was ", line)
    assert found and line.endswith("lower optimizer.lr"), line
    cfg = load(given)
    assert found[1] in prunable_weights(cfg.model.build(num_classes=10, image_size=8))
    assert int(found[2]) % cfg.sparsifier.interval == 0 < int(found[2])
    assert not list(tmp_path.glob("*/seed0/summary.json"))


@pytest.mark.parametrize(
    ("cause", "checkpoints", "words"),
    [
        ("optimizer.lr=1e6", "checkpoint.minutes=0", ["the loss is not finite", "last.pt"]),
        ("ham.alpha=1e6", "checkpoint.minutes=0", ["ham.alpha", "last.pt"]),
        ("optimizer.lr=1e6", "checkpoint.minutes=1000", ["the loss is not finite", "no checkpoint"]),
        ("ham.alpha=1e9 ham.clamp=1e4", "checkpoint.minutes=0", ["is not finite", "no checkpoint"]),
    ],
)
def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(
    cause: str,
    checkpoints: str,
    words: list[str],
    command: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses: list[float] = []
    update_loss = EpochMetrics.update_loss

    def listen(metrics: EpochMetrics, number: int, loss: Tensor) -> None:
        losses.append(float(loss))
        update_loss(metrics, number, loss)

    monkeypatch.setattr(EpochMetrics, "update_loss", listen)
    outcome = command(*RESNET, f"runs_dir={tmp_path}", *cause.split(), checkpoints)
    assert outcome.status == 1
    assert len(outcome.complaints) == 1 and "diverged" in outcome.complaints[0], outcome.err
    assert all(word in outcome.complaints[0] for word in words)
    named = int(re.search(r"at step (\d+)", outcome.complaints[0])[1])
    (folder,) = tmp_path.glob("*/seed0")
    record = json.loads((folder / "diverged.json").read_text())
    assert record["status"] == "diverged" and f"diverged: {record['reason']};" in outcome.complaints[0]
    assert record["reason"].endswith(f"at step {named}") and str(tmp_path) not in record["reason"]
    assert record["config_hash"] == json.loads((folder / "provenance.json").read_text())["config_hash"]
    assert record["epochs"] < load(RESNET).epochs and not (folder / "summary.json").exists()
    finite = [bool(torch.isfinite(torch.tensor(loss))) for loss in losses]
    if "the loss is not finite" in outcome.complaints[0]:
        assert finite.index(False) == named
    else:
        assert all(finite) and named == len(losses)
    (folder,) = tmp_path.glob("*/seed0")
    assert not (folder / "summary.json").exists()
    if "last.pt" in words:
        state = torch.load(folder / "last.pt", weights_only=True)
        assert 0 < state["progress"]["step"] <= named
        assert all(torch.isfinite(value).all() for value in state["model"].values())
    else:
        assert not (folder / "last.pt").exists()


def test_ham_on_thresholds_reads_the_loss_gradient_alone(
    make: Callable[..., Run],
) -> None:
    """Equation HYP* takes the gradient of f; the ramp moves the thresholds after the step, not by a decay."""
    options = ("+exp=str_ham_ndim2_s90", "+demo=digits", "model.width=4", "ham.beta=0")
    run, twin, bare = make(*options), make(*options), make(*options, "ham.alpha=0")
    (batch,) = batches(run, 1)
    run.step = bare.step = 300  # where the ramp asks for more than there is
    shifted = []
    for side in (run, bare):
        shifted.append(side.sparsifier.after_step)
        side.sparsifier.after_step = lambda: None
    forward_backward(twin, batch)
    train_step(bare, batch)
    lr = run.optimizer.param_groups[0]["lr"]
    train_step(run, batch)
    logits = [sides.sparsifier.parameterization.logits for sides in (run, twin, bare)]
    for found, loss, base in zip(*logits, strict=True):
        expected = base * torch.exp(-lr * 200 * base.sign() * loss.grad)
        torch.testing.assert_close(found, expected)
        assert abs(base.item() + 8) < 1e-3 and found.item() > -8.1
    for shift, side in zip(shifted, (run, bare), strict=True):
        shift()
        assert min(side.sparsifier.parameterization.logits) > -6.5  # the ramp's own move, at most 2


def test_matched_decay_is_as_strong_as_beta_and_acts_on_the_same_weights(make: Callable[..., Run]) -> None:
    """Section 3.1 decays by exp(-lr beta) a step; coupled decay d adds up to lr d / (1 - momentum)."""
    run = make("+exp=dense_matched_decay", "+demo=digits", "model.width=4")
    ham = make("+exp=dense_beta_only", "+demo=digits", "model.width=4")
    acted_on = [bool(group["ham_beta"]) for group in ham.optimizer.param_groups]
    assert sorted(acted_on) == [False, True]
    shapes = [[tuple(p.shape) for p in group["params"]] for group in ham.optimizer.param_groups]
    assert shapes == [[tuple(p.shape) for p in group["params"]] for group in run.optimizer.param_groups]
    for group, beta in zip(run.optimizer.param_groups, acted_on, strict=True):
        assert group["weight_decay"] == pytest.approx(5e-5 + (1 - 0.9) * 1e-3 * beta)


OPTIONS = {"momentum": 0.7, "nesterov": True, "betas": (0.8, 0.95), "eps": 1e-3}


@pytest.mark.parametrize("path", sorted((CONFIGS / "optimizer").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_option_of_an_optimizer_reaches_its_groups(path: Path) -> None:
    content = OmegaConf.to_container(OmegaConf.load(path))  # it reads 1e-8 as a number
    schema = SCHEMAS["optimizer"][content["defaults"][0].removesuffix("_schema")]
    own = {field.name for field in fields(schema)} - {field.name for field in fields(OptimizerConfig)}
    of_file = {name: value for name, value in content.items() if name in own}
    for given in (of_file, {name: OPTIONS[name] for name in own}):
        optimizer = optimizer_of(schema(lr=0.3, **given), [{"params": [nn.Parameter(torch.ones(2))]}])
        assert f"{type(optimizer).__name__}Config" == schema.__name__
        (group,) = optimizer.param_groups
        for name, value in {"lr": 0.3, **given}.items():
            assert group[name] == (tuple(value) if isinstance(value, list) else value), name


def test_the_line_of_an_epoch_shows_losses_and_accuracies_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = RunLogger(tmp_path / "run", load(RESNET))
    shown = {"train_loss": 2.302585, "train_top1": 11.5, "test_loss": 2.25, "top1": 12.34567, "lr": 0.03}
    hidden = {"kept": 7, "l1_sum": 3.0, "l1_mean": 0.1, "inverse_metric_at_zero": 1.0, "layers": {"fc": 0.5}}
    logger.log_epoch({"epoch": 0, "step": 3, **shown, **hidden})
    logger.close()
    line = f"epoch 1/{EPOCHS}  train_loss 2.3026  train_top1 11.5  test_loss 2.25  top1 12.3457  lr 0.03\n"
    assert capsys.readouterr().out == line
    assert (tmp_path / "run" / "train.log").read_text().endswith(f"  {line}")
