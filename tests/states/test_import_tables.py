"""States from and to Parquet: `state export` and `state import`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lstmstream.errors import CannotServe
from lstmstream.serve.identity import state_identity
from lstmstream.states.export import export_states
from lstmstream.states.state_file import FileStates, check_states, open_state_file
from tests.serve.memory_world import World, card
from tests.states.seed_world import Past, answered, produce, seed
from tests.states.world import CONFIG
from tests.verify.world import VerifyWorld


def as_parquet(world: World, past: Past, path: Path) -> pl.DataFrame:
    frame = pl.read_ndjson(past.write(path.with_suffix(".jsonl"), world))
    parts = frame["parts"].struct
    kind = pl.Array(pl.Float32, 1)
    frame = frame.drop("parts").with_columns(
        parts.field("mean").cast(kind).alias("state.mean"), parts.field("count").cast(kind).alias("state.count")
    )
    frame.write_parquet(path)
    return frame


def test_a_daemon_goes_on_from_parquet(tmp_path: Path) -> None:
    world, past = World(), Past()
    produce(world, 30)
    as_parquet(world, past, tmp_path / "s.parquet")
    seed(world, tmp_path / "s.parquet")
    daemon = world.start()
    world.settle()
    assert world.stop(daemon) == 0
    assert answered(world) == past.expected(world)


def read(path: Path, world: VerifyWorld) -> list[FileStates]:
    return list(open_state_file(path, world.model.card).read(4))


def test_both_forms_of_an_export_read_the_same(world: VerifyWorld, tmp_path: Path) -> None:
    """Also keys that are not UTF-8."""
    for suffix in ("jsonl", "parquet"):
        assert export_states(CONFIG, tmp_path / f"s.{suffix}", prefix=None, partition=None, stage=None) == 0
    pairs = zip(read(tmp_path / "s.jsonl", world), read(tmp_path / "s.parquet", world), strict=True)
    for one, two in pairs:
        check_states(tmp_path, two, state_identity(world.config(), world.model.card))
        assert (one.keys, one.first_row) == (two.keys, two.first_row)
        for name in ("partitions", "timestamps", "stream_times", "steps", "failures", "rows"):
            assert np.array_equal(getattr(one, name), getattr(two, name)), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.lit(None, pl.Int64).alias("steps"), "has no steps"),
        (pl.col("timestamp").cast(pl.Boolean).cast(pl.String), "cannot be read, it is cut, damaged or not"),
        (pl.lit([None], pl.Array(pl.Float32, 1)).alias("state.mean"), "its state is not finite"),
        (pl.lit(None, pl.Array(pl.Float32, 1)).alias("state.mean"), "has no 'mean'"),
        (pl.col("timestamp") - 10**15, "row 1: timestamp is -"),
        (pl.lit(10**15).alias("stream_time"), "row 1: stream_time is 1000000000000000, which cannot be"),
        (pl.lit("x").alias("identity"), "has states of another model or other settings (identity x)"),
    ],
)
def test_a_table_that_is_refused(tmp_path: Path, change: pl.Expr, message: str) -> None:
    world, path = World(), tmp_path / "s.parquet"
    produce(world, 30)
    as_parquet(world, Past(), path).with_columns(change).write_parquet(path)
    with pytest.raises(CannotServe) as raised:
        seed(world, path)
    assert message in str(raised.value)


def test_a_table_that_was_cut(tmp_path: Path) -> None:
    world, path = World(), tmp_path / "s.parquet"
    produce(world, 30)
    as_parquet(world, Past(), path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CannotServe, match="cut, damaged or not a file of states"):
        seed(world, path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("s.csv", "must end with .jsonl or .parquet"), ("nobody.parquet", "there is no such file")],
)
def test_what_is_no_file_of_states(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "s.csv").write_text("key\n")
    with pytest.raises(CannotServe, match=message):
        open_state_file(tmp_path / name, card())


def test_a_table_without_a_column(tmp_path: Path) -> None:
    pl.DataFrame({"key": ["a"], "steps": [1]}).write_parquet(tmp_path / "s.parquet")
    with pytest.raises(CannotServe, match=r"has no column 'timestamp', 'state\.mean', 'state\.count'"):
        open_state_file(tmp_path / "s.parquet", card())
