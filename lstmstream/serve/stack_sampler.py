"""Where the threads of this process are, fifty times a second, for a profile that a person looks at in speedscope.

A thread of its own looks at the stacks of all others. Own code, since no library fits a daemon: pyinstrument follows
the one thread that starts it and keeps every sample, and py-spy is another process with the right to trace this one.

Equal stacks are counted together, so that months fit into the memory of an hour; their order in time is lost. The
sampler runs when Python lets it: what holds the interpreter for long gets its sample when it ends, with its whole time.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from types import CodeType, FrameType
from typing import Any

from lstmstream import __version__
from lstmstream.serve.thread_cpu import ThreadCpu

INTERVAL_S = 0.02  # about 2 % of a busy daemon's CPU time: more for its threads taking turns than for the samples
CPU_INTERVAL_S = 1.0  # a thread that ends takes its last second with it
MAX_DEPTH = 128  # frames of one stack, the innermost
MAX_STACKS = 20_000  # different ones, of all threads; those that come later are counted as one
MAX_THREADS = 64  # as above
SCHEMA = "https://www.speedscope.app/file-format-schema.json"

_OTHER = "(other stacks)"
_OTHER_THREADS = "(other threads)"

Stack = tuple[int, ...]  # numbers of frames, outermost first


class StackSampler:
    """Samples from `start` to `stop`."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._codes: dict[int, tuple[int, CodeType]] = {}  # by id; the code is kept, so that no other gets its id
        self._frames: list[dict[str, object]] = [{"name": _OTHER}]
        self._threads: dict[tuple[int, str], dict[Stack, float]] = {}  # seconds of each stack
        self._stacks = 0
        self.cpu = ThreadCpu()
        self._running = threading.Lock()  # held while it runs: cheaper to wait for than an Event
        self._thread = threading.Thread(target=self._run, name="lstmstream-profile", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._running.acquire()  # `stop` releases it
        self._thread.start()

    def stop(self) -> None:
        """Take no more samples."""
        self._running.release()
        self._thread.join()

    def _run(self) -> None:
        before_s = next_cpu_s = time.monotonic()
        while not self._running.acquire(timeout=self._interval_s):
            now_s = time.monotonic()
            self._sample(now_s - before_s)
            before_s = now_s
            if now_s >= next_cpu_s:
                self.cpu.look()
                next_cpu_s = now_s + CPU_INTERVAL_S
        self.cpu.look()

    def _sample(self, seconds: float) -> None:
        # A function of its own: a frame that a variable held until the next sample would hold a batch's arrays, too.
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():  # the documented way, for all its underscore
            if ident != self._thread.ident:
                self.add(ident, names.get(ident, f"thread {ident}"), frame, seconds)

    def add(self, ident: int, name: str, frame: FrameType | None, seconds: float) -> None:
        """Count `seconds` for the stack that ends in `frame`."""
        thread = (ident, name)
        if thread not in self._threads:
            if len(self._threads) >= MAX_THREADS:
                thread = (0, _OTHER_THREADS)
            self._threads.setdefault(thread, {})
        stacks = self._threads[thread]
        stack = self._stack(frame)
        if stack not in stacks:
            if self._stacks >= MAX_STACKS:
                stack = (0,)
            else:
                self._stacks += 1
        stacks[stack] = stacks.get(stack, 0.0) + seconds

    def _stack(self, frame: FrameType | None) -> Stack:
        numbers: list[int] = []
        while frame is not None and len(numbers) < MAX_DEPTH:
            code = frame.f_code
            known = self._codes.get(id(code))
            numbers.append(self._new_frame(code) if known is None else known[0])
            frame = frame.f_back
        return tuple(reversed(numbers))

    def _new_frame(self, code: CodeType) -> int:
        if len(self._frames) >= MAX_STACKS:  # functions that are made again and again
            return 0
        number = len(self._frames)
        self._codes[id(code)] = (number, code)
        self._frames.append({"name": code.co_qualname, "file": code.co_filename, "line": code.co_firstlineno})
        return number

    def speedscope(self, name: str) -> Mapping[str, Any]:
        """What was sampled, in speedscope's file format: one profile per thread, seconds of wall time."""
        profiles = []
        for (_, thread), stacks in self._threads.items():
            ordered = sorted(stacks)  # neighbours share their callers, which draws as one block
            profiles.append(
                {
                    "type": "sampled",
                    "name": thread,
                    "unit": "seconds",
                    "startValue": 0.0,
                    "endValue": sum(stacks[stack] for stack in ordered),
                    "samples": ordered,
                    "weights": [stacks[stack] for stack in ordered],
                }
            )
        return {
            "$schema": SCHEMA,
            "name": name,
            "exporter": f"lstmstream {__version__}",
            "activeProfileIndex": next((i for i, p in enumerate(profiles) if p["name"] == "MainThread"), 0),
            "shared": {"frames": self._frames},
            "profiles": profiles,
        }
