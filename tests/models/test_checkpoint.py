import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from attnserve.checkpoint_files import MAX_JSON_BYTES
from attnserve.models import AttentionConfig, Transformer, TransformerConfig, load_checkpoint, save_checkpoint
from attnserve.models.checkpoint import CheckpointError
from attnserve.models.config import POSITIONS
from attnserve.records import to_json
from attnserve.text import TextReader

CONFIG = TransformerConfig(
    vocabulary_size=5,
    max_length=6,
    width=8,
    num_heads=2,
    attention=(
        AttentionConfig(variant="expressive", epsilon=1e-3, window=3),
        AttentionConfig(variant="elliptical", scope="prefix", scaling="mean", softcap=20.0),
    ),
    bias=True,
    labels=("a", "ä", "\N{SNOWMAN}", "", "e"),
)
CARD = {"task": "a trial", "accuracy": 0.5, "by": "\N{SNOWMAN}", "seeds": [1, 2]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(Transformer(CONFIG, seed=3), tmp_path / "checkpoint", CARD)
    return tmp_path / "checkpoint"


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    return str(caught.value)


@pytest.mark.parametrize("positions", POSITIONS)
def test_what_is_saved_is_loaded(tmp_path: Path, positions: str) -> None:
    saved = Transformer(dataclasses.replace(CONFIG, positions=positions), seed=3)
    save_checkpoint(saved, tmp_path / "a" / "b", CARD)
    loaded = load_checkpoint(tmp_path / "a" / "b")
    assert loaded.card == CARD
    assert loaded.model.config == saved.config
    assert not loaded.model.training
    assert loaded.model.state_dict().keys() == saved.state_dict().keys()
    assert all(torch.equal(tensor, saved.state_dict()[name]) for name, tensor in loaded.model.state_dict().items())
    trained = [name for name, parameter in saved.named_parameters() if parameter.requires_grad]
    assert [name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad] == trained
    sequences = [[0, 4, 2], [1]]
    for answer, expected in zip(loaded.model.predict(sequences), saved.predict(sequences), strict=True):
        assert torch.equal(answer, expected)


KINDS = {
    "features and a leading row": {
        "vocabulary_size": None,
        "num_features": 3,
        "task": "classify_sequence",
        "num_classes": 5,
        "pooling": "first",
        "causal": False,
        "attention": (AttentionConfig(),),
    },
    "tied": {"tied_embeddings": True},
    "tied without biases": {"tied_embeddings": True, "bias": False},
    "post-norm": {"norm": "post"},
    "grouped heads of any size": {"num_key_heads": 1, "head_size": 5},
    "a class per token": {"task": "classify_token", "num_classes": 5},
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_every_kind_of_model_is_saved_and_loaded(tmp_path: Path, changes: dict[str, Any]) -> None:
    saved = Transformer(dataclasses.replace(CONFIG, **changes), seed=3)
    save_checkpoint(saved, tmp_path)
    loaded = load_checkpoint(tmp_path).model
    assert loaded.config == saved.config
    assert load_file(tmp_path / "model.safetensors").keys() == saved.state_dict().keys()
    sequence = [[0.5, -1.0, 2.0]] if loaded.config.num_features else [0, 4, 2]
    assert torch.equal(loaded.predict([sequence])[0], saved.predict([sequence])[0])


def test_a_tied_checkpoint_has_no_second_embedding(tmp_path: Path) -> None:
    save_checkpoint(Transformer(dataclasses.replace(CONFIG, tied_embeddings=True)), tmp_path)
    model = load_checkpoint(tmp_path).model
    assert model.unembedding.weight is None
    edit_tensors(tmp_path, lambda tensors: tensors.update({"unembedding.weight": torch.zeros(5, 8)}))
    assert refusal(tmp_path).endswith("unembedding.weight: unknown tensor; the config names none of that name")


def test_a_checkpoint_from_before_a_field_loads(folder: Path) -> None:
    document = to_json(CONFIG)
    since = {"num_features", "num_key_heads", "head_size", "num_classes", "pooling", "norm", "tied_embeddings"}
    for name in since:
        del document[name]
    before = load_checkpoint(folder).model
    (folder / "config.json").write_text(json.dumps(document), "utf-8")
    assert load_checkpoint(folder).model.config == before.config == CONFIG


def tokenizer_of(num_ids: int) -> Tokenizer:
    return Tokenizer(WordLevel({f"word\N{SNOWMAN}{index}": index for index in range(num_ids)}, unk_token="?"))


def test_a_tokenizer_travels_with_its_model(tmp_path: Path) -> None:
    save_checkpoint(Transformer(CONFIG), tmp_path, tokenizer=tokenizer_of(5))
    path = load_checkpoint(tmp_path).tokenizer
    assert path == tmp_path / "tokenizer.json"
    assert TextReader(path).encode("word\N{SNOWMAN}3").ids.tolist() == [3]


def test_a_model_without_a_tokenizer_has_none(folder: Path) -> None:
    assert not (folder / "tokenizer.json").exists()
    assert load_checkpoint(folder).tokenizer is None


def test_a_tokenizer_that_does_not_fit_is_refused_by_file(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer_of(6).save(str(path))
    assert refusal(folder) == f"{path}: expected ids below vocabulary_size 5, got 5"
    path.write_text("{}")
    assert refusal(folder).startswith(f"{path}: not a tokenizer: ")


def test_a_model_of_features_refuses_a_tokenizer(tmp_path: Path) -> None:
    made_of = dataclasses.replace(CONFIG, **KINDS["features and a leading row"])
    save_checkpoint(Transformer(made_of), tmp_path, tokenizer=tokenizer_of(1))
    assert refusal(tmp_path) == f"{tmp_path / 'tokenizer.json'}: expected none, since the model reads features"


def test_a_folder_named_by_text_will_do(folder: Path) -> None:
    assert load_checkpoint(str(folder)).model.config == CONFIG


def test_a_card_is_optional(folder: Path) -> None:
    (folder / "card.json").unlink()
    assert load_checkpoint(folder).card == {}


def test_the_initial_weights_do_not_come_back(folder: Path) -> None:
    # Nothing is regenerated: a table changed in the file is the table of the model.
    edit_tensors(folder, lambda tensors: tensors["positions.table"].fill_(7))
    assert (load_checkpoint(folder).model.state_dict()["positions.table"] == 7).all()


def test_a_loaded_model_does_not_hang_on_its_file(folder: Path) -> None:
    model = load_checkpoint(folder).model
    before = model.predict([[0, 1, 2]])[0]
    # In place, as a careless copy would do it; tensors that are the mapped file would follow.
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(bytes(os.fstat(file.fileno()).st_size))
    assert torch.equal(model.predict([[0, 1, 2]])[0], before)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert refusal(folder) == f"{folder / name}: no such file"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere' / 'config.json'}: no such file"


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "pytorch_model.bin", "last.ckpt"])
def test_a_pickle_is_not_opened_but_converted_by_its_owner(folder: Path, name: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return os.mkdir, (str(folder / "sprung"),)

    (folder / "model.safetensors").unlink()
    torch.save(Trap(), folder / name)
    message = refusal(folder)
    assert f"model.safetensors: no such file; {name} is a pickle" in message
    assert "safetensors.torch.save_file" in message
    assert not (folder / "sprung").exists()


def test_a_pickle_in_disguise_is_not_opened_either(folder: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, folder / "model.safetensors")
    assert refusal(folder).startswith(f"{folder / 'model.safetensors'}: not a safetensors file: ")


@pytest.mark.parametrize("num_bytes", [0, 7, 100, -1])
def test_a_truncated_file_is_named(folder: Path, num_bytes: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:num_bytes])
    assert refusal(folder).startswith(f"{path}: not a safetensors file: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("layers.1.mlp.up.bias"),
            "layers.1.mlp.up.bias: missing; expected shape [32]",
        ),
        (
            lambda tensors: tensors.update({"layers.2.mlp.up.bias": torch.zeros(32)}),
            "layers.2.mlp.up.bias: unknown tensor; the config names none of that name",
        ),
        (
            lambda tensors: tensors.update({"positions.table": torch.zeros(7, 8)}),
            "positions.table: expected shape [6, 8], got [7, 8]",
        ),
        (
            lambda tensors: tensors.update({"final_norm.weight": torch.zeros(8, 1)}),
            "final_norm.weight: expected shape [8], got [8, 1]",
        ),
        (
            lambda tensors: tensors.update({"final_norm.weight": torch.zeros(8, dtype=torch.float16)}),
            "final_norm.weight: expected torch.float32, got torch.float16; save the model as float32",
        ),
        (
            lambda tensors: tensors["token_embedding.weight"].view(-1)[-1:].fill_(float("nan")),
            "token_embedding.weight: expected finite numbers, got NaN or infinity",
        ),
        (
            lambda tensors: tensors["token_embedding.weight"].view(-1)[:1].fill_(-float("inf")),
            "token_embedding.weight: expected finite numbers, got NaN or infinity",
        ),
    ],
    ids=["missing", "unknown", "shape", "dimensions", "dtype", "nan", "infinity"],
)
def test_a_tensor_that_does_not_fit_is_named(
    folder: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    edit_tensors(folder, change)
    assert refusal(folder) == f"{folder / 'model.safetensors'}: {message}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": 0.1}, "dropout: unknown field"),
        ({"num_heads": True}, "num_heads: expected int, got bool True"),
        ({"num_heads": 2.0}, "num_heads: expected int, got float 2.0"),
        ({"bias": 1}, "bias: expected bool, got int 1"),
        ({"mlp_ratio": "4"}, "mlp_ratio: expected float, got str '4'"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio: expected a finite number > 0, got nan"),
        ({"labels": "abcde"}, "labels: expected a list, got str 'abcde'"),
        ({"labels": ["a", "b", "c", "d", 5]}, "labels[4]: expected str, got int 5"),
        ({"attention": [{"window": True}]}, "attention[0].window: expected int, got bool True"),
        ({"attention": [{"variant": "linear"}]}, "variant: expected one of dot_product, expressive, elliptical"),
        ({"num_heads": 3}, "num_key_heads: expected a divisor of num_heads 3, got 2"),
        ({"num_heads": 3, "head_size": None}, "num_heads: expected a divisor of width 8 (or a head_size), got 3"),
        ({"task": "classify_token"}, "num_classes: classify_token needs a number of classes, got none"),
        ({"format_version": 99}, "format_version: this release reads 1, got 99"),
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_refused_by_file_and_field(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    (folder / "config.json").write_text(json.dumps(to_json(CONFIG) | changes), "utf-8")
    refused = refusal(folder)
    assert refused.startswith(f"{folder / 'config.json'}: ")
    assert message in refused


def test_a_config_is_named_in_the_current_folder_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config.json").write_text(json.dumps(to_json(CONFIG) | {"attention": [{"window": True}]}), "utf-8")
    monkeypatch.chdir(folder)
    assert refusal(Path(".")) == "config.json: attention[0].window: expected int, got bool True"


@pytest.mark.parametrize("name", ["config.json", "card.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON: "),
        (b"{", "not JSON: "),
        (b"[" * 200_000, "not JSON: "),
        (b"[1]", "expected a JSON object, got list"),
        (b"\xff{}", "cannot be read as UTF-8 text: "),
        (b" " * MAX_JSON_BYTES + b"{}", f"expected at most {MAX_JSON_BYTES} bytes, got {MAX_JSON_BYTES + 2}"),
    ],
    ids=["empty", "cut", "deep", "list", "bytes", "large"],
)
def test_what_is_not_a_json_object_is_refused_by_file(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    assert refusal(folder).startswith(f"{folder / name}: {message}")


def test_a_config_larger_than_its_tensors_costs_nothing(folder: Path) -> None:
    # Made for real, the basis this table is cut from would be 2 PB.
    (folder / "config.json").write_text(json.dumps(to_json(CONFIG) | {"max_length": 2**24}), "utf-8")
    message = "positions.table: expected shape [16777216, 8], got [6, 8]"
    assert refusal(folder) == f"{folder / 'model.safetensors'}: {message}"
