"""Damage: ways to make of a checkpoint one that must be refused; what is random in each is drawn from a seed."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from attnserve.bundle import TOKENIZER_FILE
from attnserve.checkpoint_files import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE

Damage = Callable[[Path, random.Random], None]
"""Of a folder that holds a checkpoint which reads ids and no text."""

# What is no value of any field, and what JSON has no business to hold.
NO_VALUES = (None, [], {}, "8", -1, 0, 1.5, 2**24 + 1, 10**400, 1e308, float("nan"), float("inf"), "\ud800", [[]])
SIZES = ("width", "max_length", "vocabulary_size", "format_version")
# Fields that other values of the right type would make another model of; these make none.
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool)


def draw_damage(folder: Path, generator: random.Random) -> str:
    """Damage the checkpoint in a folder; returns the name of what was done."""
    damage = generator.choice(DAMAGES)
    damage(folder, generator)
    return damage.__name__.strip("_")


def _cut_weights(folder: Path, generator: random.Random) -> None:
    content = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(content[: generator.randrange(len(content))])


def _append_to_weights(folder: Path, generator: random.Random) -> None:
    with (folder / WEIGHTS_FILE).open("ab") as file:
        file.write(generator.randbytes(generator.randint(1, 100)))


def _change_the_length_of_the_header(folder: Path, generator: random.Random) -> None:
    content = (folder / WEIGHTS_FILE).read_bytes()
    length = generator.choice([0, 1, 2**24 + 1, 2**31, 2**63, 2**64 - 1])
    (folder / WEIGHTS_FILE).write_bytes(struct.pack("<Q", length) + content[8:])


def _change_a_character_of_the_header(folder: Path, generator: random.Random) -> None:
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    place = 8 + generator.randrange(length)
    content[place] = generator.choice([one for one in b'{}[]",:0123456789abcXYZ._/\x00\xff' if one != content[place]])
    (folder / WEIGHTS_FILE).write_bytes(content)


def _declare_gigabytes(folder: Path, generator: random.Random) -> None:
    # With holes: it takes no room.
    with (folder / WEIGHTS_FILE).open("r+b") as file:
        file.write(struct.pack("<Q", generator.randint(1, 4) << 30))
        file.truncate(8 << 30)


def _move_a_tensor(folder: Path, generator: random.Random) -> None:
    content = (folder / WEIGHTS_FILE).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    entry = header[generator.choice([name for name in header if name != "__metadata__"])]
    begin, end = entry["data_offsets"]
    entry["data_offsets"] = generator.choice(
        [[begin + 4, end + 4], [begin, end + 4], [end, begin], [-4, end], [0, 2**60]]
    )
    encoded = json.dumps(header).encode()
    (folder / WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])


def _put_a_pickle_there(folder: Path, generator: random.Random) -> None:
    torch.save(_load(folder), folder / WEIGHTS_FILE, _use_new_zipfile_serialization=generator.random() < 0.5)


def _load(folder: Path) -> dict[str, Any]:
    """Copies: the file that is mapped is written over."""
    return {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS_FILE).items()}


def _change_tensors(folder: Path, change: Callable[[dict[str, Any], str], object], generator: random.Random) -> None:
    tensors = _load(folder)
    change(tensors, generator.choice(sorted(tensors)))
    save_file(tensors, folder / WEIGHTS_FILE)


def _drop_a_tensor(folder: Path, generator: random.Random) -> None:
    _change_tensors(folder, lambda tensors, name: tensors.pop(name), generator)


def _add_a_tensor(folder: Path, generator: random.Random) -> None:
    names = [
        "../../etc/passwd",
        "/etc/passwd",
        "C:\\x",
        "a\nb",
        "",
        "layers.99.mlp.up.weight",
        "x" * 100_000,
        "\x1b[31m",
    ]
    added = generator.choice(names)
    _change_tensors(folder, lambda tensors, _: tensors.update({added: torch.zeros(2)}), generator)


def _change_a_type(folder: Path, generator: random.Random) -> None:
    dtype = generator.choice(DTYPES)
    _change_tensors(folder, lambda tensors, name: tensors.update({name: tensors[name].to(dtype)}), generator)


def _change_a_shape(folder: Path, generator: random.Random) -> None:
    shapes = [(0,), (), (1, 1, 1), (3, 5), (2**16,)]
    shape = generator.choice(shapes)
    _change_tensors(folder, lambda tensors, name: tensors.update({name: torch.zeros(shape)}), generator)


def _put_no_number_there(folder: Path, generator: random.Random) -> None:
    number = generator.choice([float("nan"), float("inf"), -float("inf")])

    def change(tensors: dict[str, Any], name: str) -> None:
        flat = tensors[name].view(-1)
        flat[generator.randrange(len(flat))] = number

    _change_tensors(folder, change, generator)


def _cut_the_config(folder: Path, generator: random.Random) -> None:
    content = (folder / CONFIG_FILE).read_bytes().rstrip()
    (folder / CONFIG_FILE).write_bytes(content[: generator.randrange(len(content))])


def _put_junk_into_a_document(folder: Path, generator: random.Random) -> None:
    deep = generator.choice([b"[", b'{"a":']) * 100_000
    junk = generator.choice([b"", b"null", b"[]", b'"{}"', b"\xff\xfe", deep, generator.randbytes(1000), b"\0" * 100])
    (folder / generator.choice([CONFIG_FILE, CARD_FILE, TOKENIZER_FILE])).write_bytes(junk)


def _blow_a_document_up(folder: Path, generator: random.Random) -> None:
    with (folder / generator.choice([CONFIG_FILE, CARD_FILE])).open("r+b") as file:
        file.truncate(1 << 30)


def _change_the_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    change(document)
    (folder / CONFIG_FILE).write_text(json.dumps(document), "utf-8")


def _drop_a_field(folder: Path, generator: random.Random) -> None:
    field = generator.choice(["width", "num_heads", "max_length", "attention", "vocabulary_size"])
    _change_the_config(folder, lambda document: document.pop(field))


def _add_a_field(folder: Path, generator: random.Random) -> None:
    field = generator.choice(["__class__", "dropout", "x" * 100_000, "\ud800", "", "torch_dtype", "../x"])
    _change_the_config(folder, lambda document: document.update({field: generator.choice(NO_VALUES)}))


def _put_no_value_there(folder: Path, generator: random.Random) -> None:
    field, value = generator.choice(SIZES), generator.choice(NO_VALUES)
    _change_the_config(folder, lambda document: document.update({field: value}))


def _make_a_size_absurd(folder: Path, generator: random.Random) -> None:
    sizes = {"width": 2**24, "max_length": 2**24, "vocabulary_size": 2**24, "head_size": 2**20, "mlp_ratio": 2**19}
    field = generator.choice(sorted(sizes))
    _change_the_config(folder, lambda document: document.update({field: sizes[field]}))


def _ask_for_layers(folder: Path, generator: random.Random) -> None:
    layers: Any = generator.choice(
        [[], [{}] * 7, [{}] * 1025, [{}] * 1_000_000, [{"variant": "x"}], [[]], [{"window": -1}]]
    )
    _change_the_config(folder, lambda document: document.update(attention=layers))


def _write_a_wrong_card(folder: Path, generator: random.Random) -> None:
    deep = '{"a":' * 500 + "1" + "}" * 500
    (folder / CARD_FILE).write_text(
        generator.choice(['{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', deep, "3", "{,}"])
    )


def _write_a_wrong_tokenizer(folder: Path, generator: random.Random) -> None:
    words = {"type": "WordLevel", "vocab": {"a": 0, "b": 10**6}, "unk_token": "a"}
    panics = {**words, "vocab": {"a": 0}}
    zero = {"type": "FixedLength", "length": 0}
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}
    documents = [
        {},
        [],
        {"model": words},
        {"model": panics, "pre_tokenizer": zero},
        {"model": panics, "normalizer": charsmap},
    ]
    (folder / TOKENIZER_FILE).write_text(json.dumps(generator.choice(documents)))


def _take_a_file_away(folder: Path, generator: random.Random) -> None:
    (folder / generator.choice([CONFIG_FILE, WEIGHTS_FILE])).unlink()


DAMAGES: tuple[Damage, ...] = (
    _cut_weights,
    _append_to_weights,
    _change_the_length_of_the_header,
    _change_a_character_of_the_header,
    _declare_gigabytes,
    _move_a_tensor,
    _put_a_pickle_there,
    _drop_a_tensor,
    _add_a_tensor,
    _change_a_type,
    _change_a_shape,
    _put_no_number_there,
    _cut_the_config,
    _put_junk_into_a_document,
    _blow_a_document_up,
    _drop_a_field,
    _add_a_field,
    _put_no_value_there,
    _make_a_size_absurd,
    _ask_for_layers,
    _write_a_wrong_card,
    _write_a_wrong_tokenizer,
    _take_a_file_away,
)
