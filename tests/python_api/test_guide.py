"""docs/python.md is a notebook: its blocks run in order, and print what stands below them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "python.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_each_block_prints_what_stands_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(GUIDE.read_text(encoding="utf-8"))
    assert len(blocks) == 8
    names: dict[str, Any] = {}
    for (language, source), (next_language, printed) in zip(blocks[::2], blocks[1::2], strict=True):
        assert (language, next_language) == ("python", "text")
        exec(compile(source, str(GUIDE), "exec"), names)
        assert capsys.readouterr().out == printed
