"""Log lines that survive hostile text: one line per event, parseable, valid UTF-8.

Keys, values, topic names and error texts come from outside. Whatever they hold (newlines, escape sequences, lone
surrogates, line separators), an event stays one line and none of its text can pass for another event. Nothing here
knows what a record is: personal data is kept out by those who log, who give counts and offsets, never keys or values.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import numbers
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["json", "console"]

MESSAGE_LIMIT = 8_000  # characters
EXCEPTION_LIMIT = 16_000  # characters, the last ones: the cause stands at the end
FIELD_LIMIT = 2_000  # characters

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_OWN = frozenset({"ts", "level", "logger", "message", "exception"})


def safe(text: object, limit: int = 200) -> str:
    r"""Untrusted `text` on one line: what is not printable is escaped, and what is too long is cut.

    >>> safe("a\r\nlevel=ERROR fake")
    'a\\r\\nlevel=ERROR fake'
    """
    if isinstance(text, bytes):
        full = text[: limit + 1].decode("utf-8", "backslashreplace")
        total = max(len(text), len(full))
    else:
        full = _text(text)
        total = len(full)
    escaped = _printable(full[:limit])
    if total <= limit and len(escaped) <= limit:
        return escaped
    return f"{escaped[:limit]}… ({total} in all)"


def configure(level: Level, format: Format, stream: TextIO | None = None) -> None:  # noqa: A002
    """Send every log event of this process to `stream` (standard error). Calling it again replaces what was set.

    A stream that is gone (closed, or a pipe nobody reads) loses lines and never stops the daemon.
    The `kafka` loggers speak at level `debug` alone, and then from INFO on, since at DEBUG they print keys and values.
    Else only CRITICAL passes: a broker that is away is worth hundreds of lines to them, and ours say what happened.
    """
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, _Handler)]:
        root.removeHandler(old)
        old.close()
    number = logging.getLevelNamesMapping()[level.upper()]
    handler = _Handler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if format == "json" else ConsoleFormatter())
    handler.addFilter(_without_kafka_details)
    root.addHandler(handler)
    root.setLevel(number)
    logging.getLogger("kafka").setLevel(logging.INFO if level == "debug" else logging.CRITICAL)
    logging.captureWarnings(capture=True)


class JsonFormatter(logging.Formatter):
    """One JSON object in ASCII: `ts`, `level`, `logger`, `message`, the event's own fields, `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """The event as one line, without its end."""
        event: dict[str, object] = {
            "ts": _time(record),
            "level": record.levelname.lower(),
            "logger": _cut(record.name),
            "message": _cut(_message(record), MESSAGE_LIMIT),
        }
        event.update(_fields(record))
        if exception := _exception(self, record):
            event["exception"] = exception
        # ASCII only, so U+2028, C1 controls and the like are escaped by the encoder itself.
        return json.dumps(event, ensure_ascii=True, allow_nan=False)


class ConsoleFormatter(logging.Formatter):
    """For a person at a terminal. Lines after an event's first begin with a bar, so none can pass for an event."""

    def format(self, record: logging.LogRecord) -> str:
        """The event as text, without its end."""
        parts = [_time(record), f"{record.levelname:<7}", safe(record.name), safe(_message(record), MESSAGE_LIMIT)]
        parts += [f"{safe(name, 60)}={_console_value(value)}" for name, value in _fields(record).items()]
        lines = [" ".join(parts)]
        if exception := _exception(self, record):
            lines += [f"    | {safe(line, FIELD_LIMIT)}" for line in exception.splitlines()]
        return "\n".join(lines)


class _Handler(logging.StreamHandler[TextIO]):
    """Writes a line or loses it; raises nothing and prints no traceback of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode("utf-8", "backslashreplace").decode() + "\n"
            self.stream.write(line)
            self.flush()
        except Exception:  # noqa: S110 - a log line is never worth the daemon
            pass

    def flush(self) -> None:
        with self.lock or contextlib.nullcontext():
            self.stream.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().close()


def _without_kafka_details(record: logging.LogRecord) -> bool:
    """Whether to keep it. Guards against one of the library's loggers being opened up by itself."""
    return record.levelno >= logging.INFO or record.name.partition(".")[0] != "kafka"


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(record.msecs):03d}Z"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:
        return f"{_text(record.msg)} (its arguments do not fit)"


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    try:
        text = formatter.formatException(record.exc_info)
    except Exception:
        text = f"{record.exc_info[0].__name__} (it cannot be printed)"
    text = _encodable(text)
    return text if len(text) <= EXCEPTION_LIMIT else f"… {text[-EXCEPTION_LIMIT:]}"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What the caller gave as `extra`, in values that JSON has; a name of our own gets `extra_` in front."""
    fields: dict[str, object] = {}
    for name, value in vars(record).items():
        if name in _STANDARD:
            continue
        fields[f"extra_{name}" if name in _OWN else _encodable(name)] = _plain(value)
    return fields


def _plain(value: object) -> object:
    """The value as JSON has it: true, false, null, a number that any reader can hold, or text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral) and -(2**63) <= int(value) < 2**63:
        return int(value)
    if isinstance(value, float | numbers.Real) and not isinstance(value, numbers.Integral) and math.isfinite(value):
        return float(value)
    return _cut(_text(value))


def _console_value(value: object) -> str:
    text = safe(value, FIELD_LIMIT)
    return text if text and text.isascii() and not set(text) & set(" =\"'\\") else f'"{text.replace(chr(34), chr(39))}"'


def _text(value: object) -> str:
    """`str(value)`, whatever the value; without lone surrogates, which JSON's readers refuse."""
    try:
        text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    except Exception:
        text = f"<{type(value).__name__} that cannot be printed>"
    return _encodable(text)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _cut(text: str, limit: int = FIELD_LIMIT) -> str:
    text = _encodable(text)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} in all)"


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
