"""Names that were given up do not come back: a reader searches for the usual words (docs/glossary.md)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lstmstream"

# Folder or file below lstmstream/ → names that may not be defined or used there as whole words.
BANNED: dict[str, str] = {
    ".": """
        Turn Columns Answers by_turn Gathered forget_from Owner owner_of Damaged _Attempt _Ledger unmeasured
        first_floor entity_key state_key _unseen _why_dead onnx_wire bring_in Judged Verdict Fitted Wishes Brought Clash
        clashes STANDINS AT_START GAUGES_EVERY_S TOPICS_EVERY_S FLOOR_EVERY_S DRAIN_SHARE WRITES_PER_TRANSACTION_AT_END
        oldest_ms of_partitions keep_value open_model still_there no_more Stop
    """,
    "serve": """
        _turn _follow _keep _rewind _settle _look_around _enter _rejoin_to_end _live _half_retained _decide
        _begin _Serving _same_input _take _Outcome _advance _codes _coder _present _answers
        _needed hashed _Pages _said _too_slow forget_partition _letter
    """,
    "transport": """
        within _tell _translate _reading _idle_marks _discard_all POINTS Stored _give login unpack
        high_watermark
    """,
    "config": "judge override Whole Line _filled _legal Unreadable starts shown _STANDINS",
    "evaluation": """
        judge_events Goal rows_that_count _what_came key_of advantage worth main_measure span Rule _said
    """,
    "history": "gather Part Parts NAMES load_for_card unsorted _told moment",
    "importer": """
        Foreign read_foreign traced Proof prove Walker Wishes Pairing free_sizes steady open_rnn fill_missing guilty
    """,
    "train": """
        Fit Told Line Piece Prepared Finished Screen Net hide learn refuse warn gather finish _prove make_fit fine_tuned
        _learn _check _pass _turn_rate _why _LOOK_BATCH _ENOUGH_POSITIVES _TELLS MOST_ROWS judge_training TRAIN_OPTIONS
    """,
    "dev": "_LEAST_JAVA _last_words",
    "demo": "_closing _struck _thefts first_answer last_answer",
}

# Of every message, docstring and document: correct, and foreign to whoever searches for the usual word.
FOREIGN_WORDS = re.compile(
    r"\b(mend(ed|s|ing)?|anew|is no (file|YAML|number)|guilty|put aside|good for nothing|what there is)\b",
    re.IGNORECASE,
)
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("place", BANNED)
def test_old_names_are_gone(place: str) -> None:
    banned = re.compile(rf"(?<![\w./'\"`-])({'|'.join(BANNED[place].split())})(?![\w'\"`-])(?=\s*[(.:=,)\]]|$)")
    found = []
    for path in sorted((PACKAGE / place).rglob("*.py")):
        for number, line in enumerate(code_of(path.read_text(encoding="utf-8")), start=1):
            found += [f"{path.relative_to(ROOT)}:{number}: {match[1]}" for match in banned.finditer(line)]
    assert not found


def code_of(text: str) -> list[str]:
    """The lines without comments and strings, in which such a word is only a word."""
    blank = re.sub(r'"""(?:.|\n)*?"""', lambda match: "\n" * match[0].count("\n"), text)
    blank = re.sub(r'f?"(?:[^"\\\n]|\\.)*"', '""', blank)
    return [line.partition("#")[0] for line in blank.splitlines()]


def test_prose_is_in_the_usual_words() -> None:
    found = []
    for path in [*sorted(PACKAGE.rglob("*.py")), *DOCUMENTS]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            found += [f"{path.relative_to(ROOT)}:{number}: {match[0]}" for match in FOREIGN_WORDS.finditer(line)]
    assert not found
