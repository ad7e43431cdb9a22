"""The weights graphs: scores, weights and row normalisers of chosen rows, from captured queries and keys.

They are how the service answers questions about attention: for exactly the layers, heads and query rows asked for, in
memory that does not grow with N x N. Three per weighting:

    <weighting>.normaliser.onnx  query [H, Q, E], key [H, K, E], first_key [Q], last [Q], scale, softcap
                                 -> normaliser [H, Q] (softmax: log-sum-exp; expressive: row sum), in blocks of keys
    <weighting>.onnx             the same, epsilon and normaliser -> scores [H, Q, K], weights [H, Q, K]
    <weighting>.rows.onnx        the same without normaliser -> weights [H, Q, K], of rows with all keys that they may
                                 see, of which each has one: less than half the work of the other two

`first_key` and `last` are the first and last key that each row may see. Key heads are repeated by the caller.
"""

from onnxscript import BOOL, FLOAT, INT64, OnnxFunction, script
from onnxscript.values import Opset

from attnserve.export.bodies.domain import op

KEY_BLOCK = 1024
LOWEST = -3.4028234e38
# Beyond it 1 + z^2 rounds to z^2 in float32 (see the body of ExpressiveAttention).
MAX_ABS_SCORE = 8388608.0

PARTS = Opset("attnserve.weights", 1)


@script(PARTS, default_opset=op)
def score(query: FLOAT["H", "Q", "E"], key: FLOAT["H", "K", "E"], scale: FLOAT, softcap: FLOAT):
    """Scores [H, Q, K] of query rows and keys, before weighting."""
    plain = op.MatMul(query * scale, op.Transpose(key, perm=[0, 2, 1]))
    if softcap > 0.0:  # noqa: SIM108 - an ONNX If
        scores = softcap * op.Tanh(plain / softcap)
    else:
        scores = op.Identity(plain)
    return scores


@script(PARTS, default_opset=op)
def allow(first_key: INT64["Q"], last: INT64["Q"], first_column: INT64, num_columns: INT64):
    """Which of `num_columns` keys, from `first_column` on, each row may see: [Q, num_columns]."""
    column = op.Unsqueeze(op.Range(first_column, first_column + num_columns, 1), [0])
    return op.And(column >= op.Unsqueeze(first_key, [1]), column <= op.Unsqueeze(last, [1]))


@script(PARTS, default_opset=op)
def similarity(scores: FLOAT["H", "Q", "K"], allowed: BOOL["Q", "K"]):
    """Similarity u = z^2 / (1 + z^2) of expressive attention; 0 where a key may not be seen."""
    clamped = op.Clip(scores, -MAX_ABS_SCORE, MAX_ABS_SCORE)
    square = clamped * clamped
    return op.Where(allowed, square / (square + 1.0), 0.0)


@script(PARTS, default_opset=op)
def softmax_normaliser(
    query: FLOAT["H", "Q", "E"],
    key: FLOAT["H", "K", "E"],
    first_key: INT64["Q"],
    last: INT64["Q"],
    scale: FLOAT,
    softcap: FLOAT,
) -> FLOAT["H", "Q"]:
    """Log-sum-exp of each row's scores; -inf for a row without keys."""
    zero_rows = op.ReduceSum(query, [-1], keepdims=0) * 0.0
    largest = zero_rows + LOWEST
    total = op.Identity(zero_rows)
    num_keys = op.Squeeze(op.Shape(key, start=1, end=2))
    start = op.Constant(value_int=0)
    # Not `for`: it leaves the condition of the loop out, which onnx's evaluator reads as false.
    more = start < num_keys
    while more:
        part = op.Slice(key, op.Unsqueeze(start, [0]), op.Unsqueeze(start + KEY_BLOCK, [0]), [1])
        scores = score(query, part, scale, softcap)
        allowed = allow(first_key, last, start, op.Squeeze(op.Shape(part, start=1, end=2)))
        new_largest = op.Max(largest, op.ReduceMax(op.Where(allowed, scores, LOWEST), [-1], keepdims=0))
        exponentials = op.Where(allowed, op.Exp(scores - op.Unsqueeze(new_largest, [-1])), 0.0)
        total = total * op.Exp(largest - new_largest) + op.ReduceSum(exponentials, [-1], keepdims=0)
        largest = op.Identity(new_largest)
        start = start + KEY_BLOCK
        more = start < num_keys
    normaliser = largest + op.Log(total)
    return normaliser


@script(PARTS, default_opset=op)
def expressive_normaliser(
    query: FLOAT["H", "Q", "E"],
    key: FLOAT["H", "K", "E"],
    first_key: INT64["Q"],
    last: INT64["Q"],
    scale: FLOAT,
    softcap: FLOAT,
) -> FLOAT["H", "Q"]:
    """Sum of each row's u; 0 for a row without keys."""
    total = op.ReduceSum(query, [-1], keepdims=0) * 0.0
    num_keys = op.Squeeze(op.Shape(key, start=1, end=2))
    start = op.Constant(value_int=0)
    # Not `for`: it leaves the condition of the loop out, which onnx's evaluator reads as false.
    more = start < num_keys
    while more:
        part = op.Slice(key, op.Unsqueeze(start, [0]), op.Unsqueeze(start + KEY_BLOCK, [0]), [1])
        scores = score(query, part, scale, softcap)
        allowed = allow(first_key, last, start, op.Squeeze(op.Shape(part, start=1, end=2)))
        total = total + op.ReduceSum(similarity(scores, allowed), [-1], keepdims=0)
        start = start + KEY_BLOCK
        more = start < num_keys
    normaliser = op.Identity(total)
    return normaliser


@script(PARTS, default_opset=op)
def softmax_weights(
    query: FLOAT["H", "Q", "E"],
    key: FLOAT["H", "K", "E"],
    first_key: INT64["Q"],
    last: INT64["Q"],
    scale: FLOAT,
    softcap: FLOAT,
    epsilon: FLOAT,
    normaliser: FLOAT["H", "Q"],
) -> tuple[FLOAT["H", "Q", "K"], FLOAT["H", "Q", "K"]]:
    """Scores, and exp(score - normaliser); all 0 for a row without keys."""
    scores = score(query, key, scale, softcap)
    allowed = allow(first_key, last, 0, op.Squeeze(op.Shape(key, start=1, end=2)))
    # At most 0: a score of 1e12 rounded otherwise than in the normaliser's blocks would have an infinite weight.
    exponents = op.Min(scores - op.Unsqueeze(normaliser + epsilon, [-1]), op.Constant(value_float=0.0))
    weights = op.Where(allowed, op.Exp(exponents), 0.0)
    return scores, weights


@script(PARTS, default_opset=op)
def expressive_weights(
    query: FLOAT["H", "Q", "E"],
    key: FLOAT["H", "K", "E"],
    first_key: INT64["Q"],
    last: INT64["Q"],
    scale: FLOAT,
    softcap: FLOAT,
    epsilon: FLOAT,
    normaliser: FLOAT["H", "Q"],
) -> tuple[FLOAT["H", "Q", "K"], FLOAT["H", "Q", "K"]]:
    """Scores, and u / (epsilon + normaliser); all 0 where that sum is 0."""
    scores = score(query, key, scale, softcap)
    allowed = allow(first_key, last, 0, op.Squeeze(op.Shape(key, start=1, end=2)))
    total = op.Unsqueeze(normaliser + epsilon, [-1])
    weights = similarity(scores, allowed) / op.Where(total > 0.0, total, 1.0)
    return scores, weights


@script(PARTS, default_opset=op)
def softmax_rows(
    query: FLOAT["H", "Q", "E"],
    key: FLOAT["H", "K", "E"],
    first_key: INT64["Q"],
    last: INT64["Q"],
    scale: FLOAT,
    softcap: FLOAT,
    epsilon: FLOAT,  # noqa: ARG001 - fed to every weighting; this one has none
) -> FLOAT["H", "Q", "K"]:
    """Softmax of the scores over the keys of the row, of which there is at least one."""
    plain = op.MatMul(query * scale, op.Transpose(key, perm=[0, 2, 1]))
    allowed = allow(first_key, last, 0, op.Squeeze(op.Shape(key, start=1, end=2)))
    # Masked in either branch: what a branch passes on is a copy, and `score` would make one more.
    if softcap > 0.0:
        masked = op.Where(allowed, softcap * op.Tanh(plain / softcap), LOWEST)
    else:
        masked = op.Where(allowed, plain, LOWEST)
    weights = op.Softmax(masked, axis=-1)
    return weights


@script(PARTS, default_opset=op)
def expressive_rows(
    query: FLOAT["H", "Q", "E"],
    key: FLOAT["H", "K", "E"],
    first_key: INT64["Q"],
    last: INT64["Q"],
    scale: FLOAT,
    softcap: FLOAT,
    epsilon: FLOAT,
) -> FLOAT["H", "Q", "K"]:
    """Weights u / (epsilon + sum of u); all 0 where that sum is 0."""
    plain = op.MatMul(query * scale, op.Transpose(key, perm=[0, 2, 1]))
    allowed = allow(first_key, last, 0, op.Squeeze(op.Shape(key, start=1, end=2)))
    # As in `softmax_rows`.
    if softcap > 0.0:
        similarities = similarity(softcap * op.Tanh(plain / softcap), allowed)
    else:
        similarities = similarity(plain, allowed)
    total = op.ReduceSum(similarities, [-1], keepdims=1) + epsilon
    weights = similarities / op.Where(total > 0.0, total, 1.0)
    return weights


WEIGHTS: dict[str, OnnxFunction] = {"softmax": softmax_weights, "expressive": expressive_weights}
NORMALISERS: dict[str, OnnxFunction] = {"softmax": softmax_normaliser, "expressive": expressive_normaliser}
ROWS: dict[str, OnnxFunction] = {"softmax": softmax_rows, "expressive": expressive_rows}
