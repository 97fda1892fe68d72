"""Sparse training in other people's trainers: the recipes of the docs, resumes, and the checks of a plan."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from contract import flat
from pages import ROOT, snippets
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pruning import ACDC, Dense, PILoT, Product, RigL
from pruning.integrations.schedule import Schedule

PAGES = [(ROOT / "docs" / f"{name}.md").read_text() for name in ("sparse_training", "trainers")]
RECIPES = [code for page in PAGES for code in snippets(page)]
"""test_docs.py runs them."""


# Recipes


@pytest.mark.parametrize(
    ("sign", "lines"),
    [
        ("for step in range(30)", 2),
        ("AdamW(model.parameters(), lr=1e-3)\nsparsifier = ACDC", 4),
        ("Accelerator", 2),
        ("transformers", 3),
        ("pytorch_lightning", 3),
        ("timm", 2),
    ],
)
def test_lines_that_a_user_adds(sign, lines):
    """Without imports and the assertion at the end: creating and attaching it, epochs, the callback."""
    [recipe] = [code for code in RECIPES if sign in code]
    added = [line for line in recipe.splitlines() if "parsifier" in line]
    assert len([line for line in added if not line.startswith(("from", "assert"))]) == lines


# The schedule that the callbacks share


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))


def attached(sparsifier, **options):
    model = network()
    sparsifier.attach(model, **{"total_epochs": 4, "steps_per_epoch": 2, **options})
    return sparsifier, torch.optim.SGD(sparsifier.param_groups(model.parameters()), lr=0.1)


def test_a_checkpoint_between_the_last_step_of_an_epoch_and_its_end():
    """The accuracy of epoch 0 is lost: PILoT needs it, AC/DC does not."""
    for make, accuracy in ((lambda: PILoT(0.5), lambda: 0.5), (lambda: ACDC(0.5), None)):
        sparsifier, optimizer = attached(make())
        schedule = Schedule(sparsifier, accuracy)
        schedule.start_epoch(0, optimizer)
        saved = schedule.state_dict()
        other, optimizer = attached(make())
        resumed = Schedule(other, accuracy)
        resumed.load_state_dict(saved)
        if accuracy:
            with pytest.raises(RuntimeError, match="the training accuracy of epoch 0 was not saved: resume"):
                resumed.start_epoch(1, optimizer)
        else:
            resumed.start_epoch(1, optimizer)
            assert other.state_dict()["epoch"] == resumed.state_dict()["epochs_ended"] == 1


def test_the_training_accuracy_is_reported_after_each_epoch():
    sparsifier, optimizer = attached(PILoT(0.5))
    answers = iter([0.25, 0.75])
    schedule = Schedule(sparsifier, lambda: next(answers))
    for epoch, accuracy in ((0, 0.25), (1, 0.75)):
        schedule.start_epoch(epoch, optimizer)
        schedule.end_epoch()
        assert sparsifier.state_dict()["schedule"]["accuracy"] == accuracy


def test_a_reset_is_not_repeated_after_a_resume_inside_its_epoch():
    sparsifier, optimizer = attached(Dense(), parameterization=Product(reset_every=1))
    schedule = Schedule(sparsifier, None)
    schedule.start_epoch(0, optimizer), schedule.start_epoch(1, optimizer)
    with torch.no_grad():
        sparsifier.parameterization.weights[0].parameters[0].mul_(2)
    before = sparsifier.parameterization.weights[0].parameters[0].clone()
    schedule.start_epoch(1, optimizer)
    assert torch.equal(before, sparsifier.parameterization.weights[0].parameters[0])
    schedule.start_epoch(2, optimizer)
    assert not torch.equal(before, sparsifier.parameterization.weights[0].parameters[0])


def test_pilot_needs_the_training_accuracy():
    with pytest.raises(ValueError, match="PILoT requires the training accuracy: pass train_accuracy="):
        Schedule(attached(PILoT(0.5))[0], None)


@pytest.mark.parametrize(
    ("epochs", "steps", "fits"),
    [
        (4, 8, True),
        (4, 7, True),
        (4, 6, False),
        (5, 10, False),
        (4, 9, False),
        (4, -1, True),
        (None, 8, True),
    ],
)
def test_the_trainers_plan_must_be_the_sparsifiers(epochs, steps, fits):
    """Attached with 4 epochs of 2 steps; a trainer may stop inside the last epoch."""
    sparsifier, optimizer = attached(ACDC(0.5))
    schedule = Schedule(sparsifier, None)
    if fits:
        schedule.start(optimizer, total_epochs=epochs, total_steps=steps, steps_before=0)
        assert sparsifier._hook is not None
    else:
        line = f"the trainer plans {epochs} epochs and {steps} steps in total, the sparsifier 4 epochs of 2"
        with pytest.raises(ValueError, match=line):
            schedule.start(optimizer, total_epochs=epochs, total_steps=steps, steps_before=0)


def test_a_trained_sparsifier_is_not_trained_from_the_start_again():
    sparsifier, optimizer = attached(RigL(0.5))
    sparsifier.step = 5
    with pytest.raises(ValueError, match="the sparsifier has already been trained for 5 steps"):
        Schedule(sparsifier, None).start(optimizer, total_epochs=4, total_steps=8, steps_before=0)


@pytest.mark.parametrize(
    ("epochs", "steps", "fits"),
    [
        (5, 8, True),  # RigL counts steps alone
        (None, float("inf"), True),
        (7, float("inf"), True),
        (4, 0, True),
        (4, 7, True),
        (5, 7, False),
        (None, 7, False),
        (4, 1, False),
    ],
)
def test_a_plan_by_steps_needs_no_epochs_unless_the_last_one_is_cut(epochs, steps, fits):
    sparsifier, optimizer = attached(RigL(0.5))
    schedule = Schedule(sparsifier, None)
    if fits:
        schedule.start(optimizer, total_epochs=epochs, total_steps=steps, steps_before=0)
    else:
        with pytest.raises(ValueError, match=r"^the trainer plans "):
            schedule.start(optimizer, total_epochs=epochs, total_steps=steps, steps_before=0)
        assert sparsifier._hook is None


def test_a_plan_without_steps_per_epoch_is_one_of_epochs():
    sparsifier, optimizer = attached(ACDC(0.5), steps_per_epoch=None)
    Schedule(sparsifier, None).start(optimizer, total_epochs=4, total_steps=99, steps_before=0)
    with pytest.raises(ValueError) as error:
        Schedule(sparsifier, None).start(optimizer, total_epochs=3, total_steps=99, steps_before=0)
    assert str(error.value) == (
        "the trainer plans 3 epochs and 99 steps in total, the sparsifier 4 epochs: attach it with the "
        "trainer's total_epochs and steps_per_epoch"
    )


def test_a_schedule_hooks_once_and_detaches_at_the_end():
    sparsifier, optimizer = attached(PILoT(0.5))
    schedule = Schedule(sparsifier, lambda: 0.5)
    schedule.remove()
    for _ in range(2):
        schedule.start(optimizer, total_epochs=4, total_steps=8, steps_before=0)
        assert len(optimizer._optimizer_step_pre_hooks) == 1
    schedule.end()
    assert not optimizer._optimizer_step_pre_hooks and sparsifier._hook is None
    assert sparsifier.achieved_sparsity() == 0.5  # PILoT prunes at the end
    sparsifier.step = 5
    schedule.start(optimizer, total_epochs=4, total_steps=8, steps_before=5)
    assert sparsifier._hook is not None


def test_epochs_are_counted_where_they_start_and_where_they_end():
    sparsifier, optimizer = attached(RigL(0.5))
    schedule = Schedule(sparsifier, None)
    assert schedule.state_dict()["epochs_ended"] == 0
    for epoch, counted in ((0, 0), (2, 2), (1, 2)):
        schedule.start_epoch(epoch, optimizer)
        assert schedule.state_dict()["epochs_ended"] == counted
        assert sparsifier._announced_epoch == counted
    schedule.end_epoch()
    assert schedule.state_dict()["epochs_ended"] == 3


def test_masks_of_another_checkpoint_are_refused():
    state = Schedule(attached(RigL(0.5), seed=1)[0], None).state_dict()
    other, _ = attached(RigL(0.5), seed=2)
    other.model.load_state_dict(attached(RigL(0.5), seed=3)[0].model.state_dict())
    with pytest.raises(ValueError, match=r"the loaded masks do not fit 0\.weight, which has other zeros"):
        Schedule(other, None).load_state_dict(state)


# transformers


def acdc() -> ACDC:
    return ACDC(0.8, scope="layerwise")


@pytest.fixture(scope="module")
def hf():
    transformers = pytest.importorskip("transformers", reason="pip install transformers accelerate")
    pytest.importorskip("accelerate", reason="pip install accelerate")
    from ham.integrations.transformers import HAMCallback
    from pruning.integrations.transformers import SparsifierCallback

    return SimpleNamespace(
        Trainer=transformers.Trainer,
        Arguments=transformers.TrainingArguments,
        Config=transformers.BertConfig,
        Model=transformers.BertForSequenceClassification,
        HAM=HAMCallback,
        Callback=SparsifierCallback,
    )


def hf_trainer(hf, folder: Path, sparsifier, *, ham=True, product=False, callback=None, **options):
    """Four epochs of two steps over 16 sequences; the first four tokens give the class."""
    torch.manual_seed(0)
    config = hf.Config(
        vocab_size=16,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
    )
    model = hf.Model(config)
    tokens = torch.randint(16, (16, 8), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": row, "labels": row[:4].sum() % 2} for row in tokens]
    sparsifier.attach(
        model, total_epochs=4, steps_per_epoch=2, parameterization=Product(reset_every=2) if product else None
    )
    args = {"num_train_epochs": 4, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 3}
    args |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_strategy": "no", **options}
    callbacks = [callback or hf.Callback(sparsifier)] + ([hf.HAM(alpha=20.0, beta=1e-2)] if ham else [])
    return hf.Trainer(model, hf.Arguments(str(folder), **args), train_dataset=data, callbacks=callbacks)


def final_state(trainer, sparsifier) -> dict:
    optimizer = trainer.optimizer.state_dict()
    return dict(
        flat("", [trainer.model.state_dict(), optimizer["state"], sparsifier.state_dict(), sparsifier.kept()])
    )


@pytest.mark.parametrize(
    ("make", "product"),
    [(lambda: RigL(0.8, interval=2), False), (acdc, True)],
)
def test_the_trainer_of_transformers_resumes_bit_for_bit(hf, tmp_path, make, product):
    """From step 3, inside epoch 1. RigL's next update is at 4; AC/DC is sparse from epoch 2 on."""
    sparsifier = make()
    trainer = hf_trainer(hf, tmp_path, sparsifier, product=product)
    trainer.train()
    assert sparsifier.step == 8 and sparsifier._hook is None
    assert sparsifier.achieved_sparsity() == pytest.approx(0.8, abs=0.01)
    saved = torch.load(tmp_path / "checkpoint-3" / "sparsifier.pt", weights_only=True)
    assert saved["sparsifier"]["step"] == saved["global_step"] == 3
    groups = torch.load(tmp_path / "checkpoint-3" / "optimizer.pt", weights_only=True)["param_groups"]
    assert [(group["ham_alpha"], group["ham_beta"]) for group in groups] == [(20.0, 1e-2)] * len(groups)
    assert not getattr(trainer.callback_handler.optimizer.optimizer, "_ham", None)  # detached

    other = make()
    resumed = hf_trainer(hf, tmp_path, other, product=product)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert final_state(resumed, other) == final_state(trainer, sparsifier)


def test_the_callback_equals_explicit_calls_around_the_same_steps(hf, tmp_path):
    """Steps of the Trainer with a second callback that replays gradients into a plain loop."""
    from transformers import TrainerCallback

    sparsifier, gradients = RigL(0.8, interval=2), []

    class Spy(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})

    options = {"ham": False, "lr_scheduler_type": "constant", "save_strategy": "no"}
    trainer = hf_trainer(hf, tmp_path, sparsifier, **options)
    trainer.add_callback(Spy())
    trainer.train()

    explicit = RigL(0.8, interval=2)
    other = hf_trainer(hf, tmp_path, explicit, **options)
    optimizer = other.create_optimizer()
    assert len(gradients) == 8
    for step, found in enumerate(gradients):
        for name, p in other.model.named_parameters():
            p.grad = found[name]
        if explicit.after_backward(step, optimizer):
            explicit.add_decay()
            optimizer.step()
            explicit.after_step()
    states = [trainer.model.state_dict(), other.model.cpu().state_dict()]
    assert dict(flat("", states[0])) == dict(flat("", states[1]))


def test_transformers_names_what_is_missing_in_a_checkpoint(hf, tmp_path):
    hf_trainer(hf, tmp_path, Dense(), ham=False, max_steps=-1).train()
    for file in tmp_path.glob("*/sparsifier.pt"):
        file.unlink()
    resumed = hf_trainer(hf, tmp_path, Dense(), ham=False)
    with pytest.raises(FileNotFoundError, match=r"checkpoint-3/sparsifier\.pt does not exist: pass the"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def hf_callback(hf, **options):
    """The callback of an attached AC/DC, its optimizer, and a state of the Trainer before training."""
    sparsifier, optimizer = attached(ACDC(0.5))
    state = {"num_train_epochs": 4, "max_steps": 8, "global_step": 0, "epoch": 0.0}
    state |= {"is_world_process_zero": True, "best_model_checkpoint": None}
    return hf.Callback(sparsifier, **options), optimizer, SimpleNamespace(**state)


def hf_arguments(folder: Path, **options):
    values = {"output_dir": str(folder), "resume_from_checkpoint": None, "load_best_model_at_end": False}
    return SimpleNamespace(**{**values, **options})


@pytest.mark.parametrize(
    ("fraction", "epoch"), [(None, 0), (0.0, 0), (0.5, 0), (0.9999999, 1), (1.5, 1), (2.0, 2)]
)
def test_transformers_counts_epochs_in_fractions(hf, fraction, epoch, tmp_path):
    callback, optimizer, state = hf_callback(hf)
    state.epoch = fraction
    callback.on_epoch_begin(hf_arguments(tmp_path), state, None, optimizer=optimizer)
    assert callback.sparsifier._announced_epoch == epoch
    callback.on_epoch_end(hf_arguments(tmp_path), state, None)
    assert callback._schedule.state_dict()["epochs_ended"] == epoch + 1


def saved_at(hf, folder: Path, step: int, epochs: int = 3) -> dict:
    """The checkpoint of a step, after `epochs` epochs were announced; AC/DC is sparse in the third."""
    callback, optimizer, state = hf_callback(hf)
    for epoch in range(epochs):
        callback._schedule.start_epoch(epoch, optimizer)
    (folder / f"checkpoint-{step}").mkdir()
    state.global_step = step
    state.is_world_process_zero = False
    callback.on_save(hf_arguments(folder), state, None)
    assert not list(folder.rglob("*.pt"))
    state.is_world_process_zero = True
    callback.on_save(hf_arguments(folder), state, None)
    return callback.sparsifier.model.state_dict()


@pytest.mark.parametrize("given", ["output_dir", "args", "callback"])
def test_transformers_restores_the_state_of_the_folder_that_it_resumes_from(hf, tmp_path, given):
    weights = saved_at(hf, tmp_path, 5)
    folder = tmp_path / "checkpoint-5"
    callback, optimizer, state = hf_callback(hf, checkpoint=folder if given == "callback" else None)
    callback.sparsifier.model.load_state_dict(weights)
    elsewhere = {"output_dir": str(tmp_path / "new")}
    args = {
        "output_dir": hf_arguments(tmp_path, resume_from_checkpoint=True),
        "args": hf_arguments(tmp_path, resume_from_checkpoint=str(folder), **elsewhere),
        "callback": hf_arguments(tmp_path, resume_from_checkpoint=str(tmp_path / "other"), **elsewhere),
    }[given]
    state.global_step = 5
    callback.on_train_begin(args, state, None, optimizer=optimizer)
    assert callback.sparsifier.masks.active and callback.sparsifier._announced_epoch == 2
    assert callback.sparsifier._hook is not None


def test_transformers_refuses_a_state_of_another_step(hf, tmp_path):
    saved_at(hf, tmp_path, 5)
    callback, optimizer, state = hf_callback(hf, checkpoint=str(tmp_path / "checkpoint-5"))
    state.global_step = 6
    with pytest.raises(
        ValueError, match=r"was saved at step 5, but the Trainer resumes at step 6: pass the folder"
    ):
        callback.on_train_begin(hf_arguments(tmp_path), state, None, optimizer=optimizer)


def test_transformers_takes_the_masks_of_the_best_model_at_the_end(hf, tmp_path):
    best = saved_at(hf, tmp_path, 5)
    for loads, active in ((False, False), (True, True)):
        callback, optimizer, state = hf_callback(hf)
        callback.on_train_begin(hf_arguments(tmp_path), state, None, optimizer=optimizer)
        assert not callback.sparsifier.masks.active and callback.sparsifier._hook is not None
        callback.sparsifier.model.load_state_dict(best)
        state.best_model_checkpoint = str(tmp_path / "checkpoint-5")
        callback.on_train_end(hf_arguments(tmp_path, load_best_model_at_end=loads), state, None)
        assert callback.sparsifier.masks.active == active
        assert callback.sparsifier._hook is None


# Lightning


@pytest.fixture(scope="module")
def pl():
    return pytest.importorskip("pytorch_lightning", reason="pip install pytorch-lightning")


@pytest.fixture
def make_module(pl):
    from ham import HAM

    class Classifier(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network()

        def training_step(self, batch, index):
            logits = self.layers(batch[0])
            self.log("accuracy", (logits.argmax(1) == batch[1]).float().mean(), on_epoch=True, on_step=False)
            return nn.functional.cross_entropy(logits, batch[1])

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.groups, lr=1e-2)
            HAM(optimizer, model=self, alpha=20.0, beta=1e-2) if self.uses_ham else None
            return optimizer

    return Classifier


def fit(pl, make_module, folder, sparsifier, *, accuracy=None, ckpt=None, epochs=3, **options):
    """Three epochs of four steps, from a checkpoint where `ckpt` names one."""
    from pruning.integrations.lightning import SparsifierCallback

    module = make_module()
    module.uses_ham = not sparsifier.trains_factors
    sparsifier.attach(module, total_epochs=3, steps_per_epoch=4)
    module.groups = sparsifier.param_groups(module.parameters())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator)
    when = {"save_on_train_epoch_end": True} if accuracy else {"every_n_train_steps": 4}
    every = pl.callbacks.ModelCheckpoint(folder, "{step}", save_top_k=-1, **when)
    read = (lambda: float(trainer.callback_metrics["accuracy"])) if accuracy else None
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=0.5,
        callbacks=[SparsifierCallback(sparsifier, train_accuracy=read), every],
        **options,
    )
    trainer.fit(module, DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16), ckpt_path=ckpt)
    optimizer = trainer.optimizers[0].state_dict()["state"]
    return dict(flat("", [module.state_dict(), optimizer, sparsifier.state_dict(), sparsifier.kept()]))


@pytest.mark.parametrize(
    ("make", "accuracy"),
    [
        (lambda: RigL(0.8, interval=4), False),
        (acdc, False),
        (lambda: PILoT(0.8), True),
    ],
)
def test_lightning_resumes_bit_for_bit(pl, make_module, tmp_path, make, accuracy):
    """From step 8, after the last batch of epoch 1 and before its end, or after that for PILoT.

    Lightning passes a closure, in which it clips the gradients. HAM is on where it fits.
    """
    sparsifier = make()
    final = fit(pl, make_module, tmp_path, sparsifier, accuracy=accuracy)
    assert sparsifier.step == 12 and sparsifier._hook is None
    assert sparsifier.achieved_sparsity() == pytest.approx(0.8, abs=0.01)
    if accuracy:
        assert 0.4 < sparsifier._accuracy <= 1
    resumed = fit(pl, make_module, tmp_path, make(), accuracy=accuracy, ckpt=tmp_path / "step=8.ckpt")
    assert resumed == final


AVERAGES = {
    "swa": lambda pl: pl.callbacks.StochasticWeightAveraging(0.1, swa_epoch_start=1),
    "average": lambda pl: pl.callbacks.WeightAveraging(),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("make", [lambda: RigL(0.8, interval=2, until=1.0), acdc, lambda: PILoT(0.8)])
@pytest.mark.filterwarnings("error::pruning.SparsityWarning")
def test_an_average_of_lightning_is_pruned_at_the_end(pl, make_module, make, average, first):
    """The averages are of weights under several masks, and replace the weights in `on_train_end`."""
    from pruning.integrations.lightning import SparsifierCallback

    sparsifier, module = make(), make_module()
    module.uses_ham = False
    sparsifier.attach(module, total_epochs=3, steps_per_epoch=4)
    module.groups = sparsifier.param_groups(module.parameters())
    own = SparsifierCallback(sparsifier, train_accuracy=(lambda: 0.5) if type(sparsifier) is PILoT else None)
    other = AVERAGES[average](pl)
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[own, other] if first else [other, own],
    )
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    trainer.fit(module, DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16))
    assert sparsifier.achieved_sparsity() == pytest.approx(0.8, abs=0.01)
    for name, value in sparsifier.masks.values().items():
        assert not value[~sparsifier.kept()[name]].any()


def test_lightning_refuses_a_plan_that_differs(pl, make_module, tmp_path):
    sparsifier = RigL(0.8)
    with pytest.raises(ValueError, match="the trainer plans 2 epochs and 8 steps in total, the sparsifier 3"):
        fit(pl, make_module, tmp_path, sparsifier, epochs=2)
    assert sparsifier._hook is None


def pl_callback(sparsifier=None):
    """The callback of an attached sparsifier, and what it reads of a Trainer before the training."""
    from pruning.integrations.lightning import SparsifierCallback

    sparsifier, optimizer = attached(ACDC(0.5) if sparsifier is None else sparsifier)
    values = {"max_epochs": 4, "estimated_stepping_batches": 8, "global_step": 0, "current_epoch": 0}
    return SparsifierCallback(sparsifier), SimpleNamespace(optimizers=[optimizer], **values)


@pytest.mark.parametrize("count", [0, 2])
def test_lightning_needs_one_optimizer(pl, count):
    callback, trainer = pl_callback()
    trainer.optimizers = trainer.optimizers * count
    with pytest.raises(ValueError, match=f"^the module has {count} optimizers: call sparsifier.hook"):
        callback.on_train_start(trainer, None)


def test_lightning_names_a_checkpoint_without_a_state(pl):
    callback, trainer = pl_callback()
    trainer.global_step = 3
    with pytest.raises(ValueError, match=r"^the checkpoint has no state of the sparsifier: resume from one"):
        callback.on_train_start(trainer, None)
    callback.sparsifier.step = 3  # the same objects train on
    callback.on_train_start(trainer, None)
    assert callback.sparsifier._hook is not None


@pytest.mark.parametrize("epochs", [None, -1, 4])
def test_lightning_may_train_without_end(pl, epochs):
    callback, trainer = pl_callback()
    trainer.max_epochs, trainer.estimated_stepping_batches = epochs, float("inf")
    callback.on_train_start(trainer, None)
    callback.on_exception(trainer, None, KeyboardInterrupt())
    assert callback.sparsifier._hook is None


def test_lightning_announces_epochs_also_in_their_middle(pl):
    callback, trainer = pl_callback()
    callback.on_train_start(trainer, None)
    trainer.current_epoch = 1
    callback.on_train_batch_start(trainer, None, None, 3)
    assert callback.sparsifier._announced_epoch == 1
    trainer.current_epoch = 2
    callback.on_train_epoch_start(trainer, None)
    assert callback.sparsifier._announced_epoch == 2
    callback.on_train_epoch_end(trainer, None)
    assert callback.state_dict()["epochs_ended"] == 3
    callback.on_train_end(trainer, None)
    assert callback.sparsifier._hook is None


def test_lightning_restores_a_loaded_state_once(pl):
    first, trainer = pl_callback()
    for epoch in range(3):
        trainer.current_epoch = epoch
        first.on_train_epoch_start(trainer, None)
    callback, trainer = pl_callback()
    callback.sparsifier.model.load_state_dict(first.sparsifier.model.state_dict())
    callback.load_state_dict(first.state_dict())
    assert not callback.sparsifier.masks.active  # not before the model is on its device
    callback.on_train_start(trainer, None)
    assert callback.sparsifier.masks.active and callback.sparsifier._announced_epoch == 2
    trainer.current_epoch = 3
    callback.on_train_epoch_start(trainer, None)
    callback.on_train_start(trainer, None)
    assert callback.sparsifier._announced_epoch == 3
