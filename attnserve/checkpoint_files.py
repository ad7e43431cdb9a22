"""The files of a checkpoint: their names and sizes, and the hashes of those in a folder. Standard library only."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Sequence

from attnserve.bundle import MAX_TOKENIZER_BYTES, TOKENIZER_FILE

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "card.json"
FILES = (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE, CARD_FILE)
"""All that a checkpoint may have."""
INDEX_FILE = "model.safetensors.index.json"
"""Of a Hugging Face folder whose weights are in several files."""
NEEDED = (CONFIG_FILE, WEIGHTS_FILE)
MAX_JSON_BYTES = 16 * 1024 * 1024
MAX_BYTES = {CONFIG_FILE: MAX_JSON_BYTES, CARD_FILE: MAX_JSON_BYTES, TOKENIZER_FILE: MAX_TOKENIZER_BYTES}
"""Of those that are read into memory as they are."""
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
CONVERT_PICKLE = (
    "which runs code when loaded: convert it where you trust it, "
    "with safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
)


class FolderError(ValueError):
    """A folder is none of those that checkpoints may be read from, or holds no checkpoint; says what was expected."""


def pin_folder(folder: str, allowed: Sequence[str | os.PathLike[str]]) -> dict[str, str]:
    """sha256 of every file of the checkpoint in a folder of this machine.

    Links are followed as long as they stay within what is allowed. Reads every byte, so it takes seconds per gigabyte.

    Args:
        folder: its absolute path.
        allowed: folders in which it may lie, at any depth.

    Raises:
        FolderError: it lies nowhere in there, or is no checkpoint; or a file leads out of there or is no plain file.
    """
    roots = [os.path.realpath(root) for root in allowed]
    if not os.path.isabs(folder) or "\0" in folder or not _is_within(os.path.realpath(folder), roots):
        # Not whether there is such a folder: that is nobody's business.
        expected = " or ".join(map(str, allowed)) or "the name of an uploaded checkpoint"
        expected = f"a folder in {expected}" if allowed else expected
        raise FolderError(f"checkpoint: expected {expected}, got {folder[:200]!r}")
    found = {}
    for file in FILES:
        place = os.path.join(folder, file)
        if not os.path.lexists(place):
            if file in NEEDED:
                hint = explain_pickle(os.listdir(folder) if os.path.isdir(folder) else ())
                raise FolderError(f"checkpoint: expected {file} in {folder}, got none{hint}")
            continue
        path = os.path.realpath(place)
        if not _is_within(path, roots):
            raise FolderError(f"checkpoint: {file}: expected a file of {folder}, got a link that leads elsewhere")
        try:
            found[file] = _hash_plain(path)
        except OSError as error:
            raise FolderError(f"checkpoint: {file}: expected a file that can be read, got: {error.strerror}") from None
    return found


def explain_pickle(names: Iterable[str]) -> str:
    """What to do with a pickle, to be said after an error, if one of these is the name of one; else nothing."""
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    return f"; {pickles[0][:64]} is a pickle, {CONVERT_PICKLE}" if pickles else ""


def names_class(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder's config is one of transformers', which name the class of their model; ours have one class."""
    path = os.path.join(folder, CONFIG_FILE)
    try:
        if os.path.getsize(path) > MAX_JSON_BYTES:
            return False
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, ValueError, RecursionError):
        # Whoever reads it says what is wrong with it.
        return False
    return isinstance(document, dict) and "architectures" in document


def _is_within(path: str, roots: Sequence[str]) -> bool:
    return any(os.path.commonpath([root, path]) == root for root in roots)


def _hash_plain(path: str) -> str:
    # Opening a pipe would wait for somebody to write into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a plain file")
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_folders(given: object) -> tuple[str, ...]:
    """Folders that checkpoints may be in, as a setting names them.

    Raises:
        ValueError: says what was expected.
    """
    # On the command line as in PATH, in a file as a list.
    folders = [part for part in given.split(os.pathsep) if part] if isinstance(given, str) else given
    if not isinstance(folders, list | tuple) or not all(isinstance(folder, str) for folder in folders):
        raise ValueError(f"expected folders, got {type(given).__name__}")
    for folder in folders:
        if not os.path.isabs(folder):
            raise ValueError(f"expected absolute paths, got {folder!r}")
    return tuple(folders)
