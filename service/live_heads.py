"""Live heads: what sampled traffic measured of every head of a model, and Prometheus' view of it.

Sums and counts, not averages: a dashboard takes the mean over any time it likes, and over all replicas.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from attnserve.service.model import ServedModel

SUMMED = {"entropy_normalised": "attention_entropy_ratio", "sink": "attention_sink_ratio"}
"""Measures of heads, and what their metrics are called."""
COLLAPSE = "collapse"
# Cosines may be negative, and of negative numbers a sum is no counter: buckets tell the share that is above a bound.
COSINES = (-0.5, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
OUTCOMES = ("measured", "interrupted", "displaced", "length", "failed")
"""What becomes of a sequence that was chosen."""
LABELS = ("model", "version")


class LiveHeads:
    """What was measured of one version of a model since it was loaded; for one event loop."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.totals: dict[str, NDArray[np.float64]] = {}
        """[layers, heads] each."""
        self.counts: dict[str, NDArray[np.int64]] = {}
        self.cosines: NDArray[np.int64] | None = None
        """[layers, buckets]"""

    def add(self, measures: Mapping[str, NDArray[Any]]) -> None:
        """Add what one sequence measured: [layers, heads] of heads, [layers] of layers; NaN is no number."""
        for name in SUMMED:
            values = measures[name].astype(np.float64)
            is_there = np.isfinite(values)
            if name not in self.totals:
                self.totals[name], self.counts[name] = np.zeros(values.shape), np.zeros(values.shape, np.int64)
            self.totals[name] += np.where(is_there, values, 0)
            self.counts[name] += is_there
        if self.cosines is None:
            self.cosines = np.zeros((len(measures[COLLAPSE]), len(COSINES) + 1), np.int64)
        for layer, cosine in enumerate(measures[COLLAPSE].tolist()):
            if np.isfinite(cosine):
                self.cosines[layer, bisect_left(COSINES, cosine)] += 1


class HeadMetrics(Collector):
    """Live heads of the models that are served now; those of a model that is gone go with it.

    Args:
        find_models: the models.
    """

    def __init__(self, find_models: Callable[[], Iterable["ServedModel"]]) -> None:
        self._find_models = find_models

    def collect(self) -> Iterator[Metric]:
        """All that was measured."""
        heads = (*LABELS, "layer", "head")
        summaries = {
            "entropy_normalised": SummaryMetricFamily(
                SUMMED["entropy_normalised"], "Normalised entropy of a head, per sampled sequence.", labels=heads
            ),
            "sink": SummaryMetricFamily(
                SUMMED["sink"], "Weight of the first key in a head, per sampled sequence.", labels=heads
            ),
        }
        collapse = HistogramMetricFamily(
            "attention_collapse_cosine",
            "Mean cosine of pairs of steps behind a layer, per sampled sequence.",
            labels=(*LABELS, "layer"),
        )
        samples = CounterMetricFamily(
            "attention_samples", "Sequences chosen to be measured.", labels=(*LABELS, "outcome")
        )
        for model in self._find_models():
            labels, live = (model.name, str(model.version)), model.live
            for outcome in OUTCOMES if live.outcomes else ():
                samples.add_metric((*labels, outcome), live.outcomes[outcome])
            for name, totals in live.totals.items():
                for (layer, head), total in np.ndenumerate(totals):
                    place = (*labels, str(layer), str(head))
                    summaries[name].add_metric(place, int(live.counts[name][layer, head]), float(total))
            for layer, counts in enumerate(() if live.cosines is None else live.cosines.cumsum(1).tolist()):
                bounds = [*map(floatToGoString, COSINES), "+Inf"]
                buckets = list(zip(bounds, map(float, counts), strict=True))
                collapse.add_metric((*labels, str(layer)), buckets, None)
        yield from (*summaries.values(), collapse, samples)
