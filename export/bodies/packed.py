"""Bodies shared by the attention ops: gather the steps of every sequence, score, scatter back.

The ONNX twin of `attnserve.models.attention.packed`; shape letters as there. Conditions on attributes are `If` nodes
over constants: ONNX Runtime folds them away when it inlines the body, so an unused window or softcap costs nothing.
"""

from onnxscript import script

from attnserve.export.bodies.domain import DOMAIN, op


@script(DOMAIN, default_opset=op)
def GatherSteps(rows, slots):
    """Lay rows [T, G, E] out as steps [B, G, N, E], in float32; a slot without a row reads zeros."""
    one_row = op.Concat(op.Constant(value_ints=[1]), op.Shape(rows, start=1), axis=0)
    empty = op.CastLike(op.Expand(op.Constant(value_float=0.0), one_row), rows)
    padded = op.Cast(op.Concat(rows, empty, axis=0), to=1)
    return op.Transpose(op.Gather(padded, slots, axis=0), perm=[0, 2, 1, 3])


@script(DOMAIN, default_opset=op)
def ScatterSteps(steps, slots, rows):
    """Bring steps [B, G, N, V] back to rows [T, G, V] of the type of `rows`; steps without a row are dropped."""
    by_step = op.Transpose(steps, perm=[0, 2, 1, 3])
    sizes = op.Shape(by_step, start=2)
    flat = op.Reshape(by_step, op.Concat(op.Constant(value_ints=[-1]), sizes, axis=0))
    num_rows = op.Shape(rows, end=1)
    # Every slot without a row names row T: they overwrite each other there, and that row is cut off.
    one_more = op.Concat(num_rows + op.Constant(value_ints=[1]), sizes, axis=0)
    scattered = op.ScatterND(
        op.Expand(op.Constant(value_float=0.0), one_more),
        op.Reshape(slots, op.Constant(value_ints=[-1, 1])),
        flat,
    )
    kept = op.Slice(scattered, op.Constant(value_ints=[0]), num_rows, op.Constant(value_ints=[0]))
    return op.CastLike(kept, rows)


@script(DOMAIN, default_opset=op)
def AllowedKeys(slots, rows, causal: int, window: int):
    """Which keys a query may see: bool [B, 1, 1, N, N], or [B, 1, 1, 1, N] where every query sees the same ones."""
    # Gathered, not compared with T: what is made of sizes and inputs alone ONNX Runtime computes on the CPU. From a GPU
    # it would copy `slots` there and every layer's mask back, and a run with copies cannot be recorded as a CUDA graph.
    present = op.Expand(op.Constant(value_float=1.0), op.Shape(rows, end=1))
    known = op.Gather(op.Concat(present, op.Constant(value_floats=[0.0]), axis=0), slots, axis=0)
    exists = op.Unsqueeze(op.Cast(known, to=9), op.Constant(value_ints=[1, 2, 3]))
    num_steps = op.Squeeze(op.Shape(slots, start=1))
    step = op.Range(op.Constant(value_int=0), num_steps, op.Constant(value_int=1))
    distance = op.Unsqueeze(step, op.Constant(value_ints=[1])) - op.Unsqueeze(step, op.Constant(value_ints=[0]))
    if op.Constant(value_int=causal) > 0:  # noqa: SIM108 - an ONNX If
        past = op.And(exists, distance >= 0)
    else:
        past = op.Identity(exists)
    if op.Constant(value_int=window) > 0:
        near = op.And(past, op.Abs(distance) < op.Constant(value_int=window))
    else:
        near = op.Identity(past)
    return near


@script(DOMAIN, default_opset=op)
def Scores(query, key, scale: float, softcap: float):
    """Score each query of [B, H, N, E] with the keys [B, K, N, E] of its group: [B, K, H / K, N, N]."""
    sizes = op.Shape(key)
    batch_and_heads = op.Slice(sizes, op.Constant(value_ints=[0]), op.Constant(value_ints=[2]))
    steps_and_size = op.Slice(sizes, op.Constant(value_ints=[2]), op.Constant(value_ints=[4]))
    grouped = op.Reshape(query, op.Concat(batch_and_heads, op.Constant(value_ints=[-1]), steps_and_size, axis=0))
    transposed = op.Unsqueeze(op.Transpose(key, perm=[0, 1, 3, 2]), op.Constant(value_ints=[2]))
    plain = op.MatMul(grouped * op.Constant(value_float=scale), transposed)
    if op.Constant(value_float=softcap) > 0.0:
        scores = op.Constant(value_float=softcap) * op.Tanh(plain / op.Constant(value_float=softcap))
    else:
        scores = op.Identity(plain)
    return scores


@script(DOMAIN, default_opset=op)
def MergeGroups(steps):
    """Merge [B, K, H / K, N, V] into [B, H, N, V]."""
    sizes = op.Shape(steps)
    batch = op.Slice(sizes, op.Constant(value_ints=[0]), op.Constant(value_ints=[1]))
    steps_and_size = op.Slice(sizes, op.Constant(value_ints=[3]), op.Constant(value_ints=[5]))
    return op.Reshape(steps, op.Concat(batch, op.Constant(value_ints=[-1]), steps_and_size, axis=0))
