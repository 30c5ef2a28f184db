"""A tenth of `make bench-parity`: real customers through Kafka and the daemon, against torch and `lstmstream score`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.parity import check_parity

pytestmark = pytest.mark.torch


def test_a_tenth_of_the_customers_get_the_answers_of_torch_and_of_score_each_once(
    broker: str, topic_prefix: str, tmp_path: Path
) -> None:
    found = check_parity(broker, tmp_path, topic_prefix, 0.1, print)
    assert not found.problems, "\n".join(found.problems)
