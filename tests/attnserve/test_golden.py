"""Golden is read strictly and compared strictly: a replay must not pass by comparing nothing."""

import copy
import dataclasses
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnserve.bundle import LOGITS, TOP, BundleError
from attnserve.certificate import Certificate, Deviation
from attnserve.describing import RowStatistics
from attnserve.golden import Golden, largest_difference, read_golden, replay, write_golden
from attnserve.runtime import Runtime
from tests.chosen import copy_with_top
from tests.kernels.library import build_library

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "v1"


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime(BUNDLE, num_threads=1)


@pytest.fixture
def golden() -> Golden:
    return read_golden(BUNDLE)


def test_it_survives_a_round_trip(golden: Golden, tmp_path: Path) -> None:
    write_golden(tmp_path, golden)
    again = read_golden(tmp_path)
    assert all(np.array_equal(vars(again)[name], array) for name, array in vars(golden).items())
    # The same bytes every time: no clock in the archive.
    first = (tmp_path / "golden.npz").read_bytes()
    write_golden(tmp_path, golden)
    assert (tmp_path / "golden.npz").read_bytes() == first


def test_sequences_and_batches_are_cut_where_they_end(golden: Golden) -> None:
    assert [len(sequence) for sequence in golden.sequences] == golden.lengths.tolist()
    assert np.array_equal(np.concatenate(golden.sequences), golden.inputs)
    assert [len(batch) for batch in golden.batches] == golden.batch_sizes.tolist()


def test_replay_runs_every_batch_and_says_so(runtime: Runtime, golden: Golden) -> None:
    told: list[int] = []
    report = replay(runtime, golden, told.append)
    assert told == list(range(len(golden.batches)))
    assert [batch.num_sequences for batch in report.batches] == golden.batch_sizes.tolist()
    assert report.passed
    assert 0 < report.logits <= report.certificate.logits.allowed
    assert 0 < report.maps <= report.certificate.maps.allowed
    assert report.device == "cpu"
    assert report.quantisation is None


@pytest.mark.parametrize("name", ["logits", "maps"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e-3], ids=str)
def test_one_wrong_number_is_enough(runtime: Runtime, golden: Golden, name: str, value: float) -> None:
    array = getattr(golden, name).copy()
    array[(-1,) * array.ndim] += value
    report = replay(runtime, dataclasses.replace(golden, **{name: array}))
    assert not report.passed
    assert getattr(report, name) > 5e-4
    # A sequence is told on by every batch it stands in, alone and packed.
    assert sum(getattr(batch, name) > 5e-4 for batch in report.batches) == 3


def test_another_certificate_judges_the_same_differences(runtime: Runtime, golden: Golden) -> None:
    nothing = Certificate(
        precision="float32", logits=Deviation(reference=0, allowed=0), maps=Deviation(reference=0, allowed=0)
    )
    strict = replay(runtime, golden, certificate=nothing)
    assert (strict.passed, strict.certificate) == (False, nothing)
    allowed = nothing.allow(0.5, 3.0)
    assert (allowed.logits.allowed, allowed.maps.allowed) == (1.5, 0.5)
    assert replay(runtime, golden, certificate=allowed).passed
    # It takes nothing away.
    assert allowed.allow(0.1, 3.0) == allowed


@pytest.mark.parametrize("swap", [(slice(None), [1, 0]), (slice(None), slice(None), [1, 0])], ids=["layers", "heads"])
def test_maps_belong_to_their_layer_and_head(runtime: Runtime, golden: Golden, swap: Any) -> None:
    maps = golden.maps.copy()
    chosen = (*swap[:-1], slice(0, 2))
    maps[chosen] = golden.maps[swap]
    assert not replay(runtime, dataclasses.replace(golden, maps=maps)).passed


def test_other_sizes_than_the_models_do_not_pass(runtime: Runtime, golden: Golden) -> None:
    # numpy would stretch one column over the vocabulary, and one head over all.
    narrow = dataclasses.replace(golden, logits=golden.logits[:, :1].copy())
    assert replay(runtime, narrow).logits == float("inf")
    assert replay(runtime, dataclasses.replace(golden, maps=golden.maps[:, :, :1].copy())).maps == float("inf")


@pytest.mark.parametrize("name", [None, "self", "received"])
def test_what_kernels_say_of_rows_is_held_to_the_truth(golden: Golden, name: str | None) -> None:
    runtime = Runtime(BUNDLE, num_threads=1, op_library=build_library())
    describing = runtime.weighing.describing
    assert describing is not None

    class Wrong:
        def describe(self, *arguments: Any, **options: Any) -> RowStatistics:
            rows = describing.describe(*arguments, **options)
            return rows if name is None else dataclasses.replace(rows, sums={**rows.sums, name: rows.sums[name] + 1e-2})

    runtime.weighing.describing = Wrong()  # type: ignore[assignment]
    report = replay(runtime, golden)
    assert report.passed == (name is None)
    assert (report.maps > 5e-4) == (name is not None)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle with a graph that chooses entries itself. Not to be written to: copy it."""
    return copy_with_top(BUNDLE, tmp_path_factory.mktemp("chosen") / "bundle", 3)


@pytest.mark.parametrize("binds", [False, True])
def test_entries_that_the_graph_chooses_are_replayed_too(chosen: Path, golden: Golden, binds: bool) -> None:
    asked = []
    runtime = Runtime(chosen, num_threads=1, binds=binds)
    run = runtime.run
    runtime.run = lambda *given, **options: asked.append(given[2]) or run(*given, **options)  # type: ignore[method-assign]
    report = replay(runtime, golden, rehearses=True)
    assert report.passed
    assert report.num_wrong_top == 0
    # As they are served: alone, and where somebody else in the batch wants all logits. And rehearsed.
    assert asked.count(TOP) == 2 * len(golden.batches)
    assert asked.count([LOGITS, *TOP]) == len(golden.batches)


@pytest.mark.parametrize("name", [*TOP])
@pytest.mark.parametrize("with_logits", [True, False])
def test_one_wrong_entry_is_enough(chosen: Path, golden: Golden, name: str, with_logits: bool) -> None:
    runtime = Runtime(chosen, num_threads=1)
    run = runtime.run

    def lie(packed: Any, rows: Any, outputs: Any, **options: Any) -> dict[str, Any]:
        found = run(packed, rows, outputs, **options)
        if name in found and (LOGITS in found) == with_logits:
            found[name][-1] += 1
        return found

    runtime.run = lie  # type: ignore[method-assign]
    report = replay(runtime, golden)
    assert not report.passed
    assert (report.num_wrong_top == len(golden.batches)) == with_logits
    assert (report.logits > 0.1) == (not with_logits)


@pytest.mark.parametrize(
    ("found", "expected", "largest"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([1.0, np.nan], [1.0, 2.0], np.inf),
        ([1.0, np.inf], [1.0, np.inf], np.inf),
        ([1.0, np.nan], [1.0, np.nan], np.inf),
        ([[1.0], [1.0]], [1.0, 1.0], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        ([], [], 0.0),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_largest_difference(found: Any, expected: Any, largest: float) -> None:
    assert largest_difference(np.array(found), np.array(expected)) == largest


WRONG: dict[str, tuple[Callable[[Golden], dict[str, Any]], str]] = {
    "no batches": (lambda g: {"batch_sizes": g.batch_sizes[:0], "batch_members": g.batch_members[:0]}, "batch_sizes"),
    "no rows": (lambda g: {"logit_rows": g.logit_rows[:0], "logits": g.logits[:0]}, "logit_rows"),
    "no maps": (lambda g: {"map_rows": g.map_rows[:0], "maps": g.maps[:0]}, "map_rows"),
    "a sequence nobody runs": (lambda g: {"batch_members": np.zeros_like(g.batch_members)}, "batch_members"),
    "a sequence too many": (lambda g: {"batch_members": g.batch_members + 1}, "batch_members"),
    "batches of nobody": (
        lambda g: {"batch_sizes": np.concatenate([[0], g.batch_sizes])},
        "batch_sizes: expected numbers >= 1",
    ),
    "lengths": (lambda g: {"lengths": g.lengths + 1}, "lengths: expected"),
    "empty sequence": (lambda g: {"lengths": np.array([0, g.lengths.sum()])}, "lengths: expected"),
    "rows out of order": (lambda g: {"logit_rows": g.logit_rows[::-1].copy()}, "logit_rows: expected ascending"),
    "row beyond": (lambda g: {"map_rows": g.map_rows + 1}, "map_rows: expected ascending numbers below"),
    "negative row": (lambda g: {"map_rows": g.map_rows - 1}, "map_rows: expected int64"),
    "fewer logits": (lambda g: {"logits": g.logits[1:]}, "logits: expected float64"),
    "float32": (lambda g: {"logits": g.logits.astype(np.float32)}, "logits: expected float64"),
    "shorter maps": (lambda g: {"maps": g.maps[..., 1:]}, "maps: expected [rows, layers, heads, 12]"),
    "int32": (lambda g: {"inputs": g.inputs.astype(np.int32)}, "tokens: expected int64"),
    "two dimensions": (lambda g: {"inputs": g.inputs[None]}, "expected"),
}


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_arrays_that_do_not_belong_together_are_refused(
    golden: Golden, tmp_path: Path, change: Callable[[Golden], dict[str, Any]], said: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        dataclasses.replace(golden, **change(golden))
    arrays = {**vars(golden), **change(golden)}
    np.savez(tmp_path / "golden.npz", tokens=arrays.pop("inputs"), **arrays)
    with pytest.raises(BundleError, match=re.escape(said)):
        read_golden(tmp_path)


def with_features(golden: Golden, num_features: int = 3) -> Golden:
    """The same of a model that reads features."""
    inputs = np.random.default_rng(1).normal(size=(len(golden.inputs), num_features)).astype(np.float32)
    return dataclasses.replace(golden, inputs=inputs)


def test_features_survive_a_round_trip(golden: Golden, tmp_path: Path) -> None:
    features = with_features(golden)
    write_golden(tmp_path, features)
    with np.load(tmp_path / "golden.npz") as archive:
        assert set(archive.files) == {*vars(golden), "features"} - {"inputs"}
    again = read_golden(tmp_path)
    assert all(np.array_equal(vars(again)[name], array) for name, array in vars(features).items())
    assert [sequence.shape for sequence in again.sequences] == [(length, 3) for length in golden.lengths]


WRONG_INPUTS: dict[str, tuple[Callable[[Golden], dict[str, Any]], str]] = {
    "none": (lambda g: {}, "expected either tokens or features, got []"),
    "both": (lambda g: {"tokens": g.inputs, "features": with_features(g).inputs}, "got ['tokens', 'features']"),
    "features for tokens": (lambda g: {"tokens": with_features(g).inputs}, "tokens: expected int64 [rows]"),
    "tokens for features": (lambda g: {"features": g.inputs}, "features: expected float32 [rows, features]"),
    "ids as features": (lambda g: {"features": g.inputs[:, None]}, "features: expected finite float32"),
    "float64": (lambda g: {"features": with_features(g).inputs.astype(np.float64)}, "features: expected finite"),
    "NaN": (lambda g: {"features": with_features(g).inputs * np.float32(np.nan)}, "features: expected finite float32"),
    "a row too few": (lambda g: {"features": with_features(g).inputs[1:]}, "lengths: expected numbers >= 1"),
    "one number": (lambda g: {"tokens": np.array(1)}, "tokens: expected int64 [n]"),
}


@pytest.mark.parametrize(("change", "said"), WRONG_INPUTS.values(), ids=WRONG_INPUTS)
def test_inputs_are_tokens_or_features(
    golden: Golden, tmp_path: Path, change: Callable[[Golden], dict[str, Any]], said: str
) -> None:
    arrays = {name: array for name, array in vars(golden).items() if name != "inputs"}
    np.savez(tmp_path / "golden.npz", **arrays, **change(golden))
    with pytest.raises(BundleError, match=re.escape(said)):
        read_golden(tmp_path)


def test_golden_of_another_kind_of_model_is_refused(runtime: Runtime, golden: Golden) -> None:
    # ONNX Runtime would say it, in words of its own.
    with pytest.raises(BundleError, match=r"golden\.npz: expected tokens, as the manifest says, got features"):
        replay(runtime, with_features(golden))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_an_array(path: Path) -> None:
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in arrays.files if name != "maps"}
    np.savez(path, **kept)


def add_an_array(path: Path) -> None:
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    np.savez(path, **kept, novelty=np.zeros(1))


def pickle_an_array(path: Path) -> None:
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    np.savez(path, **{**kept, "maps": np.array([print], object)})


def flip_a_bit_of_an_array(path: Path) -> None:
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("logits.npy").header_offset
    data[offset + 300] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [
        truncate,
        drop_an_array,
        add_an_array,
        pickle_an_array,
        flip_a_bit_of_an_array,
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04"),
        lambda path: path.write_text("no archive"),
    ],
)
def test_a_damaged_archive_is_named(tmp_path: Path, spoil: Callable[[Path], Any]) -> None:
    path = Path(shutil.copy(BUNDLE / "golden.npz", tmp_path))
    spoil(path)
    with pytest.raises(BundleError, match=rf"{re.escape(str(path))}: cannot be read as golden"):
        read_golden(tmp_path)


@pytest.mark.parametrize(
    ("precision", "share", "num_changed"),
    [
        # The margin is over twice the error that PyTorch has itself,
        ("float16", 0.49, 1),
        ("bfloat16", 0.49, 1),
        # it is not: either class may come first,
        ("float16", 0.51, 0),
        # and float32 is held to its differences alone.
        ("float32", 0.49, 0),
    ],
)
def test_the_likeliest_class_stays_where_the_margin_is_clear(
    runtime: Runtime, golden: Golden, precision: str, share: float, num_changed: int
) -> None:
    # One answer whose two likeliest classes change places; differences of any size are allowed.
    logits = golden.logits.copy()
    # The clearest one: a margin of a few units in the last place is not clear in bfloat16.
    row = int(np.diff(np.partition(logits, -2, axis=1)[:, -2:])[:, 0].argmax())
    second, first = logits[row].argsort()[-2:]
    logits[row, [first, second]] = logits[row, [second, first]]
    margin = logits[row, second] - logits[row, first]
    loose = Deviation(reference=share * margin, allowed=1e9)
    certificate = Certificate(precision=precision, logits=loose, maps=Deviation(reference=1.0, allowed=1.0))
    held = copy.copy(runtime)
    held.manifest = dataclasses.replace(runtime.manifest, certificate=certificate)
    report = replay(held, dataclasses.replace(golden, logits=logits))
    assert max(batch.num_changed for batch in report.batches) == num_changed
    assert report.passed == (num_changed == 0)
    assert replay(held, golden).passed
