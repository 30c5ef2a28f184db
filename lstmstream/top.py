"""`lstmstream top URL…`: the live figures of several daemons in a terminal, a row for each."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lstmstream.errors import CannotServe
from lstmstream.logs import escape_untrusted

TOKEN_VARIABLE = "LSTMSTREAM_HTTP__TOKEN"  # noqa: S105 - its name, as in the daemon's own configuration
DEFAULT_URL = "http://127.0.0.1:9108"
TIMEOUT_S = 3.0
INTERVAL_S = 1.0
MAX_BYTES = 4_194_304  # of an answer
SHOWN_ALERTS = 5
SHOWN_REASONS = 5
COLUMNS = (
    *("daemon", "address", "phase", "events/s", "p50", "p99"),
    *("lag", "batch", "keys", "memory", "alerts", "dead", "model"),
)
WORDS = frozenset({"daemon", "address", "phase", "model"})
LEFT_OUT = frozenset({"address", "batch", "memory", "model"})  # where the terminal is narrower than
WIDE = 120  # columns
LEFT_OUT_NARROW = LEFT_OUT | {"p50", "keys"}  # where it is narrower than
NARROW = 72


class Answer(NamedTuple):
    """What one daemon says, or why it says nothing."""

    url: str
    snapshot: Mapping[str, Any] | None
    error: str = ""


def run_top(urls: Sequence[str], *, once: bool, as_json: bool, token_file: Path | None) -> int:
    """Print a table each second until Ctrl-C; with `once` or `as_json`, once. 1 if a daemon does not answer then.

    Raises CannotServe for a URL that is none.
    """
    token = _token(token_file)
    targets = [_checked(url) for url in urls or (DEFAULT_URL,)]
    with ThreadPoolExecutor(min(32, len(targets)), thread_name_prefix="lstmstream-top") as pool:

        def ask_all() -> list[Answer]:
            return list(pool.map(lambda url: ask(url, token), targets))

        if as_json:
            answers = ask_all()
            print(json.dumps([_as_json(answer) for answer in answers], indent=2))
            return int(any(answer.snapshot is None for answer in answers))
        console = Console(highlight=False)
        if once or not console.is_terminal:
            answers = ask_all()
            for part in render(answers, console.width).renderables:
                console.print(part, soft_wrap=isinstance(part, Text))
            return int(any(answer.snapshot is None for answer in answers))
        return _watch(console, ask_all)


def _watch(console: Console, ask_all: Callable[[], list[Answer]]) -> int:
    try:
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while True:
                live.update(render(ask_all(), console.width), refresh=True)
                time.sleep(INTERVAL_S)
    except KeyboardInterrupt:
        return 0


def ask(url: str, token: str | None) -> Answer:
    """The snapshot of the daemon at `url`, checked as far as `render` reads it."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        connection.request("GET", f"{parts.path.rstrip('/')}/live", headers=headers)
        response = connection.getresponse()
        body = response.read(MAX_BYTES)
        if response.status == http.client.UNAUTHORIZED:
            return Answer(url, None, f"asks for its token: set {TOKEN_VARIABLE}, or --token-file")
        if response.status != http.client.OK:
            return Answer(url, None, f"answers with HTTP status {response.status}")
        snapshot = json.loads(body)
        _row(Answer(url, snapshot))
        return Answer(url, snapshot)
    except (OSError, http.client.HTTPException) as error:
        return Answer(url, None, f"does not answer ({escape_untrusted(str(error) or type(error).__name__, 100)})")
    except (ValueError, TypeError, KeyError, AttributeError):
        return Answer(url, None, "answers, but not with the live figures of lstmstream")
    finally:
        connection.close()


def render(answers: Sequence[Answer], width: int) -> Group:
    """The table, and below it what needs a person: reasons, last alerts, dead letters. `width`: of the terminal."""
    left_out = frozenset() if width >= WIDE else LEFT_OUT if width >= NARROW else LEFT_OUT_NARROW
    shown = [column for column in COLUMNS if column not in left_out]
    table = Table(box=None, pad_edge=False, expand=False)
    for column in shown:
        number = column not in WORDS
        table.add_column(
            column, justify="right" if number else "left", no_wrap=number or column == "phase", overflow="fold"
        )
    for answer in answers:
        row = _row(answer)
        table.add_row(*(row.get(column, Text("")) for column in shown))
    return Group(table, *_below(answers))


def _row(answer: Answer) -> dict[str, Text]:
    """The cells by column."""
    address = Text(urlsplit(answer.url).netloc)
    if answer.snapshot is None:
        return {"daemon": address, "phase": Text("no answer", style="red")}
    now = answer.snapshot
    model, totals = now["model"], now["totals"]
    cells = {
        "daemon": now["name"],
        "events/s": f"{now['events_per_s']:,.0f}",
        "p50": _seconds(now["latency"]["p50_s"]),
        "p99": _seconds(now["latency"]["p99_s"]),
        "lag": "unknown" if now["lag"]["total"] is None else f"{now['lag']['total']:,}",
        "batch": "-" if now["batch_events"] is None else f"{now['batch_events']:,.0f}",
        "keys": f"{now['state']['keys']:,}",
        "memory": "-" if now["memory_bytes"] is None else f"{now['memory_bytes'] / 2**20:,.0f} MiB",
        "alerts": f"{totals['alerts']:,}",
        "dead": f"{totals['dead_letters']:,}",
        "model": "" if model is None else f"{model['name']} {model['version']}",
    }
    phase = Text(_phase(now), style="green" if now["ready"] else "yellow")
    return {"address": address, "phase": phase} | {name: _plain(text) for name, text in cells.items()}


def _phase(now: Mapping[str, Any]) -> str:
    progress = now["restore"]["progress"]
    phase = escape_untrusted(now["phase"], 60)
    return phase if progress is None else f"{phase} {progress:.0%}"


def _below(answers: Sequence[Answer]) -> list[Text]:
    found = [(answer.snapshot["name"], answer.snapshot) for answer in answers if answer.snapshot is not None]
    lines = [Text("")]
    lines += [_plain(f"{answer.url} {answer.error}", style="red") for answer in answers if answer.snapshot is None]
    for name, now in found:
        lines += [_plain(f"{name}: {reason}", style="yellow") for reason in now["reasons"]]
    alerts = sorted(
        ((alert["at_s"], name, alert) for name, now in found for alert in now["alerts"]), key=lambda one: -one[0]
    )
    for at_s, name, alert in alerts[:SHOWN_ALERTS]:
        fields = "".join(f", {field} {value}" for field, value in alert.get("event", {}).items())
        key = f" key {alert['key']}" if alert.get("key") is not None else ""
        lines.append(_plain(f"{_clock(at_s)} alert in {name}:{key} score {alert['score']:.4g}{fields}"))
    rejected = [
        (reason["at_s"], name, stage, reason["message"])
        for name, now in found
        for stage, letters in now["dead_letters"].items()
        for reason in letters["reasons"]
    ]
    for at_s, name, stage, message in sorted(rejected, reverse=True)[:SHOWN_REASONS]:
        lines.append(_plain(f"{_clock(at_s)} dead letter in {name} ({stage}): {message}"))
    return lines if len(lines) > 1 else []


def _plain(text: str, style: str = "") -> Text:
    """Never markup, never an escape sequence: keys and fields come from outside."""
    return Text(escape_untrusted(text, 300), style=style)


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:,.0f} ms" if value < 1 else f"{value:,.1f} s"


def _clock(at_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at_s))


def _as_json(answer: Answer) -> dict[str, Any]:
    about: dict[str, Any] = {"url": answer.url}
    return about | ({"error": answer.error} if answer.snapshot is None else {"live": answer.snapshot})


def _checked(url: str) -> str:
    """A URL of a daemon; host:port is one too. Raises CannotServe."""
    full = url if "://" in url else f"http://{url}"
    shown = escape_untrusted(url)
    try:
        parts = urlsplit(full)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and full.isascii()
    except ValueError:
        usable = False
    if not usable or not full.isprintable() or " " in full:
        raise CannotServe(f"{shown} is not the address of a daemon; give a URL such as {DEFAULT_URL}")
    return full


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise CannotServe(f"--token-file {escape_untrusted(str(file))}: {why}") from None
