"""How far restores are, in the log and for /readyz."""

from __future__ import annotations

import pytest

from lstmstream.serve.restore_progress import INTERVAL_S, RestoreProgress
from tests.serve.test_restore_retries import RestorePhase, under_way


@pytest.mark.parametrize(("phase", "name"), [(RestorePhase.LOAD, "load"), (RestorePhase.REPLAY, "replay")])
def test_a_phase_has_its_name(phase: RestorePhase, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    now_s = 0.0
    progress = RestoreProgress(lambda: now_s)
    _, restore = under_way(phase)
    progress.text([restore])
    now_s += INTERVAL_S
    assert progress.text([restore]).startswith("1 partition is being restored")
    (line,) = [vars(record) for record in caplog.records if record.getMessage() == "restoring"]
    assert (line["phases"], line["partitions"]) == ([name], [0])
