"""Page-locked memory, of a library with the functions of CUDA's runtime: cudart.c."""

import ctypes
import threading
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.capi import build_and_package_info

from attnserve import pinned
from attnserve.buckets import round_up
from attnserve.packing import pack
from attnserve.pinned import MIN_BYTES, Pinned
from attnserve.runtime import Runtime
from attnserve.traffic import CUDA
from tests.c_library import compile_library

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "v1"
KB = 1024


@pytest.fixture
def build(tmp_path):
    def build_library(limit: int = 1 << 40) -> ctypes.CDLL:
        source = Path(__file__).with_name("cudart.c")
        found = ctypes.CDLL(str(compile_library(source, tmp_path / "libcudart.so", f"-DLIMIT={limit}ul")))
        found.bytes_ever_allocated.restype = ctypes.c_ulong
        return found

    return build_library


def address_of(array):
    return array.__array_interface__["data"][0]


def test_an_array_is_page_locked_if_it_is_large(build):
    library = build()
    pool = Pinned(library, 3)
    assert pool.empty([MIN_BYTES - 1], np.uint8).shape == (MIN_BYTES - 1,)
    assert library.bytes_ever_allocated() == 0
    array = pool.empty((16, 1000, 2), np.float32)
    assert (array.shape, array.dtype, array.flags.c_contiguous) == ((16, 1000, 2), np.float32, True)
    array[:] = 7
    assert library.bytes_ever_allocated() == pool.num_bytes == 128 * KB
    assert library.current_device() == 3, "another GPU would have been woken for it"


def test_a_block_is_used_again_once_nothing_looks_at_it(build):
    library = build()
    pool = Pinned(library, 0)
    array = pool.empty([100 * KB], np.uint8)
    address, part = address_of(array), array[5:].reshape(-1, 1)
    del array
    other = pool.empty([100 * KB], np.uint8)
    assert address_of(other) != address, "a part of it was still in use"
    del part
    assert address_of(pool.empty([120 * KB], np.uint8)) == address
    assert library.num_frees() == 0


def test_blocks_that_nobody_uses_make_room_for_others(build):
    library = build()
    pool = Pinned(library, 0, max_bytes=1024 * KB)
    kept, gone = pool.empty([512 * KB], np.uint8), pool.empty([256 * KB], np.uint8)
    kept[:] = 1
    # No room, and none that could be made: memory like any other.
    assert pool.empty([512 * KB], np.uint8).shape == (512 * KB,)
    assert pool.num_bytes == 768 * KB
    del gone
    large = pool.empty([384 * KB], np.uint8)
    large[:] = 2
    assert (pool.num_bytes, library.num_frees()) == (896 * KB, 1)
    assert (kept == 1).all()


def test_what_cuda_refuses_is_made_of_other_memory(build):
    library = build(limit=100 * KB)
    pool = Pinned(library, 0)
    array = pool.empty([128 * KB], np.uint8)
    array[:] = 1
    assert (pool.num_bytes, library.bytes_ever_allocated()) == (0, 0)
    assert library.cudaGetLastError() == 0, "the next node of a graph would fail by it"
    assert pool.empty([64 * KB], np.uint8).nbytes == pool.num_bytes


def test_nothing_is_allocated_while_a_graph_is_recorded(build):
    library = build()
    pool = Pinned(library, 0)
    made = []
    thread = threading.Thread(target=lambda: made.append(pool.empty([64 * KB], np.uint8)))
    with CUDA.silence() as is_silent:
        assert is_silent
        thread.start()
        thread.join(0.2)
        assert library.bytes_ever_allocated() == 0
    thread.join()
    assert made[0].nbytes == library.bytes_ever_allocated()


def test_a_batch_is_read_from_there_and_answered_there(build):
    library = build()
    pool = Pinned(library, 0)
    plain, bound = Runtime(BUNDLE, num_threads=1), Runtime(BUNDLE, num_threads=1, binds=True)
    bound.empty = pool.empty
    generator = np.random.default_rng(0)
    # As many sequences, of the longest, as make ids, logits and captures large enough.
    sequences = [generator.integers(0, 5, plain.manifest.max_length) for _ in range(800)]
    rows = np.arange(sum(map(len, sequences)))
    expected = plain.run(pack(sequences), rows, ["logits", "layers.0.query"], rows)
    packed = pack(sequences, pool.empty)
    np.testing.assert_array_equal(packed.inputs, np.concatenate(sequences))
    assert pool.num_bytes == round_up(8 * len(rows))
    found = bound.run(packed, rows, ["logits", "layers.0.query"], rows)
    assert pool.num_bytes == sum(map(round_up, (8 * len(rows), *(array.nbytes for array in expected.values()))))
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_without_cudas_runtime_arrays_are_numpys(monkeypatch, caplog):
    monkeypatch.setattr(build_and_package_info, "cuda_version", "99.0")
    pinned.find_empty.cache_clear()
    try:
        assert pinned.find_empty(0) is np.empty
    finally:
        pinned.find_empty.cache_clear()
    assert "without page-locked memory: libcudart.so.99 cannot be loaded" in caplog.text
