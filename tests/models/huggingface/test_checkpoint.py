"""A folder is read as far as it can be trusted."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attnserve.models.huggingface import HuggingFaceError, load
from tests.models.huggingface import zoo


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return zoo.save(tmp_path, "BertForMaskedLM")


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_weights_are_float32_whatever_the_file_has(folder: Path) -> None:
    zoo.make("BertForMaskedLM").to(torch.bfloat16).save_pretrained(folder)
    model = load(folder)
    assert model.dtype == torch.float32
    assert not model.training


def test_weights_in_several_files_are_read(tmp_path: Path) -> None:
    model = zoo.make("BertForMaskedLM")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    torch.testing.assert_close(load(tmp_path).state_dict(), model.state_dict())


def test_a_pickle_is_never_loaded(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(HuggingFaceError, match=r"model\.safetensors: no such file; pytorch_model\.bin is a pickle"):
        load(folder)


def test_code_of_a_folder_is_never_run(folder: Path) -> None:
    change_config(folder, auto_map={"AutoModelForMaskedLM": "own.Model"})
    (folder / "own.py").write_text("raise SystemExit('was run')")
    with pytest.raises(HuggingFaceError, match="auto_map: expected a model of transformers, got code in the folder"):
        load(folder)


def test_a_missing_tensor_is_not_drawn_at_random(folder: Path) -> None:
    name = "bert.encoder.layer.1.output.dense.weight"
    change_tensors(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(HuggingFaceError, match=f"{name}: missing, which BertForMaskedLM needs"):
        load(folder)


def test_numbers_that_are_none_are_refused(folder: Path) -> None:
    name = "bert.encoder.layer.1.output.dense.weight"
    change_tensors(folder, lambda tensors: tensors[name].fill_(float("nan")))
    with pytest.raises(HuggingFaceError, match=f"{name}: expected finite numbers, got NaN or infinity"):
        load(folder)


@pytest.mark.parametrize(
    ("architectures", "message"),
    [
        (None, "architectures: expected one name, got None"),
        (["A", "B"], r"architectures: expected one name, got \['A', 'B'\]"),
        (["BertForEverything"], "architectures: expected a model of transformers .*, got 'BertForEverything'"),
        (["BertConfig"], "architectures: expected a model of transformers .*, got 'BertConfig'"),
    ],
)
def test_a_class_that_transformers_does_not_have_is_refused(folder: Path, architectures: object, message: str) -> None:
    change_config(folder, architectures=architectures)
    with pytest.raises(HuggingFaceError, match=message):
        load(folder)


def test_no_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HuggingFaceError, match=r"config\.json: no such file"):
        load(tmp_path)


def test_a_config_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(HuggingFaceError, match=r"config\.json: not JSON"):
        load(folder)
