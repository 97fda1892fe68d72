"""The best validation metric over the epochs, and the test metric of that epoch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ham.tasks.best_epoch import BestEpochTask, describe_best


def evaluated(valid: float, *, before: list[float], epochs: int = 10) -> tuple[dict[str, float], list[str]]:
    """The metrics after an epoch, and the parts that were evaluated."""
    asked: list[str] = []

    def metric(model: str, part: str) -> float:
        assert model == "model"
        asked.append(part)
        return valid if part == "valid" else 40.0

    history = [{"valid": own} for own in before]
    run = SimpleNamespace(
        model="model", history=history, epoch=len(before), cfg=SimpleNamespace(epochs=epochs)
    )
    return BestEpochTask.evaluate(SimpleNamespace(metric=metric), run), asked


@pytest.mark.parametrize("valid", [0.0, 50.0, -3.0])
def test_the_first_epoch_is_the_best_so_far_whatever_its_metric(valid: float) -> None:
    assert evaluated(valid, before=[]) == ({"valid": valid, "test": 40.0}, ["valid", "test"])


@pytest.mark.parametrize(("valid", "parts"), [(50.5, 2), (50.0, 1), (49.5, 1)])
def test_the_test_part_is_evaluated_at_a_new_best_epoch_alone(valid: float, parts: int) -> None:
    metrics, asked = evaluated(valid, before=[20.0, 50.0, 30.0])
    assert asked == ["valid", "test"][:parts] and ("test" in metrics) == (parts == 2)


@pytest.mark.parametrize(("epochs", "parts"), [(4, 2), (5, 1)])
def test_the_test_part_is_evaluated_after_the_last_epoch(epochs: int, parts: int) -> None:
    assert len(evaluated(10.0, before=[50.0, 20.0, 20.0], epochs=epochs)[1]) == parts


def test_the_best_metrics_are_those_of_the_first_of_the_best_epochs_and_of_the_last() -> None:
    valid = [60.0, 70.0, 70.0, 65.0]
    history = [
        {"epoch": epoch, "valid": own, "test": 50.0 + epoch, "train_loss": 1 / (epoch + 1)}
        for epoch, own in enumerate(valid)
    ]
    assert BestEpochTask.best_metrics(SimpleNamespace(), SimpleNamespace(history=history)) == {
        "valid_best": 70.0,
        "test_at_best": 51.0,
        "best_epoch": 1,
        "valid_last": 65.0,
        "test_last": 53.0,
        "train_loss": 0.25,
    }
    assert BestEpochTask.reported == ("valid_last", "valid_best")


def test_epochs_are_reported_from_1_and_percent_to_two_digits() -> None:
    metrics = {"valid_best": 71.256, "best_epoch": 0, "test_at_best": 70.0, "test_last": 68.444}
    assert describe_best(metrics, "ROC AUC") == [
        "valid        71.26 % ROC AUC, the best, in epoch 1",
        "test         70.00 % in that epoch, 68.44 % in the last",
    ]
