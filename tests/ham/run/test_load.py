"""Which runs can be loaded, and what is loaded of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from ham.run import checkpoint
from ham.run.checkpoint import CheckpointError
from ham.run.config import ConfigError, load, to_yaml
from ham.run.load import load_run

TINY = ["+exp=acdc_s90", "+demo=digits", "model.width=4", "model.layers=[1,1,1,1]"]


def test_only_image_runs_with_a_checkpoint_can_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(load(["+exp=node/cora_gcn"])))
    with pytest.raises(ConfigError) as caught:
        load_run(tmp_path)
    assert str(caught.value) == f"{tmp_path} is a run on nodes: only image runs can be loaded"
    path.write_text(to_yaml(load(TINY)))
    with pytest.raises(ConfigError) as caught:
        load_run(tmp_path)
    assert str(caught.value) == f"{tmp_path} has no checkpoint yet: let it train for an epoch"
    checkpoint.save(tmp_path, {"model": {}, "sparsifier": {}})
    with pytest.raises(CheckpointError, match=f"^the checkpoint in {tmp_path} does not fit this version"):
        load_run(tmp_path)


def test_a_loaded_model_has_the_weights_of_the_checkpoint_and_is_in_evaluation(tmp_path: Path) -> None:
    cfg = load(TINY)
    model = cfg.model.build(num_classes=10, image_size=8)
    cfg.sparsifier.attach(model, total_epochs=cfg.epochs, steps_per_epoch=1, seed=0)
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    checkpoint.save(tmp_path, {"model": model.state_dict(), "sparsifier": cfg.sparsifier.state_dict()})
    before = os.listdir(tmp_path)
    found, loaded, sparsifier = load_run(tmp_path)
    assert found == load(TINY) and not loaded.training and os.listdir(tmp_path) == before
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert [name for name, *_ in sparsifier.counts()] == [name for name, *_ in cfg.sparsifier.counts()]
