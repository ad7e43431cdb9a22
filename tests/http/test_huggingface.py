"""Hugging Face models over HTTP: predictions, and maps of all heads, as transformers has them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attnserve.bundle import read_manifest
from tests.conftest import Served
from tests.models.huggingface import zoo

pytestmark = [pytest.mark.http, pytest.mark.export]

# Text whose scores have a bias, and images.
NAMES = ("T5ForTokenClassification", "Dinov2ForImageClassification")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from attnserve.export.huggingface import export_hugging_face

    zoo.transformers.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("huggingface")
    for name in NAMES:
        zoo.save(folder / "models" / name, name)
        export_hugging_face(folder / "models" / name, folder / "repository" / name / "1")
    return folder / "repository"


@pytest.fixture(scope="module")
def served(start_server: Any, repository: Path) -> Iterator[Served]:
    with start_server(repository) as server:
        yield server


def ask_transformers(repository: Path, name: str, **inputs: torch.Tensor) -> Any:
    folder = repository.with_name("models") / name
    model = getattr(zoo.transformers, name).from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(**inputs, output_attentions=True)


def logits_of(prediction: dict[str, Any]) -> np.ndarray:
    """[answers, classes] by class."""
    steps = [sorted(step, key=lambda entry: entry["id"]) for step in prediction["top"]]
    return np.array([[entry["logit"] for entry in step] for step in steps])


def check(served: Served, repository: Path, name: str, sequence: list[Any], other: list[Any], expected: Any) -> None:
    """Hold a sequence's answers to transformers' own, in company."""
    allowed = read_manifest(repository / name / "1").certificate
    answer = served.ask("predict", {"sequences": [sequence, other]}, model=name)
    found = logits_of(answer["predictions"][0])
    np.testing.assert_allclose(found, expected.logits.flatten(0, -2).numpy(), rtol=0, atol=2 * allowed.logits.allowed)
    attention = served.ask("attention", {"sequences": [sequence, other], "quantity": "weights"}, model=name)
    maps = np.array([entry["weights"] for entry in attention["maps"] if entry["sequence"] == 0])
    weights = torch.cat(expected.attentions).flatten(0, 1).numpy()
    np.testing.assert_allclose(maps, weights, rtol=0, atol=2 * allowed.maps.allowed)


def test_text_is_answered_as_transformers_does(served: Served, repository: Path) -> None:
    (name, _) = NAMES
    ids = [7, 3, 60, 2, 2, 31, 9]
    expected = ask_transformers(repository, name, input_ids=torch.tensor([ids]))
    check(served, repository, name, ids, [5] * 30, expected)


def test_an_image_is_answered_as_transformers_does(served: Served, repository: Path) -> None:
    (_, name) = NAMES
    pixels = np.random.default_rng(0).standard_normal((3, 16, 16), np.float32)
    patches = pixels.reshape(3, 4, 4, 4, 4).transpose(1, 3, 0, 2, 4).reshape(16, 48)
    expected = ask_transformers(repository, name, pixel_values=torch.from_numpy(pixels)[None])
    check(served, repository, name, patches.tolist(), patches[:5].tolist(), expected)
