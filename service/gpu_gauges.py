"""GPU gauges: memory and load of the machine's GPUs, for Prometheus. The driver is asked when somebody looks."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from attnserve.nvidia import Driver, DriverError, ask_driver, read_driver

FRESH_SECONDS = 5.0
PATIENCE_SECONDS = 2.0
LABELS = ("gpu", "uuid")


class GpuGauges(Collector):
    """What NVIDIA's driver says of its GPUs, as last seen; nothing where there is none, or the CPU was asked for.

    Args:
        is_used: whether GPUs may be.
        read: asks the driver; None where there is none.
        clock: seconds.
    """

    def __init__(
        self,
        *,
        is_used: bool,
        read: Callable[[], Driver | None] = read_driver,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_used = is_used
        self._read = read
        self._clock = clock
        self._seen = -FRESH_SECONDS
        self._asked: Future[Driver | None] | None = None
        self._answers: bool | None = None
        self._driver: Driver | None = None

    async def refresh(self) -> None:
        """Ask the driver, unless that was done just now, or it has yet to answer."""
        if not self._is_used or self._clock() - self._seen < FRESH_SECONDS:
            return
        self._seen = self._clock()
        if self._asked is None or self._asked.done():
            self._asked = ask_driver(self._read)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                # Shielded, so that one who gives up looking cancels nothing.
                self._driver = await asyncio.shield(asyncio.wrap_future(self._asked))
        except (TimeoutError, DriverError):
            self._driver, self._answers = None, False
        else:
            self._answers = None if self._driver is None else True

    def collect(self) -> Iterator[Metric]:
        """The samples."""
        answers = GaugeMetricFamily("gpu_driver_answers", "Whether NVIDIA's driver answers for all of its GPUs.")
        size = GaugeMetricFamily("gpu_memory_bytes", "Memory of a GPU.", labels=LABELS)
        used = GaugeMetricFamily("gpu_memory_used_bytes", "Of it, what anybody has.", labels=LABELS)
        busy = GaugeMetricFamily("gpu_busy_ratio", "Share of the last moment in which a GPU computed.", labels=LABELS)
        if self._answers is not None:
            answers.add_metric((), float(self._answers))
        for index, gpu in enumerate(() if self._driver is None else self._driver.gpus):
            labels = (str(index), gpu.uuid)
            size.add_metric(labels, gpu.memory_bytes)
            used.add_metric(labels, gpu.memory_bytes - gpu.free_bytes)
            if gpu.busy is not None:
                busy.add_metric(labels, gpu.busy)
        yield from (answers, size, used, busy)
