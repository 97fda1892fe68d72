"""Options for recipes other than the paper's: label smoothing, schedules, exclusions, HAM for graph tasks."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import exp, log
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pages import ROOT, commands
from torch import Tensor

from ham.data import derived_seed
from ham.run.build import build
from ham.run.config import Config, ConfigError, config_hash, load
from ham.run.config.optimization import Schedule, ScheduleConfig, SGDConfig
from ham.run.logger import NullLogger
from ham.run.loop import train_step
from ham.run.state import Run
from ham.tasks.images import ImageClassification
from pruning import prunable_weights

CPU = torch.device("cpu")
SMALL = ["+demo=tiny", "model.depth=1", "model.embed_dim=8", "model.num_heads=1", "batch_size=64"]
STEPS = 1251  # of an epoch of ImageNet at 1024
RECIPES = {
    re.search(r"\+exp=(\w+)", command.line)[1]: command.line.split()[2:]
    for command in commands(ROOT / "docs" / "experiments.md")
    if command.line.startswith("python train.py") and "batch_size" in command.line
}


def task_of(cfg: Config) -> ImageClassification:
    seed = derived_seed(cfg.seed, "data")
    return ImageClassification(cfg, CPU, cfg.data.load(batch_size=cfg.batch_size, seed=seed, device=CPU))


def started(*overrides: str) -> Run:
    cfg = load(["+exp=deit_acdc_s50", *SMALL, *overrides])
    run = build(cfg, config_hash(cfg), task_of(cfg), NullLogger(ROOT, cfg), CPU)
    run.sparsifier.on_epoch_start(0, run.optimizer)
    return run


def smoothed(logits: Tensor, labels: Tensor, share: float) -> Tensor:
    """The cross entropy to the target (1 - share) onehot + share / classes, written out; float64."""
    log_probabilities = logits.double() - logits.double().exp().sum(dim=1, keepdim=True).log()
    onehot = (labels[:, None] == torch.arange(logits.shape[1])).double()
    target = (1 - share) * onehot + share / logits.shape[1]
    return -(target * log_probabilities).sum(dim=1).mean()


# Label smoothing.


def test_smoothed_loss_by_hand() -> None:
    """Two classes, logits (ln 3, 0), label 0: probabilities 3/4 and 1/4, targets 0.95 and 0.05."""
    task = ImageClassification(load(["+exp=dense", "optimizer.label_smoothing=0.1"]), CPU, None)
    logits = torch.tensor([[log(3), 0.0]])
    loss, shown, labels = task.loss(lambda images: logits, (torch.zeros(1, 3, 1, 1), torch.tensor([0])))
    assert float(loss) == pytest.approx(-0.95 * log(3 / 4) - 0.05 * log(1 / 4), rel=1e-6)
    assert exp(-float(loss)) < 3 / 4 and torch.equal(shown, logits) and labels.tolist() == [0]


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_every_pass_of_a_step_has_the_smoothed_loss(share: float) -> None:
    """SAM's ascent and its second pass, in accumulated parts: the optimizer's gradient by hand."""
    run = started(f"optimizer.label_smoothing={share}", "optimizer.sam_rho=0.5", "optimizer.accumulate=2")
    twin = started()
    images, labels = next(iter(run.task.loaders.train.batches(0)))

    def gradients() -> list[Tensor]:
        return torch.autograd.grad(smoothed(twin.model(images), labels, share), twin.params)

    with torch.no_grad():
        first = float(smoothed(twin.model(images), labels, share))
    ascent = gradients()
    norm = torch.cat([g.flatten() for g in ascent]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(twin.params, ascent, strict=True):
            parameter += 0.5 * gradient / norm
    expected = torch.cat([g.flatten() for g in gradients()])
    seen: list[Tensor] = []
    run.optimizer.register_step_pre_hook(lambda *_: seen.extend(p.grad.flatten() for p in run.params))
    loss = train_step(run, (images, labels))
    torch.testing.assert_close(torch.cat(seen), expected, rtol=2e-3, atol=1e-6)
    assert float(loss) == pytest.approx(first, rel=1e-5)


def test_evaluation_is_not_smoothed() -> None:
    plain, smooth = started(), started("optimizer.label_smoothing=0.3")
    assert plain.task.evaluate(plain) == smooth.task.evaluate(smooth)


def test_a_task_without_label_smoothing_refuses_it() -> None:
    with pytest.raises(ConfigError, match=r"^optimizer\.label_smoothing applies only to images: omit it$"):
        load(["+exp=node/cora_gcn", "optimizer.label_smoothing=0.1"])
    cfg = load(["+exp=deit", *SMALL, "optimizer.label_smoothing=0.1"])
    other = SimpleNamespace(name="segmentation", smooths_labels=False)
    with pytest.raises(ConfigError, match=r"does not apply to task segmentation: omit it$"):
        build(cfg, config_hash(cfg), other, NullLogger(ROOT, cfg), CPU)


# Schedules.


def factor_of(*overrides: str) -> Callable[[int], float]:
    return load(["+exp=dense", *overrides]).optimizer.schedule.factor(100, STEPS)


def test_until_ends_the_schedule_before_the_run() -> None:
    """spred's authors prune a network that is trained to the end; with finetune 0.1 that is step 112,590."""
    end = 90 * STEPS
    factor, entire = factor_of("optimizer.schedule.until=0.9"), factor_of()
    assert factor(int(0.2 * end)) == 1 and factor(end - 1) == pytest.approx(1 / (0.8 * end))
    assert factor(end) == factor(100 * STEPS - 1) == 0
    assert entire(end) == pytest.approx(0.125)  # what the rate is there without it
    steps = factor_of("optimizer.schedule.kind=step", "optimizer.schedule.until=0.5")
    assert [steps(share * STEPS) for share in (14, 15, 35, 45, 99)] == pytest.approx(
        [1, 0.1, 0.01, 1e-3, 1e-3]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.1}, "gamma does not apply to kind=triangular: omit it, or choose another"),
        ({"kind": "cosine", "milestones": [0.5]}, "milestones does not apply to kind=cosine"),
        ({"kind": "constant", "warmup": 0.1}, "warmup does not apply to kind=constant"),
        ({"kind": "constant", "until": 0.5}, "until does not apply to kind=constant"),
        ({"kind": "step", "gamma": 2.0}, "gamma must be in (0, 1], got 2"),
        ({"until": 0.0}, "until must be in (0, 1], got 0"),
        ({"until": float("nan")}, "until must be in (0, 1], got nan"),
        ({"warmup": 2.0}, "warmup must be in [0, 1], got 2"),
    ],
    ids=str,
)
def test_impossible_schedules_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^optimizer\.schedule.*" + re.escape(message)):
        ScheduleConfig(**{**options, "kind": Schedule[options.get("kind", "triangular")]})


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan")])
def test_impossible_label_smoothing_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"^optimizer\.label_smoothing must be in \[0, 1\), got "):
        SGDConfig(lr=0.1, label_smoothing=share)


def test_a_wrong_milestone_on_the_command_line_is_one_line_with_the_cure() -> None:
    given = ["+exp=rigl_s90", "optimizer.schedule.kind=step", "optimizer.schedule.milestones=[30,70]"]
    with pytest.raises(ConfigError) as error:
        load(given)
    assert str(error.value) == (
        "optimizer.schedule: milestones must be fractions of the steps in [0, 1], got [30.0, 70.0]; "
        "epoch 30 of 100 is 0.3"
    )


# The recipes of the methods' authors, as docs/experiments.md writes them.


def test_the_documented_recipe_of_rigl() -> None:
    """google-research/rigl: rate 0.1 per 256 images, a tenth at epochs 30, 70, 90; updates to step 25,000."""
    cfg = load(RECIPES["rigl_s90"])
    o, steps = cfg.optimizer, 100 * (1_281_167 // 4096)
    assert (cfg.batch_size, o.lr, o.momentum, o.nesterov) == (4096, 0.1 * 4096 / 256, 0.9, True)
    assert (o.weight_decay, str(o.decay), o.label_smoothing) == (1e-4, "ndim2", 0.1)
    factor = o.schedule.factor(1, steps)
    rates = [factor(share * steps // 100) for share in (0, 5, 29, 30, 69, 70, 89, 90, 99)]
    assert rates == pytest.approx([0, 1, 1, 0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3])
    rigl = cfg.sparsifier
    assert (rigl.interval, rigl.drop_fraction, rigl.until) == (100, 0.3, 25_000 / 32_000)
    assert rigl.update_at_start and str(rigl.allocation) == "erk"


@pytest.mark.parametrize(("name", "decay"), [("str_s90", 2.251757813e-5), ("acdc_s90", 2.0**-15)])
def test_the_documented_recipes_of_str_and_acdc(name: str, decay: float) -> None:
    """Both: rate .256 at 256 images, momentum .875, five epochs of warmup from a fifth, then a cosine."""
    cfg = load(RECIPES[name])
    o, steps = cfg.optimizer, 100 * 5004
    assert (cfg.epochs, cfg.batch_size, o.lr, o.momentum, o.nesterov) == (100, 256, 0.256, 0.875, False)
    assert (o.weight_decay, o.label_smoothing) == (decay, 0.1 if name == "str_s90" else 0)
    factor = o.schedule.factor(1, steps)
    assert [factor(e * 5004) for e in (0, 5, 52.5, 100)] == pytest.approx([0.2, 1, 0.5, 0], abs=1e-12)
    if name == "str_s90":
        s = cfg.sparsifier
        assert (str(s.calibrate), s.initial, s.threshold_decay) == ("none", -3200, decay)


# What is pruned, and where HAM acts.


def test_deits_patch_embedding_can_be_kept_dense() -> None:
    cfg = load(["+exp=deit_acdc_ham_s50", "sparsifier.exclude=[patch_embed.*]"])
    with torch.device("meta"):
        model = cfg.model.build(num_classes=1000, image_size=224)
    sizes = {key: weight.numel() for key, weight in prunable_weights(model).items()}
    kept = prunable_weights(model, cfg.sparsifier.exclude)
    assert sizes.keys() - kept.keys() == {"patch_embed.proj.weight"}
    assert sizes["patch_embed.proj.weight"] == 384 * 3 * 16 * 16
    assert sizes["patch_embed.proj.weight"] / sum(sizes.values()) == pytest.approx(0.01346, abs=5e-6)
    run = started("sparsifier.exclude=[patch_embed.*]")
    run.sparsifier.on_epoch_start(run.cfg.epochs - 1, run.optimizer)
    assert run.model.patch_embed.proj.weight.count_nonzero() == run.model.patch_embed.proj.weight.numel()
    assert run.sparsifier.achieved_sparsity() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "alpha", "beta"),
    [("ppa", 200, 0.1), ("molpcba", 200, 0.1), ("molhiv", 200, 0.1), ("code2", 1, 0.01)],
)
def test_ham_of_graph_classification_acts_on_convolutions(name: str, alpha: float, beta: float) -> None:
    """Table 13 and App. G.6.1."""
    ham = load(["+exp=node/cora_gcn", f"ham=ogbg_{name}"]).ham
    assert (ham.alpha, ham.beta, ham.select.name, ham.mask_zero_grad) == (alpha, beta, "convolutions", True)
