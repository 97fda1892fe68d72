"""What tasks share: their registry, refused options, and the sparsity of a summary."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ham.data import Data, ImageData
from ham.tasks import base
from ham.tasks.base import Task, TaskFacts, describe_sparsity, refuse_options, sparsity_of, task_for, task_of
from ham.tasks.images import ImageClassification


def test_the_first_option_that_does_not_apply_is_named_with_the_cure() -> None:
    with pytest.raises(ValueError, match=r"^compute\.amp does not apply to a graph: omit it$"):
        refuse_options({"batch_size": False, "compute.amp": True, "compute.compile": True}, "a graph")
    refuse_options({"batch_size": False}, "a graph")


class Counted:
    """A sparsifier that keeps 3 of 4 weights of one layer and 1 of 16 of another."""

    def counts(self) -> Any:
        return iter([("conv", 3, 4), ("fc", 1, 16)])

    def achieved_sparsity(self) -> float:
        return 0.8


def test_the_sparsity_of_a_summary_has_sums_and_the_share_of_zeros_of_each_layer() -> None:
    found = sparsity_of(Counted())
    assert found == {
        "target": 0.0,
        "overall": 0.8,
        "kept": 4,
        "total": 20,
        "layers": {"conv": 0.25, "fc": 0.9375},
    }
    sparsifier = Counted()
    sparsifier.sparsity = 0.75
    assert sparsity_of(sparsifier)["target"] == 0.75


def test_the_line_about_sparsity_has_percent_and_numbers_of_weights() -> None:
    sparsity = {"overall": 0.89996, "kept": 1234567, "total": 12345678, "target": 0.9}
    expected = "sparsity     90.00 %   (1,234,567 of 12,345,678 weights kept; target 90 %)"
    assert describe_sparsity(sparsity) == expected
    assert describe_sparsity(sparsity | {"target": 0.985}).endswith("target 98.5 %)")


def test_a_task_trains_on_its_data_and_on_what_is_derived_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Words(Data):
        pass

    class Letters(Words):
        pass

    class Images(ImageData):
        load = None

    monkeypatch.setattr(base, "TASKS", dict(base.TASKS))
    with pytest.raises(
        ValueError, match=r"^no task trains on Letters: derive it from ImageData, or register"
    ):
        task_of(Letters())
    assert task_for(Words)(ImageClassification) is ImageClassification
    assert task_of(Words()) is task_of(Letters()) is ImageClassification
    assert task_of(Images()) is ImageClassification


def test_a_task_is_trained_by_the_loop_on_several_processes_and_keeps_its_epochs_unless_it_says_so() -> None:
    assert (TaskFacts.stores_history, TaskFacts.distributed, TaskFacts.demos) == (True, True, frozenset())
    assert (Task.trained_by, Task.logs_statistics, Task.smooths_labels) == ("main", True, False)


def test_methods_that_prune_at_initialization_get_no_batches_and_the_cross_entropy_by_default() -> None:
    logits, labels = torch.tensor([[0.0, 0.0], [3.0, 1.0]]), torch.tensor([0, 1])
    assert tuple(Task.initialization_batches(SimpleNamespace())) == ()
    log_two, second = 0.6931472, 2.126928  # ln 2, and ln(1 + e^2)
    loss = Task.initialization_loss(SimpleNamespace(), logits, labels)
    assert float(loss) == pytest.approx((log_two + second) / 2, rel=1e-6)
