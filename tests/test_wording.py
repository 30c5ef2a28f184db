"""Numbers agree with their nouns in messages."""

from __future__ import annotations

import pytest

from lstmstream.wording import counted


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 dead letters"), (1, "1 dead letter"), (2, "2 dead letters"), (1200, "1,200 dead letters")],
)
def test_a_number_agrees_with_its_noun(count: int, text: str) -> None:
    assert counted(count, "dead letter") == text


def test_another_plural_and_a_verb() -> None:
    assert [counted(count, "class was", "classes were") for count in (1, 3)] == ["1 class was", "3 classes were"]
