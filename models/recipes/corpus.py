"""Text to train on: the prose of docstrings of packages that are installed anyway, or files.

A document is what stands between blank lines; the prose of one docstring is one document, a line per paragraph.
"""

import ast
import importlib.util
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

SKIPPED_FOLDERS = ("tests", "testing")
PUBLIC_FOLDERS = ("_core",)
"""Not private whatever their name: numpy's documented functions are in `numpy/_core`."""
DOCUMENTING_CALLS = ("add_docstr", "add_newdoc")
"""Functions that give a docstring to what is written in C."""
UNDERLINED = re.compile(r"^.+\n\s*[-=~^]{3,}\s*\n")
"""A heading, as numpy writes them."""
NOT_PROSE = re.compile(r">>>|::| : ")
HELD_OUT_EVERY = 20
TEXT_ENDINGS = (".md", ".py", ".rst", ".txt")
"""Of the files that are read of a folder."""
WIKITEXT_ENDINGS = (".tokens", ".raw")
SEPARATOR = "\n\n"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents to train on, and documents no model has seen."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]
    source: str
    """Where it comes from, for the card."""
    split: str = f"every {HELD_OUT_EVERY}th document"
    """Which documents are held out, for the card."""
    validation: tuple[str, ...] = ()
    """Documents to score on while a model trains, if they come with the text."""

    @property
    def num_characters(self) -> int:
        """Characters of all documents, without what separates them."""
        return sum(len(document) for document in (*self.training, *self.validation, *self.held_out))


def split_documents(documents: Iterable[str], source: str) -> Corpus:
    """Hold every 20th document out; one that came before is left out.

    Raises:
        ValueError: fewer than 20 documents.
    """
    distinct = tuple(dict.fromkeys(documents))
    if len(distinct) < HELD_OUT_EVERY:
        raise ValueError(
            f"files: expected at least {HELD_OUT_EVERY} different documents, separated by blank lines, "
            f"got {len(distinct)}"
        )
    held_out = distinct[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    kept = set(held_out)
    return Corpus(
        training=tuple(document for document in distinct if document not in kept), held_out=held_out, source=source
    )


def read_files(paths: Sequence[str]) -> Corpus:
    """Documents of text files, in the order given; of a folder, those of its files that end as text does, by path.

    Raises:
        ValueError: a file is missing, cannot be read or is not UTF-8, a folder has none, or all are too short.
    """
    documents: list[str] = []
    for path in paths:
        for file in _files_in(path):
            text = _read_text(file, "files").replace("\r\n", "\n")
            documents += [block.strip() for block in re.split(r"\n\s*\n", text) if block.strip()]
    return split_documents(documents, ", ".join(Path(path).name for path in paths))


def _files_in(path: str) -> list[Path]:
    if not Path(path).is_dir():
        return [Path(path)]
    files = sorted(file for file in Path(path).rglob("*") if file.suffix in TEXT_ENDINGS and file.is_file())
    if not files:
        raise ValueError(f"files: expected files that end in {', '.join(TEXT_ENDINGS)} in {path}, got none")
    return files


def _read_text(path: Path, option: str) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ValueError(f"{option}: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{option}: {path}: expected UTF-8, got byte {error.start} that is not") from None


def read_wikitext(folder: str) -> Corpus:
    """WikiText-2 or -103 from a folder with its three files, as they are distributed; articles are documents.

    Trained on `wiki.train.*`, scored on `wiki.test.*`; `wiki.valid.*` scores models that are still in training. The
    files end in `.tokens` or `.raw`.

    Source: Merity et al., "Pointer sentinel mixture models", arXiv 1609.07843.

    Raises:
        ValueError: a file is missing, cannot be read, or holds no article.
    """
    articles = {}
    for split in ("train", "valid", "test"):
        places = [Path(folder) / f"wiki.{split}{ending}" for ending in WIKITEXT_ENDINGS]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            raise ValueError(
                f"wikitext: expected {' or '.join(place.name for place in places)} in {folder}, got neither"
            )
        # A heading begins an article if it has one = on each side; == begins a section of it.
        parts = re.split(r"^(?= = [^=].*[^=] = *$)", _read_text(found, "wikitext"), flags=re.MULTILINE)
        articles[split] = tuple(part.strip("\n") for part in parts if part.strip())
        if not articles[split]:
            raise ValueError(f"wikitext: expected articles in {found}, got none")
    return Corpus(
        training=articles["train"],
        validation=articles["valid"],
        held_out=articles["test"],
        source=f"WikiText, {Path(folder).name}",
        split="the test articles of WikiText",
    )


def count_words(documents: Sequence[str]) -> int:
    """Words between white space, and one end of line per line, as WikiText's perplexity counts them."""
    return sum(len(line.split()) + 1 for document in documents for line in document.splitlines())


def read_packages(names: Sequence[str]) -> Corpus:
    """Prose of the docstrings of installed packages, every paragraph once, in the order of names and paths.

    Raises:
        ValueError: a package is not installed.
    """
    seen: set[str] = set()
    documents: list[str] = []
    for name in names:
        for docstring in _docstrings_of(_folder_of(name)):
            # Many functions share whole paragraphs: repeated, they would also stand on both sides of the split.
            paragraphs = [text for text in dict.fromkeys(prose_of(docstring)) if text not in seen]
            seen.update(paragraphs)
            if paragraphs:
                documents.append("\n".join(paragraphs))
    return split_documents(documents, "docstrings of " + ", ".join(f"{name} {version(name)}" for name in names))


def prose_of(docstring: str) -> Iterator[str]:
    """Its paragraphs of English sentences, each as one line; no code, lists, tables or argument descriptions."""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        block = UNDERLINED.sub("", block)
        text = " ".join(block.split())
        is_flush = len({len(line) - len(line.lstrip()) for line in block.strip("\n").splitlines()}) == 1
        is_sentence = re.fullmatch(r"[A-Z].{38,}[.!?]", text) is not None
        num_plain = sum(character.isalpha() or character in " ,.'" for character in text)
        if is_flush and is_sentence and num_plain > 0.9 * len(text) and not NOT_PROSE.search(text):
            yield text


def _folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"packages: expected installed ones, got {package}")
    return Path(spec.origin).parent


def _docstrings_of(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).parts):
        if not any(_is_skipped(part) for part in path.relative_to(folder).parts[:-1]):
            yield from docstrings_in(path.read_text("utf-8"))


def _is_skipped(folder: str) -> bool:
    return folder in SKIPPED_FOLDERS or (folder.startswith("_") and folder not in PUBLIC_FOLDERS)


def docstrings_in(source: str) -> Iterator[str]:
    """Docstrings of a module, its classes and functions, and those it gives to functions written in C."""
    with warnings.catch_warnings():
        # Of escapes in other people's strings.
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if docstring := ast.get_docstring(node):
                yield docstring
        elif isinstance(node, ast.Call) and _name_of(node.func) in DOCUMENTING_CALLS:
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value


def _name_of(function: ast.expr) -> str:
    name: str = getattr(function, "attr", getattr(function, "id", ""))
    return name
