"""The bodies of `AttentionStatistics`, one per weighting; docs/kernels.md has the formulas.

They add up weights as the graphs of rows make them, H x Q x N at a time: who runs them gives rows in blocks, of at
least one head and one row, because ONNX Runtime reduces empty tensors to a wrong shape.
"""

from onnxscript import FLOAT, INT64, OnnxFunction, script

from attnserve.export.bodies.domain import op
from attnserve.export.weights import PARTS, allow, expressive_rows, similarity, softmax_rows

# The smallest that is not denormal, which a device may take for 0.
TINY = 1.17549435e-38
BITS_PER_NAT = 1.4426950408889634


@script(PARTS, default_opset=op)
def add_up(weights: FLOAT["H", "Q", "N"], token: INT64["N"], step: INT64["Q"]):
    """What rows of weights add up to, in the order of the op's outputs."""
    mass = op.ReduceSum(weights, [-1], keepdims=0)

    # A weight of 0 adds 0 times a finite number.
    logs = op.Log(op.Max(weights, op.Constant(value_float=TINY)))
    nats = op.ReduceSum(weights * logs, [-1], keepdims=0)
    # Rounding may make it a little more than nothing. A NaN stays.
    entropy = op.Where(nats >= 0.0, 0.0, nats * -BITS_PER_NAT)

    num_rows, num_keys = op.Squeeze(op.Shape(step)), op.Squeeze(op.Shape(token))
    back = op.Unsqueeze(step, [1]) - op.Unsqueeze(op.Range(0, num_keys, 1), [0])
    distance = op.ReduceSum(weights * op.Cast(op.Abs(back), to=1), [-1], keepdims=0)

    sink = op.Gather(weights, op.Constant(value_int=0), axis=2)
    flat = op.Reshape(weights, op.Concat(op.Shape(weights, end=1), op.Constant(value_ints=[-1]), axis=0))
    place = op.Range(0, num_rows, 1) * num_keys + step
    own = op.Gather(flat, place, axis=1)
    # Before step 0 there is none: what is read there, at the end of another row, does not count.
    previous = op.Where(step > 0, op.Gather(flat, place - 1, axis=1), 0.0)

    own_token = op.Unsqueeze(op.Gather(token, step), [1])
    # Ids are not negative: what stands before the first key is like none of them.
    token_before = op.Concat(op.Constant(value_ints=[-1]), op.Slice(token, [0], [-1], [0]), axis=0)
    is_duplicate = op.And(own_token == op.Unsqueeze(token, [0]), back > 0)
    is_induction = op.And(own_token == op.Unsqueeze(token_before, [0]), back >= 0)
    duplicate = op.ReduceSum(weights * op.Cast(is_duplicate, to=1), [-1], keepdims=0)
    induction = op.ReduceSum(weights * op.Cast(is_induction, to=1), [-1], keepdims=0)

    received = op.ReduceSum(weights, [1], keepdims=0)
    return mass, entropy, distance, sink, previous, own, duplicate, induction, received


@script(PARTS, default_opset=op)
def softmax_statistics(
    query: FLOAT["H", "Q", "E"],
    key: FLOAT["H", "N", "E"],
    token: INT64["N"],
    step: INT64["Q"],
    first_key: INT64["Q"],
    last_key: INT64["Q"],
    scale: FLOAT,
    softcap: FLOAT,
    epsilon: FLOAT,
):
    """Statistics of rows of a softmax."""
    # A softmax of a row without keys is that of equal scores.
    has_keys = op.Cast(op.Unsqueeze(first_key <= last_key, [1]), to=1)
    weights = softmax_rows(query, key, first_key, last_key, scale, softcap, epsilon) * has_keys
    mass, entropy, distance, sink, previous, own, duplicate, induction, received = add_up(weights, token, step)
    return mass, entropy, distance, sink, previous, own, duplicate, induction, received


@script(PARTS, default_opset=op)
def expressive_statistics(
    query: FLOAT["H", "Q", "E"],
    key: FLOAT["H", "N", "E"],
    token: INT64["N"],
    step: INT64["Q"],
    first_key: INT64["Q"],
    last_key: INT64["Q"],
    scale: FLOAT,
    softcap: FLOAT,
    epsilon: FLOAT,
):
    """Statistics of rows of expressive attention."""
    weights = expressive_rows(query, key, first_key, last_key, scale, softcap, epsilon)
    mass, entropy, distance, sink, previous, own, duplicate, induction, received = add_up(weights, token, step)
    return mass, entropy, distance, sink, previous, own, duplicate, induction, received


STATISTICS: dict[str, OnnxFunction] = {"softmax": softmax_statistics, "expressive": expressive_statistics}
# Callees first: onnx's evaluator reads functions in the order of the file.
CALLED: dict[str, tuple[OnnxFunction, ...]] = {
    "softmax": (allow, softmax_rows, add_up),
    "expressive": (allow, similarity, expressive_rows, add_up),
}
