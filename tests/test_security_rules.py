"""docs/security.md: each rule names the tests that fail without it, and each test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8").partition("## Rules and their tests")[2]
ROWS = [line.strip("| ").split(" | ") for line in TEXT.splitlines() if line.startswith("|")][2:]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
AREAS = """
    transport secrets rights model-file warm-up torch JSON logs personal-data HTTP configuration files container
    Kubernetes supply-chain flood
"""


def test_each_area_has_rules() -> None:
    assert {row[0].replace(" ", "-") for row in ROWS} == set(AREAS.split())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1][:40])
def test_each_rule_names_its_tests(row: list[str]) -> None:
    area, rule, tests = row
    assert area
    assert rule.endswith(".")
    assert TEST.search(tests)
    assert TEST.sub("", tests).strip(", ") == ""


@pytest.mark.parametrize("named", sorted({match.groups() for match in TEST.finditer(TEXT)}), ids="::".join)
def test_each_test_that_it_names_exists(named: tuple[str, str]) -> None:
    file, name = named
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
