"""The progress of a training on standard error: a bar on a terminal, otherwise lines, and warnings before it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lstmstream.train.dataset import Dataset, prepare_dataset
from lstmstream.train.factory import make_network, make_trainer
from lstmstream.train.progress import ConsoleProgress
from tests.train.histories import config_for

pytestmark = pytest.mark.torch

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def train_with(console: ConsoleProgress, dataset: Dataset) -> None:
    trainer = make_trainer(make_network(dataset), dataset, None)
    with console.showing(trainer):
        trainer.run(console.on_progress, console.on_epoch_end, lambda: False)


def test_a_terminal_has_a_bar_that_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    dataset = prepare_dataset(config_for(tmp_path))
    train_with(ConsoleProgress(dataset), dataset)
    output = capsys.readouterr().err
    assert re.search(r"epoch \d.*%.*left", output)
    assert 0 < output.index(HIDE_CURSOR) < output.rindex(SHOW_CURSOR)


def test_of_many_warnings_some_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warnings = tuple(f"warning number {n}" for n in range(500))
    ConsoleProgress(replace(prepare_dataset(config_for(tmp_path)), warnings=warnings)).show_dataset()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert lines == [
        *(f"warning: {text}" for text in warnings[:10]),
        "warning: 490 more; the report lists all of them",
    ]


def test_without_a_terminal_there_are_lines_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = replace(prepare_dataset(config_for(tmp_path)), warnings=("[bold]odd[/bold] data",))
    console = ConsoleProgress(dataset)
    console.show_dataset()
    train_with(console, dataset)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert "\x1b" not in captured.err
    assert lines[0] == "card-fraud version 1: classify"
    assert lines[1].startswith(f"{len(dataset.events):,} events of 40 keys; by time: train before ")
    assert [line.split()[0] for line in lines[2:5]] == ["train", "validation", "test"]
    assert lines[5] == "warning: [bold]odd[/bold] data", "text from the data is no markup"
    assert re.fullmatch(r"1 x LSTM\(8\), [\d,]+ parameters, on cpu", lines[6])
    assert re.fullmatch(r"batches of 16 keys x 8 events, \d+ updates per epoch", lines[7])
    assert re.fullmatch(r"epoch +1 +[\d.]+ s  loss [\d.]+ +validation [\d.]+ .*", lines[8])
