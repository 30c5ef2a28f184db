"""What the value of an option may look like, and what all sections of options share.

The text of a validator's ValueError says what is wrong and how to fix it. `diagnostics` adds the option's path in
front, and the value behind, where the value may be shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from lstmstream.errors import BadRecord, CannotServe
from lstmstream.formats.timestamps import spells_number, timestamp_ms

_FLOAT32_MAX = 3.4028234663852886e38
_INT32_MAX = 2**31 - 1
_DURATION = re.compile(r"(?:\d{1,12}(?:\.\d{1,6})?(?:ms|s|m|h|d))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
_LONGEST_S = 36_500 * 86_400
_ENDS = ("earliest", "latest")  # of a topic
_SIZE = re.compile(r"(\d{1,12}) ?(|b|kb|mb|gb|kib|mib|gib)", re.IGNORECASE)
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_INTERNAL_TOPICS = frozenset({"__consumer_offsets", "__transaction_state", "__share_group_state", "__cluster_metadata"})
_SERVER = re.compile(r"(?:[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.%]{2,60}\]):(\d{1,5})")
_TOPIC_MAX = 249  # characters, Kafka's own limit
_NAME_MAX = 200  # characters; leaves room for `.dead-letter`


@dataclass(frozen=True, eq=False)
class Written:
    """Marks a type whose values are written otherwise than its own, with the JSON Schema of what may be written."""

    schema: dict[str, Any]
    is_duration: bool = False


def _seconds(value: object) -> object:
    """Convert a duration's text to float seconds, exact to the millisecond."""
    if value == "0" or (type(value) is int and value == 0):
        return 0.0
    if isinstance(value, int | float) or (isinstance(value, str) and re.fullmatch(r"[\d.]+", value)):
        raise ValueError("needs a unit; write it like 30s, 250ms, 5m, 12h or 7d")
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise ValueError("is not a valid duration; write it like 30s, 250ms, 5m, 1h30m or 7d")
    total = sum((Decimal(n) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(value)), start=Decimal(0))
    if total > _LONGEST_S:
        raise ValueError("is longer than 100 years; write a shorter duration")
    if total * 1000 % 1:
        raise ValueError("has a fraction of a millisecond; write whole milliseconds")
    return float(total)


def parse_duration(text: str, option: str) -> float:
    """The seconds of a command line's option. Raises CannotServe."""
    try:
        return float(_seconds(text))  # type: ignore[arg-type]  # a float
    except ValueError as error:
        raise CannotServe(f"{option}: {text!r} {error}") from error


def _start(value: object) -> object:
    """A place in a topic, as it was written. `start_ms` says when it is."""
    text = value.isoformat() if isinstance(value, date) else value  # YAML makes one of a time without quotes
    try:
        if isinstance(text, str) and text not in _ENDS and not _DURATION.fullmatch(text):
            if spells_number(text):
                raise ValueError
            timestamp_ms(text, "start")
        if isinstance(text, str):
            return text
    except (BadRecord, ValueError):
        pass
    raise ValueError("must be earliest, latest, a time like 2026-11-28T06:00:00Z, or so long ago: 12h, 7d")


def start_ms(start: str, now_s: float) -> int | None:
    """Milliseconds since 1970 of an `input.start`, of which a duration counts back from now; None: one of the ends."""
    if start in _ENDS:
        return None
    if _DURATION.fullmatch(start):
        return max(0, round(1000 * (now_s - parse_duration(start, "input.start"))))
    return timestamp_ms(start, "input.start")


def _bytes(value: object) -> object:
    """Convert a size's text to a number of bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or not (match := _SIZE.fullmatch(value)):
        raise ValueError("is not a valid size; write it like 10MB, 64KiB or a whole number of bytes")
    return int(match[1]) * _BYTES[match[2].lower()]


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false; write a number")  # noqa: TRY004 - pydantic's way
    return value


def lower(value: object) -> object:
    """Convert text to lower case; return anything else unchanged."""
    return value.lower() if isinstance(value, str) else value


def upper(value: object) -> object:
    """Convert text to upper case; return anything else unchanged."""
    return value.upper() if isinstance(value, str) else value


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _is_kafka_name(value: str, max_length: int) -> bool:
    return len(value) <= max_length and re.fullmatch(r"[a-zA-Z0-9._-]+", value) is not None and value not in {".", ".."}


def _topic(value: str) -> str:
    if not _is_kafka_name(value, _TOPIC_MAX):
        raise ValueError(f"is not a valid topic name; use 1 to {_TOPIC_MAX} of the characters a-z A-Z 0-9 . _ -")
    if value in _INTERNAL_TOPICS:
        raise ValueError("is an internal topic of Kafka; use another one")
    return value


def group_name(value: str) -> str:
    """Return `value` if it can name a consumer group and its topics. Raises ValueError."""
    if not _is_kafka_name(value, _NAME_MAX):
        raise ValueError(f"is not a valid name; use 1 to {_NAME_MAX} of the characters a-z A-Z 0-9 . _ -")
    return value


def _model(value: str) -> str:
    if not value.removeprefix("builtin:").strip() or "\0" in value:
        raise ValueError("does not name a model; give the path of a model file, or builtin:NAME")
    return value


def _folder(value: object) -> object:
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise ValueError("is empty; write the path of a folder, or leave the key out")
    if isinstance(value, str) and value.startswith("~"):
        raise ValueError("begins with ~, which only a shell knows; write the whole path")
    return value


def _sha256(value: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise ValueError("is not a SHA-256; write its 64 hexadecimal digits, as `lstmstream model inspect` prints them")
    return value.lower()


def is_field(name: str) -> bool:
    """Whether an option can name the field."""
    return len(name) <= 1000 and all(name.split("."))


def _field_path(value: str) -> str:
    if not is_field(value):
        raise ValueError("is not a valid field; write its name, with dots for nested fields: customer.id")
    return value


def _plain_field(value: str) -> str:
    if "." in value:
        raise ValueError("contains a dot, which leads to a nested field; use a name without dots")
    return _field_path(value)


def _output_value(value: str) -> str:
    if not re.fullmatch(r"score|alert|steps|prediction\[[^\[\]]{1,200}\]", value):
        raise ValueError(
            "is not an output of the model; use score, alert, steps, or a column of the prediction, by its number or"
            " name: prediction[0]"
        )
    return value


def _servers(value: list[str]) -> list[str]:
    if not value:
        raise ValueError("is empty; write host:port, or several separated by commas")
    for number, server in enumerate(value, start=1):
        match = _SERVER.fullmatch(server)
        if not match or not 0 < int(match[1]) < 65536:
            raise ValueError(f"entry {number} is not host:port; write it like broker-1:9092, without a protocol")
    return value


def _distinct(value: list[str]) -> list[str]:
    if len(set(value)) < len(value):
        raise ValueError("names a field twice; list each field once")
    return value


def _key_patterns(value: list[str]) -> list[str]:
    if not all(value) or len(set(value)) < len(value):
        raise ValueError("has an empty pattern, or the same one twice; list each pattern once")
    return value


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    try:
        port_is_right = parts.port != 0
    except ValueError:
        port_is_right = False
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_right or not value.isprintable():
        raise ValueError("is not an address; write it like http://registry:8081 or https://registry.example.com")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("has a user, a query or a fragment in it; set username and password beside it")
    return value.rstrip("/")


def _token(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("cannot be sent in an HTTP header; use printable ASCII without spaces")
    return value


def _non_empty(value: SecretStr) -> SecretStr:
    if not value.get_secret_value():
        raise ValueError("is empty; set it, or leave the key out")
    return value


def scalar_text(value: object) -> object:
    """Convert a boolean or a whole number to its text, as an event's value is; return anything else unchanged."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else value


def _pattern_text(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("is true or false in YAML, as yes, no, on and off are; put it in quotes")  # noqa: TRY004
    return scalar_text(value)


def _single_line(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError("is empty or contains unprintable characters; write it on one line")
    return value


_DURATION_TEXT = {"anyOf": [{"type": "string", "pattern": f"^{_DURATION.pattern}$"}, {"const": 0}]}
_SIZE_TEXT = {
    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": r"^\d{1,12} ?([kKmMgG]?[iI]?[bB])?$"}]
}

Duration = Annotated[float, BeforeValidator(_seconds), Written(_DURATION_TEXT, is_duration=True)]  # seconds
Start = Annotated[str, BeforeValidator(_start)]
Size = Annotated[int, BeforeValidator(_bytes), Written(_SIZE_TEXT), Field(ge=1, le=_INT32_MAX)]  # bytes
StrictInt = Annotated[int, BeforeValidator(_number)]
_Finite = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Float32 = Annotated[_Finite, Field(ge=-_FLOAT32_MAX, le=_FLOAT32_MAX)]
Milliseconds = Annotated[StrictInt, Field(ge=0, le=_INT32_MAX)]
PositiveMs = Annotated[StrictInt, Field(ge=1, le=_INT32_MAX)]
ByteCount = Annotated[StrictInt, Field(ge=1, le=_INT32_MAX)]
SingleLine = Annotated[str, AfterValidator(_single_line)]
ScalarText = Annotated[str, BeforeValidator(scalar_text), Written({"type": ["string", "integer", "boolean"]})]
Name = Annotated[str, AfterValidator(group_name)]
Topic = Annotated[str, AfterValidator(_topic)]
ModelReference = Annotated[str, AfterValidator(_model)]
Folder = Annotated[Path, BeforeValidator(_folder)]
Sha256 = Annotated[str, AfterValidator(_sha256)]
FieldPath = Annotated[str, AfterValidator(_field_path)]
FieldPaths = Annotated[list[FieldPath], BeforeValidator(_split), AfterValidator(_distinct)]
AddedFields = dict[Annotated[str, AfterValidator(_plain_field)], Annotated[str, AfterValidator(_output_value)]]
_PatternText = Annotated[str, BeforeValidator(_pattern_text), Written({"type": ["string", "integer"]})]
KeyPatterns = Annotated[list[_PatternText], BeforeValidator(_split), AfterValidator(_key_patterns)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Servers = Annotated[list[str], BeforeValidator(_split), AfterValidator(_servers)]
Secret = Annotated[SecretStr, AfterValidator(_non_empty)]
Token = Annotated[SecretStr, AfterValidator(_token)]
VALUE_NAMES = {  # what the reference calls the values that these functions accept
    _seconds: "duration",
    _start: "earliest, latest, a time, or a duration",
    _bytes: "size",
    group_name: "name",
    _topic: "topic",
    _model: "path, or builtin:NAME",
    _sha256: "64 hexadecimal digits",
    _field_path: "field",
    _distinct: "list of fields",
    _key_patterns: "list of patterns",
    _servers: "host:port, or a list of them",
    _http_url: "http or https address",
    _token: "text",
    _non_empty: "text",
    _single_line: "text",
}
Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Format = Literal["json", "json_schema", "avro", "protobuf"]
Unwrap = Literal["after", "cloudevents"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]


class Section(BaseModel):
    """A group of options. Unknown keys are errors, and a loaded section is immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, data: object) -> object:
        """Drop empty values, and treat a missing section as an empty one, so that its missing keys are reported."""
        if not isinstance(data, dict):
            return data
        known = {field.alias or key: field for key, field in cls.model_fields.items()}
        empty: dict[str, object] = {key: {} for key, field in known.items() if section_of(field.annotation)}
        return empty | {key: value for key, value in data.items() if value is not None or key not in known}


def section_of(annotation: object) -> type[Section] | None:
    """Return `annotation` if it is a section of options, else None."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None
