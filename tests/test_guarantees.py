"""docs/guarantees.md: each promise names a test, and each test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
ROWS = [line.strip("| ").split(" | ") for line in TEXT.splitlines() if line.startswith("|")][2:]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def names(path: Path) -> set[str]:
    """The tests at the top level of a file."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found.add(node.name)
        elif isinstance(node, ast.Assign):  # of a state machine
            found |= {target.id for target in node.targets if isinstance(target, ast.Name) and target.id[:4] == "Test"}
    return found


def test_each_promise_names_one_test() -> None:
    assert len(ROWS) > 25
    assert [row for row in ROWS if not TEST.fullmatch(row[-1])] == []


@pytest.mark.parametrize("named", sorted({match.groups() for match in TEST.finditer(TEXT)}), ids="::".join)
def test_each_test_that_it_names_exists(named: tuple[str, str]) -> None:
    file, name = named
    assert name in names(ROOT / file)


@pytest.mark.parametrize("document", ["README.md", "docs/operations.md"])
def test_it_is_linked(document: str) -> None:
    assert re.search(r"\]\((docs/)?guarantees\.md\)", (ROOT / document).read_text(encoding="utf-8"))
