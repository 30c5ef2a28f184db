"""Which fields of an event anybody reads, so that `--set` adds none by a typing error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from lstmstream.config import Config
from lstmstream.errors import BadRecord, CannotServe
from lstmstream.formats.event_reader import EventReader
from lstmstream.formats.field_names import listed, names_of, similar_name
from lstmstream.formats.json_documents import Document, locate, parse_document
from lstmstream.model import load_model
from lstmstream.records import Headers

_ENVELOPES = {"after": ("payload.after", "after"), "cloudevents": ("data",)}  # where the event is in a record


class UnreadFields(BadRecord):
    """Fields that a change would add to an event, and that nobody reads there."""

    def __init__(self, hints: Mapping[str, str]) -> None:
        """`hints`: field → a sentence on which one may be meant."""
        self.hints = hints
        super().__init__("replay", f"it has no field {listed(hints)}, which nobody reads")


class EventView:
    """Events as the daemon reads them: the JSON object of a record, out of its envelope."""

    def __init__(self, config: Config) -> None:
        """`config`: of the stage that reads them."""
        unwrap = config.input.unwrap
        self.prefixes = () if unwrap is None else _ENVELOPES[unwrap]
        # Without the input's format: what is changed, and so is read here, is JSON.
        self._reader = None if unwrap is None else EventReader(None, unwrap, max_bytes=config.input.max_bytes)

    def document(self, value: bytes | None, headers: Headers) -> Document:
        """An empty one where the daemon could not read the record."""
        try:
            event = value if self._reader is None or value is None else self._reader.event(value, headers)
            return parse_document(event)
        except BadRecord:
            return {}


class ReadFields:
    """The fields that the daemons of these configurations read."""

    def __init__(self, view: EventView, configs: Iterable[Config]) -> None:
        """`view`: of the first of them. `configs`: those of the later stages read what it passes on."""
        self._view = view
        self._configs = list(configs)

    @cached_property
    def names(self) -> Sequence[str]:
        """Each once. Raises CannotServe where a model cannot be read."""
        return list(dict.fromkeys(name for config in self._configs for name in _names(config)))

    def check(self, record: bytes, headers: Headers, changed: bytes, without: Mapping[str, bytes]) -> None:
        """Whether each field that a change adds is read. Raises UnreadFields, CannotServe.

        `record` and `changed`: the value before and after it. `without`: field → the value after the change of all
        others but this one.
        """
        after = self._view.document(changed, headers)
        unread = [
            name for name, value in without.items() if not self._differ(after, self._view.document(value, headers))
        ]
        if unread:
            before, event = parse_document(record), self._view.document(record, headers)
            raise UnreadFields({name: self._hint(name, before, event) for name in unread})

    def _differ(self, one: Document, other: Document) -> bool:
        return any(locate(one, name) != locate(other, name) for name in self.names)

    def _hint(self, name: str, record: Document, event: Document) -> str:
        """`record`: the JSON object before the change, with its envelope; `event`: without it."""
        known = [*self.names, *names_of([event])]
        prefix = next((f"{one}." for one in self._view.prefixes if type(locate(record, one)) is dict), "")
        similar = similar_name(name.removeprefix(prefix), known)
        if similar is None and prefix:  # perhaps another one was given
            similar = similar_name(name.rpartition(".")[2], known)
        if similar is not None:
            return f"did you mean {prefix + similar!r}?"
        return f"the event's fields begin with {prefix!r}." if prefix else f"read are {listed(self.names)}."


def _names(config: Config) -> Iterator[str]:
    read, output = config.input, config.output
    try:
        card = load_model(config.model, base=config.folder).card
    except CannotServe as error:
        advice = "--add-fields replays the events without asking the model which fields it reads"
        raise CannotServe(*error.problems, advice) from error
    yield from (feature.name for feature in card.features)
    yield from (
        name
        for name in (read.key, read.timestamp, read.silent.field, *output.include, output.key, output.events.key)
        if name is not None
    )
