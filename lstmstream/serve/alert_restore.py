"""What the alert policy remembers of a partition, brought back with its states.

Incidents come with the states of their keys, and a replay moves them on, by the settings that were in force at the
time. Hours come from the floor record and are those of the committed offset, so that a replay leaves them alone.
"""

from __future__ import annotations

import numpy as np

from lstmstream.serve.alert_memory import AlertRules, RulesFrom, extend_history
from lstmstream.serve.alert_policy import AlertPolicy
from lstmstream.serve.partition import Partition
from lstmstream.serve.state_records import Floor

_NO_END = int(np.iinfo(np.int64).max)


class RestoredAlerts:
    """Of one partition that is being restored."""

    def __init__(self, partition: Partition, rules: AlertRules | None) -> None:
        """`rules`: those of the configuration; None: it has no policy, and nothing is remembered."""
        self.count_hours = False  # whether the replay counts the hours too
        self._partition = partition
        self._rules = rules
        self._policies: list[tuple[int, AlertPolicy]] = []  # by the offset from which they were in force

    def begin(self, origin: int) -> None:
        """Nothing is remembered before `origin`, where the first event is that is answered."""
        self.count_hours = False
        self._set_history((), origin)
        self._partition.alerts_written = self._partition.alerts

    def why_rebuilt(self, floor: Floor, committed: int) -> str | None:
        """Why the hours cannot be used, where they cannot: they contain events that are still to come."""
        moved_back = floor.alerts is not None and bool(floor.alerts.hours) and floor.position > committed
        if self._rules is None or not moved_back:
            return None
        return f"the group's offset was moved back to {committed}, before alerts that were counted later"

    def resume(self, floor: Floor, committed: int) -> None:
        """Go on from what the floor record and the states remember, which are in the slab."""
        slab, memory = self._partition.slab, floor.alerts
        self._partition.alerts_written = memory
        if self._rules is None or memory is None or not memory.history:
            slab.incidents.clear()
            self._set_history((), committed)
            return
        self.count_hours = self.why_rebuilt(floor, committed) is not None
        if self.count_hours:  # every event of the partition is needed again, whatever its key's state has seen
            slab.remove_all(slab.index.keys_at(slab.index.rows()))
        else:
            slab.alert_hours = memory.hours
        since = memory.history[0].offset
        for key in list(slab.incidents):  # of a time before, after which there was no policy
            if 0 <= slab.last_offset[slab.index[key]] < since:  # -1: the state comes from elsewhere
                slab.set_incident(key, None)
        self._set_history(memory.history, committed)

    def policy_at(self, offset: int) -> tuple[AlertPolicy | None, int]:
        """What was in force at an input offset, None where nothing was; and the offset where that has ended."""
        found = None
        for start, policy in self._policies:
            if start > offset:
                return found, start
            found = policy
        return found, _NO_END

    def _set_history(self, history: tuple[RulesFrom, ...], position: int) -> None:
        """`position`: the first event that is yet to be answered."""
        extended = () if self._rules is None else extend_history(history, position, self._rules)
        self._partition.alert_rules = extended
        self._policies = [(one.offset, AlertPolicy(one.rules)) for one in extended]
