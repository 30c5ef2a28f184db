"""The compiled codec reads what it reads as Python code does, and declines the rest."""

from __future__ import annotations

import gc
import json
import random
import shutil
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmstream import codec
from lstmstream.errors import BadRecord, CannotServe
from lstmstream.records import UnreadableValue
from lstmstream.serve.decode import Decoder
from lstmstream.serve.fast_decode import LazyDocuments
from tests.serve.codec_oracle import load_library, read_alike, states_alike
from tests.serve.hostile_events import VALUES, hostile_event, number_text
from tests.serve.scoring import MODEL, nested, rows, run
from tests.serve.test_fast_decode import CARD, PLAIN, assert_same, batch, decoder, plain

ROOT = Path(__file__).parent.parent.parent
needs_codec = pytest.mark.usefixtures("compiled_codec")


def reads(*values: bytes | None, one: Decoder | None = None) -> bool:
    return read_alike(one or decoder(), batch(list(values)))


@needs_codec
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"amount": None},
        {"amount": ...},
        {"amount": 1.2345678901234567e-05},
        {"amount": 2**64 - 1},
        {"amount": 1e-320},
        {"channel": "é"},
        {"channel": "\U0001f600" * 9},
        {"id": "\U0001f600é\n"},
        {"id": "caf\u00e9"},
        {"channel": None},
        {"channel": ...},
        {"channel": "17.0"},
        {"channel": 17},
        {"channel": "fax" * 20},
        {"place": ...},
        {"place": {}},
        {"spectrum": ...},
        {"spectrum": None},
        {"id": "17.0"},
        {"id": "True"},
        {"id": -5},
        {"id": 2**64 - 1},
        {"id": ""},
        {"at": 1_700_000_000},
        {"at": 1_700_000_000_123},
        {"at": 0},
        {"at": 1_700_000_000.5},
        {"at": "1700000000"},
        {"at": "2026-01-31 12:00:00"},
        {"at": "20260131T120000Z"},
        {"at": "2026-01-31T12:00:00.250+01:00"},
        {"at": "2026-01-31T12:00:00.250999+00:00"},
        {"other": "\U0001f600 \\ \" / \n \u0001"},
        {"other": [[[]]]},
        {"more": None, "many": True, "names": False},
    ],
    ids=str,
)  # fmt: skip
def test_plain_values_are_read(changes: dict[str, Any]) -> None:
    assert reads(plain(), plain(**changes), plain())


@needs_codec
def test_places_and_spaces_do_not_matter() -> None:
    names = list(PLAIN)
    one, source = decoder(), random.Random(1)
    for indent in (None, 1, "\t"):
        for _ in range(20):
            source.shuffle(names)
            shuffled = {name: PLAIN[name] for name in names}
            assert reads(json.dumps(shuffled, indent=indent, ensure_ascii=False).encode() + b" \r\n", one=one)


@needs_codec
@pytest.mark.parametrize("field", ["amount", "channel", "at", "id", "place", "spectrum", "other"])
def test_any_value_of_any_field(field: str) -> None:
    one = decoder()
    for value in VALUES:
        text = plain(**{field: "HERE"}).replace(b'"HERE"', value.encode())
        reads(text, one=one)
        reads(plain(), text, plain(), one=one)


@needs_codec
@pytest.mark.parametrize(
    "value",
    [
        None, b"", b" ", b"{", b"[]", b"null", b"5", b"{} {}", b"{},", b"\xef\xbb\xbf" + plain(), plain() + b"\0",
        plain() + plain(), plain()[:-1], plain(amount=True), plain(amount="5"), plain(id=None), plain(id=...),
        plain(at=...), plain(at=None), plain(place=None), plain(**{"place.risk": 5}), plain(spectrum=[1, 2]),
        plain(other="x" * 4_000), UnreadableValue(plain(), "damaged"),
        plain().replace(b'"amount"', b'"amount": 1, "amount"'), plain().replace(b"amount", b"am\\u006funt"),
        plain(other="HERE").replace(b"HERE", b"\xff"), plain(other="HERE").replace(b"HERE", b"\xed\xa0\x80"),
        plain(other="HERE").replace(b"HERE", b"\\ud800"), plain(other=[0]).replace(b"[0]", b"[" * 70 + b"]" * 70),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_python(value: bytes | None) -> None:
    assert not reads(value)
    assert not reads(plain(), value, plain())


@needs_codec
def test_the_size_counts_as_in_python() -> None:
    size = len(plain())
    records = batch([plain()], [b"k" * 10])
    assert decoder(max_bytes=size + 10)._fast._compiled.read(records) is not None  # type: ignore[union-attr]
    assert decoder(max_bytes=size + 9)._fast._compiled.read(records) is None  # type: ignore[union-attr]


@needs_codec
def test_without_fields_for_key_and_time_the_records_have_them() -> None:
    assert read_alike(Decoder(CARD), batch([plain(id=..., at=...), plain()], [b"a", None]))


@needs_codec
def test_hostile_events() -> None:
    one, source, read = decoder(), random.Random(11), 0
    for _ in range(20_000):
        read += reads(hostile_event(source), one=one)
    assert 2_000 < read < 18_000


def number_event(text: str) -> bytes:
    return b'{"id":"a","at":1700000000,"amount":%b}' % text.encode()


@needs_codec
@given(
    st.lists(st.from_regex(r"\A-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,24})?([eE][+-]?[0-9]{1,3})?\Z"), min_size=1, max_size=9)
)
@settings(max_examples=1_000, deadline=None)
def test_any_number(texts: list[str]) -> None:
    one = decoder()
    for text in texts:
        reads(number_event(text), one=one)


@needs_codec
def test_numbers_between_two_floats() -> None:
    one, source, read = decoder(), random.Random(3), 0
    for _ in range(20_000):
        read += reads(number_event(number_text(source)), one=one)
    assert read > 10_000


@needs_codec
@given(st.binary(max_size=40), st.integers(0, 200))
@settings(max_examples=1_000, deadline=None)
def test_any_bytes_anywhere(inserted: bytes, at: int) -> None:
    value = plain()
    reads(value[:at] + inserted + value[at:])
    reads(value[:at] + inserted)
    reads(inserted)


@needs_codec
def test_text_is_utf8_where_python_says_so() -> None:
    """All sequences of up to four bytes at the bounds of what may follow what."""
    module = codec.load()
    assert module is not None
    made = module.Decoder([(b"c", 0, 0, 0, 0, 0, -1)], 1, 0, (), int, json.loads, 1000)
    arrays = [np.zeros(1, kind) for kind in (np.float32, np.int64, np.bool_, np.int64)]
    bounds = bytes.fromhex("41 7f 80 8f 90 9f a0 bf c0 c1 c2 df e0 e1 ec ed ee ef f0 f1 f3 f4 f5 ff")
    texts = [bytes(text) for length in (1, 2, 3) for text in product(bounds, repeat=length)]
    texts += [bytes((lead, *rest)) for lead in b"\xf0\xf1\xf3\xf4" for rest in product(bounds, repeat=3)]
    found = [made.decode([b'{"c":1,"other":"%b"}' % text], [None], *arrays) is not None for text in texts]
    assert found == [is_utf8(text) for text in texts]
    assert sum(found) > 500


def is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


@needs_codec
def test_nothing_is_kept_of_batches() -> None:
    one, source = decoder(), random.Random(5)
    plain_ones = [plain(id=f"é{i}" * 9, channel=f"é{i}" * 9) for i in range(500)]
    batches = [batch([value, *([hostile_event(source)] * (i % 2))]) for i, value in enumerate(plain_ones)]
    read = one._fast._compiled.read  # type: ignore[union-attr]

    def run() -> int:
        for records in batches:
            read(records)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        run()
        before = run()
        assert run() - before < 2_000
    finally:
        tracemalloc.stop()


@needs_codec
def test_no_reference_is_kept() -> None:
    class Number(int):
        """A code that is an object of its own."""

    module, number, text = codec.load(), Number(7_000_000), "y" * 40  # too long to be remembered
    assert module is not None
    made = module.Decoder([(b"c", 0, 1, 0, 0, 0, 0)], 0, 1, (lambda _text: number,), int, json.loads, 1000)
    arrays = [np.zeros(2, kind) for kind in (np.float32, np.int64, np.bool_, np.int64)]
    objects = [b'{"c":"%b"}' % text.encode(), b"a key", number, *arrays]

    def count() -> list[int]:
        return [sys.getrefcount(one) for one in objects]

    before = count()
    for values in ([objects[0]] * 2, [objects[0], b"{]"]):
        made.decode(values, [objects[1]] * 2, *arrays)
        del values
    assert count() == before


@needs_codec
def test_a_text_has_its_own_code() -> None:
    """However many there are: those that are remembered share few places."""
    one = decoder()
    texts = ["", *(str(number) for number in range(12_000)), *("x" * length for length in range(1, 60))]
    texts += ["\u00e9", "\\u00e9", "\n", "\\n", "\\\\n"] * 9
    events = [plain(place={"shop": text}) for text in texts]
    for _ in range(2):
        for start in range(0, len(events), 1_000):
            assert reads(*events[start : start + 1_000], one=one)


@needs_codec
def test_wrong_arrays_are_refused() -> None:
    made = decoder()._fast._compiled
    assert made is not None
    n, x, codes, absent, times = 2, *(np.zeros(99, kind) for kind in (np.float32, np.int64, np.bool_, np.int64))
    values, keys = [plain()] * n, [None] * n
    assert made._decode(values, keys, x, codes, absent, times) is not None
    for arguments in [
        (values, keys, x[:5], codes, absent, times),
        (values, keys, x, codes[:1], absent, times),
        (values, keys, x, codes, absent[:1], times),
        (values, keys, x, codes, absent, times[:1]),
        (values, keys, x[::2], codes, absent, times),
        (values, keys, b"x" * 400, codes, absent, times),
    ]:
        with pytest.raises((ValueError, BufferError)):
            made._decode(*arguments)
    with pytest.raises(IndexError):
        made._decode(values, [], x, codes, absent, times)
    assert made._decode(tuple(values), keys, x, codes, absent, times) is None


@needs_codec
def test_a_decoder_that_is_called_by_itself_declines() -> None:
    inner: list[Any] = []

    def code(_text: str) -> int:
        inner.append(made.decode(*arguments))
        return 3

    module = codec.load()
    assert module is not None
    made = module.Decoder([(b"c", 0, 1, 0, 0, 0, 0)], 0, 1, (code,), int, json.loads, 1000)
    arrays = [np.zeros(1, kind) for kind in (np.float32, np.int64, np.bool_, np.int64)]
    arguments = [b'{"c":"x"}'], [None], *arrays
    assert made.decode(*arguments) == ([], False, [], [[b'"x"']])
    assert inner == [None]
    assert arrays[1].tolist() == [3]


@needs_codec
def test_lists_that_change_meanwhile_do_no_harm() -> None:
    """Other threads run while a batch is read, as this function does."""

    def code(text: str) -> int:
        values.clear()
        keys.clear()
        return len(text)

    module = codec.load()
    assert module is not None
    made = module.Decoder([(b"c", 0, 1, 0, 0, 0, 0)], 0, 1, (code,), int, json.loads, 1000)
    values = [b'{"c":"%b"}' % (b"x" * length) for length in range(30, 60)]  # too long to be remembered
    keys: list[bytes | None] = [b"key"] * len(values)
    arrays = [np.zeros(len(values), kind) for kind in (np.float32, np.int64, np.bool_, np.int64)]
    _, _, declined, (texts,) = made.decode(values, keys, *arrays)
    assert declined == []
    assert texts == [b'"%b"' % (b"x" * length) for length in range(30, 60)]
    assert arrays[1].tolist() == list(range(30, 60))


def _reading() -> Callable[[], object]:
    compiled, count = decoder()._fast._compiled, 2_000
    assert compiled is not None
    arrays = [np.zeros(count * 9, kind) for kind in (np.float32, np.int64, np.bool_, np.int64)]
    return partial(compiled._decode, [plain()] * count, [None] * count, *arrays)


def _writing() -> Callable[[], object]:
    module, count = codec.load(), 2_000
    assert module is not None
    return partial(module.write_records, [0] * count, [b"key"] * count, [b"x" * 1_000] * count, [None] * count)


@needs_codec
@pytest.mark.parametrize("make_work", [_reading, _writing])
def test_other_threads_run_meanwhile(make_work: Callable[[], Callable[[], object]]) -> None:
    """The lock is let go: Python itself would take it away from a thread after an hour only."""
    work, begun, ran = make_work(), threading.Event(), threading.Event()

    def run() -> None:
        begun.wait()
        ran.set()

    other = threading.Thread(target=run)
    other.start()
    before = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    try:
        begun.set()
        for _ in range(1_000):
            if ran.is_set():
                break
            assert work() is not None
        seen = ran.is_set()
    finally:
        sys.setswitchinterval(before)
        other.join()
    assert seen


@needs_codec
def test_what_is_not_plain_does_not_hold_up_its_batch() -> None:
    """A few events are read by Python code, the others stay where they are."""
    source, read = random.Random(21), 0
    for _ in range(300):
        values: list[bytes | None] = [plain(id=f"c{i}", amount=i) for i in range(48)]
        for row in source.sample(range(48), source.randrange(5)):
            values[row] = source.choice([None, b"", hostile_event(source), UnreadableValue(b"x", "damaged")])
        one, records = decoder(max_future_ms=source.choice([None, 86_400_000])), batch(values)
        records.timestamps[:] = 1_769_860_000_000
        records.timestamps[source.randrange(48)] = source.choice([-1, 1_700_000_000_000])  # long before the event
        assert_same(one.decode(records), one._decode_each(records))
        read += reads(*values)
    assert read > 200
    records = batch([plain(id=f"c{i}") for i in range(48)])
    records.values[7] = b"{"
    decoded = decoder().decode(records)
    assert [letter.index for letter in decoded.dead_letters] == [7]
    assert isinstance(decoded.documents, LazyDocuments)
    assert decoded.documents[7] == {}
    assert decoded.documents[6:8][1] == {}
    assert len(decoded.observations.index) == 47


@needs_codec
def test_an_interrupt_of_a_python_function_is_seen() -> None:
    def code(_text: str) -> int:
        raise error

    module = codec.load()
    assert module is not None
    made = module.Decoder([(b"c", 0, 1, 0, 0, 0, 0)], 0, 1, (code,), int, json.loads, 1000)
    arrays = [np.zeros(20, kind) for kind in (np.float32, np.int64, np.bool_, np.int64)]
    error: BaseException
    for error in (KeyboardInterrupt(), MemoryError()):
        with pytest.raises(type(error)):
            made.decode([b'{"c":"x"}'] * 20, [None] * 20, *arrays)
    error = BadRecord("validate", "")
    assert made.decode([b'{"c":"x"}'] * 20, [None] * 20, *arrays) is None
    assert made.decode([b'{"c":"x"}', *[b"{}"] * 19], [None] * 20, *arrays) == ([], False, [0], [[None, *[b""] * 19]])


@needs_codec
def test_scores_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(9)
    events = [json.dumps(nested(row)).encode() for row in rows(5_000)]
    for at in range(100, 4_000, 40):  # some batches of 4,096 have what is not plain, and the last one has nothing of it
        events[at] = hostile_event(source).replace(b"\n", b" ")
    data = tmp_path / "events.jsonl"
    data.write_bytes(b"\n".join(events) + b"\n")
    outputs = {}
    for which in ("pure", "compiled"):
        monkeypatch.setenv(codec.VARIABLE, which)
        out, dead = tmp_path / f"{which}.out", tmp_path / f"{which}.dead"
        run(MODEL, data, "--key", "id", "--timestamp", "at", "--out", out, "--dead-letters", dead)
        outputs[which] = out.read_bytes(), dead.read_bytes()
    assert outputs["pure"] == outputs["compiled"]
    predictions, dead_letters = outputs["pure"]
    assert predictions.count(b"\n") > 4_800
    assert dead_letters.count(b"\n") > 20


@needs_codec
def test_state_records_are_as_python_makes_and_reads_them() -> None:
    source, sound = random.Random(3), 0
    for _ in range(2_000):
        sound += states_alike(source)
    assert 500 < sound < 1_900


@needs_codec
def test_state_records_of_another_kind_or_number_are_refused_without_harm() -> None:
    compiled = codec.load()
    assert compiled is not None
    records = np.zeros(2, "V20")
    for keys, array, size in (
        ([b"a"], records, 20),
        ([b"a", b"b"], records, 19),
        ([b"a", b"b"], records, 3),
        ([b"a", b"b"], records, 0),
        ([b"a", b"b"], records, -20),
        ([b"a", b"b"], records[::2], 20),
        ([b"a", "b"], records, 20),
        ((b"a", b"b"), records, 20),
    ):
        with pytest.raises((ValueError, TypeError)):
            compiled.write_states(keys, b"prefix", b"null", array, size)
    for keys, values, size in (([b"a"], [bytes(20)] * 2, 20), ([b"a"] * 2, [bytes(20)] * 2, 19), ([], [], -1)):
        with pytest.raises(ValueError, match="equally many"):
            compiled.read_states(keys, values, records, size)
    assert compiled.read_states([b"a", None], [bytes(20)] * 2, records, 20) is False
    assert compiled.read_states([b"a", b"b"], [bytes(20), None], records, 20) is False


# -- which one is used


def test_the_variable_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(codec.VARIABLE, "pure")
    assert codec.load() is None
    assert codec.describe() == "pure Python"
    assert decoder()._fast._compiled is None
    monkeypatch.setenv(codec.VARIABLE, "fast")
    with pytest.raises(CannotServe, match="LSTMSTREAM_CODEC must be pure or compiled, not 'fast'"):
        codec.load()
    monkeypatch.setenv(codec.VARIABLE, "compiled")
    monkeypatch.setattr(codec, "_module", None)
    with pytest.raises(
        CannotServe, match=r"LSTMSTREAM_CODEC is compiled, but there is none; run: python native/build\.py"
    ):
        codec.load()
    monkeypatch.delenv(codec.VARIABLE)
    assert codec.load() is None


@needs_codec
def test_a_codec_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(codec.VARIABLE, raising=False)
    assert codec.load() is not None
    monkeypatch.setattr(codec, "INTERFACE", -1)
    assert codec.load() is None
    monkeypatch.setenv(codec.VARIABLE, "compiled")
    with pytest.raises(CannotServe, match="it is of another version"):
        codec.load()


# -- how it is compiled


def build(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "native" / "build.py"), *arguments],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.usefixtures("c_compiler")
def test_it_compiles_without_a_warning(tmp_path: Path) -> None:
    done = build("--out", str(tmp_path), "--strict", "--required")
    assert (done.returncode, done.stderr) == (0, "")
    (made,) = tmp_path.iterdir()
    assert made.name == "_codec.abi3.so"
    assert load_library(made).INTERFACE == codec.INTERFACE


def test_without_a_compiler_the_rest_goes_on(tmp_path: Path) -> None:
    done = build("--out", str(tmp_path), PATH="/nowhere")
    assert (done.returncode, done.stderr) == (0, "codec: pure Python, for there is no C compiler (cc, gcc or clang)\n")
    assert build("--out", str(tmp_path), "--required", PATH="/nowhere").returncode == 1
    assert build("--out", str(tmp_path), CC="no-such-compiler").returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_codec_that_does_not_compile_is_not_left_behind(tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "native", tmp_path / "native")
    (folder / "codec.c").write_text("#error broken\n")
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, str(folder / "build.py"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0
    assert done.stderr.startswith("codec: pure Python, for ")
    assert list(out.iterdir()) == []
