"""The manifest survives a round trip; a bundle that is damaged, newer or reaches out of its folder is refused."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnserve import bundle
from attnserve.bundle import BundleError, read_manifest, verify_files, write_manifest
from attnserve.certificate import Certificate, Deviation, Quantisation
from attnserve.cli import main
from attnserve.golden import read_golden, replay
from attnserve.runtime import Runtime
from tests.chosen import copy_with_top

ROOT = Path(__file__).resolve().parents[2]
COST = {
    "num_answers": 9,
    "largest_difference": 0.5,
    "mean_difference": 0.25,
    "top1_agreement": 0.5,
    "kl_bits": 0.125,
}
RELEASED = sorted((ROOT / "tests" / "bundles").glob("v*"))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / bundle.MANIFEST_FILE
    document = json.loads(path.read_text("utf-8"))
    change(document)
    path.write_text(json.dumps(document), "utf-8")


def test_a_manifest_survives_a_round_trip(folder: Path) -> None:
    path = folder / bundle.MANIFEST_FILE
    manifest = read_manifest(folder)
    old = json.loads(path.read_text("utf-8"))
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest
    text = path.read_bytes()
    # The bundle of v1 is older than some fields, which come to it with what they mean where they are not given.
    assert json.loads(text) == old | {
        "num_features": None,
        "num_classes": None,
        "pooling": None,
        "leading_row": False,
        "quantisation": None,
        "portable": False,
    }
    write_manifest(folder, read_manifest(folder))
    assert path.read_bytes() == text


def test_a_manifest_of_another_kind_of_model_survives_a_round_trip(folder: Path) -> None:
    changes: dict[str, Any] = {
        "task": "classify_sequence",
        "vocabulary_size": None,
        "num_features": 3,
        "num_classes": 2,
        "pooling": "first",
        "leading_row": True,
        "portable": True,
        "labels": ("left", "right"),
        "quantisation": Quantisation(**COST),
    }
    certificate = dataclasses.replace(read_manifest(folder).certificate, precision="int8")
    manifest = dataclasses.replace(read_manifest(folder), certificate=certificate, **changes)
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest


def test_a_graph_that_chooses_entries_has_them_among_its_outputs(folder: Path, tmp_path: Path) -> None:
    assert read_manifest(folder).top_k is None
    chosen = copy_with_top(folder, tmp_path / "chosen", 3)
    manifest = read_manifest(chosen)
    assert manifest.top_k == 3
    # No field that an older release would not know: it serves such a bundle by its logits.
    write_manifest(folder, read_manifest(folder))
    old, new = (json.loads((one / bundle.MANIFEST_FILE).read_text("utf-8")) for one in (folder, chosen))
    assert set(new) == set(old)
    assert {key for key in old if old[key] != new[key]} == {"outputs", "files"}
    assert [one for one in new["outputs"] if one not in old["outputs"]] == [
        {"name": "top_ids", "dtype": "int64", "shape": ["R", "3"]},
        {"name": "top_logits", "dtype": "float32", "shape": ["R", "3"]},
        {"name": "normaliser", "dtype": "float32", "shape": ["R"]},
    ]


TOPS: dict[str, tuple[Callable[[dict[str, dict[str, Any]]], Any], str]] = {
    "too many": (lambda d: [d[name]["shape"].__setitem__(1, "6") for name in ("top_ids", "top_logits")], "1 to 5"),
    "none": (lambda d: [d[name]["shape"].__setitem__(1, "0") for name in ("top_ids", "top_logits")], "1 to 5"),
    "a letter": (lambda d: d["top_ids"]["shape"].__setitem__(1, "K"), "outputs: expected int64 top_ids"),
    "no sizes": (lambda d: d["top_ids"]["shape"].clear(), "outputs: expected int64 top_ids"),
    "two sizes": (lambda d: d["top_logits"]["shape"].__setitem__(1, "2"), "outputs: expected int64 top_ids"),
    "another type": (lambda d: d["top_ids"].update(dtype="float32"), "outputs: expected int64 top_ids"),
    "another name": (lambda d: d["normaliser"].update(name="sum"), "or none of them, got top_ids, top_logits"),
}


@pytest.mark.parametrize(("change", "said"), TOPS.values(), ids=TOPS)
def test_entries_that_do_not_belong_together_are_refused(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, dict[str, Any]]], Any], said: str
) -> None:
    chosen = copy_with_top(folder, tmp_path / "chosen", 3)
    edit_manifest(chosen, lambda document: change({one["name"]: one for one in document["outputs"]}))
    with pytest.raises(BundleError, match=re.escape(said)):
        read_manifest(chosen)


def test_names_in_any_script_survive(folder: Path) -> None:
    manifest = dataclasses.replace(read_manifest(folder), labels=("ü", "字", "🙂", "\u2028", '"'))
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest


def test_what_reads_a_manifest_reads_no_other_file(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != bundle.MANIFEST_FILE:
            path.unlink()
    assert read_manifest(folder).num_heads == 2


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (2, "format_version: this release reads up to 1, got 2; upgrade attnserve"),
        (10**6, "got 1000000; upgrade attnserve"),
        (0, "format_version: expected at least 1, got 0"),
        (True, "format_version: expected int, got bool True"),
        ("1", "format_version: expected int, got str '1'"),
        (1.0, "format_version: expected int, got float 1.0"),
        (None, "format_version: expected int, got NoneType None"),
    ],
)
def test_other_format_versions_are_refused_by_name(folder: Path, version: object, said: str) -> None:
    # A newer format may have fields this release does not know: the version is what it complains of.
    edit_manifest(folder, lambda document: document.update(format_version=version, novelty=1) if version == 2 else
                  document.update(format_version=version))  # fmt: skip
    with pytest.raises(BundleError, match=re.escape(said)) as raised:
        read_manifest(folder)
    assert str(folder / bundle.MANIFEST_FILE) in str(raised.value)


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown field": (lambda d: d.update(novelty=1), "novelty: unknown field"),
    "missing field": (lambda d: d.pop("task"), "task: missing"),
    "no layers": (lambda d: d.update(layers=[]), "layers: expected at least one"),
    "no vocabulary": (
        lambda d: d.update(vocabulary_size=0),
        "vocabulary_size: expected an integer from 1 to",
    ),
    "no length": (lambda d: d.update(max_length=0), "max_length: expected an integer from 1 to 16777216, got 0"),
    "no inputs": (lambda d: d.pop("vocabulary_size"), "vocabulary_size: expected either that or num_features"),
    "two inputs": (
        lambda d: d.update(num_features=4),
        "vocabulary_size: expected either that or num_features, got",
    ),
    "no classes": (lambda d: d.update(task="classify_token"), "num_classes: classify_token needs a number of classes"),
    "precision": (
        lambda d: d["certificate"].update(precision="int4"),
        "certificate.precision: expected one of",
    ),
    "int8 that does not say its price": (
        lambda d: d["certificate"].update(precision="int8"),
        "quantisation: expected figures with precision int8 and with no other, got none",
    ),
    "a price of nothing": (
        lambda d: d.update(quantisation=COST),
        "quantisation: expected figures with precision int8 and with no other, got some with float32",
    ),
    "agreement": (
        lambda d: d.update(quantisation=COST | {"top1_agreement": 1.5}),
        "quantisation.top1_agreement: expected at most 1, got 1.5",
    ),
    "divergence": (
        lambda d: d.update(quantisation=COST | {"kl_bits": -1.0}),
        "quantisation.kl_bits: expected a finite number >= 0, got -1.0",
    ),
    "answers": (
        lambda d: d.update(quantisation=COST | {"num_answers": 0}),
        "quantisation.num_answers: expected at least 1, got 0",
    ),
    "portable": (lambda d: d.update(portable=1), "portable: expected bool, got int 1"),
    "heads": (lambda d: d["layers"][1].update(num_key_heads=0), "layers[1].num_key_heads: expected at least 1"),
    "groups": (lambda d: d["layers"][1].update(num_key_heads=4), "layers[1].num_key_heads: expected a divisor of 2"),
    "weighting": (lambda d: d["layers"][0].update(weighting="../../x"), "layers[0].weighting: expected a name"),
    "no key": (lambda d: d["layers"][2]["captures"].pop("key"), "layers[2].captures: key: missing"),
    "no such output": (
        lambda d: d["layers"][0]["captures"].update(key="layers.9.key"),
        "layers[0].captures: expected names of outputs, got 'layers.9.key'",
    ),
    "bound without end": (
        lambda d: d["certificate"]["logits"].update(allowed=float("inf")),
        "certificate.logits.allowed: expected a finite number >= 0, got inf",
    ),
    "NaN": (lambda d: d["certificate"]["maps"].update(reference=float("nan")), "certificate.maps.reference"),
    "negative": (lambda d: d["certificate"]["maps"].update(measured=-1e-9), "certificate.maps.measured"),
    "type": (lambda d: d.update(causal=1), "causal: expected bool, got int 1"),
    "hash": (lambda d: d["files"].update({"model.onnx": None}), "files.model.onnx: expected str"),
}


@pytest.mark.parametrize(("change", "said"), MANIFESTS.values(), ids=MANIFESTS)
def test_a_wrong_manifest_is_refused_by_field(folder: Path, change: Callable[[dict[str, Any]], Any], said: str) -> None:
    edit_manifest(folder, change)
    with pytest.raises(BundleError, match=re.escape(said)):
        read_manifest(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"format_version": ' + "9" * 5000 + "}",
        '{"format_version": 1}',
        "\ufeff{}",
    ],
    ids=["empty", "open", "list", "null", "deep", "long integer", "bare", "byte order mark"],
)
def test_what_is_no_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / bundle.MANIFEST_FILE).write_text(text, "utf-8")
    with pytest.raises(BundleError, match=re.escape(str(folder / bundle.MANIFEST_FILE))):
        read_manifest(folder)


@pytest.mark.parametrize("make", [Path.unlink, lambda path: path.write_bytes(b"\xff\xfe{"), None], ids=str)
def test_a_manifest_that_cannot_be_read_is_named(folder: Path, make: Callable[[Path], Any] | None) -> None:
    path = folder / bundle.MANIFEST_FILE
    if make is None:
        path.unlink()
        path.mkdir()
    else:
        make(path)
    with pytest.raises(BundleError, match=re.escape(str(path))):
        read_manifest(folder)


@pytest.mark.parametrize("card", [{"x": float("nan")}, {"x": float("inf")}, {"x": "\ud800"}])
def test_a_card_that_no_one_could_read_is_not_written(folder: Path, card: dict[str, Any]) -> None:
    text = (folder / bundle.MANIFEST_FILE).read_bytes()
    with pytest.raises(BundleError, match="card: cannot be written as JSON"):
        write_manifest(folder, dataclasses.replace(read_manifest(folder), card=card))
    assert (folder / bundle.MANIFEST_FILE).read_bytes() == text


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["model.onnx", "golden.npz", "weights/softmax.onnx", "weights/softmax.normaliser.onnx"]
)
def test_every_file_is_covered(folder: Path, name: str) -> None:
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    flip_a_bit(folder / name)
    with pytest.raises(BundleError, match=rf"{name}: expected sha256 [0-9a-f]{{64}}, got [0-9a-f]{{64}}; .* damaged"):
        verify_files(folder, manifest)
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: listed in the manifest, but missing"):
        verify_files(folder, manifest)
    # Gone from the list as well: then nothing vouches for what may come in its place.
    del manifest.files[name]
    with pytest.raises(BundleError, match=f"files: {name}: missing"):
        verify_files(folder, manifest)


def replace_by_a_link(folder: Path) -> None:
    (folder / "model.onnx").rename(folder.parent / "model.onnx")
    (folder / "model.onnx").symlink_to("../model.onnx")


def replace_folder_by_a_link(folder: Path) -> None:
    (folder / "weights").rename(folder.parent / "weights")
    (folder / "weights").symlink_to("../weights")


def replace_by_a_loop(folder: Path) -> None:
    shutil.rmtree(folder / "weights")
    (folder / "weights").symlink_to("weights")


@pytest.mark.parametrize("spoil", [replace_by_a_link, replace_folder_by_a_link])
def test_links_are_refused(folder: Path, spoil: Callable[[Path], None]) -> None:
    spoil(folder)
    with pytest.raises(BundleError, match="expected a plain file inside the bundle"):
        verify_files(folder, read_manifest(folder))


def test_a_loop_of_links_is_refused(folder: Path) -> None:
    replace_by_a_loop(folder)
    with pytest.raises(BundleError, match="weights"):
        verify_files(folder, read_manifest(folder))


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "weights/../../secret", "..", "a\0b", "weights", "", "no/such/file"]
)
def test_listed_names_lead_to_files_of_the_bundle(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_text("secret")
    manifest = read_manifest(folder)
    manifest.files[name] = bundle.hash_file(folder.parent / "secret")
    with pytest.raises(BundleError, match=r"inside the bundle|but missing"):
        verify_files(folder, manifest)


@pytest.mark.parametrize("name", ["extra.bin", ".hidden", "weights/other.onnx", "nested/manifest.json"])
def test_unlisted_files_are_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    with pytest.raises(BundleError, match=f"{name}: not listed in the manifest"):
        verify_files(folder, read_manifest(folder))


@pytest.mark.parametrize("target", ["/etc", "nowhere", "manifest.json"])
def test_unlisted_links_are_refused(folder: Path, target: str) -> None:
    (folder / "link").symlink_to(target)
    with pytest.raises(BundleError, match="link: not listed in the manifest"):
        verify_files(folder, read_manifest(folder))


def test_a_bundle_may_itself_be_reached_through_a_link(folder: Path) -> None:
    (folder.parent / "link").symlink_to(folder.name)
    verify_files(folder.parent / "link", read_manifest(folder.parent / "link"))


def test_hashes_are_of_everything_but_the_manifest(folder: Path) -> None:
    assert bundle.hash_files(folder) == read_manifest(folder).files


@pytest.mark.parametrize("name", ["a", "nt-expressive", "A.b_c-9", "0", "a" * 128])
def test_names_of_models(name: str) -> None:
    assert bundle.is_model_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".tmp-1", "-a", "_a", "a/b", "a b", "ü", "a\n", "a" * 129, "a\0"])
def test_what_names_no_model(name: str) -> None:
    assert not bundle.is_model_name(name)


@pytest.mark.parametrize("name", ["1", "10", "999999999"])
def test_versions(name: str) -> None:
    assert bundle.is_version(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "0",
        "01",
        "-1",
        "+1",
        "1.0",
        "1\n",
        " 1",
        "1000000000",
        "\N{ARABIC-INDIC DIGIT ONE}",
        "v1",
        ".tmp-1",
        "latest",
    ],
)
def test_what_is_no_version(name: str) -> None:
    assert not bundle.is_version(name)


def test_a_bundle_of_every_released_format_is_kept() -> None:
    assert [path.name for path in RELEASED] == [f"v{version + 1}" for version in range(bundle.FORMAT_VERSION)]


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.name)
def test_released_formats_are_read_and_checked(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"v{read_manifest(path).format_version}" == path.name
    assert main(["check", str(path)]) == 0
    assert "within the certificate" in capsys.readouterr().out
    assert sum(file.stat().st_size for file in path.rglob("*")) < 200_000


def test_the_page_about_bundles_names_every_field_and_file(folder: Path) -> None:
    page = (ROOT / "docs" / "bundle.md").read_text("utf-8")
    kinds = (bundle.Manifest, bundle.Layer, bundle.Tensor, bundle.Provenance, Certificate, Deviation, Quantisation)
    for kind in kinds:
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in page, f"{kind.__name__}.{field.name}"
    with np.load(folder / bundle.GOLDEN_FILE) as golden:
        arrays = [*golden.files, bundle.FEATURES]
    for name in (*arrays, "first_key", "last", "normaliser", *bundle.CAPTURES):
        assert f"`{name}`" in page, name
    assert f"attnserve reads format versions 1 to {bundle.FORMAT_VERSION}" in page


def test_the_example_of_the_page_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "bundle.md").read_text("utf-8")
    program = "\n".join(re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    assert not re.search(r"(import|from) attnserve", program)
    repository = folder.parent / "repository" / "tiny"
    repository.mkdir(parents=True)
    folder.rename(repository / "1")
    monkeypatch.chdir(folder.parent)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(program, "bundle.md", "exec", dont_inherit=True), names)
    # What the page says of what the example computes.
    runtime, golden = Runtime(repository / "1", num_threads=1), read_golden(repository / "1")
    assert replay(runtime, golden).passed
    assert names["logits"].shape == (2, 5)
    assert names["worst"] <= runtime.manifest.certificate.logits.allowed
    weights = names["weights"]
    assert weights.shape == (2, 3, 4)
    # Not quite: its epsilon takes a little of every row.
    np.testing.assert_allclose(weights.sum(-1), 1, atol=0.02)
    assert weights[0, 0, 2:].tolist() == [0, 0]
