"""The meaning of the design's section 4, a second time and as plainly as can be: one event after the other, a dict.

Shares no code with the package: JSON by the standard library, the rules of section 7, one row through ONNX Runtime.
Only the text of numbers comes from orjson, since the contract says so.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import orjson

YEAR_1, YEAR_9999 = -62135596800000, 253402300799999
NAN = float("nan")
MOST_LEVELS = 254  # of arrays and objects in a field that is carried along


class Event(NamedTuple):
    """One record of the input."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


@dataclass
class Remembered:
    state: np.ndarray
    steps: int
    last_timestamp: int


class Refused(Exception):
    """A dead letter; the argument is its stage."""


class Answer(NamedTuple):
    key: bytes | None  # of the record: the entity key, or that of output.key
    value: bytes
    alert: bool


class Reference:
    """`answer` takes the events one by one: an Answer, or the stage of a dead letter."""

    def __init__(
        self,
        path: Path,
        *,
        key: str | None = None,
        timestamp: str | None = None,
        include: tuple[str, ...] = (),
        output_key: str | None = None,
        ttl_ms: int | None = None,
        late: str = "apply",
        reset_after: int = 10,
        topic: str = "in",
        reasons: int = 0,
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(str(path), options)
        self.card = json.loads(self.session.get_modelmeta().custom_metadata_map["lstmstream"])
        self.inputs = {one.name for one in self.session.get_inputs()}
        self.key, self.timestamp, self.include, self.output_key = key, timestamp, include, output_key
        self.ttl_ms, self.late, self.topic = ttl_ms, late, topic
        self.memory: dict[tuple[int, bytes | None], Remembered] = {}
        self.failures: dict[tuple[int, bytes | None], int] = {}  # events in a row that failed on the state alone
        self.reset_after = reset_after
        self.reasons = reasons

    def answer(self, event: Event) -> Answer | str:
        try:
            return self._answer(event)
        except Refused as refused:
            return str(refused)

    def _answer(self, event: Event) -> Answer:
        fields = read_object(event.value)
        key = event.key if self.key is None else key_of(find(fields, self.key))
        if self.timestamp is not None:
            timestamp = time_of(find(fields, self.timestamp))
        elif 0 <= event.timestamp <= YEAR_9999:
            timestamp = event.timestamp
        else:
            raise Refused("validate")
        features = self.card["features"]
        x = [number_of(find(fields, f["name"])) for f in features if f["kind"] == "number"]
        categories = [category_of(find(fields, f["name"]), f) for f in features if f["kind"] == "category"]

        mine = (event.partition, key)
        initial = np.array(self.card["state"]["initial"], np.float32)
        now = self.memory.get(mine, Remembered(initial, 0, 0))
        if self.failures.get(mine, 0) >= self.reset_after:
            now = Remembered(initial, 0, 0)
        state, steps = now.state, now.steps
        late = steps > 0 and timestamp < now.last_timestamp
        if late and self.late == "drop":
            raise Refused("late")
        elapsed = NAN if steps == 0 else max(0, timestamp - now.last_timestamp) / 1000
        if self.ttl_ms and steps > 0 and timestamp - now.last_timestamp > self.ttl_ms:
            state, steps, elapsed = initial, 0, NAN
        out = self._model(x, categories, timestamp, elapsed, state)
        if not all(np.isfinite(values).all() for values in out.values()):
            if mine in self.memory and self.failures.get(mine, 0) < self.reset_after:
                alone = self._model(x, categories, timestamp, NAN, initial)
                if all(np.isfinite(values).all() for values in alone.values()):
                    self.failures[mine] = self.failures.get(mine, 0) + 1
            raise Refused("step")
        if not (late and self.late == "score"):
            last = max(now.last_timestamp, timestamp) if now.steps else timestamp
            steps += 1
            self.memory[mine] = Remembered(out["state_out"][0], steps, last)
            self.failures[mine] = 0
        reasons = self._reasons(x, categories, timestamp, elapsed, state, out["score"][0]) if self.reasons else ""
        return self._text(event, fields, key, timestamp, steps, out, reasons)

    def _reasons(
        self, x: list[float], categories: list[int], timestamp: int, elapsed: float, state: Any, score: np.float32
    ) -> str:
        """A run of the model without each field, and one without the time since the last event."""
        numbers = [f["name"] for f in self.card["features"] if f["kind"] == "number"]
        texts = [f["name"] for f in self.card["features"] if f["kind"] == "category"]
        sizes = {}
        for name in [*(f["name"] for f in self.card["features"]), "elapsed"]:
            less = [NAN if number == name else value for number, value in zip(numbers, x, strict=True)]
            unknown = [0 if text == name else code for text, code in zip(texts, categories, strict=True)]
            since = NAN if name == "elapsed" else elapsed
            sizes[name] = score - self._model(less, unknown, timestamp, since, state)["score"][0]
        largest = sorted((name for name in sizes if sizes[name] > 0), key=lambda name: -sizes[name])[: self.reasons]
        named = [f'{{"feature":{quoted(name)},"size":{float32_text(sizes[name])}}}' for name in largest]
        return f"[{','.join(named)}]"

    def _model(self, x: list[float], categories: list[int], timestamp: int, elapsed: float, state: Any) -> Any:
        given = {
            "x": np.array([x], np.float64).astype(np.float32).reshape(1, len(x)),
            "categories": np.array([categories], np.int64).reshape(1, len(categories)),
            "timestamp": np.array([timestamp], np.int64),
            "elapsed": np.array([elapsed], np.float64).astype(np.float32),
            "state": state.reshape(1, -1),
        }
        outputs = self.card["outputs"]
        fed = {name: value for name, value in given.items() if name in self.inputs}
        return dict(zip(outputs, self.session.run(outputs, fed), strict=True))

    def _text(
        self, event: Event, fields: Any, key: bytes | None, timestamp: int, steps: int, out: Any, reasons: str
    ) -> Answer:
        score = out["score"][0]
        threshold = self.card["threshold"]
        alert = threshold is not None and bool(score >= np.float32(threshold))
        answer: list[tuple[str, str]] = []
        if key is None:
            answer.append(("key", "null"))
        else:
            try:
                answer.append(("key", quoted(key.decode("utf-8"))))
            except UnicodeDecodeError:
                answer.append(("key_base64", quoted(base64.b64encode(key).decode())))
        moment = datetime(1970, 1, 1) + timedelta(milliseconds=timestamp)
        answer.append(("timestamp", quoted(f"{moment.isoformat(timespec='milliseconds')}Z")))
        answer.append(("score", float32_text(score)))
        if "prediction" in out:
            answer.append(("prediction", f"[{','.join(map(float32_text, out['prediction'][0]))}]"))
            names = self.card.get("prediction_names", [])
            if "warm" in names:
                answer.append(("warm", "true" if out["prediction"][0][names.index("warm")] >= 1 else "false"))
        answer.append(("alert", "true" if alert else "false"))
        if alert and reasons:
            answer.append(("reasons", reasons))
        answer.append(("steps", str(steps)))
        answer.append(("model", quoted(self.card["name"])))
        answer.append(("version", quoted(self.card["version"])))
        source = f'{{"topic":{quoted(self.topic)},"partition":{event.partition},"offset":{event.offset}}}'
        answer.append(("source", source))
        if self.include:
            found = [(name, find(fields, name)) for name in self.include]
            carried = [
                f"{quoted(name)}:{orjson.dumps(value).decode()}"
                for name, value in found
                if value is not ABSENT and writable(value)
            ]
            answer.append(("event", f"{{{','.join(carried)}}}"))
        text = ",".join(f"{quoted(name)}:{value}" for name, value in answer)
        return Answer(self._record_key(fields, key), f"{{{text}}}".encode(), alert)

    def _record_key(self, fields: Any, key: bytes | None) -> bytes | None:
        """The entity key, or that of `output.key`: null where it gives none. It decides nothing about a state."""
        if self.output_key is None:
            return key
        try:
            return key_of(find(fields, self.output_key))
        except Refused:
            return None


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def float32_text(value: np.float32) -> str:
    return orjson.dumps(np.float32(value), option=orjson.OPT_SERIALIZE_NUMPY).decode()


def read_object(value: bytes | None) -> dict[str, Any]:
    """A JSON object, or Refused: stage decode."""
    if value is None:
        raise Refused("decode")

    def no_constant(_name: str) -> None:
        raise ValueError

    try:
        found = json.loads(value.decode("utf-8"), parse_constant=no_constant)
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # a lone surrogate is no Unicode text
    except (ValueError, RecursionError):
        raise Refused("decode") from None
    if not isinstance(found, dict):
        raise Refused("decode")
    return found


class Absent:
    """Neither a value nor null."""


ABSENT = Absent()


def find(fields: Any, path: str) -> Any:
    """The name as it is; else the longest beginning of it, up to a dot, that holds an object in which the rest is."""
    if not isinstance(fields, dict):
        return ABSENT
    if path in fields:
        return fields[path]
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        found = find(fields.get(".".join(parts[:count])), ".".join(parts[count:]))
        if found is not ABSENT:
            return found
    return ABSENT


def writable(value: Any) -> bool:
    """Whether a field can be carried along: its numbers are finite, and no more than MOST_LEVELS lie in each other."""
    level = [value]
    for _ in range(MOST_LEVELS + 1):
        if any(isinstance(one, float) and not math.isfinite(one) for one in level):
            return False
        inner: list[Any] = []
        holders = [one for one in level if isinstance(one, dict | list)]
        if not holders:
            return True
        for one in holders:
            inner += one.values() if isinstance(one, dict) else one
        level = inner
    return False


def number_of(value: Any) -> float:
    if value is None or value is ABSENT:
        return NAN
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused("validate")
    try:
        wide = float(value)
    except OverflowError:
        raise Refused("validate") from None
    with np.errstate(over="ignore"):
        if not math.isfinite(np.float64(wide).astype(np.float32)):
            raise Refused("validate")
    return wide


def text_of(value: Any) -> str:
    """A string, or an integer's decimal text; text that spells a whole number or a boolean is that."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and -(2**63) <= value <= 2**64 - 1:
        return str(value)
    if isinstance(value, float) and abs(value) <= 2**53 and value == int(value):
        return str(int(value))
    if not isinstance(value, str):
        raise Refused("validate")
    if value in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return value.lower()
    mantissa, _, exponent = value.lower().partition("e")
    whole, _, fraction = mantissa.lstrip("+-").partition(".")
    signs = len(mantissa) - len(mantissa.lstrip("+-"))
    plain = signs <= 1 and _digits(whole) and _digits(fraction) and (whole == "0" or whole[0] != "0")
    if not plain or ("e" in value.lower() and not (_digits(exponent.lstrip("+-")) and len(exponent) <= 4)):
        return value
    number = Fraction(value)
    return str(int(number)) if number.denominator == 1 and abs(number) <= 2**53 else value


def _digits(text: str) -> bool:
    return text != "" and all(sign in "0123456789" for sign in text)


def key_of(value: Any) -> bytes:
    if value is None or value is ABSENT or isinstance(value, bool):
        raise Refused("validate")
    return text_of(value).encode()


def category_of(value: Any, feature: dict[str, Any]) -> int:
    if value is None or value is ABSENT:
        return 0
    text = text_of(value)
    if "buckets" in feature:
        return 1 + zlib.crc32(text.encode("utf-8")) % int(feature["buckets"])
    known = list(feature["vocabulary"])
    return known.index(text) + 1 if text in known else 0


def time_of(value: Any) -> int:
    if isinstance(value, str):
        ms = _ms_of_text(value.strip())
    elif isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise Refused("validate")
    else:
        ms = _ms_of_number(Fraction(value) if isinstance(value, int) else Fraction(repr(value)))
    if not YEAR_1 <= ms <= YEAR_9999:
        raise Refused("validate")
    return ms


def _ms_of_number(exact: Fraction) -> int:
    whole, fraction = divmod(exact, 1)
    digits = str(whole)
    if len(digits) in {8, 12, 14, 17} and _digits(digits) and _looks_like_a_date(digits):
        if fraction and len(digits) != 14:
            raise Refused("validate")
        try:
            # Not by strptime, which takes months, days and so on of one digit.
            clock = [int(digits[at : at + 2] or 0) for at in range(4, 14, 2)]
            moment = datetime(int(digits[:4]), clock[0], clock[1], clock[2], clock[3], clock[4], tzinfo=UTC)
            moment += timedelta(milliseconds=int(digits[14:] or 0))
        except ValueError:
            raise Refused("validate") from None
        return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1) + int(fraction * 1000)
    return int(exact * 1000 if abs(exact) < 10**11 else exact)  # int() cuts off


def _looks_like_a_date(digits: str) -> bool:
    """From the first moment of 1900 to the last of 2100, by the digits alone."""
    return "19000101".ljust(len(digits), "0") <= digits <= "21001231235959999"[: len(digits)]


def _ms_of_text(text: str) -> int:
    if all(sign in "0123456789.eE+-" for sign in text) and len(text) < 400:
        try:
            exact = Fraction(text)
        except (ValueError, ZeroDivisionError):
            pass
        else:
            return _ms_of_number(exact)
    try:
        moment = datetime.fromisoformat(text.replace("z", "Z"))
    except ValueError:
        raise Refused("validate") from None
    offset = moment.utcoffset() or timedelta(0)
    since = moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC) - offset
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000
