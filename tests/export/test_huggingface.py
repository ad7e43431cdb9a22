"""Hugging Face models, exported as they are and held to what transformers answers by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from attnserve.bundle import MODEL_FILE, Layer, read_manifest
from attnserve.export import export_checkpoint
from attnserve.export.huggingface import export_hugging_face, read_folder
from attnserve.golden import read_golden, replay
from attnserve.models.huggingface import HuggingFaceError, configure, load
from attnserve.models.prediction import predict_packed
from attnserve.packing import add_leading_row, pack
from attnserve.runtime import Runtime
from tests.export.cuda_copies import list_copies, read_as_placed
from tests.export.cuda_kernels import list_missing
from tests.models.huggingface import zoo


@pytest.fixture(autouse=True, scope="session")
def quiet_transformers() -> None:
    zoo.transformers.logging.set_verbosity_error()
    zoo.transformers.logging.disable_progress_bar()


IMAGES = ("ForImageClassification", "ForImageClassificationWithTeacher")


def read(folder: Path, **options: Any) -> Any:
    return read_folder(folder, precision="float32", portable=False, report=lambda *_: None, **options)


def ask_transformers(name: str, folder: Path, sequence: np.ndarray) -> Any:
    """Logits and maps of one sequence by nothing of ours."""
    kind = getattr(zoo.transformers, name)
    return ask(kind.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval(), sequence)


def ask(model: Any, sequence: np.ndarray) -> Any:
    """What a model answers to ids, or to the image that patches were cut of."""
    with torch.no_grad():
        if sequence.ndim == 1:
            return model(input_ids=torch.from_numpy(sequence)[None], output_attentions=True)
        # Four rows of four patches, of three channels of four lines of four columns.
        pixels = sequence[-16:].reshape(4, 4, 3, 4, 4).transpose(2, 0, 3, 1, 4).reshape(1, 3, 16, 16)
        return model(pixel_values=torch.from_numpy(pixels), output_attentions=True)


def sequences_of(name: str, lengths: Sequence[int]) -> list[np.ndarray]:
    """Ids but those that mean padding somewhere, 0 and 1; of images the first patches, after what goes before them."""
    generator = np.random.default_rng(list(lengths))
    if not name.endswith(IMAGES):
        return [generator.integers(2, zoo.WORDS, length) for length in lengths]
    # A row of DeiT's is sent, and read by nobody.
    num_steps = 17 if name.startswith("DeiT") else 16
    patches = [generator.standard_normal((min(length, num_steps), 48), np.float32) for length in lengths]
    return [add_leading_row(some) for some in patches]


def whole_of(name: str, lengths: Sequence[int]) -> list[np.ndarray]:
    """What transformers can be asked by itself: ids, or images of which no patch is missing."""
    return sequences_of(name, [30] * len(lengths) if name.endswith(IMAGES) else lengths)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_packed_is_what_transformers_answers(name: str, tmp_path: Path) -> None:
    order = read(zoo.save(tmp_path, name))
    sequences = sequences_of(name, (11, 3, 1, 8, 30))
    order.module.double()
    with torch.no_grad():
        together = predict_packed(order.module, order.interface, sequences)
    for sequence, found in zip(sequences, together, strict=True):
        torch.testing.assert_close(found, order.stock.answer(sequence).logits[0], rtol=0, atol=1e-9)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A bundle, opened, and the folder that it was made of."""

    name: str
    folder: Path
    runtime: Runtime

    def answer(self, sequences: Sequence[np.ndarray]) -> dict[str, Any]:
        """All outputs for sequences in one batch, all rows captured."""
        packed, manifest = pack(sequences), self.runtime.manifest
        rows = np.arange(len(packed.inputs))
        asked = rows
        if manifest.task == "classify_sequence":
            asked = np.add(packed.starts, [manifest.answer_step(length) for length in packed.lengths])
        return self.runtime.run(packed, asked, [entry.name for entry in manifest.outputs], capture=rows)


def export(name: str, folder: Path, **attention: Any) -> Exported:
    zoo.save(folder / "model", name, lambda model: attention and configure(model, **attention))
    place = folder / "repository" / "model" / "1"
    export_hugging_face(folder / "model", place, top_k=1)
    return Exported(name=name, folder=folder / "model", runtime=Runtime(place, num_threads=1))


QUICK = "BertForSequenceClassification"


@pytest.fixture(
    scope="module",
    params=[name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in zoo.MODELS],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(request.param, tmp_path_factory.mktemp("exported"))


@pytest.mark.export
def test_a_bundle_answers_as_transformers_does(exported: Exported) -> None:
    manifest = exported.runtime.manifest
    assert manifest.top_k == 1
    assert replay(exported.runtime, read_golden(exported.runtime.folder)).passed
    sequences = whole_of(exported.name, (11, 3, 1, 30))
    sizes = [1 if manifest.task == "classify_sequence" else len(sequence) for sequence in sequences]
    found = np.split(exported.answer(sequences)["logits"], np.cumsum(sizes)[:-1])
    for logits, sequence in zip(found, sequences, strict=True):
        expected = ask_transformers(exported.name, exported.folder, sequence).logits.flatten(0, -2).numpy()
        # Twice what a bundle is allowed: transformers' own float32 is off as well.
        bound = 2 * manifest.certificate.logits.allowed
        np.testing.assert_allclose(logits, expected, rtol=0, atol=bound)


@pytest.mark.export
def test_every_node_of_it_has_a_kernel_of_cudas(exported: Exported) -> None:
    assert list_missing(exported.runtime.folder / MODEL_FILE) == []


@pytest.mark.export
def test_nothing_is_copied_on_the_way(exported: Exported, tmp_path: Path) -> None:
    assert list_copies(read_as_placed(exported.runtime.folder / MODEL_FILE, tmp_path)) == []


@pytest.mark.export
def test_its_maps_are_those_of_transformers(exported: Exported) -> None:
    (sequence,) = whole_of(exported.name, (23,))
    answer = exported.answer([sequence])
    expected = ask_transformers(exported.name, exported.folder, sequence).attentions
    manifest = exported.runtime.manifest
    for layer, weights in zip(manifest.layers, expected, strict=True):
        found = weigh(answer, layer)
        np.testing.assert_allclose(found, weights[0].numpy(), rtol=0, atol=2 * manifest.certificate.maps.allowed)


def weigh(answer: dict[str, Any], layer: Layer) -> Any:
    """Maps from captures by the formula of docs/bundle.md, in plain numpy."""
    query, key = (answer[layer.captures[kind]].astype(np.float64) for kind in ("query", "key"))
    key = np.repeat(key, layer.num_heads // layer.num_key_heads, axis=1)
    scores = layer.scale * np.einsum("qhe,khe->hqk", query, key)
    if layer.softcap:
        scores = layer.softcap * np.tanh(scores / layer.softcap)
    distance = np.arange(len(query))[:, None] - np.arange(len(key))
    allowed = (distance >= 0) if layer.causal else np.ones_like(distance, dtype=bool)
    if layer.window:
        allowed = allowed & (np.abs(distance) < layer.window)
    exponentials = np.where(allowed, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.export
def test_batch_mates_change_no_answer(exported: Exported) -> None:
    sequence, *others = sequences_of(exported.name, (9, 17, 2, 30))
    alone = exported.answer([sequence])["logits"]
    for batch, first in (([sequence, *others], True), ([*others, sequence], False)):
        together = exported.answer(batch)["logits"]
        found = together[: len(alone)] if first else together[-len(alone) :]
        np.testing.assert_allclose(found, alone, rtol=0, atol=exported.runtime.manifest.certificate.logits.allowed)


@pytest.mark.export
@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("BertForSequenceClassification", {"variant": "expressive", "epsilon": 0.001}),
        pytest.param(
            "GPT2LMHeadModel", {"variant": "elliptical", "scope": "prefix", "scaling": "max"}, marks=pytest.mark.slow
        ),
        pytest.param("LlamaForCausalLM", {"variant": "expressive"}, marks=pytest.mark.slow),
        pytest.param("ModernBertForMaskedLM", {"variant": "expressive"}, marks=pytest.mark.slow),
        pytest.param("Gemma2ForCausalLM", {"variant": "expressive"}, marks=pytest.mark.slow),
        pytest.param(
            "BertForMaskedLM", {"variant": "elliptical", "scope": "sequence", "scaling": "mean"}, marks=pytest.mark.slow
        ),
        pytest.param("AlbertForMaskedLM", {"variant": "expressive"}, marks=pytest.mark.slow),
        pytest.param("ViTForImageClassification", {"variant": "expressive"}, marks=pytest.mark.slow),
        pytest.param(
            "Dinov2ForImageClassification",
            {"variant": "elliptical", "scope": "sequence", "scaling": "max"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_model_that_attends_in_another_way_is_exported_so(
    name: str, attention: dict[str, Any], tmp_path: Path
) -> None:
    exported = export(name, tmp_path, **attention)
    manifest = exported.runtime.manifest
    assert replay(exported.runtime, read_golden(exported.runtime.folder)).passed
    assert manifest.layers[-1].variant == attention["variant"]
    assert manifest.warnings == ()
    sequence, *others = whole_of(name, (9, 17, 2))
    model = load(exported.folder)
    model.set_attn_implementation(attention["variant"])
    expected = ask(model, sequence).logits.flatten(0, -2).numpy()
    found = exported.answer([sequence, *others])["logits"][: len(expected)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2 * manifest.certificate.logits.allowed)


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("precision", ["float16", "int8"])
@pytest.mark.parametrize("name", ["BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM"])
def test_smaller_files_have_their_certificates(name: str, precision: str, tmp_path: Path) -> None:
    place = tmp_path / "repository" / "model" / "1"
    export_hugging_face(zoo.save(tmp_path / "model", name), place, precision=precision)
    runtime = Runtime(place, num_threads=1)
    assert runtime.manifest.certificate.precision == precision
    assert replay(runtime, read_golden(place)).passed


@pytest.mark.slow
@pytest.mark.export
def test_a_checkpoint_of_the_service_may_be_one_of_hugging_face(tmp_path: Path) -> None:
    zoo.save(tmp_path / "model", "DistilBertForSequenceClassification")
    export_checkpoint(tmp_path / "model", tmp_path / "repository" / "model" / "1")
    manifest = read_manifest(tmp_path / "repository" / "model" / "1")
    assert (manifest.task, manifest.pooling, manifest.num_classes) == ("classify_sequence", "first", 3)
    assert manifest.provenance.checkpoint_sha256.keys() == {"config.json", "model.safetensors"}


def test_another_attention_than_the_trained_one_has_to_be_asked_for_twice(tmp_path: Path) -> None:
    folder = zoo.save(tmp_path, "BertForMaskedLM")
    with pytest.raises(HuggingFaceError, match=r"attention: expected dot_product, which the model was trained with"):
        read(folder, attention="expressive")
    order = read(folder, attention="expressive", untrained=True)
    assert order.warnings == ("untrained: expressive attention with weights that were trained with dot_product",)
    with pytest.raises(ValueError, match="attention: elliptical has a scope and a scaling, which are never guessed"):
        read(folder, attention="elliptical", untrained=True)
    with pytest.raises(ValueError, match="attention: expected one of dot_product, expressive, elliptical, got 'other'"):
        read(folder, attention="other")


def test_what_inspection_refuses_is_not_exported(tmp_path: Path) -> None:
    zoo.make("DebertaV2ForSequenceClassification", zoo.PLAIN).save_pretrained(tmp_path)
    with pytest.raises(HuggingFaceError, match="does not attend through transformers' AttentionInterface"):
        read(tmp_path)


def test_a_model_without_a_head_has_no_task(tmp_path: Path) -> None:
    zoo.make("BertModel", zoo.PLAIN).save_pretrained(tmp_path)
    with pytest.raises(HuggingFaceError, match=r"task: expected a class that ends with ForCausalLM, .*got BertModel"):
        read(tmp_path)


def test_a_task_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = zoo.save(tmp_path, "BertForTokenClassification")
    with pytest.raises(HuggingFaceError, match="task: expected auto or classify_token, got next_token"):
        read(folder, task="next_token")


def test_labels_are_those_of_the_config(tmp_path: Path) -> None:
    labels = {0: "no", 1: "yes", 2: "yes"}
    folder = zoo.save(tmp_path, "BertForTokenClassification", id2label=labels, label2id={"no": 0, "yes": 1})
    assert read(folder).interface.labels == ("no (0)", "yes (1)", "yes (2)")


def test_classes_of_a_masked_model_are_its_vocabulary(tmp_path: Path) -> None:
    folder = zoo.save(tmp_path, "BertForMaskedLM")
    words = {f"w{index}": index for index in range(zoo.WORDS - 1)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.save(str(folder / "tokenizer.json"))
    order = read(folder)
    assert order.interface.task == "classify_token"
    assert order.interface.labels == (*words, "[id 60]")
    assert order.tokenizer == folder / "tokenizer.json"


def test_probabilities_that_mean_nothing_are_warned_of(tmp_path: Path) -> None:
    folder = zoo.save(tmp_path, "BertForSequenceClassification", problem_type="regression")
    (warning,) = read(folder).warnings
    assert warning.startswith("regression: ")
