"""PyTorch in float64 and the reader written from docs/checkpoint.md alone: no rounding hides a difference."""

from pathlib import Path

import numpy as np
import pytest
import torch

from attnserve.export.golden import answer
from attnserve.models.checkpoint import load_checkpoint
from attnserve.packing import add_leading_row
from tests.grid.configs import GRID, save_random, sequences_of
from tests.reference import numpy_transformer

MAX_RELATIVE = 1e-11


@pytest.mark.parametrize("name", GRID)
def test_logits_and_weights_are_the_reader_s(name: str, tmp_path: Path) -> None:
    save_random(name, tmp_path)
    reader = numpy_transformer.load(tmp_path)
    model = load_checkpoint(tmp_path).model.double()
    interface = model.config.interface
    dtype = np.int64 if interface.num_features is None else np.float32
    sequences = sequences_of(name, 1, 2, 13, interface.max_length)
    arrays = [np.array(sequence, dtype) for sequence in sequences]
    found = answer(model, interface, [add_leading_row(it) for it in arrays] if interface.leading_row else arrays)
    for index, sequence in enumerate(sequences):
        expected = numpy_transformer.run(reader, sequence)
        logits, maps = found.logits[index].numpy(), found.maps[index].permute(1, 2, 0, 3).numpy()
        assert found.logits[index].dtype == found.maps[index].dtype == torch.float64
        for ours, theirs in ((logits, expected.logits), (maps, expected.maps)):
            assert ours.shape == theirs.shape
            assert np.abs(ours - theirs).max() <= MAX_RELATIVE * np.abs(theirs).max()
