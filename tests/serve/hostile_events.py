"""Events that a careless parser reads in another way than Python does, and damage to plain ones."""

from __future__ import annotations

import random
from pathlib import Path

FIELDS = ("id", "at", "amount", "channel", "place", "place.risk", "spectrum", "a b", "other", "risk", "shop", "é")
VALUES = (Path(__file__).parent.parent / "data" / "hostile_json_values.txt").read_text().removesuffix("\n").split("\n")
VALUES += ['"\x01"', '"\x00"', "[" * 70 + "]" * 70]
PIECES = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"\\",
    b"\\u",
    b"\x00",
    b"\x1f",
    b"\xff",
    b"\xc3",
    b"\xe9",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xf4\x90\x80\x80",
    b"\xc0\xaf",
    b"e",
    b"E",
    b"+",
    b"-",
    b".",
    b"0",
    b"9",
    b" ",
    b"\n",
    b"\t",
    b"\r",
    b"\x0b",
    b"\xc2\xa0",
    b"null",
    b"1e400",
    b'"id":',
    b"/",
]
SPACES = ("", "", "", "", " ", "\n", "\t", "\r", "  \r\n\t ", "\x0b", "\xa0")


def hostile_event(source: random.Random) -> bytes:
    """One event: often plain, often strange, often no JSON."""
    names = [name for name in ("id", "at", "amount") if source.random() < 0.95]
    names += source.sample(FIELDS[3:], source.randrange(6))
    if source.random() < 0.1:
        names.append(source.choice(FIELDS))
    if source.random() < 0.3:
        source.shuffle(names)
    gap, strange = source.choice(SPACES), source.choice([0, 0, 0.1, 0.4])
    members = [f"{gap}{_name(source, name)}{gap}:{gap}{_value(source, name, strange)}{gap}" for name in names]
    event = bytearray((gap + "{" + ",".join(members) + "}" + gap).encode())
    if source.random() < 0.2:
        damage(source, event)
    return bytes(event)


def damage(source: random.Random, event: bytearray) -> None:
    """A few bytes changed, taken out, put in, doubled or cut off."""
    for _ in range(source.choice([1, 1, 1, 2, 4])):
        at, kind = source.randrange(len(event) + 1), source.randrange(6)
        piece = source.choice(PIECES) if source.random() < 0.8 else bytes([source.randrange(256)])
        if kind == 0:
            event[at : at + len(piece)] = piece
        elif kind == 1:
            del event[at : at + 1]
        elif kind == 2:
            event[at:at] = piece
        elif kind == 3:
            event[at:at] = event[at : at + source.randrange(9)]
        elif kind == 4 and source.random() < 0.3:
            del event[at:]
        elif kind == 5:
            event[at:at] = b"7" * source.randrange(30)


def _name(source: random.Random, name: str) -> str:
    if source.random() < 0.02:
        return f'"\\u{ord(name[0]):04x}{name[1:]}"'
    return f'"{name}"'


def _value(source: random.Random, name: str, strange: float) -> str:
    if source.random() < strange:
        return source.choice(VALUES)
    if name == "place":
        return f'{{"shop":{_value(source, "shop", strange)},"risk":{number_text(source)}}}'
    if name == "spectrum":
        return f"[{number_text(source)},null,{number_text(source)}]"
    if name in ("id", "channel", "shop"):
        return source.choice(
            ['"web"', f'"c{source.randrange(99):05d}"', "17", str(source.getrandbits(source.randrange(1, 66)))]
        )
    if name == "at":
        day = f"2026-{source.randrange(14):02d}-{source.randrange(33):02d}"
        clock = f"{source.randrange(25):02d}:{source.randrange(61):02d}:{source.randrange(61):02d}"
        end = source.choice(["", "Z", "+00:00", ".123Z", ".123456", ".999999+00:00", "+01:00", ".1Z"])
        number = str(source.randrange(10 ** source.randrange(1, 19)))
        return source.choice(
            [f'"{day}T{clock}{end}"', f'"{day} {clock}{end}"', number, f"{number}.{source.randrange(10**6)}"]
        )
    return number_text(source)


def number_text(source: random.Random) -> str:
    """A number with any digits, often close to where float32 or a double is rounded in the other direction."""
    kind = source.randrange(5)
    if kind == 0:
        return repr(source.uniform(-1000, 1000))
    if kind == 1:
        return f"{source.uniform(-1000, 1000):.{source.randrange(6)}f}"
    if kind == 2:  # between two float32
        middle = (2 * source.getrandbits(24) + 1) * 2.0 ** source.randrange(-60, 40)
        text = f"{middle:.{source.randrange(6, 40)}{source.choice('eg')}}"
        return text if "." in text or "e" in text else text + ".0"
    digits = "".join(source.choices("0123456789", k=source.randrange(1, 30))).lstrip("0") or "0"
    text = source.choice(["", "-"]) + digits
    if source.random() < 0.6:
        text += "." + "".join(source.choices("0000123456789", k=source.randrange(1, 30)))
    if source.random() < 0.4:
        text += (
            source.choice("eE") + source.choice(["", "+", "-"]) + str(source.randrange(source.choice([10, 50, 330])))
        )
    return text
