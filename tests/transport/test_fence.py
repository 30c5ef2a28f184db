"""What kafka-python's admin client is asked to end a transaction of others, and what the broker's answers mean."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from types import SimpleNamespace
from typing import Any

import kafka.errors as kerr
import pytest
from kafka.protocol.metadata import CoordinatorType

from lstmstream.transport.clients.kafka_python import KafkaPythonAdmin, KafkaPythonClient
from lstmstream.transport.decisions import ErrorKind
from lstmstream.transport.security import SecuritySettings


class Library:
    """Its admin client: one broker coordinates all transactions, and answers with an error code."""

    def __init__(self, code: int = 0) -> None:
        self.sent: list[Any] = []
        self.filters: list[Sequence[str]] = []
        self._code = code
        self._manager = self

    def run(self, send: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return asyncio.run(send())

    async def _find_coordinator_id(self, key: str, key_type: Any) -> int:
        assert (key, key_type) == ("g.member:m", CoordinatorType.TRANSACTION)
        return 7

    async def send(self, request: Any, node_id: int) -> Any:
        assert node_id == 7
        self.sent.append(request)
        return SimpleNamespace(error_code=self._code)

    def list_transactions(self, state_filters: Sequence[str]) -> dict[int, list[Any]]:
        self.filters.append(state_filters)
        return {1: [SimpleNamespace(transactional_id="a")], 2: [], 3: [SimpleNamespace(transactional_id="b")]}


def admin(library: Library) -> KafkaPythonAdmin:
    return KafkaPythonAdmin(library, lambda: None)


@pytest.mark.parametrize("code", [0, kerr.ConcurrentTransactionsError.errno])
def test_one_request_begins_the_end_of_what_is_open(code: int) -> None:
    """The broker may want to be asked again for a producer, which nobody needs."""
    library = Library(code)
    admin(library).fence("g.member:m", 1.0)
    (request,) = library.sent
    assert (request.transactional_id, request.producer_id, request.producer_epoch) == ("g.member:m", -1, -1)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (kerr.TransactionalIdAuthorizationFailedError, ErrorKind.DENIED),
        (kerr.NotCoordinatorError, ErrorKind.TRANSIENT),
        (kerr.CoordinatorLoadInProgressError, ErrorKind.TRANSIENT),
    ],
)
def test_an_error_is_raised(error: type[kerr.BrokerResponseError], kind: ErrorKind) -> None:
    with pytest.raises(error, match=r"g\.member:m") as caught:
        admin(Library(error.errno)).fence("g.member:m", 1.0)
    client = KafkaPythonClient(["nowhere:1"], "g", {}, SecuritySettings())
    problem = client.problem(caught.value)
    assert problem is not None
    assert problem.kind is kind


def test_open_ones_are_asked_for_by_the_text_of_their_state() -> None:
    """The library sends the name of a member of its own enumeration, and the broker has no such state."""
    library = Library()
    assert admin(library).open_transactional_ids(1.0) == ["a", "b"]
    ((state,),) = library.filters
    assert type(state) is str
    assert state == "Ongoing"
