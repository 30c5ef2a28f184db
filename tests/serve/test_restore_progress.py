"""How far restores are, in the log and for /readyz."""

from __future__ import annotations

import pytest

from lstmstream.serve import restore_progress
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


def test_a_bar_for_a_terminal_that_goes_away_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(restore_progress, "show_status", shown.append)
    progress = RestoreProgress(lambda: 0.0)
    world, restore = under_way(RestorePhase.REPLAY)
    most = restore.remaining
    progress.text([restore])
    assert restore.advance(world.membership, 0.1) is None
    text = progress.text([restore])
    progress.on_all_restored()
    done = 1 - restore.remaining / most
    assert 0 < done < 1
    assert shown[0].startswith(f"[{'.' * 30}] 0%  1 partition is being restored, {most} records left")
    assert shown[1] == f"[{('#' * round(30 * done)).ljust(30, '.')}] {done:.0%}  {text}"
    assert shown[2:] == [""]
