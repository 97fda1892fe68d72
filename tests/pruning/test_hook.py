"""The hook on the optimizer trains bit for bit like the explicit calls, in every kind of step."""

from __future__ import annotations

import io
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from contract import BATCH, EPOCHS, LAST, METHODS, STEPS, digits, flat, network, write_masks
from torch import nn
from torch.nn.functional import cross_entropy

from ham import HAM, param_groups, perturbed
from pruning import ACDC, GMP, STR, Dense, PILoT, Product, RandomPruning, RigL, Spred
from pruning.hook import _numbers

OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=3e-3),
}
CELLS = [
    (method, factored, optimizer, ham)
    for method, rule in METHODS.items()
    for factored in ((False, True) if rule.plain else (False,))
    for optimizer in ("sgd", "adamw", "lion")
    for ham in ((False, True) if rule.plain or method == "str" else (False,))
    if not factored or ham == (optimizer == "sgd")
]


@pytest.fixture(scope="module")
def masks(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "masks.pt"
    write_masks(path)
    return path


@pytest.fixture(scope="module")
def batches():
    return [(x[:8], y[:8]) for x, y in digits()]


def make_optimizer(name: str, groups):
    if name == "lion":
        lion = pytest.importorskip("timm.optim", reason="timm is not installed: pip install timm").Lion
        return lion(groups, lr=1e-3)
    return OPTIMIZERS[name](groups)


def build(sparsifier, *, hooked, optimizer="sgd", ham=False, product=False, ham_first=True, **options):
    """A model with its sparsifier and optimizer; `ham_first` attaches HAM before the hook."""
    model = network(0)
    reset = Product(decay=1e-4, reset_every=3) if product else None
    sparsifier.attach(
        model, total_epochs=EPOCHS, steps_per_epoch=STEPS, seed=0, parameterization=reset, **options
    )
    groups = sparsifier.param_groups(param_groups(model, weight_decay=0.01))
    inner = make_optimizer(optimizer, groups) if isinstance(optimizer, str) else optimizer(groups)
    if ham and product and not hooked:  # the hook does this by itself
        sparsifier.parameterization.decoupled_decay = True
        inner.register_step_post_hook(sparsifier.parameterization.remove_decay)
    attach_ham = lambda: HAM(inner, alpha=50.0, beta=1e-2) if ham else None  # noqa: E731
    attach_ham() if ham_first else None
    hook = sparsifier.hook(inner) if hooked else None
    None if ham_first else attach_ham()
    return SimpleNamespace(model=model, sparsifier=sparsifier, optimizer=inner, hook=hook, hooked=hooked)


def backward(training, batch) -> None:
    cross_entropy(training.model(batch[0]), batch[1]).backward()


def take_step(training, batch, number) -> None:
    """One step of the plain loop, with the explicit calls where there is no hook."""
    backward(training, batch)
    if training.hooked:
        training.optimizer.step()
    elif training.sparsifier.after_backward(number, training.optimizer):
        training.sparsifier.add_decay()
        training.optimizer.step()
        training.sparsifier.after_step()
    training.optimizer.zero_grad()


def train(training, batches, start=0, stop=LAST + 1, step=take_step) -> Iterator[int]:
    """Train from step `start` on, with all calls for epochs; yields after each step."""
    sparsifier = training.sparsifier
    for number in range(start, stop):
        epoch, place = divmod(number, STEPS)
        if place == 0:
            sparsifier.on_epoch_start(epoch, training.optimizer)
        step(training, batches[number], number)
        if number == LAST and not training.hooked:
            sparsifier.on_end()
        yield number
        if place == STEPS - 1:
            sparsifier.on_epoch_end(train_accuracy=epoch / EPOCHS)


def fingerprint(training) -> dict:
    """Weights, optimizer state and masks, to the bit; the count of steps is the hook's own."""
    state = {k: v for k, v in training.sparsifier.state_dict().items() if k != "step"}
    parts = {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}
    return dict(flat("", {**parts, "sparsifier": state, "kept": training.sparsifier.kept()}))


def assert_equal_trainings(one, other, batches, **options) -> None:
    for _ in zip(train(one, batches, **options), train(other, batches, **options), strict=True):
        assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) == fingerprint(other)


# Bit equality


@pytest.mark.filterwarnings("ignore:STR's ramp ended")
@pytest.mark.parametrize(("method", "product", "optimizer", "ham"), CELLS)
def test_the_hook_equals_the_explicit_calls(method, product, optimizer, ham, masks, batches):
    """At every step: parameters, optimizer state and masks. HAM is attached before or after the hook."""
    pair = []
    for hooked in (False, True):
        training = build(
            METHODS[method].make(masks),
            hooked=hooked,
            optimizer=optimizer,
            ham=ham,
            product=product,
            ham_first=optimizer != "adamw",
        )
        training.sparsifier.initialize(iter(batches), cross_entropy)
        pair.append(training)
    assert_equal_trainings(*pair, batches)
    assert pair[1].sparsifier.step == LAST + 1
    assert pair[1].sparsifier.state_dict()["step"] == LAST + 1


@pytest.mark.parametrize("method", ["acdc_stale", "rigl", "str", "pilot"])
def test_a_resumed_training_with_a_hook_is_bit_equal(method, masks, batches):
    """RigL plans by steps: at step 7 its next update is due at 9, by the restored count."""
    whole = build(METHODS[method].make(masks), hooked=True, optimizer="adamw")
    prints, file = {}, io.BytesIO()
    for number in train(whole, batches):
        prints[number] = fingerprint(whole)
        if number == 6:
            parts = ("model", "optimizer", "sparsifier")
            torch.save({name: getattr(whole, name).state_dict() for name in parts}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = build(METHODS[method].make(masks), hooked=True, optimizer="adamw")
    for name, state in saved.items():
        getattr(resumed, name).load_state_dict(state)
    for number in train(resumed, batches, start=7):
        assert fingerprint(resumed) == prints[number]
    assert fingerprint(resumed) == fingerprint(whole)


@pytest.mark.parametrize("method", ["rigl", "acdc", "str"])
def test_accumulation_and_clipping_equal_the_explicit_calls(method, masks, batches):
    """Two backward passes for a step, whose gradients are clipped before the masks apply."""

    def step(training, batch, number):
        for half in (slice(0, 4), slice(4, 8)):
            backward(training, (batch[0][half], batch[1][half]))
        nn.utils.clip_grad_norm_(training.model.parameters(), 0.5)
        if training.hooked:
            training.optimizer.step()
        elif training.sparsifier.after_backward(number, training.optimizer):
            training.sparsifier.add_decay()
            training.optimizer.step()
            training.sparsifier.after_step()
        training.optimizer.zero_grad()

    pair = [build(METHODS[method].make(masks), hooked=hooked) for hooked in (False, True)]
    assert_equal_trainings(*pair, batches, step=step)


def test_sam_equals_the_explicit_calls(batches):
    """The loop masks the second gradients itself, or leaves that to the hook: the step is the same."""

    def step(training, batch, number):
        sparsifier, optimizer = training.sparsifier, training.optimizer
        backward(training, batch)
        sparsifier.mask_gradients()  # SAM ascends along the weights that are on
        if not training.hooked:
            assert sparsifier.after_backward(number, optimizer)
        with perturbed(training.model.parameters(), rho=0.05, freeze_bn=training.model):
            backward(training, batch)
            sparsifier.mask_gradients()
        if not training.hooked:
            sparsifier.add_decay()
        optimizer.step()
        if not training.hooked:
            sparsifier.after_step()
        optimizer.zero_grad()

    pair = [build(ACDC(0.8), hooked=hooked, ham=True) for hooked in (False, True)]
    assert_equal_trainings(*pair, batches, step=step)


@pytest.mark.parametrize("keyword", [True, False])
@pytest.mark.parametrize("method", ["rigl", "acdc", "pilot"])
def test_a_closure_equals_the_explicit_calls(method, keyword, masks, batches):
    """The hook acts after the closure, on gradients that the step itself has computed."""

    def step(training, batch, number):
        def closure():
            training.optimizer.zero_grad()
            backward(training, batch)
            return number

        if not training.hooked:
            return take_step(training, batch, number)
        returned = training.optimizer.step(**{"closure": closure}) if keyword else None
        assert (returned if keyword else training.optimizer.step(closure)) == number
        training.optimizer.zero_grad()

    pair = [build(METHODS[method].make(masks), hooked=hooked) for hooked in (False, True)]
    assert_equal_trainings(*pair, batches, step=step)


def test_an_optimizer_that_calls_its_closure_twice_is_refused(batches):
    training = build(Dense(), hooked=True, optimizer=lambda groups: _Twice(groups))
    line = "_Twice calls its closure more than once per step: a sparsifier needs an optimizer with one"
    with pytest.raises(RuntimeError, match=line):
        training.optimizer.step(lambda: backward(training, batches[0]))


class _Twice(torch.optim.SGD):
    def __init__(self, groups) -> None:
        super().__init__(groups, lr=0.1)

    def step(self, closure=None):
        for _ in range(2):
            with torch.enable_grad():
                closure()


class _Counting(torch.optim.SGD):
    """Counts its steps in the groups, as optimizers outside torch do, and takes the step of its base class.

    With `passes_closure` the base class calls the closure, else this class does.
    """

    def __init__(self, groups, passes_closure=False) -> None:
        super().__init__(groups, lr=0.05, momentum=0.9)
        self.passes_closure = passes_closure
        for group in self.param_groups:
            group["k"], group["done"] = 0, torch.zeros(())

    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            group["done"] += 1
        if closure is None or self.passes_closure:
            return super().step(closure)
        with torch.enable_grad():
            loss = closure()
        super().step()
        return loss


@pytest.mark.parametrize("way", ["plain", "own closure", "passed closure"])
def test_a_step_that_takes_the_step_of_its_base_class_is_one_step(way, batches):
    """Also RigL's updates: neither the weights nor the counters in the groups move."""
    torch.optim.SGD([nn.Parameter(torch.zeros(1))])  # from here on SGD.step itself runs hooks

    def step(training, batch, number):
        if not training.hooked or way == "plain":
            return take_step(training, batch, number)

        def closure():
            backward(training, batch)
            return 1.5

        assert training.optimizer.step(closure) == 1.5
        training.optimizer.zero_grad()

    def make(groups):
        return _Counting(groups, passes_closure=way == "passed closure")

    pair = [build(RigL(0.8, interval=3), hooked=hooked, optimizer=make) for hooked in (False, True)]
    assert_equal_trainings(*pair, batches, step=step)
    assert pair[1].sparsifier.step == LAST + 1
    group = pair[1].optimizer.param_groups[0]
    assert group["k"] == int(group["done"]) == LAST + 1 - 3  # updates at steps 3, 6 and 9


def test_a_step_that_failed_does_not_disturb_the_next_one(batches):
    """The error of a closure or of the step itself leaves no trace, with and without a base class's step."""
    for make in (OPTIMIZERS["sgd"], _Counting):
        training = build(RandomPruning(0.8), hooked=True, optimizer=make)
        handle = training.optimizer.register_step_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            take_step(training, batches[0], 0)
        handle.remove()
        assert training.sparsifier.step == 0
        take_step(training, batches[0], 0)
        assert training.sparsifier.step == 1
        assert_masked(training)


def assert_masked(training) -> None:
    weights = training.sparsifier.masks.values()
    for name, kept in training.sparsifier.kept().items():
        assert not weights[name][~kept].any() and weights[name][kept].all(), name


# Mixed precision


def test_a_step_that_gradscaler_skips_does_not_count(batches):
    """Overflow at RigL's update step 3: the update follows at the next step, as in the explicit loop."""
    training = build(RigL(0.8, interval=3), hooked=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    for number in range(5):
        before = {name: mask.clone() for name, mask in training.sparsifier.kept().items()}
        loss = cross_entropy(training.model(batches[number][0]), batches[number][1])
        scaler.scale(loss * (torch.inf if number == 3 else 1)).backward()
        scaler.step(training.optimizer)
        scaler.update()
        training.optimizer.zero_grad()
        changed = any(not torch.equal(before[n], m) for n, m in training.sparsifier.kept().items())
        assert changed == (number == 4)
    assert training.sparsifier.step == 4


def test_a_fused_optimizer_with_scaled_gradients(batches):
    """The fused step unscales and skips by itself: RigL's update waits until the gradients are finite."""
    trainings = []
    for fused in (True, False):
        training = build(
            RigL(0.8, interval=3),
            hooked=True,
            optimizer=lambda groups, fused=fused: torch.optim.SGD(groups, 0.05, 0.9, fused=fused),
        )
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
        for number in range(6):
            loss = cross_entropy(training.model(batches[number][0]), batches[number][1])
            scaler.scale(loss * (torch.inf if number == 3 else 1)).backward()
            scaler.step(training.optimizer)
            scaler.update()
            training.optimizer.zero_grad()
        assert_weights_finite(training)
        trainings.append(training)
    fused, plain = trainings
    assert fused.sparsifier.step == plain.sparsifier.step == 5
    assert all(torch.equal(m, plain.sparsifier.kept()[n]) for n, m in fused.sparsifier.kept().items())
    for one, other in zip(fused.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("overflows", [[0], [1, 2], [2, 4], [5]])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_skipped_steps_do_not_count_in_any_optimizer(batches, name, overflows, fused):
    """GMP's masks after six calls, of which some overflow, are those after as many steps as were taken."""
    kept = []
    for skipped in (overflows, []):
        training = build(
            GMP(0.6, interval=2, begin=0.0, end=1.0),
            hooked=True,
            optimizer=lambda groups: getattr(torch.optim, name)(groups, 1e-3, fused=fused),
        )
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
        numbers = range(6) if skipped else [n for n in range(6) if n not in overflows]
        for number in numbers:
            loss = cross_entropy(training.model(batches[number][0]), batches[number][1])
            scaler.scale(loss * (torch.inf if number in skipped else 1)).backward()
            scaler.step(training.optimizer)
            scaler.update()
            training.optimizer.zero_grad()
        assert training.sparsifier.step == 6 - len(overflows)
        kept.append(training.sparsifier.kept())
    assert all(torch.equal(mask, kept[1][name]) for name, mask in kept[0].items())


def assert_weights_finite(training) -> None:
    assert all(p.isfinite().all() for p in training.model.parameters())


def test_a_penalty_is_not_added_to_scaled_gradients(batches):
    """A fused optimizer gets them; after unscale_ the step equals one without a scaler to rounding."""

    def make(groups):
        return torch.optim.SGD(groups, 0.05, fused=True)

    training, plain = (build(Spred(0.8, decay=0.1), hooked=True, optimizer=make) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for one in (training, plain):
        one.sparsifier.on_epoch_start(0, one.optimizer)
    scaler.scale(cross_entropy(training.model(batches[0][0]), batches[0][1])).backward()
    with pytest.raises(RuntimeError, match=r"call scaler\.unscale_\(optimizer\) before scaler\.step"):
        scaler.step(training.optimizer)
    training, scaler = build(Spred(0.8, decay=0.1), hooked=True, optimizer=make), torch.amp.GradScaler("cpu")
    training.sparsifier.on_epoch_start(0, training.optimizer)
    scaler.scale(cross_entropy(training.model(batches[0][0]), batches[0][1])).backward()
    scaler.unscale_(training.optimizer)
    scaler.step(training.optimizer)
    take_step(plain, batches[0], 0)
    for one, other in zip(training.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


# Checkpoints


def test_the_step_by_which_a_distributed_checkpoint_creates_the_state_is_none_of_the_training(batches):
    """torch.distributed.checkpoint takes a step with rate 0 and gradients 0, here before RigL's first."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    training, plain = (build(RigL(0.8, interval=3), hooked=True, optimizer="adamw") for _ in range(2))
    get_optimizer_state_dict(training.model, training.optimizer)
    assert training.optimizer.state and training.sparsifier.step == 0
    for state in training.optimizer.state.values():  # loading replaces these; here they count one step
        state["step"].zero_()
    assert_equal_trainings(training, plain, batches, stop=5)


def test_a_first_step_of_a_warmup_from_zero_counts(batches):
    """The rate is 0 but the gradients are not."""
    training = build(
        RandomPruning(0.8), hooked=True, optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.0)
    )
    take_step(training, batches[0], 0)
    assert training.sparsifier.step == 1


def test_a_state_of_explicit_calls_asks_for_the_number_of_steps(batches):
    explicit, hooked = (build(RigL(0.8, interval=3), hooked=hooked) for hooked in (False, True))
    list(train(explicit, batches, stop=4))
    for name in ("model", "optimizer", "sparsifier"):
        getattr(hooked, name).load_state_dict(deepcopy(getattr(explicit, name).state_dict()))
    with pytest.raises(RuntimeError, match=r"set sparsifier\.step to the number of optimizer steps before"):
        hooked.optimizer.step()
    hooked.sparsifier.step = 4
    assert_equal_trainings(explicit, hooked, batches, start=4)


# Attaching and removing


def test_attach_with_the_optimizer_is_attach_and_hook(batches):
    model, pair = network(0), []
    optimizer = OPTIMIZERS["sgd"](param_groups(model, weight_decay=0.01))
    sparsifier = RigL(0.8, interval=3)
    sparsifier.attach(model, optimizer, total_epochs=EPOCHS, steps_per_epoch=STEPS)
    one = SimpleNamespace(model=model, sparsifier=sparsifier, optimizer=optimizer, hooked=True)
    pair = [one, build(RigL(0.8, interval=3), hooked=True)]
    assert_equal_trainings(*pair, batches)


def test_a_second_hook_is_refused_and_remove_detaches(batches):
    training = build(RandomPruning(0.8), hooked=True)
    with pytest.raises(ValueError, match=r"this sparsifier already has a hook: call remove\(\) on the first"):
        training.sparsifier.hook(training.optimizer)
    take_step(training, batches[0], 0)
    training.hook.remove()
    take_step(training, batches[1], 1)
    weights, kept = training.sparsifier.masks.values(), training.sparsifier.kept()
    assert training.sparsifier.step == 1 and all(w[~kept[n]].any() for n, w in weights.items())
    second = training.sparsifier.hook(training.optimizer)
    training.hook.remove()  # again: it does not detach the second one
    take_step(training, batches[2], 2)
    assert_masked(training)
    assert training.sparsifier.step == 2 and training.sparsifier._hook is second


@pytest.mark.parametrize("call", ["after_backward", "add_decay"])
def test_explicit_calls_beside_the_hook_are_an_error(call, batches):
    training = build(Spred(0.8, decay=0.1), hooked=True)
    training.sparsifier.on_epoch_start(0, training.optimizer)
    backward(training, batches[0])
    line = "the hook on the optimizer calls after_backward, add_decay and after_step: remove these calls"
    with pytest.raises(RuntimeError) as caught:
        getattr(training.sparsifier, call)(*((0, training.optimizer) if call == "after_backward" else ()))
    assert str(caught.value) == line


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_two_sparsifiers_share_an_optimizer(optimizer, batches):
    """Each masks its own weights. At RigL's updates the other one updates too, and nothing steps."""
    explicit, hooked = [], []
    for hook, pair in ((False, explicit), (True, hooked)):
        model, first, second = network(0), RigL(0.5, interval=3), RigL(0.8, interval=2)
        options = {"total_epochs": EPOCHS, "steps_per_epoch": STEPS}
        first.attach(model, exclude=["fc.weight"], **options)
        second.attach(model, exclude=["conv*"], **options)
        inner = OPTIMIZERS[optimizer](model.parameters())
        if hook:
            second.hook(inner), first.hook(inner)
        pair += [model, inner, first, second]
    for number in range(LAST + 1):
        for model, inner, first, second in (explicit, hooked):
            cross_entropy(model(batches[number][0]), batches[number][1]).backward()
            if model is hooked[0]:
                inner.step()
            else:
                steps = [s.after_backward(number, inner) for s in (first, second)]
                if all(steps):
                    inner.step()
                for sparsifier, follows in zip((first, second), steps, strict=True):
                    if follows:
                        sparsifier.after_step()
            inner.zero_grad()
        states = [[part.state_dict() for part in side[:2]] for side in (explicit, hooked)]
        kept = [[s.kept() for s in side[2:]] for side in (explicit, hooked)]
        assert dict(flat("", [states[0], kept[0]])) == dict(flat("", [states[1], kept[1]]))


# Optimizers that do not fit


def test_optimizers_without_step_hooks_are_refused():
    lookahead = pytest.importorskip("timm.optim", reason="timm is not installed: pip install timm").Lookahead
    training = build(Dense(), hooked=False)
    line = "Lookahead does not run the step hooks of torch.optim.Optimizer: call after_backward, add_decay"
    with pytest.raises(ValueError, match=line):
        training.sparsifier.hook(lookahead(training.optimizer))
    with pytest.raises(TypeError, match=r"hook needs a torch\.optim\.Optimizer, got Linear"):
        training.sparsifier.hook(nn.Linear(1, 1))


def test_a_wrapper_that_runs_hooks_and_changes_weights_is_hooked_itself(batches):
    """pytorch_optimizer's Lookahead moves weights after its inner step: the masks hold after that."""
    pytorch_optimizer = pytest.importorskip("pytorch_optimizer", reason="pip install pytorch_optimizer")
    model, sparsifier = network(0), ACDC(0.8)
    sparsifier.attach(model, total_epochs=EPOCHS, steps_per_epoch=STEPS)
    lookahead = pytorch_optimizer.Lookahead(OPTIMIZERS["sgd"](model.parameters()), k=2)
    hook = sparsifier.hook(lookahead)
    assert hook.optimizer is lookahead
    training = SimpleNamespace(model=model, sparsifier=sparsifier, optimizer=lookahead, hooked=True)
    for _ in train(training, batches):
        if sparsifier.masks.active:
            assert_masked(training)


def test_a_weight_decay_that_the_method_sets_itself_must_be_in_the_groups():
    sparsifier, model = STR(0.8, initial=-3, calibrate="ramp"), network(0)
    sparsifier.attach(model, total_epochs=EPOCHS, steps_per_epoch=STEPS)
    line = r"STR sets the weight decay of its parameters to 0, the optimizer to 0\.01: create it from"
    with pytest.raises(ValueError, match=line):
        sparsifier.hook(torch.optim.AdamW(model.parameters(), weight_decay=0.01))
    assert sparsifier._hook is None
    sparsifier.hook(torch.optim.AdamW(model.parameters(), weight_decay=0.0))


def test_an_optimizer_of_other_weights_is_refused():
    sparsifier, model = PILoT(0.8), network(0)
    before = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(model, total_epochs=EPOCHS, steps_per_epoch=STEPS)
    with pytest.raises(ValueError, match=r"the optimizer does not train conv1\.weight and 11 more: create"):
        sparsifier.hook(before)


def test_the_last_step_ends_the_training(batches):
    """spred without fine-tuning prunes at the end: the hook knows the last step by the number of steps."""
    training = build(Spred(0.8, finetune=0.0, decay=0.0), hooked=True)
    for number in train(training, batches):
        assert training.sparsifier.masks.active == (number == LAST)
    assert BATCH >= 8 and training.sparsifier.achieved_sparsity() == pytest.approx(0.8, abs=1e-3)


class Counting(torch.optim.SGD):
    """Counts its steps in its groups, in a number and in a tensor, as some optimizers outside torch do."""

    def __init__(self, params) -> None:
        super().__init__(params, lr=0.1)
        for group in self.param_groups:
            group.update(k=0, moved=torch.zeros(()), name="n", both=torch.zeros(2))

    def step(self, closure=None):
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            group["k"] += 1
            group["moved"].add_(1)
            group["both"].add_(1)
        super().step()
        return loss


@pytest.mark.parametrize("with_closure", [False, True])
def test_counters_in_groups_do_not_count_steps_that_are_dropped(with_closure):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    rigl = RigL(0.5, interval=2)
    rigl.attach(model, total_epochs=2, steps_per_epoch=4)
    optimizer = Counting(model.parameters())
    rigl.hook(optimizer)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    counted = []
    for _ in range(6):  # updates at 2 and 4
        if with_closure:
            assert optimizer.step(closure) > 0
        else:
            closure()
            optimizer.step()
        [group] = optimizer.param_groups
        counted.append((group["k"], int(group["moved"])))
    assert counted == [(1, 1), (2, 2), (2, 2), (3, 3), (3, 3), (4, 4)]
    assert group["name"] == "n" and rigl.step == 6


def test_only_single_numbers_of_a_group_are_kept():
    tensor = torch.tensor([2.0])
    group = {"lr": 0.5, "k": 3, "flag": True, "name": "n", "params": [], "one": tensor, "two": torch.ones(2)}
    kept = _numbers(group)
    assert kept.keys() == {"lr", "k", "flag", "one"}
    tensor.add_(1)
    assert kept["one"].item() == 2.0


def test_the_hook_of_another_sparsifier_on_the_same_weights_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    first, second = RandomPruning(0.5), RigL(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first.attach(model, optimizer, total_epochs=1, exclude=["0.*"])
    second.attach(model, total_epochs=1, steps_per_epoch=1)
    with pytest.raises(ValueError) as error:
        second.hook(optimizer)
    assert str(error.value) == (
        "the hook of another RandomPruning on this optimizer acts on 1.weight: call remove() on that hook "
        "first"
    )
    first._hook.remove()
    assert first._hook is None
    second.hook(optimizer)


@pytest.mark.parametrize(("decay", "fits"), [(0.0, True), (None, True), (0.01, False)])
def test_the_weight_decay_of_factors_is_that_of_the_method(decay, fits):
    model = nn.Sequential(nn.Linear(4, 4))
    spred = Spred(0.5)
    spred.attach(model, total_epochs=1, steps_per_epoch=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["weight_decay"] = decay
    if fits:
        spred.hook(optimizer)
        return
    with pytest.raises(ValueError) as error:
        spred.hook(optimizer)
    assert str(error.value) == (
        "Spred sets the weight decay of its parameters to 0, the optimizer to 0.01: create it from "
        "sparsifier.param_groups(model.parameters())"
    )
