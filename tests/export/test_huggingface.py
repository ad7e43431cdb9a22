"""Hugging Face models, exported as they are and held to what transformers answers by itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attnserve.export.huggingface import export_hugging_face, read_folder
from attnserve.golden import read_golden, replay
from attnserve.models.prediction import predict_packed
from attnserve.packing import pack
from attnserve.runtime import Runtime
from tests.models.huggingface import zoo


@pytest.fixture(autouse=True, scope="session")
def quiet_transformers() -> None:
    zoo.transformers.logging.set_verbosity_error()
    zoo.transformers.logging.disable_progress_bar()


def read(folder: Path, **options: Any) -> Any:
    return read_folder(folder, precision="float32", portable=False, report=lambda *_: None, **options)


def ask_transformers(name: str, folder: Path, sequence: np.ndarray) -> Any:
    """Logits and maps of one sequence by nothing of ours."""
    kind = getattr(zoo.transformers, name)
    model = kind.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(sequence)[None], output_attentions=True)


def sequences_of(lengths: tuple[int, ...]) -> list[np.ndarray]:
    """Without the ids that mean padding somewhere, 0 and 1."""
    generator = np.random.default_rng(list(lengths))
    return [generator.integers(2, zoo.WORDS, length) for length in lengths]


@pytest.mark.parametrize("name", zoo.MODELS)
def test_packed_is_what_transformers_answers(name: str, tmp_path: Path) -> None:
    order = read(zoo.save(tmp_path, name))
    sequences = sequences_of((11, 3, 1, 8, 30))
    order.module.double()
    with torch.no_grad():
        together = predict_packed(order.module, order.interface, sequences)
    for sequence, found in zip(sequences, together, strict=True):
        torch.testing.assert_close(found, order.stock.answer(sequence).logits[0], rtol=0, atol=1e-9)


@pytest.mark.export
@pytest.mark.parametrize("name", ["BertForSequenceClassification", "GPT2LMHeadModel"])
def test_a_bundle_answers_as_transformers_does(name: str, tmp_path: Path) -> None:
    assert_bundle_is(name, tmp_path)


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize(
    "name", [name for name in zoo.MODELS if name not in ("BertForSequenceClassification", "GPT2LMHeadModel")]
)
def test_bundles_of_all_classes_answer_as_transformers_does(name: str, tmp_path: Path) -> None:
    assert_bundle_is(name, tmp_path)


def assert_bundle_is(name: str, folder: Path) -> None:
    zoo.save(folder / "model", name)
    place = folder / "repository" / "model" / "1"
    export_hugging_face(folder / "model", place)
    runtime = Runtime(place, num_threads=1)
    manifest = runtime.manifest
    assert replay(runtime, read_golden(place)).passed
    sequences = sequences_of((11, 3, 1, 30))
    packed = pack(sequences)
    by_sequence = manifest.task == "classify_sequence"
    steps = [manifest.answer_step(length) for length in packed.lengths] if by_sequence else None
    rows = np.arange(len(packed.inputs)) if steps is None else np.array(packed.starts) + steps
    answer = runtime.run(
        packed, rows, [entry.name for entry in manifest.outputs], capture=np.arange(len(packed.inputs))
    )
    sizes = [1] * len(sequences) if by_sequence else packed.lengths
    found = np.split(answer["logits"], np.cumsum(sizes)[:-1])
    for logits, sequence in zip(found, sequences, strict=True):
        expected = ask_transformers(name, folder / "model", sequence).logits.flatten(0, -2).numpy()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * max(1, np.abs(expected).max()))
