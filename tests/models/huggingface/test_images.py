"""Images as the patches that a model's convolution reads."""

import pytest
import torch

from attnserve.models.huggingface.images import PatchRows, find_patches
from tests.models.huggingface import zoo


@pytest.mark.parametrize(
    ("name", "num_leading", "num_steps"),
    [
        ("ViTForImageClassification", 1, 16),
        ("Dinov2ForImageClassification", 1, 16),
        # The second row before its patches is sent like them.
        ("DeiTForImageClassification", 2, 17),
    ],
)
def test_rows_are_those_that_the_model_makes(name: str, num_leading: int, num_steps: int) -> None:
    model = zoo.make(name)
    patches = find_patches(model)
    assert patches is not None
    assert (patches.num_leading, patches.num_steps, patches.num_features) == (num_leading, num_steps, 48)
    features = torch.randn(num_leading + 16, 48, generator=torch.Generator().manual_seed(0))
    embeddings = model.get_submodule(patches.embeddings)
    with torch.no_grad():
        expected = embeddings(patches.fold(features[num_leading:]))
        found = PatchRows(patches)(features, torch.arange(num_leading + 16))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_pixels_stand_line_by_line() -> None:
    patches = find_patches(zoo.make("ViTForImageClassification", {**zoo.IMAGE, "image_size": (8, 12)}))
    assert patches is not None
    image = torch.arange(3 * 8 * 12.0).view(3, 8, 12)
    features = torch.stack([image[:, top : top + 4, left : left + 4].flatten() for top in (0, 4) for left in (0, 4, 8)])
    assert torch.equal(patches.fold(features)[0], image)
    assert patches.fold(features[:4])[0, :, 4:, 4:].eq(0).all()


def test_what_reads_ids_has_no_patches() -> None:
    assert find_patches(zoo.make("BertForMaskedLM")) is None
