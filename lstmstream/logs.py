"""Log lines that hostile text cannot break: one line per event, parseable, valid UTF-8.

Keys, values, topic names and error messages come from outside. Whatever they contain (newlines, escape sequences, lone
surrogates, line separators), an event stays on one line and its text cannot look like another event. This module does
not know what a record is: the code that logs keeps personal data out. It logs counts and offsets, not keys or values.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import numbers
import os
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal, TextIO

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["json", "console"]

MESSAGE_LIMIT = 8_000  # characters
EXCEPTION_LIMIT = 16_000  # characters, counted from the end, where the cause is
FIELD_LIMIT = 2_000  # characters
ITEMS_LIMIT = 1_000  # of a list or an object; a longer one is text, and cut

_CLEAR_LINE = "\r\x1b[K"
_DIGITS = re.compile(r"\d+")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_OWN = frozenset({"ts", "level", "logger", "message", "exception"})


def escape_untrusted(text: object, limit: int = 200) -> str:
    r"""Return untrusted `text` on one line: unprintable characters escaped, cut after `limit` characters.

    >>> escape_untrusted("a\r\nlevel=ERROR fake")
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


def message_kind(message: str) -> str:
    """What messages have in common that differ in numbers only, as in offsets and counts."""
    return _DIGITS.sub("0", message)


def configure(
    level: Level,
    format: Format,  # noqa: A002
    stream: TextIO | None = None,
    *,
    fields: Mapping[str, object] | None = None,
) -> None:
    """Send every log event of this process to `stream` (default: standard error). A second call replaces the first.

    `fields` are added to each event.
    Lines to a closed stream, or to a pipe that nobody reads, are lost; they never stop the daemon.
    The `kafka` loggers are heard at level `debug` only, from INFO on, because at DEBUG they print keys and values.
    At other levels only CRITICAL passes: they log hundreds of lines for one lost broker, and the daemon logs its own.
    """
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, _Handler)]:
        root.removeHandler(old)
        old.close()
    number = logging.getLevelNamesMapping()[level.upper()]
    stream = stream or sys.stderr
    handler = _Handler(stream, status=format == "console" and _is_terminal(stream))
    handler.setFormatter(JsonFormatter() if format == "json" else ConsoleFormatter())
    handler.addFilter(_without_kafka_details)
    if fields:
        handler.addFilter(_with_fields(fields))
    root.addHandler(handler)
    root.setLevel(number)
    logging.getLogger("kafka").setLevel(logging.INFO if level == "debug" else logging.CRITICAL)
    logging.captureWarnings(capture=True)


def show_status(text: str) -> None:
    """Keep `text` below the log, in place of what was there before; empty takes it away.

    Only on a terminal, and with the format for people; elsewhere nothing is written.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            handler.show_status(text)


class JsonFormatter(logging.Formatter):
    """One JSON object in ASCII: `ts`, `level`, `logger`, `message`, the event's own fields, `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the event as one line, without the newline."""
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
    """Plain text for a terminal. Continuation lines begin with a bar, so that none can look like another event."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the event as text, without the last newline."""
        parts = [
            _time(record),
            f"{record.levelname:<7}",
            escape_untrusted(record.name),
            escape_untrusted(_message(record), MESSAGE_LIMIT),
        ]
        parts += [f"{escape_untrusted(name, 60)}={_console_value(value)}" for name, value in _fields(record).items()]
        lines = [" ".join(parts)]
        if exception := _exception(self, record):
            lines += [f"    | {escape_untrusted(line, FIELD_LIMIT)}" for line in exception.splitlines()]
        return "\n".join(lines)


class _Handler(logging.StreamHandler[TextIO]):
    """Writes each line or loses it; never raises and never prints a traceback of its own."""

    def __init__(self, stream: TextIO, *, status: bool) -> None:
        """`status`: the stream is a terminal, on which a last line may be written over."""
        super().__init__(stream)
        self._has_status = status
        self._status = ""

    def show_status(self, text: str) -> None:
        """Write the last line over."""
        if not self._has_status or text == self._status:
            return
        with self.lock or contextlib.nullcontext(), contextlib.suppress(OSError, ValueError):
            columns = os.get_terminal_size(self.stream.fileno()).columns or 80  # 0: it does not know
            self._status = text[: columns - 1]
            self.stream.write(_CLEAR_LINE + self._status)
            self.stream.flush()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode("utf-8", "backslashreplace").decode() + "\n"
            self.stream.write(f"{_CLEAR_LINE}{line}{self._status}" if self._status else line)
            self.flush()
        except Exception:  # noqa: S110 - a log line is never worth the daemon
            pass

    def flush(self) -> None:
        with self.lock or contextlib.nullcontext():
            self.stream.flush()

    def close(self) -> None:
        self.show_status("")
        with contextlib.suppress(OSError, ValueError):
            super().close()


def _is_terminal(stream: TextIO | None) -> bool:
    """A process may have no standard error, or a closed one."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def _without_kafka_details(record: logging.LogRecord) -> bool:
    """Whether to keep the event. Catches a logger of the client library whose level was lowered separately."""
    return record.levelno >= logging.INFO or record.name.partition(".")[0] != "kafka"


def _with_fields(fields: Mapping[str, object]) -> Callable[[logging.LogRecord], bool]:
    def add(record: logging.LogRecord) -> bool:
        vars(record).update(fields)
        return True

    return add


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(record.msecs):03d}Z"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:
        return f"{_text(record.msg)} (its arguments do not match)"


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
    """The fields the caller passed as `extra`, as JSON values; a field named like one of ours is prefixed `extra_`."""
    fields: dict[str, object] = {}
    for name, value in vars(record).items():
        if name in _STANDARD:
            continue
        fields[f"extra_{name}" if name in _OWN else _encodable(name)] = _json_value(value)
    return fields


def _json_value(value: object) -> object:
    """Convert to a JSON value: true, false, null, a number of 64 bits, text; a list or an object of those."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral) and -(2**63) <= int(value) < 2**63:
        return int(value)
    if isinstance(value, float | numbers.Real) and not isinstance(value, numbers.Integral) and math.isfinite(value):
        return float(value)
    if isinstance(value, list | tuple | set | frozenset) and len(value) <= ITEMS_LIMIT:
        return [_json_value(item) for item in value]
    if isinstance(value, dict) and len(value) <= ITEMS_LIMIT:
        return {_cut(_text(name)): _json_value(item) for name, item in value.items()}
    return _cut(_text(value))


def _console_value(value: object) -> str:
    text = escape_untrusted(value, FIELD_LIMIT)
    return text if text and text.isascii() and not set(text) & set(" =\"'\\") else f'"{text.replace(chr(34), chr(39))}"'


def _text(value: object) -> str:
    """Return `str(value)` for any value, without lone surrogates, which JSON parsers refuse."""
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
