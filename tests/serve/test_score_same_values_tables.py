"""The same table as JSONL, CSV and Parquet: `score` writes the same predictions, and they are the reference's."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings

from tests.one_table import CATEGORY_KINDS, NUMBER_KINDS, TEXT_KINDS, TIME_KINDS, Table, tables
from tests.serve.reference import Answer, Event, Reference
from tests.serve.scoring import MODEL, run, without_source


@settings(max_examples=60, deadline=None)
@given(
    tables(
        id=(TEXT_KINDS, False), at=(TIME_KINDS, False), amount=(NUMBER_KINDS, True),
        merchant__risk=(NUMBER_KINDS, True), channel=(CATEGORY_KINDS, True), device__id=(CATEGORY_KINDS, True),
    )
)  # fmt: skip
def test_the_same_table_gives_the_same_predictions(table: Table) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = table.write(folder)
        reference = Reference(Path(MODEL), key="id", timestamp="at")
        lines = files["jsonl"].read_bytes().splitlines()
        answers = [reference.answer(Event(0, row, -1, None, line)) for row, line in enumerate(lines)]
        expected = b"".join(answer.value + b"\n" for answer in answers if isinstance(answer, Answer))
        stages = [answer for answer in answers if isinstance(answer, str)]
        for kind, file in files.items():
            out, letters = folder / f"{kind}.out", folder / f"{kind}.letters"
            options = ("--key", "id", "--timestamp", "at", "--out", out, "--dead-letters", letters)
            assert run(MODEL, file, *options) == 0
            assert without_source(out.read_bytes()) == without_source(expected), kind
            assert [json.loads(line)["lstmstream.stage"] for line in letters.read_bytes().splitlines()] == stages
