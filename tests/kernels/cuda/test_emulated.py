"""The kernels for GPUs, thread by thread on this processor, which no GPU has done yet: their indices, masks, sums and
barriers are tested, with the functions of PTX as its documentation says they are.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attnserve.models.attention import VARIANTS, elliptical_metric
from attnserve.models.attention.packed import attend
from tests.conformance.cases import AttentionCase, MetricCase, attention_case, attention_cases, metric_cases
from tests.kernels.library import CACHE, SOURCES, find_cuda, locked, run

OPS = {variant.op: variant for variant in reversed(VARIANTS.values())}
# Largest differences from float64 with inputs of that type. Products of float32 lose a digit or two.
TYPES = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
LENGTHS = (1, 17, 40, 70, 130)

every_op = pytest.mark.parametrize("op", OPS)
every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)


class Slots(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("num_sequences", ctypes.c_int),
        ("num_steps", ctypes.c_int),
        ("num_rows", ctypes.c_int64),
    )


class AttentionCall(ctypes.Structure):
    _fields_ = (
        ("causal", ctypes.c_bool),
        *((name, ctypes.c_float) for name in ("scale", "epsilon", "softcap")),
        ("window", ctypes.c_int64),
        *((name, ctypes.c_int) for name in ("num_heads", "num_key_heads", "head_size", "value_size")),
        ("slots", Slots),
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "output")),
    )


class MetricCall(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_bool) for name in ("is_prefix", "is_mean")),
        *((name, ctypes.c_int) for name in ("num_heads", "head_size")),
        ("slots", Slots),
        *((name, ctypes.c_void_p) for name in ("value", "previous_value", "output")),
    )


@cache
def build_emulation() -> ctypes.CDLL:
    headers, own = find_cuda() / "include", Path(__file__).parent
    sources = [*own.glob("*.cc"), *own.glob("*.h"), *(SOURCES / "cuda").glob("*.h")]
    library = CACHE / "emulation.so"
    with locked(CACHE):
        if not library.exists() or library.stat().st_mtime < max(path.stat().st_mtime for path in sources):
            folders = ("-I", SOURCES / "cuda", "-I", own, "-isystem", headers)
            warnings = ("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-clobbered", "-Werror")
            run("c++", "-std=c++17", "-O2", *warnings, "-fPIC", "-shared", *folders, own / "emulate.cc", "-o", library)
    emulation = ctypes.CDLL(str(library))
    emulation.emulate_attention.restype = emulation.emulate_metric.restype = ctypes.c_bool
    return emulation


def slots_of(rows: torch.Tensor, num_rows: int) -> Slots:
    return Slots(rows=rows.data_ptr(), num_sequences=len(rows), num_steps=rows.shape[1], num_rows=num_rows)


def emulate_attention(op: str, case: AttentionCase, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    query, key, value, slots = (tensors[name] for name in ("query", "key", "value", "slots"))
    output = torch.zeros(*query.shape[:2], value.shape[2], dtype=query.dtype)
    call = AttentionCall(
        **case.attributes,
        num_heads=query.shape[1],
        num_key_heads=key.shape[1],
        head_size=query.shape[2],
        value_size=value.shape[2],
        slots=slots_of(slots, len(query)),
        query=query.data_ptr(),
        key=key.data_ptr(),
        value=value.data_ptr(),
        output=output.data_ptr(),
    )
    is_softmax = OPS[op].weighting == "softmax"
    assert build_emulation().emulate_attention(ctypes.byref(call), list(TYPES).index(query.dtype), is_softmax)
    return output


def tensors_of(case: AttentionCase | MetricCase, names: tuple[str, ...], dtype: torch.dtype) -> dict[str, Any]:
    tensors = {name: torch.from_numpy(getattr(case, name)).to(dtype) for name in names}
    return {**tensors, "slots": torch.from_numpy(case.slots)}


def assert_agrees(op: str, case: AttentionCase, dtype: torch.dtype = torch.float32) -> None:
    tensors = tensors_of(case, ("query", "key", "value"), dtype)
    wide = {name: tensor if name == "slots" else tensor.double() for name, tensor in tensors.items()}
    expected = attend(OPS[op].weigh, **wide, **case.attributes)
    output = emulate_attention(op, case, tensors)
    torch.testing.assert_close(output.double(), expected, rtol=TYPES[dtype], atol=TYPES[dtype])


@pytest.mark.parametrize(
    ("op", "case"),
    [(op, case) for op, variant in OPS.items() for case in attention_cases(variant.weighting)],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_grid(op: str, case: AttentionCase) -> None:
    assert_agrees(op, case)


@pytest.mark.slow
@every_op
@every_type
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize(
    "options",
    [
        {"head_size": 32, "value_size": 32},
        {"head_size": 64, "value_size": 40, "num_heads": 1, "num_key_heads": 1, "window": 20},
        {"head_size": 9, "value_size": 33, "num_heads": 2, "num_key_heads": 1, "softcap": 2.0},
    ],
    ids=str,
)
def test_sequences_of_many_tiles(op: str, dtype: torch.dtype, causal: bool, options: dict[str, float]) -> None:
    assert_agrees(op, attention_case("many tiles", LENGTHS, causal=causal, **options), dtype)


@pytest.mark.slow
@every_op
@every_type
def test_the_largest_heads(op: str, dtype: torch.dtype) -> None:
    heads = {"num_heads": 1, "num_key_heads": 1}
    assert_agrees(op, attention_case("large", (70,), causal=True, head_size=128, value_size=128, **heads), dtype)


@every_op
@every_type
def test_batch_mates_change_nothing_bit_for_bit(op: str, dtype: torch.dtype) -> None:
    case = attention_case("bits", (70, 5, 33), causal=True)
    tensors = tensors_of(case, ("query", "key", "value"), dtype)
    together = emulate_attention(op, case, tensors)
    own = {name: tensor[75:].contiguous() for name, tensor in tensors.items() if name != "slots"}
    alone = emulate_attention(op, case, {**own, "slots": torch.arange(33)[None]})
    assert torch.equal(alone, together[75:])


@every_op
@pytest.mark.parametrize(
    "slots",
    [[[-1, 0, 1]], [[0, 1, 10**9]], [[2**62, 1, 0]], [[3, 3, 3]], [[-(2**63), 3, 3]], [[0, 0, 1]]],
    ids=str,
)
def test_slots_that_no_packer_makes_write_nothing(op: str, slots: list[list[int]]) -> None:
    case = attention_case("hostile", (3,), causal=True)
    tensors = tensors_of(case, ("query", "key", "value"), torch.float32)
    assert not emulate_attention(op, case, {**tensors, "slots": torch.tensor(slots)}).any()


@every_op
def test_a_number_that_is_none_is_not_hidden(op: str) -> None:
    case = attention_case("not a number", (40, 3), causal=True)
    for name in ("query", "key", "value"):
        tensors = tensors_of(case, ("query", "key", "value"), torch.float32)
        tensors[name][35, 0, 0] = torch.nan
        output = emulate_attention(op, case, tensors)
        sees = range(35, 36 if name == "query" else 40)
        assert all(output[row, 0].isnan().any() for row in sees)
        assert not output[:, 1].isnan().any()
        assert not output[40:].isnan().any()


@pytest.mark.parametrize("case", metric_cases(), ids=lambda case: case.name)
@every_type
def test_metrics(case: MetricCase, dtype: torch.dtype) -> None:
    tensors = tensors_of(case, ("value", "previous_value"), dtype)
    assert_measures(case, tensors)


@pytest.mark.parametrize("size", [33, 256])
def test_metrics_of_any_size(size: int) -> None:
    (case, *_) = (case for case in metric_cases() if case.scope == "prefix" and case.lengths == (5, 1, 3, 8))
    value, previous = torch.from_numpy(np.random.default_rng(size).normal(size=(2, 17, 2, size))).float()
    assert_measures(case, {"value": value, "previous_value": previous, "slots": torch.from_numpy(case.slots)})


def assert_measures(case: MetricCase, tensors: dict[str, torch.Tensor]) -> None:
    value = tensors["value"]
    output = torch.zeros_like(value)
    call = MetricCall(
        is_prefix=case.scope == "prefix",
        is_mean=case.scaling == "mean",
        num_heads=value.shape[1],
        head_size=value.shape[2],
        slots=slots_of(tensors["slots"], len(value)),
        value=value.data_ptr(),
        previous_value=tensors["previous_value"].data_ptr(),
        output=output.data_ptr(),
    )
    assert build_emulation().emulate_metric(ctypes.byref(call), list(TYPES).index(value.dtype))
    wide = {name: tensor if name == "slots" else tensor.double() for name, tensor in tensors.items()}
    expected = elliptical_metric(**wide, scope=case.scope, scaling=case.scaling)
    torch.testing.assert_close(output.double(), expected, rtol=TYPES[value.dtype], atol=TYPES[value.dtype])
