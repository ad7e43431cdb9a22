"""The plan of an answer: what a dry run says, without a forward pass."""

from typing import Any

from attnserve.service.attention import check_size, count_weights, held_bytes
from attnserve.service.layout import lay_out
from attnserve.service.model import ServedModel
from attnserve.service.passes import list_ablations
from attnserve.service.preprocess import PredictRequest
from attnserve.service.problems import TooLarge


def describe_plan(model: ServedModel, request: PredictRequest, *, max_response_bytes: int) -> dict[str, Any]:
    """Tensors of the answer, what it costs, and whether it would be given in each kind of format."""
    question, layers = request.attention, model.manifest.layers
    assert question is not None
    layout = lay_out(question, layers, request.lengths)
    num_passes = 1 + len(list_ablations(request)) + (question.compare is not None)
    cost = model.tuning.cost
    return {
        "model": model.name,
        "version": model.version,
        "lengths": request.lengths,
        "tensors": {
            f"sequences.{index}.{tensor.name}": {
                "axes": tensor.axes,
                "shape": tensor.shape,
                "dtype": tensor.coding,
                "bytes": tensor.num_bytes,
            }
            for index, tensors in enumerate(layout)
            for tensor in tensors
        },
        "num_numbers": sum(tensor.num_values for tensors in layout for tensor in tensors),
        "num_bytes": sum(tensor.num_bytes for tensors in layout for tensor in tensors),
        "num_weights": count_weights(question, request.lengths),
        "held_bytes": held_bytes(request, model.manifest),
        "num_passes": num_passes,
        "forward_seconds": num_passes * sum(cost.seconds_alone(length) for length in request.lengths),
        "refused": {
            name: _explain(request, model, as_json=as_json, max_response_bytes=max_response_bytes)
            for name, as_json in (("json", True), ("tensors", False))
        },
    }


def _explain(request: PredictRequest, model: ServedModel, *, as_json: bool, max_response_bytes: int) -> str | None:
    """Why an answer would not be given; None if it would."""
    try:
        check_size(request, model.manifest.layers, as_json=as_json, max_response_bytes=max_response_bytes)
    except TooLarge as problem:
        return problem.detail
    return None
