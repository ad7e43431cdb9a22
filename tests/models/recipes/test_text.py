import argparse
import importlib.metadata
import itertools
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from attnserve.models import Transformer, TransformerConfig, layers_of, load_checkpoint
from attnserve.models.recipes.conditioning import measure_conditioning
from attnserve.models.recipes.corpus import (
    count_words,
    docstrings_in,
    prose_of,
    read_files,
    read_packages,
    read_wikitext,
)
from attnserve.models.recipes.language import (
    Bits,
    continue_text,
    count_bytes,
    encode_documents,
    model_bits,
    train_tokenizer,
    unigram_bits,
    windows,
)
from attnserve.models.recipes.text import STEPS, add_arguments, corpus_of, fit, measure, run
from attnserve.models.recipes.text_scores import perplexity_per_word
from attnserve.text import TextReader

CHECKPOINTS = Path(__file__).parents[3] / "checkpoints"
COMMITTED = CHECKPOINTS / "text-expressive"
QUICK = "--steps 3 --batch 2 --max-length 16 --width 8 --heads 2 --layers 1 --vocabulary-size 300 --sequences 3 --quiet"
NAMES = ("tensor", "array", "matrix", "vector", "mask", "axis")
DOCUMENTS = tuple(
    f"Returns a {a} of the same shape as the {b} of a {c}." for a, b, c in itertools.permutations(NAMES, 3)
)
# Written for this test: in no package.
SAMPLE = """Returns the index of the first element that is larger than the given value.

If no element of the input is larger, the length of the array is returned instead. The input must be one dimensional.

Create a module that applies a linear transformation to its input and then adds a bias to the result. This function \
should be called once before the first forward pass, and the default value is used if the argument is not specified."""


def parse(options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(shlex.split(options))


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "some text.txt"
    path.write_text("\n\n".join(DOCUMENTS), "utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(DOCUMENTS, 320)


def test_every_option_has_a_help_text_with_its_default() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for action in parser._actions:
        if action.dest != "help":
            assert "default" in (action.help or ""), action.dest


def test_the_text_of_a_package_is_the_same_each_time_and_split_disjointly() -> None:
    corpus = read_packages(["onnx"])

    assert corpus == read_packages(["onnx"])
    assert corpus.source == f"docstrings of onnx {importlib.metadata.version('onnx')}"
    assert len(corpus.training) > 100
    assert len(corpus.held_out) == (len(corpus.training) + len(corpus.held_out)) // 20
    paragraphs = [line for document in corpus.training + corpus.held_out for line in document.split("\n")]
    assert len(set(paragraphs)) == len(paragraphs), "no paragraph is on both sides, or anywhere twice"
    assert corpus.num_characters == sum(map(len, paragraphs)) + len(paragraphs) - len(corpus.training + corpus.held_out)


def test_docstrings_of_python_and_of_c_are_found() -> None:
    source = '''"""Module."""
class A:
    """Class."""
    async def f(self):
        """Method."""
x = "no docstring, and an escape that Python warns of: \\d"
add_newdoc("numpy", "absolute", """Absolute.""")
torch._C.add_docstr(torch.abs, r"""abs(input)""" + """Of C.""".format(**common))
'''
    found = list(docstrings_in(source))
    assert {"Module.", "Class.", "Method.", "Absolute.", "Of C."} <= set(found)
    assert not any("escape" in docstring for docstring in found)


def test_prose_is_sentences_without_code_headings_and_lists() -> None:
    docstring = """Return the sum of all elements along the given axis.

    Notes
    -----
    The sum of no elements is zero, which is
    the neutral element of the addition.

    x : array_like of the elements that are to be summed.

    >>> Sum([1, 2, 3]) is shown here as it would be in a session.

    Too short.

    no sentence at all, since it begins with a small letter.

    Args: a list of things that
        are indented, and therefore no prose of one piece.
    """
    assert list(prose_of(docstring)) == [
        "Return the sum of all elements along the given axis.",
        "The sum of no elements is zero, which is the neutral element of the addition.",
    ]


def test_documents_of_files_stand_between_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "windows.txt"
    path.write_bytes("\r\n\r\n\r\n".join(f"Ä {number}\r\nb" for number in range(40)).encode())
    corpus = read_files([str(path), str(path)])

    assert corpus.held_out == ("Ä 19\nb", "Ä 39\nb")
    assert len(corpus.training) == 38
    assert corpus.source == "windows.txt, windows.txt", "names, not places"


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    for name, start in {"b.md": 20, "a/z.txt": 0, "c.bin": 90}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n\n".join(f"document {start + number}" for number in range(20)))
    corpus = read_files([str(tmp_path)])

    assert corpus.held_out == ("document 19", "document 39")
    assert corpus.training[0] == "document 0"
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"^files: expected files that end in .md, .py, .rst, .txt in .*empty, got none"
    ):
        read_files([str(tmp_path / "empty")])


WIKITEXT = """
 = Elliptical things =

 An ellipse is a <unk> of points .

 = = Shape = =

 It is flat .

 = Another article =

 Short .
"""


def write_wikitext(folder: Path, ending: str = ".tokens") -> Path:
    folder.mkdir(exist_ok=True)
    for split, times in {"train": 12, "valid": 1, "test": 2}.items():
        text = "".join(WIKITEXT.replace("flat", f"flat in {split} {number}") for number in range(times))
        (folder / f"wiki.{split}{ending}").write_text(text, "utf-8")
    return folder


@pytest.mark.parametrize("ending", [".tokens", ".raw"])
def test_articles_of_wikitext_are_documents_of_its_own_splits(tmp_path: Path, ending: str) -> None:
    corpus = read_wikitext(str(write_wikitext(tmp_path / "wikitext-103", ending)))

    assert [len(part) for part in (corpus.training, corpus.validation, corpus.held_out)] == [24, 2, 4]
    assert corpus.training[0].startswith(" = Elliptical things =\n")
    assert " = = Shape = =" in corpus.training[0], "a section is no article"
    assert "flat in test 1" in corpus.held_out[2]
    assert corpus.source == "WikiText, wikitext-103"


def test_a_folder_without_wikitext_is_refused(tmp_path: Path) -> None:
    folder = write_wikitext(tmp_path)
    (folder / "wiki.valid.tokens").write_text("no heading\n")
    assert len(read_wikitext(str(folder)).validation) == 1
    (folder / "wiki.valid.tokens").write_text("\n \n")
    with pytest.raises(ValueError, match=r"^wikitext: expected articles in .*wiki.valid.tokens, got none"):
        read_wikitext(str(folder))
    (folder / "wiki.valid.tokens").unlink()
    with pytest.raises(ValueError, match=r"^wikitext: expected wiki.valid.tokens or wiki.valid.raw in .*, got neither"):
        read_wikitext(str(folder))


def test_a_run_on_wikitext_is_scored_on_its_test_articles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_wikitext(tmp_path / "wikitext")
    run(parse(f"{QUICK} --wikitext {folder} --score-every 2 --out {tmp_path / 'x'}"))
    text = load_checkpoint(tmp_path / "x").card["text"]

    assert (text["documents"], text["held_out"]) == (30, "the test articles of WikiText")
    with pytest.raises(ValueError, match=r"^wikitext: expected it or --files, got both"):
        corpus_of(parse(f"--wikitext {folder} --files {folder}"))


def test_words_are_counted_as_wikitext_counts_them() -> None:
    # Three words and an end of line, one end of line, two words and an end of line.
    assert count_words(["a b c\n\nd e"]) == 4 + 1 + 3


def test_scores_on_the_way_are_of_documents_of_their_own(text_file: Path) -> None:
    fitted = fit(parse(f"{QUICK} --files '{text_file}' --score-every 3"))

    (score,) = fitted.trained.history.scores.values()
    assert -9 < score < 0, "minus bits per byte"
    documents = (*fitted.corpus.training, *fitted.corpus.validation, *fitted.corpus.held_out)
    assert len(set(documents)) == len(documents) == 120
    assert len(fitted.corpus.validation) == 6


@pytest.mark.parametrize("scope", ["prefix", "sequence-leaky"])
def test_measures_are_columns_of_a_log(text_file: Path, scope: str) -> None:
    options = f"{QUICK} --files '{text_file}' --variant elliptical --layers 2 --scope {scope}"
    row = measure(parse(options))

    assert list(row) == [
        *("bits_per_byte", "perplexity_per_word", "bits_per_byte_swapped", "bits_whole", "bits_prefix"),
        *(f"similarity_{layer}" for layer in (1, 2, 3, 4)),
        *("steps", "cpu_seconds"),
    ]
    # What comes after a token changes what is said of it only if the metric has seen it.
    assert (abs(row["bits_whole"] - row["bits_prefix"]) < 1e-6) == (scope == "prefix")


def test_perplexity_is_of_words(tokenizer: Tokenizer) -> None:
    ids = encode_documents(tokenizer, ["one two"])
    # "one two", then a blank line: two words and two ends of lines. A bit per byte, of 9 bytes.
    bits = Bits(per_byte=1.0, per_token=0.0)
    assert perplexity_per_word(bits, tokenizer, ids) == pytest.approx(2 ** (9 / 4))


@given(text=st.text(st.characters(codec="utf-8")))
@example(text="a😀é\u0301 \x00\r\n\n  x\t日本 <|endoftext|> 👩‍👩‍👧 trailing  ")
def test_the_tokenizer_reads_any_text_and_its_spans_tile_it(tokenizer: Tokenizer, text: str) -> None:
    encoding = tokenizer.encode(text)
    assert tokenizer.decode(encoding.ids) == text
    assert count_bytes(tokenizer, np.array(encoding.ids, np.int64)) == len(text.encode())

    position = (0, 0)
    for span in encoding.offsets:
        # The next characters, or the same one again: the bytes of one character share its span.
        assert span[0] == position[1] or span == position
        position = span
    assert position[1] == len(text)


def test_the_tokenizer_is_the_same_each_time(tokenizer: Tokenizer) -> None:
    assert train_tokenizer(DOCUMENTS, 320).to_str() == tokenizer.to_str()
    assert 256 < tokenizer.get_vocab_size() <= 320
    assert train_tokenizer(["ab"], 1000).get_vocab_size() == 256, "nothing occurs twice"


def test_windows_predict_the_next_token() -> None:
    batch = next(windows(np.arange(100), 7, 3, np.random.default_rng(0)))

    assert batch.slots.tolist() == [list(range(7)), list(range(7, 14)), list(range(14, 21))]
    torch.testing.assert_close(batch.targets, batch.inputs + 1)
    assert batch.positions.tolist() == [*range(7)] * 3


def test_bits_are_those_of_the_probabilities(tokenizer: Tokenizer) -> None:
    size = tokenizer.get_vocab_size()
    config = TransformerConfig(
        vocabulary_size=size, max_length=5, width=8, num_heads=1, attention=layers_of("expressive", 1)
    )
    model = Transformer(config)
    with torch.no_grad():
        model.final_norm.weight.zero_()
    ids = encode_documents(tokenizer, DOCUMENTS[:3])

    bits = model_bits(model, tokenizer, ids)
    assert bits.per_token == pytest.approx(np.log2(size)), "all tokens are as likely"
    assert bits.per_byte == pytest.approx(np.log2(size) * (len(ids) - 1) / count_bytes(tokenizer, ids[1:]))
    assert unigram_bits(tokenizer, np.arange(size), ids).per_token == pytest.approx(np.log2(size))
    assert unigram_bits(tokenizer, ids, ids).per_token < bits.per_token


def test_a_run_saves_a_model_its_tokenizer_and_its_card(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = parse(f"{QUICK} --files '{text_file}' --out {tmp_path / 'model'}")
    assert run(arguments) == 0

    checkpoint = load_checkpoint(tmp_path / "model")
    card, config = checkpoint.card, checkpoint.model.config
    assert checkpoint.tokenizer is not None
    assert TextReader(checkpoint.tokenizer).num_ids == config.vocabulary_size
    assert (config.task, config.tied_embeddings, config.max_length) == ("next_token", True, 16)
    assert (card["recipe"], card["text"]["source"], card["text"]["documents"]) == ("text", "some text.txt", 120)
    assert f"held out: {card['bits_per_byte']:.3f} bits per byte" in capsys.readouterr().out

    # The command in the card is the run: same weights, same card.
    again = parse(card["command"].removeprefix("attnserve train text ") + " --quiet")
    assert vars(again) == vars(arguments)
    again.out = str(tmp_path / "again")
    run(again)
    capsys.readouterr()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert {**load_checkpoint(again.out).card, "command": ""} == {**card, "command": ""}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ("--files missing.txt", "files"),
        ("--files /dev/null", "files"),
        ("--wikitext .", "wikitext"),
        ("--vocabulary-size 255", "vocabulary_size"),
        ("--max-length 100000", "files"),
        ("--max-length 0", "max_length"),
        ("--batch 0", "batch"),
        ("--seed -1", "seed"),
        ("--steps 0", "steps"),
        ("--heads 3", "num_heads"),
        ("--windows 1 2", "windows"),
        ("--sequences 0", "sequences"),
        ("--variant dot_product --epsilon 1", "epsilon"),
    ],
)
def test_senseless_options_are_refused_by_name(options: str, field: str, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        run(parse(f"{QUICK} --files '{text_file}' {options} --out {tmp_path / 'x'}"))
    assert not (tmp_path / "x").exists(), "nothing is left behind"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe", "expected UTF-8, got byte 0"), (b"", "expected at least 20"), (b"one\n\n" * 40, "got 1$")],
)
def test_files_that_are_no_text_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=f"^files: .*{message}"):
        read_files([str(tmp_path / "file")])


def test_a_package_that_is_not_installed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^packages: .*nowhere_to_be_found"):
        read_packages(["nowhere_to_be_found"])


def test_the_committed_checkpoint_is_what_its_card_says() -> None:
    checkpoint = load_checkpoint(COMMITTED)
    card, config = checkpoint.card, checkpoint.model.config

    assert sum(file.stat().st_size for file in COMMITTED.iterdir()) <= 2_000_000
    assert {layer.variant for layer in config.attention} == {card["variant"]} == {"expressive"}
    assert (config.task, config.causal, config.tied_embeddings) == ("next_token", True, True)
    assert (config.positions, config.max_length) == ("rotary", 256)
    assert card["parameters"] == sum(parameter.numel() for parameter in checkpoint.model.parameters())
    options = parse(card["command"].removeprefix("attnserve train text "))
    assert (options.seed, options.steps or STEPS, options.width) == (card["seed"], card["steps"], config.width)
    assert "/" not in json.dumps(card["text"]), "no path of the machine it was trained on"


def test_the_script_trains_the_committed_checkpoint() -> None:
    script = (CHECKPOINTS / "train.sh").read_text("utf-8").replace("\\\n", " ")
    commands = [shlex.split(line) for line in script.splitlines() if line.startswith("attnserve train text")]
    assert commands == [shlex.split(load_checkpoint(COMMITTED).card["command"])]


def test_the_committed_checkpoint_knows_english() -> None:
    checkpoint = load_checkpoint(COMMITTED)
    assert checkpoint.tokenizer is not None
    tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer))
    ids = np.array(tokenizer.encode(SAMPLE).ids, np.int64)

    assert model_bits(checkpoint.model, tokenizer, ids).per_byte < 0.5 * checkpoint.card["unigram_bits_per_byte"]
    sample = checkpoint.card["sample"]
    assert sample["continuation"].startswith(continue_text(checkpoint.model, tokenizer, sample["prompt"], 8))


def test_the_committed_checkpoint_is_well_conditioned() -> None:
    checkpoint = load_checkpoint(COMMITTED)
    stated = checkpoint.card["conditioning"]
    # Bounds with room for the server, which may be no further off than four times this.
    bounds = {"logits": 1.2e-5, "weights": 2.5e-5}
    found = measure_conditioning(checkpoint.model, np.random.default_rng(5), num_sequences=4)
    for name, bound in bounds.items():
        assert stated[name] <= bound
        assert getattr(found, name) <= bound
