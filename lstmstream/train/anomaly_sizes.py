"""What a detector of anomaly_graph.py keeps for each key: the sizes of the two models that are shipped.

The small one keeps at most 1 KiB for one number. It has one shape in place of three, so it sees what the last 8 values
look like and not what the last 100 do; fewer centres; a shorter autoregression; bins of two hours; and few long blocks
in place of many short ones, of which a lower rank is about as rare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lstmstream.model.card import StatePart, StateSpec

FAR = 1e38  # a distance that no centre has; a step between two values that was never seen
MAX_TRACE = 100.0  # of an autoregression's covariance, per regressor

KEY_PARTS = {"forecast": 1, "rank": 1, "rows": 1, "hold": 1, "boost": 1, "quiet": 1}
KEY_FLOATS = sum(KEY_PARTS.values())


@dataclass(frozen=True, slots=True)
class Blocks:
    """Maxima are kept of the last so many blocks of so many rows."""

    rows: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one model."""

    name: str
    shapes: Mapping[str, tuple[int, int]]  # centres, and values of each; of short, middle and long at least middle
    ring: int  # values of z that are kept; the long shape has means of four
    order: int  # of the autoregression
    hours: int  # bins of the day
    events: Blocks
    event_rank: int
    novel: Blocks
    level_rank: int  # of the slow level in the blocks of `novelty`

    @property
    def smoothed(self) -> tuple[str, ...]:
        """The shapes whose smoothed distances are measures of `events`."""
        return tuple(name for name in self.shapes if name != "long")

    @property
    def compared(self) -> tuple[str, ...]:
        """The shapes whose distances are in `rank`."""
        return tuple(name for name in self.shapes if name != "short")

    @property
    def measures(self) -> tuple[str, ...]:
        """Of `events`."""
        return (*self.smoothed, "residual", "size", "spread")

    def channel_parts(self) -> dict[str, tuple[int, ...]]:
        """What is kept for each channel: shapes, in the order of the row."""
        measures = len(self.measures)
        return {
            "scale": (5,),  # mean, deviation, least step between two values, last x, rows
            "ring": (self.ring,),
            **{f"{name}_centres": shape for name, shape in self.shapes.items()},
            **{f"{name}_counts": (count,) for name, (count, _) in self.shapes.items()},
            **{f"{name}_usual": (3,) for name in self.shapes},  # centres in use, running mean distance, rows
            "covariance": (self.order + 1, self.order + 1),
            "weights": (self.order + 1,),
            "regressors": (self.order + 1,),  # the last values of z, newest first, and 1
            "hours": (2, self.hours),  # usual z, and rows
            "residual": (1,),  # of the hour, smoothed
            "differences": (3,),  # fast and slow variance, last z
            "level": (1,),
            "flat": (3,),  # rows with this value, longest such stretch before, changes
            "smooth": (len(self.smoothed) + 1,),  # distances, level
            "ratios": (len(self.compared) + 1, 2),  # running mean and rows, of distances and forecast error
            "blocks": (measures, self.events.blocks),
            "block_now": (measures,),
            "block_reference": (measures,),
            "novel_blocks": (2, self.novel.blocks),
            "novel_now": (2,),
            "novel_reference": (2,),
            "block_count": (4,),  # rows in the block and blocks, of both
        }

    @property
    def channel_floats(self) -> int:
        """Of the row, for each channel."""
        return sum(int(np.prod(shape)) for shape in self.channel_parts().values())

    def state(self) -> StateSpec:
        """The row: the key's own floats, then those of the channel."""
        initial = np.zeros(KEY_FLOATS + self.channel_floats, np.float32)
        parts, offset = [], 0
        for name, size in KEY_PARTS.items():
            parts.append(StatePart(name, offset, (size,)))
            offset += size
        for name, shape in self.channel_parts().items():
            parts.append(StatePart(f"0.{name}", offset, shape))
            size = int(np.prod(shape))
            if name == "scale":
                initial[offset + 2] = FAR
            elif name == "covariance":
                initial[offset : offset + size] = (MAX_TRACE * np.eye(self.order + 1, dtype=np.float32)).ravel()
            elif name == "regressors":
                initial[offset + self.order] = 1
            offset += size
        return StateSpec(len(initial), tuple(map(float, initial)), tuple(parts))


LARGE = Sizes(
    name="anomaly",
    shapes={"short": (32, 5), "middle": (32, 8), "long": (64, 25)},
    ring=100,
    order=16,
    hours=24,
    events=Blocks(rows=25, blocks=128),
    event_rank=6,
    novel=Blocks(rows=50, blocks=256),
    level_rank=3,
)
SMALL = Sizes(
    name="anomaly-small",
    shapes={"middle": (9, 8)},
    ring=8,
    order=4,
    hours=12,
    events=Blocks(rows=200, blocks=12),
    event_rank=3,
    novel=Blocks(rows=800, blocks=8),
    level_rank=1,
)
MODELS = {sizes.name: sizes for sizes in (LARGE, SMALL)}
