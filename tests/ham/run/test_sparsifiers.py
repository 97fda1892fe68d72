"""Every sparsifier through the command line's path: stopped and resumed, its records, masks and exports."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from extent import ALL
from torch.nn.functional import cross_entropy

from ham.data import derived_seed
from ham.models import build_model
from ham.run.build import build, run_directory, setup_device
from ham.run.config import Config, ConfigError, config_hash, load
from ham.run.load import load_run
from ham.run.logger import RunLogger
from ham.run.loop import train_step
from ham.run.main import run_experiment
from ham.run.metrics import EpochMetrics
from ham.tasks.images import ImageClassification
from pruning import ACDC, STR
from pruning.export import load_masks, plain_state_dict
from pruning.str import stable_decay

ROOT = Path(__file__).resolve().parents[3]
EPOCHS, STEPS = 4, 3
TINY = ["+demo=digits", "model.width=4", "batch_size=400", f"epochs={EPOCHS}", "checkpoint.minutes=0"]
CASES = {
    "rigl_s90": [
        *("sparsifier.interval=2", "sparsifier.update_at_start=true"),
        *("optimizer.label_smoothing=0.1", "optimizer.schedule.kind=step"),
    ],
    "rigl_sign_in_s90": ["sparsifier.interval=2", "parameterization.reset_every=1"],
    "str_ham_s90": [],
    "random_sign_in_s90": ["parameterization.reset_every=2"],
    "acdc_sign_in_s90": ["parameterization.reset_every=1"],
    "snip_ham_s90": ["sparsifier.batches=2"],
    "synflow_s90": ["sparsifier.iterations=3"],
    "pilot_s90": ["sparsifier.prune_at=0.75"],
    "spred_s90": ["sparsifier.finetune=0.25", "optimizer.schedule.until=0.75"],
    "dense_product_decay": ["flips_every=2"],
}

CUTS, PRUNES_LATE = (2, 7, 10), ("pilot_s90", "spred_s90")
"""After RigL's update, inside epochs, after pruning; a run has one of them, with HAM_TESTS=all every one."""


def overrides(name: str, runs: Path) -> list[str]:
    return [f"+exp={name}", *TINY, *CASES.get(name, []), f"runs_dir={runs}"]


@cache
def composed(name: str, *more: str) -> Config:
    return load([*overrides(name, Path("runs")), *more])


def run_case(name: str, runs: Path, *more: str) -> Path:
    cfg = copy.deepcopy(composed(name, *more))
    cfg.runs_dir = str(runs)
    run_experiment(cfg)
    return run_directory(cfg, config_hash(cfg))


class Cut(Exception):
    """The machine went away."""


def cut_off(name: str, runs: Path, at: int, *more: str) -> None:
    """Run until step `at`, which fails."""
    update_loss = EpochMetrics.update_loss

    def stop(metrics: EpochMetrics, number: int, loss: torch.Tensor) -> None:
        if number == at:
            raise Cut
        update_loss(metrics, number, loss)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
        patch.setattr(EpochMetrics, "update_loss", stop)
        run_case(name, runs, *more)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`kept(name)`: the directory of a finished run."""
    runs = tmp_path_factory.mktemp("runs")
    return lambda name: run_case(name, runs)


@pytest.mark.parametrize("name", CASES)
def test_a_run_cut_off_anywhere_ends_the_same(name: str, kept: Callable, tmp_path: Path) -> None:
    complete = kept(name)
    for cut in CUTS if ALL else [CUTS[-1] if name in PRUNES_LATE else CUTS[[*CASES].index(name) % 2]]:
        cut_off(name, tmp_path / "cut", cut)
    resumed = run_case(name, tmp_path / "cut")
    assert (resumed / "metrics.jsonl").read_bytes() == (complete / "metrics.jsonl").read_bytes()
    ends = [torch.load(place / "last.pt", weights_only=True)["model"] for place in (complete, resumed)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


@pytest.mark.parametrize("name", CASES)
def test_records_state_target_and_achieved_sparsity(name: str, kept: Callable) -> None:
    folder = kept(name)
    summary = json.loads((folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert summary["sparsity"]["target"] == (0.9 if "s90" in name else 0.0)
    cfg, _, sparsifier = load_run(folder)
    effective = {key: weight.value for key, weight in sparsifier.masks.weights.items()}
    zeros = sum(int((value == 0).sum()) for value in effective.values())
    total = sum(value.numel() for value in effective.values())
    assert summary["sparsity"]["overall"] == pytest.approx(zeros / total, abs=1e-12)
    assert lines[-1]["sparsity"] == summary["sparsity"]["overall"]
    layers = {key: float((value == 0).double().mean()) for key, value in effective.items()}
    assert lines[-1]["layers"] == pytest.approx(layers, abs=1e-12)
    l1 = sum(float(value.double().abs().sum()) for value in effective.values())
    assert lines[-1]["l1_sum"] == pytest.approx(l1) and lines[-1]["l1_mean"] == pytest.approx(l1 / total)
    assert 0 <= lines[-1]["train_top1"] <= 100
    factors = cfg.trains_factors
    assert all((line["inverse_metric_at_zero"] == 1) != factors for line in lines[:1])
    assert [("sign_flips" in line) for line in lines] == [
        (epoch + 1) % cfg.flips_every == 0 for epoch in range(EPOCHS)
    ]


def test_an_incomplete_summary_is_written_again(tmp_path: Path) -> None:
    folder = run_case("random_sign_in_s90", tmp_path)
    complete, epochs = (
        json.loads((folder / "summary.json").read_text()),
        (folder / "metrics.jsonl").read_bytes(),
    )
    for left in (200, 0):
        with open(folder / "summary.json", "r+b") as file:
            file.truncate(left)
        assert run_case("random_sign_in_s90", tmp_path) == folder
        again = json.loads((folder / "summary.json").read_text())
        fields = ("metrics", "sparsity", "config_hash", "status", "epochs")
        assert {key: again[key] for key in fields} == {key: complete[key] for key in fields}
        assert (folder / "metrics.jsonl").read_bytes() == epochs


def test_snip_without_enough_batches_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SNIP needs 10 batches, got 3: lower its batches"):
        run_experiment(load(["+exp=snip_s90", *TINY, f"runs_dir={tmp_path}"]))


def test_train_accuracy_counts_every_image_once(
    tmp_path: Path, kept: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = load([*overrides("rigl_s90", tmp_path), "optimizer.sam_rho=0.05"])
    device = setup_device(cfg)
    loaders = cfg.data.load(batch_size=cfg.batch_size, seed=derived_seed(0, "data"), device=device)
    record = RunLogger(tmp_path / "run", cfg)
    run = build(cfg, config_hash(cfg), ImageClassification(cfg, device, loaders), record, device)
    run.sparsifier.on_epoch_start(0, run.optimizer)
    right = 0
    for batch in run.task.loaders.train.batches(0):
        with torch.no_grad():
            state = {key: value.clone() for key, value in run.model.state_dict().items()}
            right += int((run.model(batch[0]).argmax(1) == batch[1]).sum())
            run.model.load_state_dict(state)
        train_step(run, batch)
    record.close()
    assert (int(run.metrics.correct), run.metrics.count) == (right, STEPS * 400)


def test_masks_of_a_run_start_another_one(kept: Callable, tmp_path: Path) -> None:
    source = kept("rigl_s90")
    masks, margins, origin = load_masks(source)
    assert not margins and origin["exp"] == "rigl_s90" and origin["seed"] == 0
    more = [f"sparsifier.source={source}"]
    folder = run_case("mask_rigl_ham_s90", tmp_path, *more)
    _, _, sparsifier = load_run(folder)
    for name, weight in sparsifier.masks.weights.items():
        assert torch.equal(weight.value != 0, masks[name]), name
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["sparsity"]["masks_from"] == origin

    first = {}
    for key, given in {
        "redrawn": [*overrides("mask_rigl_ham_s90", tmp_path), *more],
        "same": [*overrides("mask_rigl_ham_s90", tmp_path), *more, "sparsifier.redraw=false"],
        "source": overrides("rigl_s90", tmp_path),
    }.items():
        cfg = load(given)
        device = setup_device(cfg)
        loaders = cfg.data.load(batch_size=400, seed=0, device=device)
        record = RunLogger(tmp_path / key, cfg)
        first[key] = dict(
            build(
                cfg, config_hash(cfg), ImageClassification(cfg, device, loaders), record, device
            ).model.named_parameters()
        )
        record.close()
    name = "layer1.0.conv2.weight"
    on = first["redrawn"][name] != 0
    start = load_start(overrides("rigl_s90", tmp_path))[name]
    assert torch.equal(first["same"][name][on], start[on])
    assert not (first["redrawn"][name][on] == start[on]).any()


def test_a_run_with_given_masks_needs_their_source_for_its_start_alone(
    kept: Callable, script: ModuleType, command: Callable, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(kept("rigl_s90"), source)
    origin, more = load_masks(source)[2], [f"sparsifier.source={source}"]
    complete = run_case("mask_rigl_ham_s90", tmp_path / "whole", *more)
    cut_off("mask_rigl_ham_s90", tmp_path / "cut", 7, *more)
    shutil.rmtree(source)

    resumed = run_case("mask_rigl_ham_s90", tmp_path / "cut", *more)
    assert (resumed / "metrics.jsonl").read_bytes() == (complete / "metrics.jsonl").read_bytes()
    summary = json.loads((resumed / "summary.json").read_text())
    assert summary["sparsity"]["masks_from"] == origin
    assert json.loads((resumed / "metrics.jsonl").read_text().splitlines()[-1])["masks_from"] == origin
    assert script.main([str(resumed), "--to", str(tmp_path / "exported")]) == 0
    assert (tmp_path / "exported" / "masks.safetensors").exists()

    for runs, start in (("fresh", []), ("cut", ["resume=false"])):
        given = [*overrides("mask_rigl_ham_s90", tmp_path / runs), *more, *start]
        outcome = command(*given)
        assert outcome.status == 2
        (line,) = outcome.complaints
        assert f"{source} does not exist" in line


def load_start(given: list[str]) -> dict[str, torch.Tensor]:
    """The weights that a run's seed draws, before any mask."""
    cfg = load(given)
    generator = torch.Generator().manual_seed(derived_seed(cfg.seed, "model"))
    return dict(build_model(cfg.model, num_classes=10, image_size=8, generator=generator).named_parameters())


def test_missing_masks_are_one_line(command: Callable, tmp_path: Path) -> None:
    outcome = command("+exp=mask_rigl_s90", *TINY, f"runs_dir={tmp_path}")
    assert outcome.status == 2
    (line,) = outcome.complaints
    assert "finish the run that the masks come from first" in line


def test_the_search_for_a_threshold_decay(tmp_path: Path) -> None:
    given = ["+exp=str_s90", "+demo=digits", "model.width=8", "batch_size=64", "epochs=6"]
    given += ["sparsifier.calibrate=search", "sparsifier.sparsity=0.8", f"runs_dir={tmp_path}"]
    cfg = load(given)
    summary = run_experiment(cfg)
    trials = summary["search"]
    bound = stable_decay(cfg.optimizer.lr, 0.9)
    assert all(0 < trial["threshold_decay"] < bound for trial in trials)
    best = min(trials, key=lambda trial: abs(trial["miss"]))
    assert summary["sparsity"]["overall"] == best["sparsity"]
    assert abs(best["sparsity"] - 0.8) < 0.02
    folder = run_directory(cfg, config_hash(cfg))
    assert load_run(folder)[0].sparsifier.threshold_decay == best["threshold_decay"]
    assert isinstance(load_run(folder)[2], STR)
    assert load_run(folder)[2].achieved_sparsity() == pytest.approx(best["sparsity"])
    assert run_experiment(cfg) == summary, "what is done is not repeated"


def test_a_search_without_a_decay_left_to_try_stops(tmp_path: Path) -> None:
    """From logits of -30 no stable decay brings thresholds near the weights in so few steps."""
    given = ["+exp=str_s90", *TINY, "epochs=2", "sparsifier.calibrate=search", "sparsifier.initial=-30"]
    cfg = load([*given, f"runs_dir={tmp_path}"])
    summary = run_experiment(cfg)
    decays = [trial["threshold_decay"] for trial in summary["search"]]
    assert all(trial["miss"] < -0.5 for trial in summary["search"])
    assert len(set(decays)) == len(decays)
    assert decays[-1] == pytest.approx(
        0.95 * stable_decay(cfg.optimizer.lr, cfg.optimizer.momentum), rel=1e-3
    )
    assert len(list(tmp_path.glob("*/seed0/trial*"))) == len(decays)


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [0.8, 0.95] if ALL else [0.95])
def test_the_demo_of_str_comes_to_other_sparsities_too(
    sparsity: float, command: Callable, tmp_path: Path
) -> None:
    """Those of Table 4 beside 90 %, by the ramp; 12 of the demo's 40 epochs are enough."""
    given = ["+exp=str_s90", "+demo=digits", "model.width=8", "epochs=12", f"sparsifier.sparsity={sparsity}"]
    outcome = command(*given, f"runs_dir={tmp_path}")
    assert outcome.status == 0 and "missed" not in outcome.out, outcome.err
    (path,) = tmp_path.glob("*/seed0/summary.json")
    summary = json.loads(path.read_text())
    assert abs(summary["sparsity"]["overall"] - sparsity) <= 1e-4
    assert summary["metrics"]["top1_last"] > 95


def test_a_search_needs_sgd(tmp_path: Path) -> None:
    given = ["+exp=deit", "+demo=digits", "sparsifier=str", "sparsifier.sparsity=0.5"]
    with pytest.raises(ConfigError, match="calibrate=ramp"):
        run_experiment(load([*given, "sparsifier.calibrate=search", f"runs_dir={tmp_path}"]))


@pytest.mark.parametrize(
    ("name", "more"),
    [("pilot_s90", ["sparsifier.prune_at=1.0"]), ("spred_s90", ["sparsifier.finetune=0.0"])],
    ids=["pilot", "spred"],
)
def test_what_is_pruned_at_the_very_end_is_what_is_reported(
    name: str, more: list[str], tmp_path: Path
) -> None:
    folder = run_case(name, tmp_path, *more)
    cfg, trained, _ = load_run(folder)
    masks, *_ = load_masks(folder)
    assert sum(int(mask.sum()) for mask in masks.values()) < 0.11 * sum(m.numel() for m in masks.values())
    model = build_model(cfg.model, num_classes=10, image_size=8, generator=torch.Generator())
    weights = plain_state_dict(trained)
    model.load_state_dict(weights | {key: weights[key] * mask for key, mask in masks.items()})
    loaders = cfg.data.load(batch_size=400, seed=0, device=torch.device("cpu"))
    images, classes = (torch.cat(column) for column in zip(*loaders.test.batches(0), strict=True))
    with torch.no_grad():
        logits = model.eval()(images)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    assert [line["sparsity"] for line in lines[:-1]] == [0.0] * (EPOCHS - 1)
    assert lines[-1]["sparsity"] == summary["sparsity"]["overall"] == pytest.approx(0.9, abs=1e-4)
    assert lines[-1]["test_loss"] == pytest.approx(float(cross_entropy(logits, classes)), rel=1e-5)
    assert summary["metrics"]["top1_last"] == pytest.approx(
        100 * float((logits.argmax(1) == classes).float().mean())
    )


def test_ham_on_factors_sees_gradients_without_decay(tmp_path: Path) -> None:
    given = overrides("acdc_sign_in_s90", tmp_path)
    given += ["ham=imagenet", "allow_unpublished=true", "parameterization.decay=0.5", "ham.clamp=1e9"]
    cfg = load(given)
    device = setup_device(cfg)
    loaders = cfg.data.load(batch_size=400, seed=0, device=device)
    record = RunLogger(tmp_path / "run", cfg)
    run = build(cfg, config_hash(cfg), ImageClassification(cfg, device, loaders), record, device)
    run.sparsifier.on_epoch_start(0, run.optimizer)
    assert isinstance(run.sparsifier, ACDC)
    images, classes = next(iter(run.task.loaders.train.batches(0)))
    state = {key: value.clone() for key, value in run.model.state_dict().items()}
    cross_entropy(run.model(images), classes).backward()
    plain = [p.grad.clone() for p in run.params]
    run.optimizer.zero_grad()
    run.model.load_state_dict(state)
    seen: list[torch.Tensor] = []
    # after HAM's own hook, so that it sees what HAM saw
    run.optimizer.register_step_post_hook(lambda *_: seen.extend(p.grad.clone() for p in run.params))
    before = [p.detach().clone() for p in run.params]
    train_step(run, (images, classes))
    record.close()
    assert all(torch.equal(a, b) for a, b in zip(seen, plain, strict=True))
    m = run.sparsifier.parameterization.weights[0].parameters[0]
    place = next(k for k, p in enumerate(run.params) if p is m)
    lr = cfg.optimizer.lr * 0.2  # the schedule's first factor
    base = before[place] - lr * (plain[place] + 0.5 * before[place])  # decay reaches the base step
    expected = base * torch.exp(-lr * (200 * base.sign() * plain[place] + 1e-3))
    assert torch.allclose(m, expected, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/export.py as a module."""
    spec = importlib.util.spec_from_file_location("export", ROOT / "scripts" / "export.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["rigl_sign_in_s90", "str_ham_s90", "pilot_s90"])
def test_an_exported_run_computes_the_same(
    name: str, kept: Callable, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    folder = kept(name)
    assert script.main([str(folder), "--to", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.split("load it with\n")[1]
    names: dict = {}
    exec(lines, names)
    _, model, sparsifier = load_run(folder)
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(names["model"](images), model(images))
    dense, masks = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "masks.safetensors")
    rows = load_file(tmp_path / "csr.safetensors")
    assert masks.keys() == sparsifier.masks.weights.keys()
    for key, mask in masks.items():
        assert not dense[key][mask == 0].any()
        shape = tuple(rows[f"{key}.shape"])
        parts = (rows[f"{key}.{part}"] for part in ("crow", "col", "values"))
        matrix = torch.sparse_csr_tensor(*parts, (shape[0], dense[key][0].numel()))
        assert torch.equal(matrix.to_dense().view(shape), dense[key])


@pytest.mark.parametrize(
    "given",
    [
        ["model=resnet18"],
        ["model=resnet50", "model.stem=cifar"],
        ["+exp=deit_acdc_s50", "data.image_size=32"],
    ],
    ids=" ".join,
)
def test_printed_lines_make_the_model_that_was_trained(given: list[str], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    exp = [] if given[0].startswith("+exp") else ["+exp=acdc_s90"]
    cfg = load([*exp, *given])
    model = cfg.model.build(num_classes=1000, image_size=cfg.data.image_size).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    names: dict = {}
    path, size = tmp_path / "model.safetensors", cfg.data.image_size
    exec(cfg.model.loading_lines(path, num_classes=1000, image_size=size), names)
    images = torch.randn(1, 3, cfg.data.image_size, cfg.data.image_size)
    with torch.no_grad():
        assert torch.equal(names["model"](images), model(images))


def test_exporting_no_run_is_one_line(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([str(tmp_path)]) == 2
    assert (
        capsys.readouterr().err == f"export.py: {tmp_path} is not a run directory: config.yaml is missing\n"
    )
