"""`lstmstream state export` to Parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lstmstream.errors import CannotServe
from lstmstream.states.export import export_states
from tests.file_limit import limited_files
from tests.states.world import CONFIG, exported
from tests.verify.world import NOW_MS, VerifyWorld


def test_parquet_has_the_same(world: VerifyWorld, tmp_path: Path) -> None:
    out = tmp_path / "states.parquet"
    assert export_states(CONFIG, out, prefix=None, partition=None, stage=None) == 0
    frame, rows = pl.read_parquet(out), exported(tmp_path)
    for name in ("key", "key_base64", "partition", "offset", "steps", "failures"):
        assert frame[name].to_list() == [one.get(name) for one in rows], name
    for part in world.model.card.state.parts:
        parts = np.float32([np.ravel(one["parts"][part.name]) for one in rows])
        assert frame[f"state.{part.name}"].to_numpy().tobytes() == parts.tobytes()
    assert frame["timestamp"].dt.epoch("ms").min() == NOW_MS + 10_000


@pytest.mark.usefixtures("world")
def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As polars says it."""

    def full(*_: object, **__: object) -> None:
        raise pl.exceptions.ComputeError("parquet: No space left on device (os error 28)")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    out = tmp_path / "states.parquet"
    with pytest.raises(CannotServe, match=r"states\.parquet: cannot be written \(parquet: No space left"):
        export_states(CONFIG, out, prefix=None, partition=None, stage=None)
    assert not out.exists()


@pytest.mark.usefixtures("world")
def test_a_file_that_may_not_grow_leaves_nothing(tmp_path: Path) -> None:
    """As the system says it, through polars."""
    out = tmp_path / "out" / "states.parquet"
    out.parent.mkdir()
    with limited_files(1_000), pytest.raises(CannotServe, match=r"states\.parquet: cannot be written \(.*too large"):
        export_states(CONFIG, out, prefix=None, partition=None, stage=None)
    assert not list(out.parent.iterdir())
