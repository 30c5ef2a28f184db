"""Records are joined from columns with the same bytes, whichever way."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmstream import codec
from lstmstream.formats.timestamps import TIMESTAMP_MAX_MS, TIMESTAMP_MIN_MS
from lstmstream.serve.rows import Rows

needs_codec = pytest.mark.usefixtures("compiled_codec")

plain_keys = st.text("abcXYZ019 -_~!%", max_size=9).map(str.encode)
any_keys = st.none() | st.binary(max_size=5) | st.text(max_size=5).map(str.encode) | plain_keys
integers = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 11)
moments = st.integers(TIMESTAMP_MIN_MS, TIMESTAMP_MAX_MS)
events = st.tuples(moments, integers, st.booleans(), st.sampled_from([b"1", b"null", b"%d", b'"' + b"x" * 300 + b'"']))


def join(keys: list[bytes | None], columns: list[Any]) -> list[bytes | None]:
    rows = Rows(len(keys))
    times, numbers, flags, texts = zip(*columns, strict=True)
    rows.keys(b"{", keys)
    rows.times(b',"%b":"', np.array(times, np.int64))
    rows.integers(b'Z","n":', np.array(numbers, np.int64))
    rows.flags(b',"flag":', np.array(flags, np.bool_)[::1])
    rows.texts(b',"text":[', list(texts))
    return rows.join(b',"100%"]}')


@given(st.booleans(), st.lists(events, min_size=1, max_size=9), st.data())
@settings(max_examples=500, deadline=None)
@pytest.mark.usefixtures("either_codec")
def test_rows_are_what_they_say(plain: bool, columns: list[Any], data: st.DataObject) -> None:
    some = st.lists(plain_keys if plain else any_keys, min_size=len(columns), max_size=len(columns))
    keys = data.draw(some)
    for found, key, (time, number, flag, text) in zip(join(keys, columns), keys, columns, strict=True):
        assert found is not None
        at = np.datetime_as_string(np.datetime64(time, "ms"), unit="ms")
        tail = f',"%b":"{at}Z","n":{number},"flag":{json.dumps(flag)},"text":['.encode() + text + b',"100%"]}'
        assert found.endswith(tail)
        head = json.loads(found.removesuffix(tail) + b"}")
        try:
            assert head == {"key": None if key is None else key.decode()}
        except UnicodeDecodeError:
            assert head.keys() == {"key_base64"}


@needs_codec
@pytest.mark.parametrize("key", [None, b'"', b"\\", b"\n", b"\x7f", "é".encode(), b"\xff"])
def test_keys_that_are_not_plain_are_left_to_python(key: bytes | None) -> None:
    module = codec.load()
    assert module is not None
    assert module.write_rows(((4, b"", [b"a", b"", key]),), b"", 3) is None
    assert module.write_rows(((4, b"", [b"a", b"", b"~ }"]),), b";", 3) == [
        b'"key":"a";',
        b'"key":"";',
        b'"key":"~ }";',
    ]


@needs_codec
def test_wrong_columns_are_refused() -> None:
    module, n = codec.load(), np.arange(3)
    assert module is not None
    for column in [
        (0, b"", [b"a"]),
        (1, b"", n[:2]),
        (3, b"", n),
        (5, b"", n),
        (0, b"", n),
        (1, b"", n.astype(np.int32)),
    ]:
        with pytest.raises(ValueError, match="rows"):
            module.write_rows((column,), b"", 3)
    with pytest.raises((ValueError, BufferError)):
        module.write_rows(((1, b"", np.arange(6)[::2]),), b"", 3)
    assert module.write_rows(((2, b"", np.array([TIMESTAMP_MAX_MS + 1])),), b"", 1) is None
    assert module.write_rows(((0, b"", [b"a", None]),), b"", 2) is None


@needs_codec
def test_no_reference_is_kept() -> None:
    module = codec.load()
    assert module is not None
    prefix, suffix, text, n = b"a prefix", b"a suffix", b"a text", np.arange(2) + 10**6
    good, bad = ((0, prefix, [text, text]), (1, prefix, n)), ((1, prefix, n), (0, prefix, [text, None]))
    before = [sys.getrefcount(one) for one in (prefix, suffix, text, n)]
    for columns in (good, bad):
        module.write_rows(columns, suffix, 2)
    with pytest.raises(ValueError, match="rows"):
        module.write_rows(good, suffix, 3)
    del columns
    assert [sys.getrefcount(one) for one in (prefix, suffix, text, n)] == before
