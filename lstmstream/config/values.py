"""What the value of an option may look like, and what all sections of options share.

A validator's text says what is wrong and how to mend it; `explain` puts the option's path in front of it, and the value
behind it where that may be shown.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

_FLOAT32_MAX = 3.4028234663852886e38
_INT32_MAX = 2**31 - 1
_DURATION = re.compile(r"(?:\d{1,12}(?:\.\d{1,6})?(?:ms|s|m|h|d))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
_LONGEST_S = 36_500 * 86_400
_SIZE = re.compile(r"(\d{1,12}) ?(|b|kb|mb|gb|kib|mib|gib)", re.IGNORECASE)
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_KAFKAS_OWN = frozenset({"__consumer_offsets", "__transaction_state", "__share_group_state", "__cluster_metadata"})
_SERVER = re.compile(r"(?:[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.%]{2,60}\]):(\d{1,5})")
_TOPIC_MAX = 249  # characters, Kafka's own limit
_NAME_MAX = 200  # characters; leaves room for `.dead-letter`


def _seconds(value: object) -> object:
    """A duration's text to float seconds, exact to the millisecond."""
    if value == "0" or (type(value) is int and value == 0):
        return 0.0
    if isinstance(value, int | float) or (isinstance(value, str) and re.fullmatch(r"[\d.]+", value)):
        raise ValueError("needs a unit; write it like 30s, 250ms, 5m, 12h or 7d")
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise ValueError("is no duration; write it like 30s, 250ms, 5m, 1h30m or 7d")
    total = sum((Decimal(n) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(value)), start=Decimal(0))
    if total > _LONGEST_S:
        raise ValueError("is longer than a hundred years; write a shorter one")
    if total * 1000 % 1:
        raise ValueError("has a part of a millisecond; write whole milliseconds")
    return float(total)


def _bytes(value: object) -> object:
    """A size's text to bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or not (match := _SIZE.fullmatch(value)):
        raise ValueError("is no size; write it like 10MB, 64KiB or a whole number of bytes")
    return int(match[1]) * _BYTES[match[2].lower()]


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("is true or false where a number belongs; write a number")  # noqa: TRY004 - pydantic's way
    return value


def lower(value: object) -> object:
    """Text in lower case, anything else as it is."""
    return value.lower() if isinstance(value, str) else value


def upper(value: object) -> object:
    """Text in upper case, anything else as it is."""
    return value.upper() if isinstance(value, str) else value


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _legal(value: str, most: int) -> bool:
    return len(value) <= most and re.fullmatch(r"[a-zA-Z0-9._-]+", value) is not None and value not in {".", ".."}


def _topic(value: str) -> str:
    if not _legal(value, _TOPIC_MAX):
        raise ValueError(f"is no legal topic name; use 1 to {_TOPIC_MAX} of the letters a-z A-Z 0-9 . _ -")
    if value in _KAFKAS_OWN:
        raise ValueError("belongs to Kafka itself; name another topic")
    return value


def group_name(value: str) -> str:
    """`value`, if a group and its topics can be named after it; else ValueError."""
    if not _legal(value, _NAME_MAX):
        raise ValueError(f"cannot begin the names of topics; use 1 to {_NAME_MAX} of the letters a-z A-Z 0-9 . _ -")
    return value


def _model(value: str) -> str:
    if not value.removeprefix("builtin:").strip() or "\0" in value:
        raise ValueError("names no model; give the path of a file, or builtin:NAME")
    return value


def _field_path(value: str) -> str:
    if len(value) > 1000 or not all(value.split(".")):
        raise ValueError("is no field of an event; write a name, with dots for nested ones: customer.id")
    return value


def _servers(value: list[str]) -> list[str]:
    if not value:
        raise ValueError("is empty; write host:port, or several with commas")
    for place, server in enumerate(value, start=1):
        match = _SERVER.fullmatch(server)
        if not match or not 0 < int(match[1]) < 65536:
            raise ValueError(f"entry {place} is not host:port; write it like broker-1:9092, without a protocol")
    return value


def _distinct(value: list[str]) -> list[str]:
    if len(set(value)) < len(value):
        raise ValueError("names a field twice; write each once")
    return value


def _token(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("cannot travel in a header; use printable ASCII without spaces")
    return value


def _filled(value: SecretStr) -> SecretStr:
    if not value.get_secret_value():
        raise ValueError("is empty; set it, or leave the key out")
    return value


def _single_line(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError("is empty or has unprintable characters; write it on one line")
    return value


Duration = Annotated[float, BeforeValidator(_seconds)]  # seconds
Size = Annotated[int, BeforeValidator(_bytes), Field(ge=1, le=_INT32_MAX)]  # bytes
Whole = Annotated[int, BeforeValidator(_number)]
_Finite = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Float32 = Annotated[_Finite, Field(ge=-_FLOAT32_MAX, le=_FLOAT32_MAX)]
Milliseconds = Annotated[Whole, Field(ge=0, le=_INT32_MAX)]
PositiveMs = Annotated[Whole, Field(ge=1, le=_INT32_MAX)]
ByteCount = Annotated[Whole, Field(ge=1, le=_INT32_MAX)]
Line = Annotated[str, AfterValidator(_single_line)]
Name = Annotated[str, AfterValidator(group_name)]
Topic = Annotated[str, AfterValidator(_topic)]
ModelReference = Annotated[str, AfterValidator(_model)]
FieldPath = Annotated[str, AfterValidator(_field_path)]
FieldPaths = Annotated[list[FieldPath], BeforeValidator(_split), AfterValidator(_distinct)]
Servers = Annotated[list[str], BeforeValidator(_split), AfterValidator(_servers)]
Secret = Annotated[SecretStr, AfterValidator(_filled)]
Token = Annotated[SecretStr, AfterValidator(_token)]
Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


class Section(BaseModel):
    """A group of options. Unknown keys are refused, and nothing can be changed once it is loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, data: object) -> object:
        """An empty value is one that was left out; a missing section is an empty one, so that its keys are named."""
        if not isinstance(data, dict):
            return data
        known = {field.alias or key: field for key, field in cls.model_fields.items()}
        empty: dict[str, object] = {key: {} for key, field in known.items() if section_of(field.annotation)}
        return empty | {key: value for key, value in data.items() if value is not None or key not in known}


def section_of(annotation: object) -> type[Section] | None:
    """The section that a field of this type holds, if it holds one."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None
