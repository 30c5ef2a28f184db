"""Chunks of bytes to JSON texts: lines, or objects however they are laid out. Nothing is parsed but by `is_object`."""

from __future__ import annotations

import re

import orjson

_TOKEN = re.compile(rb'"[^"\\\n]*(?:\\.[^"\\\n]*)*"|[{}"]')  # a string, a brace, or a quote that is not closed
_BETWEEN = b" \t\r\n,[]\x1e"  # what may stand between objects: of an array, and RFC 7464's record separator


class LineSplitter:
    """Lines without their ends; blank ones are left out."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []  # of the last line

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that the chunk completes."""
        first, *others = chunk.split(b"\n")
        if not others:
            self._rest.append(first)
            return []
        lines = [b"".join([*self._rest, first]), *others]
        self._rest = [lines.pop()]
        return [line.rstrip(b"\r") for line in lines if line and not line.isspace()]

    def finish(self) -> list[bytes]:
        """The last line, if it has no end."""
        line, self._rest = b"".join(self._rest), []
        return [line.rstrip(b"\r")] if line.strip() else []


class ObjectSplitter:
    """The outermost objects of JSON: of an array, one after the other, over several lines, or with record separators.

    What stands between objects and is not a separator comes as a text of its own, so that nothing is lost in silence.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._depth = 0
        self._scanned = 0  # bytes of the buffer
        self._start = 0  # of the object, or of what stands between two

    def feed(self, chunk: bytes) -> list[bytes]:
        """The objects that the chunk completes."""
        self._buffer += chunk
        found: list[bytes] = []
        scanned = len(self._buffer)
        for token in _TOKEN.finditer(self._buffer, self._scanned):
            sign = token[0]
            if sign == b"{":
                if not self._depth:
                    found += self._between(token.start())
                self._depth += 1
            elif sign == b"}" and self._depth:
                self._depth -= 1
                if not self._depth:
                    found.append(self._buffer[self._start : token.end()])
                    self._start = token.end()
            elif sign == b'"' and self._buffer.find(b"\n", token.start()) < 0:  # it may be closed by the next chunk
                scanned = token.start()
                break
        self._buffer = self._buffer[self._start :]
        self._scanned = scanned - self._start
        self._start = 0
        return found

    def finish(self) -> list[bytes]:
        """What is left, if anything: an object that is not closed."""
        rest = self._between(len(self._buffer))
        self._buffer, self._depth, self._scanned, self._start = b"", 0, 0, 0
        return rest

    def _between(self, end: int) -> list[bytes]:
        text = self._buffer[self._start : end].strip(_BETWEEN)
        self._start = end
        return [text] if text else []


def is_object(text: bytes) -> bool:
    """Whether the text is one JSON object."""
    try:
        return type(orjson.loads(text)) is dict
    except orjson.JSONDecodeError:
        return False


def first_object(text: bytes) -> bytes | None:
    """The first object in braces that is complete, valid or not; None where there is none."""
    return next((item for item in ObjectSplitter().feed(text) if item[:1] == b"{"), None)
