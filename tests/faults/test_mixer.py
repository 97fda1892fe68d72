"""A fixed part of the random mixer; HAM_TESTS=all runs 300 cases."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import mixer
from launched_ranks import launcher

CASES = 300 if os.environ.get("HAM_TESTS") == "all" else 4
launch = pytest.fixture(scope="module")(launcher)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_random_faults_change_no_result(launch: Callable, tmp_path: Path) -> None:
    cases = mixer.Mixer(launch, tmp_path)
    wrong = {seed: cases.run(mixer.draw(seed), str(seed)) for seed in range(CASES)}
    assert not any(wrong.values()), {seed: what for seed, what in wrong.items() if what}
