"""The body of `EllipticalMetric`; formula and source in `attnserve.models.attention.elliptical`."""

from onnxscript import script

from attnserve.export.bodies.domain import DOMAIN, op
from attnserve.export.bodies.packed import GatherSteps, ScatterSteps


@script(DOMAIN, default_opset=op)
def EllipticalMetric(value, previous_value, slots, prefix: int, mean: int):
    """Metric [T, K, E] of every row: sum of |value - previous_value| over its sequence's steps, scaled by max or mean.

    `prefix` 1 sums over steps up to the row's own, 0 over the whole sequence; `mean` 1 scales by the mean over E.
    """
    # Steps without a row read 0 from both and add 0: padding cannot bend the metric.
    change = op.Abs(GatherSteps(value, slots) - GatherSteps(previous_value, slots))
    if op.Constant(value_int=prefix) > 0:
        total = op.CumSum(change, op.Constant(value_int=2))
    else:
        total = op.Expand(op.ReduceSum(change, op.Constant(value_ints=[2]), keepdims=1), op.Shape(change))
    if op.Constant(value_int=mean) > 0:
        norm = op.ReduceMean(total, op.Constant(value_ints=[-1]), keepdims=1)
    else:
        norm = op.ReduceMax(total, op.Constant(value_ints=[-1]), keepdims=1)
    metric = op.Where(norm > 0.0, total / op.Where(norm > 0.0, norm, 1.0), 1.0)
    return ScatterSteps(metric, slots, value)
