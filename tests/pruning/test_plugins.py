"""What a run asks of a sparsifier and of a parameterization, and how it finds them by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from contract import METHODS

from pruning import STR, Dense, MaskFrom, PILoT, Plain, Product, Sparsifier, Spred
from pruning.acdc import Revive, ReviveName, Scope, ScopeName, SecondMoment, SecondMomentName
from pruning.allocate import Allocation, AllocationName
from pruning.base import SPARSIFIERS, register
from pruning.choice import Choice
from pruning.parameterization import PARAMETERIZATIONS, register_parameterization
from pruning.registry import register_in
from pruning.schedule import Ramp, RampName
from pruning.spred import Factors, FactorsName
from pruning.str import Calibrate, CalibrateName

CONFIGS = Path(__file__).parents[2] / "configs"


def schemas(group: str) -> set[str]:
    """The schema names that the group's files compose over."""
    texts = [path.read_text() for path in (CONFIGS / group).glob("*.yaml")]
    words = [word for text in texts for word in text.split() if word.endswith("_schema")]
    return {word.removesuffix("_schema") for word in words}


@pytest.mark.parametrize(
    ("group", "table"), [("sparsifier", SPARSIFIERS), ("parameterization", PARAMETERIZATIONS)]
)
def test_every_registered_class_has_a_configuration_and_no_other(group, table):
    assert table.keys() == schemas(group)


def test_every_method_under_contract_is_registered():
    assert {type(rule.make(Path("masks.pt"))) for rule in METHODS.values()} == set(SPARSIFIERS.values())


@pytest.mark.parametrize(
    ("decorator", "table", "base"),
    [
        (register, SPARSIFIERS, Sparsifier),
        (register_parameterization, PARAMETERIZATIONS, Plain),
    ],
)
def test_a_decorator_registers_a_class_and_returns_it(decorator, table, base):
    @dataclass
    class New(base):
        pass

    try:
        assert decorator("new")(New) is New
        assert table["new"] is New
    finally:
        del table["new"]


def test_a_name_belongs_to_one_class():
    table: dict[str, type] = {}
    register_in(table, "dense")(Dense)
    register_in(table, "dense")(Dense)
    with pytest.raises(ValueError) as caught:
        register_in(table, "dense")(STR)
    assert (
        str(caught.value)
        == "'dense' is already registered for pruning.base.Dense: choose another name for STR"
    )
    assert table == {"dense": Dense}


def make(name: str) -> Sparsifier:
    return METHODS[name].make(Path("runs/random/seed0/masks.pt"))


def test_only_pilot_and_spred_train_factors():
    assert {c for c in SPARSIFIERS.values() if c.trains_factors} == {PILoT, Spred}
    assert {c for c in PARAMETERIZATIONS.values() if c.trains_factors} == {Product}


@pytest.mark.parametrize("name", [name for name in METHODS if name != "mask_from"])
def test_other_methods_than_mask_from_need_no_other_run(name):
    sparsifier = make(name)
    assert (sparsifier.redraws_weights, sparsifier.depends_on) == (False, "")
    assert sparsifier.resolve(lambda experiment: "runs/other", resumed=False) is sparsifier
    assert sparsifier.resolve(lambda experiment: "runs/other", resumed=True) is sparsifier


@pytest.mark.parametrize("redraw", [True, False])
def test_mask_from_redraws_weights_as_its_field_says(redraw):
    assert MaskFrom(0.9, source="acdc_s90", redraw=redraw).redraws_weights is redraw


def test_an_experiment_becomes_the_folder_of_its_run_and_a_path_stays():
    named = MaskFrom(0.9, source="acdc_s90")
    resolved = named.resolve(lambda experiment: f"runs/{experiment}/seed3", resumed=False)
    assert (named.depends_on, named.source) == ("acdc_s90", "acdc_s90")
    assert resolved == MaskFrom(0.9, source="runs/acdc_s90/seed3")
    path = MaskFrom(0.9, source="runs/acdc_s90/seed3")
    assert path.depends_on == ""
    assert path.resolve(lambda experiment: "elsewhere", resumed=False) is path


@pytest.mark.parametrize("source", ["acdc_s90", "runs/acdc_s90/seed3"])
def test_a_resumed_mask_from_reads_no_source(source):
    original = MaskFrom(0.9, source=source)
    resumed = original.resolve(lambda experiment: "elsewhere", resumed=True)
    assert (original.resumed, resumed.resumed, resumed.source) == (False, True, source)


@pytest.mark.parametrize("name", METHODS)
def test_usual_settings_work_with_any_optimizer(name):
    sparsifier = make(name)
    sparsifier.check_rates(lr=1.0, momentum=0.99)
    sparsifier.check_rates(lr=1e9, momentum=None)


def test_str_refuses_a_decay_that_sgd_makes_unstable():
    sparsifier = STR(0.9, threshold_decay=0.01)
    sparsifier.check_rates(lr=1.0, momentum=None)
    with pytest.raises(ValueError, match="unstable"):
        sparsifier.check_rates(lr=1.0, momentum=0.9)


@pytest.mark.parametrize("calibrate", ["none", "search", "ramp"])
def test_only_the_search_needs_calibration_runs(calibrate):
    assert STR(0.9, calibrate=calibrate).needs_calibration_runs is (calibrate == "search")
    assert not any(make(name).needs_calibration_runs for name in METHODS)


LITERALS = {
    "Allocation": (Allocation, AllocationName),
    "Scope": (Scope, ScopeName),
    "Revive": (Revive, ReviveName),
    "SecondMoment": (SecondMoment, SecondMomentName),
    "Calibrate": (Calibrate, CalibrateName),
    "Factors": (Factors, FactorsName),
    "Ramp": (Ramp, RampName),
}


@pytest.mark.parametrize("name", LITERALS)
def test_the_strings_that_a_checker_accepts_are_those_of_the_enum(name):
    enum, literal = LITERALS[name]
    assert get_args(literal) == tuple(member.value for member in enum)


def test_every_choice_has_its_literal_and_fields_keep_the_enum_for_omegaconf():
    """OmegaConf reads the type of a field at run time, and an enum is the one that it can check."""
    hints = {kind for cls in SPARSIFIERS.values() for kind in get_type_hints(cls).values()}
    assert {kind for kind in hints if isinstance(kind, type) and issubclass(kind, Choice)} == {
        enum for enum, _ in LITERALS.values()
    }


@pytest.mark.parametrize(
    "kind", [*SPARSIFIERS.values(), *PARAMETERIZATIONS.values()], ids=lambda c: c.__name__
)
def test_a_configuration_sees_an_enum_where_a_method_has_a_choice(kind):
    """Hydra reads the types of the fields at run time."""
    hints = get_type_hints(kind)
    choices = {
        *("scope", "revive", "revive_second_moment", "schedule", "factors", "calibrate", "allocation"),
    }
    for name in choices & hints.keys():
        assert issubclass(hints[name], Choice), name
