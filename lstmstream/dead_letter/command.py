"""`lstmstream dead-letter list | show | replay`: options, what they print, and their exit codes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from lstmstream.config import Config, load_config, load_stages
from lstmstream.dead_letter.fields import EventView, ReadFields, UnreadFields
from lstmstream.dead_letter.letters import Filter, Letter, Place, read_letters
from lstmstream.dead_letter.replay import Change, Outcome, Replay, set_fields
from lstmstream.errors import BadRecord, CannotServe
from lstmstream.formats.json_documents import parse_digits
from lstmstream.formats.timestamps import format_iso, timestamp_ms
from lstmstream.logs import escape_untrusted
from lstmstream.transport.kafka_admin import KafkaAdmin, open_kafka_admin
from lstmstream.transport.patient_broker import PatientBroker, connected
from lstmstream.whole_file import named
from lstmstream.wording import counted

STAGES = ("decode", "validate", "late", "step", "publish")
REASON_CHARS = 120  # on the screen
MAX_REFUSED = 20  # on the screen


def make_filter(
    *,
    stage: str | None,
    reason: str | None,
    key: str | None,
    since: str | None,
    until: str | None,
    places: Sequence[str] = (),
) -> Filter:
    """What the options mean. Raises CannotServe."""
    if stage is not None and stage not in STAGES:
        raise CannotServe(f"--stage {stage}: there is no such stage; they are {', '.join(STAGES)}")
    if reason is not None and not reason:
        raise CannotServe("--reason: is empty, which any reason contains; give a part of one, or leave the option out")
    chosen = frozenset(map(Place.parse, places))
    since_ms, until_ms = _time("--from", since), _time("--to", until)
    if since_ms is not None and until_ms is not None and since_ms >= until_ms:
        raise CannotServe(f"--from {since}: must be before --to {until}")
    return Filter(stage, reason, key, since_ms, until_ms, chosen)


def list_letters(config: Path, filter_: Filter, *, limit: int, as_json: bool, stage_name: str | None = None) -> int:
    """Print the last of those that are meant, one a line, and how many there are of each stage. Raises CannotServe."""
    stages: Counter[str] = Counter()
    replayed = 0
    last: deque[Letter] = deque(maxlen=limit)
    with _opened(config, stage_name) as (loaded, _kafka, broker):
        for letter in read_letters(broker, loaded.dead_letter.topic, filter_):
            stages[letter.stage] += 1
            replayed += letter.replayed
            last.append(letter)
    if as_json:
        for letter in last:
            print(orjson.dumps(letter.to_dict()).decode())
        return 0
    for letter in last:
        print(_line(letter))
    parts = ", ".join(f"{count:,} {stage}" for stage, count in stages.most_common())
    total = sum(stages.values())
    shown = f"; the last {len(last):,} are shown (--limit)" if len(last) < total else ""
    print(
        f"{counted(total, 'dead letter')}{': ' if parts else ''}{parts}; {replayed:,} of them replayed{shown}",
        file=sys.stderr,
    )
    return 0


def show_letter(config: Path, place: str, *, as_json: bool, stage_name: str | None = None) -> int:
    """Print one with all that it has. Raises CannotServe."""
    wanted = Place.parse(place)
    with _opened(config, stage_name) as (loaded, _kafka, broker):
        topic = loaded.dead_letter.topic
        letter = next(read_letters(broker, topic, Filter(places=frozenset([wanted]))), None)
    if letter is None:
        raise CannotServe(f"topic {topic!r} has no dead letter {wanted}; `dead-letter list` prints their places")
    if as_json:
        print(orjson.dumps(letter.to_dict(), option=orjson.OPT_INDENT_2).decode())
        return 0
    of, partition, offset = letter.source
    rows = {
        "event": f"{of}[{partition}]@{offset}",
        "time": _time_text(letter),
        "stage": letter.stage,
        "reason": escape_untrusted(letter.reason, 10_000),
        "replayed": "yes" if letter.replayed else "no",
        "key": "none" if letter.key is None else escape_untrusted(letter.key, 1_000),
        **{f"header {escape_untrusted(name)}": escape_untrusted(value or b"", 1_000) for name, value in letter.headers},
    }
    width = max(map(len, rows))
    for name, text in rows.items():
        print(f"{name:<{width}}  {text}")
    print("value" if letter.value is not None else "no value")
    if letter.value is not None:
        print(_pretty(letter.value))
    return 0


def replay_letters(
    config: Path,
    filter_: Filter,
    *,
    everything: bool,
    settings: Sequence[str] = (),
    add_fields: bool = False,
    edit: bool = False,
    dry_run: bool = False,
    as_json: bool = False,
    stage_name: str | None = None,
) -> int:
    """Write the events back to the input topic. 1 if some could not be; raises CannotServe."""
    if filter_ == Filter() and not everything:
        raise CannotServe("say which dead letters: by their places, --stage, --reason, --key, --from, --to, or --all")
    if settings and edit:
        raise CannotServe("--set and --edit cannot be used together: give one of them")
    given = parse_settings(settings)
    with _opened(config, stage_name) as (loaded, kafka, broker):
        read = None
        if given and not add_fields:
            stages = [] if stage_name is None else [one.config for one in load_stages(config)]
            read = ReadFields(EventView(loaded), [loaded, *(one for one in stages if one.name != loaded.name)])
        change: Change | None = set_fields(given, read) if given else each_once(edit_value) if edit else None
        run = Replay(kafka, broker, loaded, change=change)
        if read is not None:
            _check_fields(run, filter_)
        if dry_run:
            return _print_preview(run, filter_, changed=change is not None)
        outcome = run.run(filter_)
    _print_outcome(outcome, loaded, as_json=as_json)
    return 1 if outcome.refused or outcome.missing else 0


def _check_fields(run: Replay, filter_: Filter) -> None:
    """Before anything is written: whether `--set` adds fields that nobody reads. Raises CannotServe."""
    total = 0
    lacking: dict[str, list[tuple[Letter, str]]] = {}
    for letter, found in run.preview(filter_):
        total += 1
        if isinstance(found, UnreadFields):
            for name, hint in found.hints.items():
                lacking.setdefault(name, []).append((letter, hint))
    if lacking:
        problems = []
        for name, those in lacking.items():
            letter, hint = those[0]
            problems.append(
                f"--set {name}: {len(those):,} of {counted(total, 'dead letter')} (the first: {letter.place}) would get"
                f" a field that neither the model nor the configuration reads; {hint} Nothing was written; to add it"
                " all the same: --add-fields"
            )
        raise CannotServe(*problems)


def _print_preview(run: Replay, filter_: Filter, *, changed: bool) -> int:
    done = refused = 0
    for letter, found in run.preview(filter_):
        print(_line(letter))
        if isinstance(found, BadRecord):
            refused += 1
            print(f"    would not be replayed: {escape_untrusted(str(found), REASON_CHARS)}")
            continue
        done += 1
        if changed:
            print(f"    {escape_untrusted(found, 1_000)}")
    text = f"{counted(done, 'dead letter')} would be replayed"
    text += f"; {refused:,} could not be" if refused else ""
    missing = run.missing(filter_)
    _say_missing(missing)
    print(text + _others(done + refused, run.earlier), file=sys.stderr)
    return 1 if refused or missing else 0


def parse_settings(settings: Sequence[str]) -> Mapping[str, Any]:
    """FIELD=VALUE each; a value that is JSON is that, any other is text. Raises CannotServe."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not name or not separator:
            raise CannotServe(f"--set {setting}: is not FIELD=VALUE")
        if name in found:
            raise CannotServe(f"--set {setting}: {name} was given another value before")
        try:
            orjson.loads(text)
            found[name] = parse_digits(text.encode())  # an integer of any length stays as it is written
        except orjson.JSONDecodeError:
            found[name] = text
    return found


def edit_value(letter: Letter) -> bytes:
    """The value as a person leaves it in $VISUAL or $EDITOR.

    Raises BadRecord where the editor fails or leaves nothing, CannotServe where it cannot be started.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="lstmstream-") as folder:
        file = Path(folder) / f"dead-letter-{letter.place}.json"
        with named(file):
            file.write_bytes(letter.value or b"")
        try:
            ended = subprocess.run([*shlex.split(editor), str(file)], check=False)
        except (OSError, ValueError) as error:  # ValueError: quotation marks that are not closed
            raise CannotServe(
                f"--edit: {editor!r} cannot be started ({error}); set EDITOR to another editor"
            ) from error
        if ended.returncode:
            raise BadRecord("replay", f"{editor!r} ended with exit code {ended.returncode}")
        value = file.read_bytes().rstrip(b"\n") if file.exists() else b""
        if not value:
            raise BadRecord("replay", "the editor has left nothing")
        return value


def each_once(change: Change) -> Change:
    """The same change, made once for each letter: a transaction that failed is done again, and nobody edits twice."""
    made: dict[Place, bytes] = {}

    def changed(letter: Letter) -> bytes:
        if letter.place not in made:
            made[letter.place] = change(letter)
        return made[letter.place]

    return changed


@contextmanager
def _opened(config: Path, stage: str | None) -> Iterator[tuple[Config, KafkaAdmin, PatientBroker]]:
    loaded = load_config(config, stage=stage)
    kafka = open_kafka_admin(loaded)
    say: Callable[[str], None] = lambda text: print(f"dead-letter: {text}", file=sys.stderr, flush=True)  # noqa: E731
    with connected(kafka, "the topics cannot be used", say=say) as broker:
        yield loaded, kafka, broker


def _time(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return timestamp_ms(text, option)
    except BadRecord as bad:
        raise CannotServe(f"{option} {text}: is not an ISO 8601 time") from bad


def _time_text(letter: Letter) -> str:
    return format_iso(letter.timestamp_ms) if letter.timestamp_ms >= 0 else "none"


def _line(letter: Letter) -> str:
    key = "" if letter.key is None else f"  key {escape_untrusted(letter.key, 40)}"
    reason = escape_untrusted(letter.reason, REASON_CHARS)
    replayed = "  (replayed)" if letter.replayed else ""
    return f"{letter.place!s:<10}  {_time_text(letter)}  {letter.stage:<8}{key}  {reason}{replayed}"


def _pretty(value: bytes) -> str:
    try:
        return orjson.dumps(orjson.loads(value), option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONDecodeError:
        return escape_untrusted(value, 100_000)


def _say_missing(places: Sequence[Place]) -> None:
    for place in places:
        print(f"{place}: is not there, or the other options leave it out", file=sys.stderr)


def _print_outcome(outcome: Outcome, config: Config, *, as_json: bool) -> None:
    if as_json:
        refused = [{**letter.to_dict(), "refused": why} for letter, why in outcome.refused]
        replayed = [letter.to_dict() for letter in outcome.replayed]
        body = {"replayed": replayed, "refused": refused, "missing": list(map(str, outcome.missing))}
        print(orjson.dumps(body, option=orjson.OPT_INDENT_2).decode())
        return
    _say_missing(outcome.missing)
    for letter, why in outcome.refused[:MAX_REFUSED]:
        print(f"{letter.place}: not replayed: {escape_untrusted(why, REASON_CHARS)}", file=sys.stderr)
    if len(outcome.refused) > MAX_REFUSED:
        print(f"and {len(outcome.refused) - MAX_REFUSED:,} more", file=sys.stderr)
    done = len(outcome.replayed)
    text = f"{_count(done, 'event')} {'was' if done == 1 else 'were'} written to {config.input.topic}"
    text += f"; {len(outcome.refused):,} could not be replayed" if outcome.refused else ""
    print(text + _others(done + len(outcome.refused), outcome.earlier), file=sys.stderr)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _others(now: int, earlier: int) -> str:
    """What else is to be said of the dead letters that are meant: `now` of them are new, `earlier` were replayed."""
    if earlier:
        return f"; {earlier:,} {'was' if earlier == 1 else 'were'} replayed before"
    return "" if now else "; no dead letter is meant: `dead-letter list` shows them"
