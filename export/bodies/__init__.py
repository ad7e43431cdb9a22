"""The function bodies: what ONNX Runtime runs where no kernel is registered. One op, one file, one line here."""

from onnxscript import OnnxFunction

from attnserve.export.bodies import packed
from attnserve.export.bodies.dot_product import DotProductAttention
from attnserve.export.bodies.elliptical import EllipticalMetric
from attnserve.export.bodies.expressive import ExpressiveAttention

BODIES: dict[str, OnnxFunction] = {
    body.name: body
    for body in (
        DotProductAttention,
        ExpressiveAttention,
        EllipticalMetric,
    )
}

# Called by the bodies; not ops of their own.
PARTS: tuple[OnnxFunction, ...] = (
    packed.GatherSteps,
    packed.ScatterSteps,
    packed.AllowedKeys,
    packed.Scores,
    packed.MergeGroups,
)
