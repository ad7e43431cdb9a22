"""The op domain and the ONNX opset that bodies and graphs are written for."""

from onnxscript import opset20 as op
from onnxscript.values import Opset

from attnserve.bundle import OP_DOMAIN, OP_VERSION

# One opset for both: a body must import the same version as the model that holds it.
OPSET = 20
DOMAIN = Opset(OP_DOMAIN, OP_VERSION)

__all__ = ["DOMAIN", "OPSET", "op"]
