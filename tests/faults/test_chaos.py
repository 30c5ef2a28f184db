"""`tests.faults.chaos` for a short while, on each client; and that it notices when nothing happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import chaos


@pytest.mark.timeout(420)
def test_a_minute_of_random_faults(tmp_path: Path, seed: int) -> None:
    outcome = chaos.run(tmp_path, seconds=60, seed=seed, workers=3, rate=300)
    assert outcome.exit_code == 0, "\n".join(outcome.lines())
    assert sum(outcome.struck[kind] for kind in chaos.OF_DAEMONS) >= 5, outcome.struck


@pytest.mark.timeout(420)
@pytest.mark.parametrize("rule", chaos.RULES)
def test_a_while_in_which_keys_lose_their_states(tmp_path: Path, seed: int, rule: str) -> None:
    outcome = chaos.run(tmp_path, seconds=60, seed=seed, workers=3, rate=300, rule=rule, snapshots=True, standby=1)
    assert outcome.exit_code == 0, "\n".join(outcome.lines())


@pytest.mark.short_fault
@pytest.mark.only_client("confluent")
def test_a_run_in_which_nothing_strikes_is_vacuous(tmp_path: Path, seed: int) -> None:
    outcome = chaos.run(tmp_path, seconds=0, seed=seed, workers=1, rate=100)
    assert (outcome.exit_code, outcome.findings) == (2, []), "\n".join(outcome.lines())
