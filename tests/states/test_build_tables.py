"""`lstmstream state build` from tables: the states that the same events give as JSON lines."""

from __future__ import annotations

import csv
from pathlib import Path

import polars as pl
import pytest

from tests.states.build_world import build, build_world, judge, lines, past


@pytest.mark.parametrize("name", ["h.csv", "h.parquet"])
def test_a_table_gives_the_same(name: str, tmp_path: Path) -> None:
    world = build_world(tmp_path)
    found = [event for event in past() if event["amount"] != "much"]
    table = tmp_path / name
    if name == "h.csv":
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(found[0]))
            writer.writeheader()
            writer.writerows(found)
    else:
        pl.DataFrame(found).with_columns(pl.from_epoch("ts", "ms")).write_parquet(table)
    build(world, [table])
    world.serve()
    for files in ([table], [lines(tmp_path / "h.jsonl", found)]):
        code, summary = judge(world, files)
        assert (code, summary["findings"]) == (0, [])


def test_a_row_of_csv_that_is_no_event_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = build_world(tmp_path)
    table = tmp_path / "h.csv"
    table.write_text('id,ts,amount,channel\na,1700000000,1,"two\nlines"\n\nb,1700000001,much,\n')
    build(world, [table])
    assert f"{table}: 1 of 3 rows are no events; the first: row 2, line 5: field 'amount'" in capsys.readouterr().err
