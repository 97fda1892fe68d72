"""Sparsifiers in training loops that this library does not control.

Whatever a loop leaves out or gives, the outcome is right, or it is one line that names the cure.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from contract import network
from short_loops import (
    LENGTHS,
    PARAMETRIZING,
    X,
    Y,
    attached,
    is_one_line,
    model_of,
    one_step,
    sgd,
    train,
    zeros_in,
)
from small_networks import NETWORKS, LanguageModel
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from pruning import (
    ACDC,
    GMP,
    SNIP,
    STR,
    Dense,
    PILoT,
    Product,
    RandomPruning,
    RigL,
    SparsityWarning,
    Spred,
    SynFlow,
)
from pruning.checks import NotAttachedError

AFTER_ATTACH = "create it after sparsifier.attach"


@pytest.mark.parametrize("kind", PARAMETRIZING)
def test_an_optimizer_from_before_attach_is_refused_by_every_method_that_parametrizes(kind):
    sparsifier, parameterization = PARAMETRIZING[kind]()
    model = model_of()
    early = sgd(model)
    attached(model, sparsifier, parameterization=parameterization)
    sparsifier.on_epoch_start(0, early)
    with pytest.raises(ValueError, match=AFTER_ATTACH) as caught:
        one_step(model, sparsifier, early)
    assert is_one_line(caught)
    with pytest.raises(ValueError, match=AFTER_ATTACH):
        sparsifier.hook(early)


def test_weights_split_over_two_optimizers_are_attached_to_apart():
    model = model_of()
    first, second = sgd(model[0]), sgd(model[2])
    sparsifier = attached(model)
    with pytest.raises(ValueError, match="exclude those that another optimizer trains"):
        one_step(model, sparsifier, first)
    model = model_of()
    first, second = sgd(model[0]), sgd(model[2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        pair = [attached(model, exclude=["2.*"]), attached(model, exclude=["0.*"])]
    cross_entropy(model(X), Y).backward()
    for sparsifier, optimizer in zip(pair, (first, second), strict=True):
        assert sparsifier.after_backward(0, optimizer)
        optimizer.step()
        sparsifier.after_step()
    assert pair[0].achieved_sparsity() == zeros_in(model, "0.weight") > 0.7
    assert pair[1].achieved_sparsity() == zeros_in(model, "2.weight") > 0.7


@pytest.mark.parametrize(
    ("make", "parameterization", "who"),
    [
        (lambda: ACDC(0.5), None, "ACDC"),
        (lambda: PILoT(0.5), None, "PILoT"),
        (lambda: Spred(0.5), None, "Spred"),
        (lambda: RandomPruning(0.5), Product(reset_every=1), "parameterization=Product"),
    ],
    ids=["acdc", "pilot", "spred", "sign_in"],
)
def test_epochs_that_nobody_announces_are_missed(make, parameterization, who):
    model = model_of()
    sparsifier = attached(model, make(), parameterization=parameterization)
    optimizer = sgd(model, sparsifier)
    small = "(, or steps_per_epoch=2 is too small)?"
    line = rf"^{who} requires sparsifier\.on_epoch_start.*; it was not called for epoch {{}}{small}$"
    with pytest.raises(RuntimeError, match=line.format(0)):
        one_step(model, sparsifier, optimizer)
    train(model, sparsifier, optimizer, steps=2)
    with pytest.raises(RuntimeError, match=line.format(1)):
        one_step(model, sparsifier, optimizer, step=2)


def test_methods_that_do_not_act_on_epochs_need_no_announcement():
    model = model_of()
    sparsifier = attached(model, parameterization=Product())
    optimizer = sgd(model, sparsifier)
    for step in range(8):
        one_step(model, sparsifier, optimizer, step)
    assert sparsifier.achieved_sparsity() == zeros_in(model) > 0.7


@pytest.mark.parametrize("kind", ["product", "pilot", "spred"])
def test_a_penalty_that_nobody_adds_is_missed(kind):
    sparsifier, parameterization = PARAMETRIZING[kind]()
    model = model_of()
    optimizer = sgd(model, attached(model, sparsifier, parameterization=parameterization))
    sparsifier.on_epoch_start(0, optimizer)
    cross_entropy(model(X), Y).backward()
    sparsifier.after_backward(0, optimizer)
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"adds a penalty: call sparsifier\.add_decay\(\) between"):
        sparsifier.after_step()


def test_pilot_misses_the_accuracies_of_epochs():
    model = model_of()
    sparsifier = attached(model, PILoT(0.5))
    optimizer = sgd(model, sparsifier)
    sparsifier.on_epoch_start(0, optimizer)
    one_step(model, sparsifier, optimizer)
    with pytest.raises(
        RuntimeError,
        match=r"^PILoT requires the training accuracy: call on_epoch_end\(train_accuracy=\.\.\.\)",
    ):
        sparsifier.on_epoch_start(1, optimizer)


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.after_step(),
        lambda s: s.achieved_sparsity(),
        lambda s: s.state_dict(),
        lambda s: s.hook(sgd(model_of())),
        lambda s: s.initialize([(X, Y)], cross_entropy),
    ],
    ids=["after_step", "achieved_sparsity", "state_dict", "hook", "initialize"],
)
def test_a_sparsifier_is_attached_before_it_is_used(use):
    with pytest.raises(NotAttachedError, match=r"^SNIP is not attached: call attach\(model, \.\.\.\) first$"):
        use(SNIP(0.5, batches=1))


def test_a_state_from_before_initialize_does_not_stand_for_masks():
    early = attached(model_of(), SNIP(0.5)).state_dict()
    model = model_of()
    sparsifier = attached(model, SNIP(0.5))
    sparsifier.load_state_dict(early)
    with pytest.raises(RuntimeError, match=r"^SNIP has not pruned yet: call initialize"):
        one_step(model, sparsifier, sgd(model))


@pytest.mark.parametrize(
    ("batch", "kind"),
    [({"x": X, "y": Y}, "dict"), ((X, Y, Y), "tuple of 3"), (X, "Tensor"), (("x", Y), "tuple of 2")],
    ids=["dict", "triple", "tensor", "strings"],
)
@pytest.mark.parametrize("method", [SNIP, SynFlow])
def test_batches_are_pairs(method, batch, kind):
    sparsifier = attached(model_of(), SNIP(0.5, batches=1) if method is SNIP else SynFlow(0.5))
    line = rf"^batches must be pairs \(inputs, targets\), got {kind}: pass a generator such as"
    with pytest.raises(ValueError, match=line):
        sparsifier.initialize([batch], cross_entropy)


def test_synflow_refuses_token_ids_and_snip_takes_them():
    network = NETWORKS["embedding"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        synflow = attached(network.build(0), SynFlow(0.5))
        snip = attached(network.build(0), SNIP(0.5, batches=1))
    with pytest.raises(
        ValueError, match=r"^SynFlow feeds ones .* needs floating-point inputs, got torch\.int64"
    ):
        synflow.initialize([network.batch(0)])
    snip.initialize([network.batch(0)], cross_entropy)
    assert snip.achieved_sparsity() == zeros_in(snip.model, *network.prunable) == 0.5


def test_a_lazy_layer_needs_its_shape_and_other_lazy_layers_do_not_matter():
    with pytest.raises(ValueError, match=r"^0\.weight has no shape yet: run one forward pass"):
        attached(nn.Sequential(nn.LazyLinear(4)))
    model = nn.Sequential(nn.Linear(8, 8), nn.LazyBatchNorm1d(), nn.Linear(8, 4))
    sparsifier = attached(model)
    model(X)
    train(model, sparsifier, sgd(model))
    assert sparsifier.achieved_sparsity() == zeros_in(model) > 0.7


@pytest.mark.parametrize("kind", PARAMETRIZING)
def test_a_tied_embedding_is_not_untied(kind):
    """Included by name it is refused; by default the head that shares it stays as it is."""
    sparsifier, parameterization = PARAMETRIZING[kind]()
    line = r"^head\.weight shares its weight with embed\.weight: untie them first$"
    with pytest.raises(ValueError, match=line):
        attached(
            LanguageModel(tied=True), sparsifier, parameterization=parameterization, include=["embed.weight"]
        )
    sparsifier, parameterization = PARAMETRIZING[kind]()
    model = LanguageModel(tied=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        attached(model, sparsifier, parameterization=parameterization)
    assert model.head.weight is model.embed.weight
    assert list(sparsifier.kept()) == ["hidden.weight"]


@pytest.fixture
def process_group(tmp_path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_masks_may_be_attached_to_ddp_and_parametrizations_may_not(process_group):
    wrapped = DistributedDataParallel(model_of())
    sparsifier = attached(wrapped)
    train(wrapped, sparsifier, sgd(wrapped))
    assert list(sparsifier.kept()) == ["0.weight", "2.weight"]
    assert sparsifier.achieved_sparsity() == zeros_in(wrapped.module) > 0.7
    for kind, make in PARAMETRIZING.items():
        sparsifier, parameterization = make()
        who = "parameterization=Product" if kind in ("product", "sign_in") else type(sparsifier).__name__
        line = f"^{who} replaces parameters that DistributedDataParallel .*: attach to the model first, then"
        with pytest.raises(ValueError, match=line) as caught:
            attached(DistributedDataParallel(model_of()), sparsifier, parameterization=parameterization)
        assert is_one_line(caught)


def test_a_layer_without_any_weight_left_is_named_at_the_line_that_pruned_it():
    model = model_of()
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
    sparsifier = attached(model, ACDC(0.75))
    optimizer = sgd(model)
    with pytest.warns(
        UserWarning, match=r"^all weights of 2\.weight are pruned: lower the sparsity, exclude"
    ) as seen:
        for epoch in range(4):
            sparsifier.on_epoch_start(epoch, optimizer)
    assert len(seen) == 1
    assert seen[0].filename == __file__


def test_few_prunable_weights_are_reported_at_the_line_of_attach():
    model = nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 4))
    with pytest.warns(UserWarning, match=r"^the prunable weights are 4 % of the model's parameters") as seen:
        RandomPruning(0.5).attach(model, **LENGTHS)
    assert [warning.filename for warning in seen] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RandomPruning(0.5).attach(model, **LENGTHS, include=["0.weight"])
        Dense().attach(network(0), **LENGTHS)


def test_a_step_where_none_must_follow_is_an_error():
    """RigL's update iterations have no optimizer step."""
    model = nn.Linear(8, 8)
    sparsifier = RigL(sparsity=0.5, interval=2)
    sparsifier.attach(model, total_epochs=1, steps_per_epoch=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 8)).sum().backward()
    assert not sparsifier.after_backward(2, optimizer)
    with pytest.raises(RuntimeError, match="after_backward returned False: take no optimizer step"):
        sparsifier.after_step()


def test_a_second_hook_on_the_same_weights_is_refused():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first, second = RandomPruning(sparsity=0.5), RandomPruning(sparsity=0.5)
    first.attach(model, optimizer, total_epochs=1)
    with pytest.raises(
        ValueError, match=r"another RandomPruning on this optimizer acts on 0\.weight: call remove"
    ):
        second.attach(model, optimizer, total_epochs=1)
    first.attach(model, optimizer, total_epochs=1)  # a cell of a notebook that runs again: the hook is new
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    assert first.step == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"masks": {"weight": torch.rand(8, 8)}}, "must be a bool tensor, got torch.float32"),
        ({"masks": {"weight": [[True]]}}, "must be a bool tensor, got list"),
        ({"masks": {"wight": torch.ones(8, 8) > 0}}, "no mask for"),
    ],
)
def test_masks_of_ones_own_that_do_not_fit_are_named(options, line):
    with pytest.raises(ValueError, match=line):
        Dense().attach(nn.Linear(8, 8), total_epochs=1, **options)


def test_one_glob_may_be_a_string():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    sparsifier = RandomPruning(sparsity=0.5)
    sparsifier.attach(model, total_epochs=1, exclude="1.weight")
    assert list(sparsifier.kept()) == ["0.weight"]
    with pytest.raises(ValueError, match=r"'head\.\*' matches no prunable weight; names are like 0\.weight"):
        RandomPruning(sparsity=0.5).attach(model, total_epochs=1, exclude="head.*")


@pytest.mark.parametrize("method", [PILoT(sparsity=0.5), STR(sparsity=0.5, initial=-8.0)])
def test_methods_that_replace_parameters_take_no_optimizer_at_attach(method):
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match=r"replaces parameters: call attach\(model, \.\.\.\), create the optimizer"
    ):
        method.attach(model, optimizer, total_epochs=1)
    assert list(dict(model.named_parameters())) == ["weight", "bias"]  # untouched


def test_a_wrong_optimizer_is_refused_before_anything_is_pruned():
    model, other = nn.Linear(8, 8), nn.Linear(8, 8)
    with pytest.raises(ValueError, match="the optimizer does not train weight"):
        RandomPruning(sparsity=0.5).attach(model, torch.optim.SGD(other.parameters(), lr=0.1), total_epochs=1)
    assert model.weight.count_nonzero() == 64


def test_pilot_takes_the_accuracy_as_a_fraction():
    pilot = PILoT(sparsity=0.5)
    pilot.attach(nn.Linear(8, 8), total_epochs=2)
    with pytest.raises(ValueError, match="must be a fraction in"):
        pilot.on_epoch_end(train_accuracy=93.0)


def test_an_empty_state_is_refused():
    sparsifier = RandomPruning(sparsity=0.5)
    sparsifier.attach(nn.Linear(8, 8), total_epochs=2)
    with pytest.raises(ValueError, match="not saved by a sparsifier"):
        sparsifier.load_state_dict({})


@pytest.mark.parametrize(
    ("hooked", "steps", "cure"),
    [(False, 6, "no optimizer step was counted"), (True, 2, "training ended after 2 of the 12 steps")],
)
def test_a_target_that_is_missed_at_the_end_is_a_warning(hooked, steps, cure):
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = GMP(sparsity=0.9, interval=2)
    sparsifier.attach(model, optimizer if hooked else None, total_epochs=6, steps_per_epoch=2)
    for _ in range(steps):
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    with pytest.warns(SparsityWarning, match=rf"GMP ended at sparsity .*, but its target is 0\.90.*: {cure}"):
        sparsifier.on_end()


def test_the_state_of_another_target_is_refused():
    first, second = RandomPruning(sparsity=0.5), RandomPruning(sparsity=0.9)
    for sparsifier in (first, second):
        sparsifier.attach(nn.Linear(8, 8), total_epochs=1)
    with pytest.raises(
        ValueError,
        match=r"the state was saved by RandomPruning\(sparsity=0\.5.*, but this sparsifier is .*=0\.9",
    ):
        second.load_state_dict(first.state_dict())
