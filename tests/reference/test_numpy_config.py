"""What the page allows and refuses: the reader written from it, and the package."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from attnserve.models import load_checkpoint
from tests.reference import numpy_config, numpy_transformer
from tests.reference.kinds import DOT, KINDS, MAX, MAX_LENGTH, OF_SEQUENCE, OF_TOKEN, SEQUENCE_MAX
from tests.reference.random_checkpoints import save_random_checkpoint

PAGE = Path(__file__).parents[2] / "docs" / "checkpoint.md"

BAD_CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("vocabulary_size", {"vocabulary_size": None}),
    ("num_features", {"num_features": 7}),
    ("vocabulary_size", {"vocabulary_size": 2**24 + 1}),
    ("max_length", {"max_length": 40.0}),
    ("num_heads", {"num_heads": True}),
    ("num_heads", {"num_heads": 5}),
    ("num_key_heads", {"num_key_heads": 2}),
    ("num_key_heads", {"num_key_heads": 0}),
    ("head_size", {"head_size": 0}),
    ("head_size", {"head_size": 2**23}),
    ("attention", {"attention": []}),
    ("format_version", {"format_version": 2}),
    ("task", {"task": "regression"}),
    ("task", {"task": None}),
    ("vocabulary_size", {"vocabulary_size": None, "num_features": 7}),
    ("num_classes", {"task": "classify_token"}),
    ("num_classes", {"num_classes": 3}),
    ("pooling", {"pooling": "last"}),
    ("pooling", {**OF_TOKEN, "pooling": "mean"}),
    ("pooling", {**OF_SEQUENCE, "pooling": "max"}),
    ("pooling", {**OF_SEQUENCE}),
    ("pooling", {**OF_SEQUENCE, "pooling": "first"}),
    ("tied_embeddings", {**OF_TOKEN, "tied_embeddings": True}),
    ("positions", {"positions": "absolute"}),
    ("positions", {"positions": "rotary", "head_size": 5}),
    ("rotary_base", {"rotary_base": 10**400}),
    ("norm", {"norm": "both"}),
    ("norm_epsilon", {"norm_epsilon": float("nan")}),
    ("mlp_ratio", {"mlp_ratio": 1.01}),
    ("labels", {"labels": ["a"]}),
    ("labels", {"labels": ["a"] * 11}),
    ("labels", {**OF_TOKEN, "labels": list("abcdefghijk")}),
    ("dropout", {"dropout": 0.1}),
    ("bias", {"attention": [{"bias": True}]}),
    ("scope", {"attention": [{"scope": "prefix"}]}),
    ("variant", {"attention": [MAX]}),
    ("scope", {"attention": [DOT, SEQUENCE_MAX]}),
    ("scope", {"attention": [DOT, MAX], "causal": False}),
    ("scaling", {"attention": [DOT, {**MAX, "scaling": None}]}),
    ("epsilon", {"attention": [{"epsilon": 0.1}]}),
    ("scale", {"attention": [{"scale": 0.0}]}),
    ("softcap", {"attention": [{"softcap": 2.0**128}]}),
    ("window", {"attention": [{"window": 2**31}]}),
]


@pytest.mark.parametrize(("field", "changes"), BAD_CONFIGS)
def test_both_refuse_what_the_page_refuses(field: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = save_random_checkpoint(tmp_path / "checkpoint", 1, [DOT])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    assert_both_refuse(folder, field)


def bad_tensors() -> dict[str, dict[str, Any]]:
    up = np.zeros((96, 24), np.float32)
    return {
        "missing": {"layers.0.mlp.up.weight": None},
        "not listed": {"layers.0.mlp.gate.weight": up},
        "another shape": {"layers.0.mlp.up.weight": up.T.copy()},
        "another type": {"layers.0.mlp.up.weight": up.astype(np.float16)},
        "not finite": {"layers.0.mlp.up.weight": up + np.inf},
        "no row for the leading one": {"positions.table": np.zeros((40, 24), np.float32)},
        "a leading row of two axes": {"feature_embedding.cls": np.zeros((1, 24), np.float32)},
    }


@pytest.mark.parametrize("what", list(bad_tensors()))
def test_both_refuse_other_tensors(what: str, tmp_path: Path) -> None:
    layers, fields = KINDS["first, of vectors"]
    folder = save_random_checkpoint(tmp_path / "checkpoint", 1, layers, **fields)
    changes = bad_tensors()[what]
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors")
    assert_both_refuse(folder, *changes)


def assert_both_refuse(folder: Path, *names: str) -> None:
    for read in (numpy_transformer.load, load_checkpoint):
        with pytest.raises(ValueError, match="|".join(map(re.escape, names))):
            read(folder)


@pytest.mark.parametrize(
    ("name", "sequence"),
    [
        ("tied", []),
        ("tied", [0] * (MAX_LENGTH + 1)),
        ("tied", [-1]),
        ("tied", [11]),
        ("tied", [1.0]),
        ("tied", [[1]]),
        ("first, of vectors", []),
        ("first, of vectors", [[0.5] * 7] * (MAX_LENGTH + 1)),
        ("first, of vectors", [[0.5] * 6]),
        ("first, of vectors", [0.5] * 7),
    ],
)
def test_both_refuse_other_sequences(name: str, sequence: Any, tmp_path: Path) -> None:
    layers, fields = KINDS[name]
    folder = save_random_checkpoint(tmp_path / "checkpoint", 1, layers, **fields)
    with pytest.raises(ValueError, match=r"a sequence of|token ids are|feature vectors are"):
        numpy_transformer.run(numpy_transformer.load(folder), sequence)
    with pytest.raises(ValueError, match=r"^sequences\[0\]"):
        load_checkpoint(folder).model.predict([sequence])


def test_a_tokenizer_is_of_a_model_that_reads_ids(tmp_path: Path) -> None:
    layers, fields = KINDS["first, of vectors"]
    folder = save_random_checkpoint(tmp_path / "checkpoint", 1, layers, **fields)
    (folder / "tokenizer.json").write_text("{}")
    assert_both_refuse(folder, "tokenizer.json")


def table_of_page(first_column: str) -> Iterator[list[str]]:
    """Cells of the rows below the head whose first cell is this."""
    below = False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        below = line.startswith("|") and (below or cells[0] == first_column)
        if below and cells[0].startswith("`"):
            yield cells


def test_the_reader_has_every_field_of_the_page() -> None:
    fields = list(table_of_page("field"))
    names = [cells[0].strip("`") for cells in fields]
    assert names == [*numpy_config.CONFIG, *numpy_config.ATTENTION]
    for cells, (default, _) in zip(
        fields, [*numpy_config.CONFIG.values(), *numpy_config.ATTENTION.values()], strict=True
    ):
        written = cells[3].strip("`")
        assert default is numpy_config.REQUIRED if written == "required" else default == json.loads(written)


def test_the_kinds_have_every_tensor_of_the_page() -> None:
    of_page = {cells[0].strip("`") for cells in table_of_page("tensor")}
    of_kinds: set[str] = set()
    for layers, fields in KINDS.values():
        read = {} if "num_features" in fields else {"vocabulary_size": 11}
        sizes = {"max_length": 40, "width": 24, "num_heads": 3}
        config = numpy_config.complete({**read, **sizes, **fields, "attention": layers})
        of_kinds |= {re.sub(r"\d+", "{l}", name) for name in numpy_config.expected_shapes(config)}
    assert of_kinds == of_page
