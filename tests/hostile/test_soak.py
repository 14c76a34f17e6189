"""Neither memory nor the time of a step grows in 2,000 steps with 100 validations and checkpoints."""

import pytest

from tests.soak import soak


@pytest.mark.slow
def test_memory_and_step_time_stay_as_they_are(tmp_path):
    memory, seconds = soak(tmp_path).growth()
    print(f"last quarter over second: memory {memory:.3f}, seconds per step {seconds:.3f}")
    assert memory < 1.03 and seconds < 1.2
