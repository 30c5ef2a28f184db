"""The table of keys, by the compiled codec and by dicts, is as a plain dict."""

from __future__ import annotations

import random
import sys
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmstream import codec
from lstmstream.serve import key_table
from lstmstream.serve.key_table import DictTable, Key, KeyTable
from tests.serve.codec_oracle import tables_alike

needs_codec = pytest.mark.usefixtures("compiled_codec")
keys = st.sampled_from([None, b"", b"a", b"b", b"x" * 15, b"x" * 16, b"y" * 16, b"\0", b"\0\0"])


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@pytest.mark.usefixtures("either_codec")
@given(st.lists(st.one_of(st.tuples(st.just("add"), st.sets(keys)), st.tuples(st.just("remove"), keys))))
@settings(deadline=None)
def test_rows_are_given_to_keys_and_taken_back(life: list[tuple[str, object]]) -> None:
    """The last that became free is the first to be used again; iteration is by row."""
    table, expected, free = KeyTable(), {}, []
    for what, about in life:
        if what == "add":
            assert isinstance(about, set)
            new = [key for key in about if key not in expected]
            added = table.add_all(new)
            for key, row in zip(new, added.tolist(), strict=True):
                assert row == (free.pop() if free else len(expected))
                expected[key] = row
        elif about in expected:
            free.append(expected.pop(about))
            assert table.remove(about) == free[-1]  # type: ignore[arg-type]
        else:
            with pytest.raises(KeyError):
                table.remove(about)  # type: ignore[arg-type]
        assert (len(table), dict(table)) == (len(expected), expected)
        assert list(table) == sorted(expected, key=expected.__getitem__)
        assert table.rows().tolist() == sorted(expected.values())
        assert table.free_rows() == free[::-1]
        assert table.used_rows == len(expected) + len(free)
        assert table.keys_at(rows(*free)) == [None] * len(free)
        assert all((key in table) == (key in expected) for key in [None, b"", b"a", b"x" * 15])


@needs_codec
@pytest.mark.parametrize("first_keys", [0, 20, key_table._FIRST_KEYS])
@pytest.mark.parametrize(("steps", "largest"), [(60, 3), (60, 40), (40, 2_000)])
def test_both_tables_are_as_a_dict(steps: int, largest: int, first_keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last has enough keys to split its segments many times."""
    monkeypatch.setattr(key_table, "_FIRST_KEYS", first_keys)
    most = tables_alike(random.Random(f"{steps} {largest}"), steps, largest)
    assert most > largest


@pytest.mark.usefixtures("either_codec")
def test_many_keys_one_after_the_other() -> None:
    table = KeyTable()
    names: list[Key] = [b"customer %d" % number for number in range(50_000)]
    for start in range(0, len(names), 1_000):
        table.add_all(names[start : start + 1_000])
    found, missing = table.find_all([*names, b"nobody"])
    assert (found.tolist(), missing) == ([*range(len(names)), -1], 1)
    assert table.keys_at(found[:-1]) == names
    for name in names[::2]:
        table.remove(name)
    found, missing = table.find_all(names)
    assert (found[1::2].tolist(), missing) == ([*range(1, len(names), 2)], len(names) // 2)
    again = table.add_all(names[:-1:2])
    assert again.tolist() == [*range(len(names) - 2, -1, -2)]
    assert table.used_rows == len(names)


@needs_codec
def test_the_compiled_table_needs_less_memory_than_dicts() -> None:
    """And says how much, within what its segments have free."""
    compiled = codec.load()
    assert compiled is not None
    tables = [DictTable(), compiled.KeyTable(7)]
    names: list[Key] = [b"customer %03d" % number for number in range(100_000)]
    for table in tables:
        table.insert_all(names, np.arange(len(names)))
    in_python, in_c = (table.memory() / len(names) for table in tables)
    assert 16 + 8 < in_c < 16 + 8 / 0.35
    assert in_python > 2 * in_c
    long = b"x" * 1_000
    before = tables[1].memory()
    tables[1].insert_all([long], rows(len(names)))
    assert tables[1].memory() - before >= 1_000
    tables[1].remove(long)
    assert tables[1].memory() - before <= 16


@needs_codec
def test_keys_that_share_a_place_in_one_table_do_not_in_another() -> None:
    """So nobody can choose keys that make a daemon slow: each table has a secret."""
    compiled = codec.load()
    assert compiled is not None
    secret, another = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95
    names = (b"%d" % number for number in range(1_000_000))
    alike = (name for name in names if (hash(name) * secret >> 56) & 0xFF == 5)  # the first eight bits that are used
    chosen: list[Key] = list(islice(alike, 900))
    memory = []
    for its_secret in (secret, another):
        table = compiled.KeyTable(its_secret)
        table.insert_all(chosen, np.arange(len(chosen)))
        memory.append(table.memory())
    assert memory[0] > 3 * memory[1], "segments are split until they differ"


@needs_codec
def test_the_compiled_table_refuses_what_would_damage_it() -> None:
    compiled = codec.load()
    assert compiled is not None
    table = compiled.KeyTable(1)
    table.insert_all([b"a", b"b"], rows(0, 1))

    class Name(bytes):
        """It could have a hash of its own."""

    for key in ("a", 1, Name(b"a"), bytearray(b"a")):
        with pytest.raises(TypeError):
            table.find(key)
        with pytest.raises(TypeError):
            table.find_all([b"a", key], rows(0, 0))
        with pytest.raises(TypeError):
            table.insert_all([key], rows(5))
    for key, row in [(b"a", 2), (b"c", 1), (b"c", -1), (b"c", 2**32 - 1), (b"c", 2**40)]:
        with pytest.raises(ValueError, match="row"):
            table.insert_all([key], rows(row))
    for number in (0, 2):
        with pytest.raises(ValueError, match="as many"):
            table.find_all([b"a"], rows(*range(number)))
    frozen = rows(0)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        table.find_all([b"a"], frozen)
    for row in (-1, 2, 2**40):
        with pytest.raises(IndexError):
            table.keys_at(rows(row))
    assert table.find_all([b"a", b"b", b"c"], found := rows(0, 0, 0)) == 1
    assert found.tolist() == [0, 1, -1]


@needs_codec
def test_the_compiled_table_gives_its_memory_back() -> None:
    compiled = codec.load()
    assert compiled is not None
    key = b"x" * 100
    before = sys.getrefcount(key)
    for secret in range(20):
        table = compiled.KeyTable(secret)
        table.insert_all([key, None, b"short"], rows(0, 1, 2))
        table.remove(key)
        table.insert_all([key], rows(0))
        table.keys_at(rows(0, 1, 2))
    assert sys.getrefcount(key) == before
