"""Record what TransformerLens calls induction and duplicate-token heads, for `test_measures.py` to compare with.

    pip download --no-deps transformer_lens==4.3.0 einops
    .venv/bin/python tests/service/transformer_lens/record.py transformer_lens-*.whl einops-*.whl

Its `detect_head` is called on attention patterns made here, in the place of a model's. Only its own file runs: the
package around it would import forty others, for types alone.
"""

import importlib
import itertools
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch

RECORD = Path(__file__).with_name("record.json")
KINDS = ("duplicate_token_head", "induction_head", "previous_token_head")
NUM_LAYERS, NUM_HEADS = 1, 2
SEQUENCES = (
    [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9],
    [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5],
    [7, 7, 7, 7],
    [1, 2],
    [0, 1, 2, 3, 4, 5, 6],
)


def main(wheel: str, *others: str) -> None:
    sys.path.extend(others)
    detect_head = load_detector(wheel)
    generator = np.random.default_rng(0)
    cases = []
    for tokens in SEQUENCES:
        patterns = make_patterns(len(tokens), generator)
        scores = []
        for exclude_bos, exclude_current_token in itertools.product((False, True), repeat=2):
            options = {"exclude_bos": exclude_bos, "exclude_current_token": exclude_current_token}
            found = {
                kind: detect_head(Model(tokens), "", kind, cache=Cache(patterns), **options)[0].tolist()
                for kind in KINDS
            }
            scores.append({**options, **found})
        cases.append({"tokens": tokens, "patterns": patterns.tolist(), "scores": scores})
    version = Path(wheel).name.split("-")[1]
    RECORD.write_text(json.dumps({"transformer_lens": version, "cases": cases}) + "\n")


def make_patterns(length: int, generator: np.random.Generator) -> np.ndarray:
    """[heads, queries, keys]: rows sum to 1, keys after a query weigh 0. Few digits, so that the record is short."""
    drawn = np.tril(generator.integers(1, 100, (NUM_HEADS, length, length)))
    return (drawn / drawn.sum(-1, keepdims=True)).round(5)


class Model:
    """As much of a model as `detect_head` looks at."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = torch.tensor([tokens])
        self.cfg = types.SimpleNamespace(
            device="cpu", n_ctx=1024, n_layers=NUM_LAYERS, n_heads=NUM_HEADS, dtype=torch.float64
        )

    def to_tokens(self, _: str) -> torch.Tensor:
        return self.tokens


class Cache:
    """The patterns of its one layer."""

    def __init__(self, patterns: np.ndarray) -> None:
        self.patterns = patterns

    def __getitem__(self, _: object) -> torch.Tensor:
        # It writes into what it is given.
        return torch.from_numpy(self.patterns.copy())


def load_detector(wheel: str):
    """`transformer_lens.head_detector.detect_head`, without running the package's `__init__`."""
    package = types.ModuleType("transformer_lens")
    package.__path__ = [f"{wheel}/transformer_lens"]
    sys.modules["transformer_lens"] = package
    utilities = types.ModuleType("transformer_lens.utilities")
    utilities.__path__ = [f"{wheel}/transformer_lens/utilities"]
    sys.modules["transformer_lens.utilities"] = utilities
    vars(utilities).update(vars(importlib.import_module("transformer_lens.utilities.tensors")))
    for module, name in (("ActivationCache", "ActivationCache"), ("model_protocol", "TransformerLensModel")):
        stub = types.ModuleType(f"transformer_lens.{module}")
        setattr(stub, name, object)
        sys.modules[stub.__name__] = stub
    return importlib.import_module("transformer_lens.head_detector").detect_head


if __name__ == "__main__":
    main(*sys.argv[1:])
