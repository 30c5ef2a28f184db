"""How much the consumers of a client ask for at once: less, once a fetch did not come to its end.

A slow network carries so many bytes in the time that a consumer is waited for. A new one that asks for as
many again comes no further either.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

_LEAST_BYTES = 16 << 10

log = logging.getLogger(__name__)


class FetchLimit:
    """Shrinks the limits of a fetch, under whatever names a library has for them."""

    def __init__(self, largest: str, largest_of_partition: str) -> None:
        self._names = (largest, largest_of_partition)
        self._divisor = self._said = 1

    def shrink(self) -> None:
        """A quarter, from the next consumer on."""
        self._divisor *= 4

    def apply(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a consumer, with its limits divided."""
        found = dict(settings)
        if self._divisor > 1:
            for name in self._names:
                found[name] = min(found[name], max(_LEAST_BYTES, found[name] // self._divisor))
        if self._divisor > self._said:
            self._said = self._divisor
            log.warning(
                "fetches are smaller from now on, in case that the network is too slow for them",
                extra={"max_partition_fetch_bytes": found[self._names[1]]},
            )
        return found
