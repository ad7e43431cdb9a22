"""`CaptureStore`: the captures of this replica, within a number of bytes, each until it ends."""

import asyncio
import datetime
import heapq
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable

from attnserve.service.captures.capture import Capture
from attnserve.service.captures.identity import HEADER, CaptureId, make_name, read_id
from attnserve.service.problems import Conflict, Gone, NotFound, TooLarge

EXPIRED, EVICTED, DELETED = REASONS = ("expired", "evicted", "deleted")
FIELD = "capture"
# Ends of captures that went before them are looked for once there are so many more ends than captures.
MAX_SPARE_ENDS = 64


class CaptureStore:
    """Captures by name, the least recently used first. Used from the event loop only, so it needs no lock.

    Nothing it does looks at every capture: there may be a million small ones.

    Args:
        max_bytes: of all captures, what they remember included.
        clock: seconds since 1970, as ids have them.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        """Memory that the captures take, as of when they were last told to `settle`."""
        self.lost: Counter[str] = Counter()
        """Captures that are no longer here, by reason."""
        self.num_taken = 0
        self._clock = clock
        self._captures: OrderedDict[str, Capture] = OrderedDict()
        self._counted: dict[str, int] = {}
        # Those that have something to forget, in the order in which they last did.
        self._remembering: OrderedDict[str, None] = OrderedDict()
        # A heap of when captures end, and their names; those of captures that went before are still in it.
        self._ends: list[tuple[int, str]] = []
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._captures)

    def check_room(self, num_bytes: int) -> None:
        """Refuse a capture for which there is never room.

        Raises:
            TooLarge: says how much there is.
        """
        if num_bytes > self.max_bytes:
            raise TooLarge.about(
                "sequences",
                f"captures may take {self.max_bytes} bytes, this one needs {num_bytes}; capture fewer layers or "
                "steps, or store float16",
            )

    def make_id(self, name: str | None, keep_seconds: float) -> CaptureId:
        """The id of a new capture.

        Args:
            name: that a gateway gave it; None is to be made up.
            keep_seconds: until it ends.

        Raises:
            Conflict: there is a capture of that name.
        """
        if name is not None:
            self._check_name(name)
        return CaptureId(name=name or make_name(), expires=math.ceil(self._clock() + keep_seconds))

    def seconds_left(self, capture: Capture) -> int:
        """Until a capture ends."""
        return max(0, int(capture.id.expires - self._clock()))

    def add(self, capture: Capture) -> None:
        """Keep a capture; others go if there is no room, the least recently used first.

        Raises:
            Conflict: there is one of that name by now.
        """
        name = capture.id.name
        self._check_name(name)
        self._captures[name] = capture
        self.num_taken += 1
        heapq.heappush(self._ends, (capture.id.expires, name))
        self.settle(capture)

    def find(self, text: str, owner: bytes | None) -> Capture:
        """The capture of an id, which its owner alone may see.

        Raises:
            Gone: it was one.
            NotFound: it never was, or is somebody else's.
        """
        identity = read_id(text)
        if identity is None:
            raise NotFound.about(FIELD, f"expected the id of a capture, got {text[:40]!r}")
        if identity.expires <= self._clock():
            self.sweep()
            end = datetime.datetime.fromtimestamp(identity.expires, datetime.UTC)
            raise Gone.about(FIELD, f"ended at {end:%Y-%m-%dT%H:%M:%SZ}; capture again")
        capture = self._captures.get(identity.name)
        if capture is None or capture.id != identity:
            reasons = "deleted, had to make room for others, or was made by a replica that is gone"
            raise Gone.about(FIELD, f"is no longer here: it was {reasons}; capture again")
        if capture.owner != owner:
            raise NotFound.about(FIELD, f"expected the id of a capture, got {text[:40]!r}")
        self._captures.move_to_end(identity.name)
        return capture

    def remove(self, text: str, owner: bytes | None) -> None:
        """Forget a capture; raises as `find`."""
        self._drop(self.find(text, owner).id.name, DELETED)

    def settle(self, capture: Capture) -> None:
        """Count what a capture takes by now, and make room.

        First goes what captures remember that nobody has computed lately, then captures that nobody has used. The
        last one stays: it has been let in.
        """
        self.sweep()
        if self._captures.get(capture.id.name) is capture:
            self._count(capture)
        while self.num_bytes > self.max_bytes and self._remembering:
            oldest = self._captures[next(iter(self._remembering))]
            oldest.forget()
            self._count(oldest)
        while self.num_bytes > self.max_bytes and len(self._captures) > 1:
            self._drop(next(iter(self._captures)), EVICTED)

    def sweep(self) -> None:
        """Forget what has ended."""
        now = self._clock()
        while self._ends and self._ends[0][0] <= now:
            expires, name = heapq.heappop(self._ends)
            if self._is_end(expires, name):
                self._drop(name, EXPIRED)

    def sweep_in_time(self) -> None:
        """Sweep when the next capture ends, if nobody asks for anything until then: its memory is wanted."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ends:
            delay = max(0.0, self._ends[0][0] - self._clock())
            self._timer = asyncio.get_running_loop().call_later(delay, self._wake)

    def _wake(self) -> None:
        self.sweep()
        self.sweep_in_time()

    def _check_name(self, name: str) -> None:
        if name in self._captures:
            raise Conflict.about(HEADER, "expected a name that no capture has, got that of one")

    def _count(self, capture: Capture) -> None:
        name, num_bytes = capture.id.name, capture.num_bytes
        self.num_bytes += num_bytes - self._counted.get(name, 0)
        self._counted[name] = num_bytes
        self._remembering.pop(name, None)
        if capture.remembered_bytes:
            self._remembering[name] = None

    def _drop(self, name: str, reason: str) -> None:
        del self._captures[name]
        self._remembering.pop(name, None)
        self.num_bytes -= self._counted.pop(name)
        self.lost[reason] += 1
        if len(self._ends) > 2 * len(self._captures) + MAX_SPARE_ENDS:
            self._ends = [end for end in self._ends if self._is_end(*end)]
            heapq.heapify(self._ends)

    def _is_end(self, expires: int, name: str) -> bool:
        """Whether it is that of a capture that is still here."""
        capture = self._captures.get(name)
        return capture is not None and capture.id.expires == expires
