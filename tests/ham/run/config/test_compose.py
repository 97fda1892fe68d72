"""From a command line to a configuration: paths, demos, choices, and errors that name the cure."""

from __future__ import annotations

import pytest

from ham.run.config import ConfigError, compose, demo_changes, demo_last, literal_path, load
from ham.run.config.compose import _demo_values, _is_override, _with_demo_file

LEAF = "+exp=acdc_ham_s90"


@pytest.mark.parametrize(
    ("text", "literal"),
    [
        ("runs_dir=a,b", "runs_dir='a,b'"),
        ("data.root=it's", "data.root='it\\'s'"),
        ("model.gguf=[x]=1", "model.gguf='[x]=1'"),
        ("runs_dir=", "runs_dir="),
        ("runs_dir", "runs_dir"),
        ("runs_dir='a b'", "runs_dir='a b'"),
        ('runs_dir="a b"', 'runs_dir="a b"'),
        ("runs_dir=${name}", "runs_dir=${name}"),
        ("optimizer.betas=[0.9,0.99]", "optimizer.betas=[0.9,0.99]"),
    ],
)
def test_only_paths_are_quoted_and_only_where_nothing_else_is_meant(text: str, literal: str) -> None:
    assert literal_path(text) == literal


def test_demos_go_last_and_all_else_stays_in_order() -> None:
    given = ["+demo=digits", "b=1", "demo=tiny", "a=demo=1", "demography=1"]
    assert demo_last(given) == ["b=1", "a=demo=1", "demography=1", "+demo=digits", "demo=tiny"]


def test_the_changes_of_a_demo_are_values_before_and_after() -> None:
    changes = demo_changes([LEAF, "+demo=digits", "optimizer.lr=0.25", "runs_dir=a,b"])
    assert changes["epochs"][0] == 100 and changes["model.stem"] == ("imagenet", "cifar")
    assert all(before != after for before, after in changes.values())
    assert not any(key.startswith("demo") for key in changes)
    assert not {"optimizer.lr", "runs_dir", "seed"} & changes.keys()
    assert demo_changes([LEAF]) == {}


def test_a_demo_of_some_data_has_a_file_of_its_own() -> None:
    own = ["+exp=cifar100", "+demo=digits", "seed=1"]
    assert _with_demo_file([LEAF, "seed=1"]) == [LEAF, "seed=1"]
    assert _with_demo_file(["+demo=digits", "seed=1"]) == ["+demo=digits", "seed=1"]
    graph = ["+exp=graph/ogbg_molhiv_ham", "+demo=epochs20", "seed=1"]
    for given in (own, graph):
        first, demo, last = _with_demo_file(given)
        assert (first, last) == (given[0], "seed=1") and demo.endswith(given[1].partition("=")[2])


def test_values_of_another_scale_are_left_alone() -> None:
    from omegaconf import OmegaConf

    node = OmegaConf.create({"demo_values": "tiny", "model": {"demo": {"digits": {"width": 8}}}})
    assert _demo_values("model", node) == {}
    node.demo_values = "digits"
    assert _demo_values("model", node) == {"width": 8}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["seed=1"], "name an experiment, such as +exp=acdc_ham_s90; python train.py --list shows all"),
        ([LEAF, "~ham"], "~ham has no effect: choose another ham, such as ham=none"),
        ([LEAF, "~optimizer.lr"], "~optimizer.lr has no effect: set optimizer.lr=... instead"),
        ([LEAF, "~seed"], "~seed has no effect: set seed=... instead"),
        ([LEAF, "~exp"], "~exp has no effect: set exp=... instead"),
        ([LEAF, "+seed=1"], "+seed has no effect: write seed=1, without a plus"),
        (["exp=dense"], "write +exp=dense, with a plus"),
        ([LEAF, "demo=digits"], "write +demo=digits, with a plus"),
        ([LEAF, "seed=1,2"], "'seed=1,2' names several runs: start them with python train.py -m"),
        ([LEAF, "oops"], "'oops' is not an override: write key=value, or see python train.py --help"),
        ([LEAF, "a\tb=1"], "'a\\tb=1' has a control character ('\\t'): choose another name"),
        (
            ["+exp=node/cora_gcn", "+demo=digits"],
            "+demo=digits does not scale down nodes, which this experiment learns: omit it",
        ),
        (
            ["+exp=graph/ogbg_molhiv_ham", "+demo=digits"],
            "+demo=digits does not scale down graphs, which this experiment learns: use +demo=epochs20, or",
        ),
    ],
)
def test_errors_of_command_lines_say_what_to_write(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(given)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("given", "kind"), [("+exp=densee", "experiment"), ("model=resnet5", "model"), ("+demo=digit", "demo")]
)
def test_an_unknown_choice_names_the_three_nearest(given: str, kind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([given] if kind == "experiment" else [LEAF, given])
    start, _, names = str(caught.value).partition("; nearest: ")
    assert start == f"unknown {kind} {given.partition('=')[2]!r}" and len(names.split(", ")) == 3


def test_an_error_without_the_demo_is_not_blamed_on_it() -> None:
    with pytest.raises(ConfigError) as caught:
        load(["+exp=node/cora_gcn", "+demo=digits", "epochs=0"])
    assert "does not scale down" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "overridden"),
    [
        ([], False),
        (["seed=1", "runs_dir=a", "data.root=b", "wandb.mode=offline", "compute.threads=1"], False),
        (["+demo=digits"], False),
        (["ham.alpha=1"], True),
        (["compute.amp=false"], True),
    ],
)
def test_a_run_is_overridden_by_what_its_result_depends_on(more: list[str], overridden: bool) -> None:
    cfg = load([LEAF, *more])
    assert (cfg.name, cfg.overridden) == ("acdc_ham_s90", overridden)
    keys = [text.lstrip("+").partition("=")[0] for text in more]
    assert any(map(_is_override, keys)) is overridden


def test_schemas_are_given_to_hydra_once_and_again_where_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra.core.config_store import ConfigStore

    stored: list[tuple[str | None, str]] = []
    monkeypatch.setattr(
        ConfigStore.instance(), "store", lambda group, name, node: stored.append((group, name))
    )
    monkeypatch.setattr(compose, "_REGISTERED", dict(compose._REGISTERED))
    compose.register()
    assert stored == []
    del compose._REGISTERED["optimizer", "sgd"]
    compose._REGISTERED[None, "config"] = object
    compose.register()
    assert stored == [(None, "config_schema"), ("optimizer", "sgd_schema")]
