"""Models of text over HTTP: spans that slice the input, classes of tokens, and what is refused."""

import asyncio
import json
from dataclasses import replace

import numpy as np
import pytest

from attnserve.service.sequences import Reader
from attnserve.text import TextReader
from tests.http.conftest import PREDICT, talk
from tests.kinds import CLASSES, END, MAX_LENGTH, make_tokenizer

pytestmark = pytest.mark.http

NASTY = {
    "plain": "the cat at the cat",
    "blanks": "  \t \u00a0\u3000 ",
    "one letter": "x",
    "family": "a\N{WOMAN}\N{ZERO WIDTH JOINER}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}b",
    "skin": "\N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-5} cat",
    "flag": "\N{REGIONAL INDICATOR SYMBOL LETTER D}\N{REGIONAL INDICATOR SYMBOL LETTER E}",
    "combining": "e\N{COMBINING ACUTE ACCENT}\N{COMBINING DIAERESIS}o\N{COMBINING LONG STROKE OVERLAY}",
    "right to left": "\N{HEBREW LETTER SHIN}\N{HEBREW POINT SHIN DOT} \N{ARABIC LETTER MEEM}\N{RIGHT-TO-LEFT MARK}cat",
    "cjk": "\N{CJK UNIFIED IDEOGRAPH-65E5}\N{CJK UNIFIED IDEOGRAPH-672C}\N{HANGUL SYLLABLE GAG}\U00020000",
    "lines": "a\nb\r\nc\x0b\x85\u2028\u2029",
    "controls": "a\x00b\x07\x1b[31m\x7f\ufeff",
    "noncharacters": "\ufffe\uffff\U0010ffff\ufffd",
    "mixed": '</script>"\\\\u0041 cat\N{GRINNING FACE}e\N{COMBINING ACUTE ACCENT}\x00\N{ARABIC LETTER MEEM}\n',
}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
@pytest.mark.parametrize("name", ["text", "tagger"])
def test_spans_slice_the_text_back(broad, name, text):
    answer = broad.ask("predict", {"sequences": [text, "cat"]}, model=name)
    tokens, beside = answer["tokens"]
    ids = make_tokenizer(ended=name == "tagger").encode(text).ids
    assert [token["id"] for token in tokens] == ids
    if name == "tagger":
        # Nobody wrote it.
        assert tokens.pop() == beside.pop() == {"id": 0, "text": END, "span": None}
    assert beside == [{"id": beside[0]["id"], "text": "cat", "span": [0, 3]}]
    place, before = 0, None
    for token in tokens:
        start, end = token["span"]
        assert token["text"] == text[start:end] != ""
        # In order, without gaps; the bytes of one character share its span.
        assert start == place or [start, end] == before
        place, before = end, [start, end]
    assert place == len(text)


@pytest.mark.parametrize("name", ["text", "tagger"])
def test_a_text_is_its_ids_by_another_name(broad, name):
    tokenizer = make_tokenizer(ended=name == "tagger")
    texts = ["the cat at", NASTY["family"]]
    ids = [tokenizer.encode(text).ids for text in texts]
    body = {"positions": "all", "top_k": 3}
    by_text = broad.ask("predict", {**body, "sequences": texts}, model=name)
    by_ids = broad.ask("predict", {**body, "sequences": ids}, model=name)
    assert by_text["predictions"] == by_ids["predictions"]
    assert "tokens" not in by_ids
    # A request may hold both, and then names the tokens of both.
    mixed = broad.ask("predict", {**body, "sequences": [texts[0], ids[1]]}, model=name)
    assert mixed["predictions"] == by_text["predictions"]
    assert [token["id"] for token in mixed["tokens"][1]] == ids[1]
    assert {token["span"] for token in mixed["tokens"][1]} == {None}


@pytest.mark.parametrize("name", ["text", "tagger"])
def test_batch_mates_and_their_order_do_not_matter(broad, name):
    texts = [text for text in NASTY.values() if len(text) > 1]
    body = {"positions": "all", "top_k": 3}
    forwards = broad.ask("predict", {**body, "sequences": texts}, model=name)
    backwards = broad.ask("predict", {**body, "sequences": texts[::-1]}, model=name)
    assert forwards["tokens"] == backwards["tokens"][::-1]
    for index, (text, first, second) in enumerate(
        zip(texts, forwards["predictions"], backwards["predictions"][::-1], strict=True)
    ):
        alone = broad.ask("predict", {**body, "sequences": [text]}, model=name)
        assert alone["tokens"] == [forwards["tokens"][index]]
        for other in (first, second):
            logits, expected = (
                [[entry["logit"] for entry in entries] for entries in one["top"]]
                for one in (other, alone["predictions"][0])
            )
            np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)


def test_every_token_has_a_class(broad):
    answer = broad.ask("predict", {"sequences": ["the cat", [5]], "top_k": 3}, model="tagger")
    for prediction, tokens in zip(answer["predictions"], answer["tokens"], strict=True):
        assert prediction["positions"] == list(range(len(tokens)))
        for entries in prediction["top"]:
            assert sorted(entry["id"] for entry in entries) == [0, 1, 2]
            assert all(entry["label"] == CLASSES[entry["id"]] for entry in entries)
    last = broad.ask("predict", {"sequences": ["the cat"], "positions": "last"}, model="tagger")
    assert last["predictions"][0]["positions"] == [len(answer["tokens"][0]) - 1]


def test_the_next_token_is_named_by_its_text(broad):
    answer = broad.ask("predict", {"sequences": ["the"], "top_k": 263}, model="text")
    labels = {entry["id"]: entry["label"] for entry in answer["predictions"][0]["top"][0]}
    vocabulary = make_tokenizer().get_vocab()
    assert set(labels) == set(vocabulary.values())
    assert labels[vocabulary["\u0120cat"]] == " cat"
    assert labels[vocabulary["x"]] == "x"
    assert labels[0] == END
    # A part of a character has no text of its own.
    assert labels[vocabulary["\u0122"]] == "\ufffd"


@pytest.mark.parametrize("route", ["predict", "attention"])
def test_attention_names_every_token_and_its_place(broad, route):
    text = NASTY["family"]
    selection = {"layers": [0], "heads": [0], "quantity": "weights"}
    body = {"sequences": [text], **(selection if route == "attention" else {"attention": selection})}
    answer = broad.ask(route, body, model="text")
    (tokens,) = answer["tokens"]
    assert answer["queries"] == [list(range(len(tokens)))]
    assert np.array(answer["maps"][0]["weights"]).shape == (len(tokens), len(tokens))
    assert {token["text"] for token in tokens} == set(text)
    # Of ids there are texts, but no places.
    ids = [token["id"] for token in tokens]
    by_ids = broad.ask(route, {**body, "sequences": [ids]}, model="text")
    assert by_ids["maps"] == answer["maps"]
    assert [token["id"] for token in by_ids["tokens"][0]] == ids
    assert {token["span"] for token in by_ids["tokens"][0]} == {None}
    assert by_ids["tokens"][0][0]["text"] == "a"


WRONG = {
    "empty": ("", "sequences[1]", "expected a text of 1 to"),
    "too long": ("x" * (MAX_LENGTH + 1), "sequences[1]", f"1 to {MAX_LENGTH} tokens, got {MAX_LENGTH + 1}"),
    "far too long": ("x" * 10**6, "sequences[1]", f"expected a text of at most {32 * MAX_LENGTH} characters"),
    "null": (None, "sequences[1]", "expected a text or a list of ids, got null"),
    "an object": ({"text": "cat"}, "sequences[1]", "got an object"),
    "labels": (["cat"], "sequences[1][0]", "expected an integer id from 0 to 262"),
    "a text in a list": (["the cat", 1], "sequences[1][0]", "expected an integer id"),
    "features": ([[0.5]], "sequences[1][0]", "expected an integer id"),
}


@pytest.mark.parametrize(("sequence", "field", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("options", [{}, {"continue": 1}], ids=str)
def test_what_is_wrong_is_named(broad, sequence, field, message, options):
    body = {"sequences": ["the cat", sequence], **options}
    response = broad.post("predict", body, model="text")
    assert response.status_code == 422, response.text
    (fault,) = response.json()["errors"]
    assert fault["field"] == field
    assert message in fault["message"]
    assert len(response.content) < 10_000


@pytest.mark.parametrize("label", CLASSES)
def test_labels_of_classes_are_no_ids(broad, label):
    response = broad.post("predict", {"sequences": [[label]]}, model="tagger")
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "sequences[0][0]"
    # Without brackets it is a text like any other.
    assert broad.ask("predict", {"sequences": [label]}, model="tagger")["tokens"][0][0]["text"] == label[0]


@pytest.mark.parametrize("text", [rb"\ud83d", rb"a\udc00b", rb"\ude00\ud83d", b"\xff", b"\xed\xa0\x80", b"a\x00b"])
def test_what_is_no_text_of_json_is_no_json(broad, text):
    response = broad.post("predict", b'{"sequences": ["' + text + b'"]}', model="text")
    assert response.status_code == 400
    assert response.json()["errors"][0]["field"] == "body"


@pytest.mark.parametrize("text", [rb"\ud83d\ude00", rb"\u0000", rb"\u0063at", rb"\"\\\/\b\f\n\r\t"])
def test_escapes_are_the_characters_they_stand_for(broad, text):
    escaped = b'{"sequences": ["' + text + b'"]}'
    plain = json.dumps(json.loads(escaped), ensure_ascii=False).encode()
    first, second = (broad.ask("predict", body, model="text") for body in (escaped, plain))
    assert first == second


def test_many_texts_are_refused_before_they_cost_anything(broad):
    before = broad.cpu_seconds
    for body in ({"sequences": ["x" * 3000] * 5000}, {"sequences": ["x" * 10**7]}):
        response = broad.post("predict", body, model="text")
        assert response.status_code == 413
        assert response.json()["errors"][0]["field"] == "sequences"
    response = broad.post("predict", {"sequences": ["the cat"] * 60_000}, model="text")
    assert response.status_code == 413
    # Reading 25 million characters would take half a minute.
    assert broad.cpu_seconds - before < 5


def test_a_model_without_a_tokenizer_reads_no_text(server):
    response = server.post("predict", {"sequences": ["abc"]})
    assert response.status_code == 422
    assert response.json()["detail"] == "sequences[0]: expected a list of ids or labels, got the string 'abc'"


def test_texts_do_not_wait_for_documents(make_app, tmp_path):
    app, engine, _ = make_app()
    (tmp_path / "tokenizer.json").write_text(make_tokenizer().to_str(), "utf-8")
    model = app.state.catalogue.models["tiny"]
    reader = Reader(model.manifest, TextReader(tmp_path / "tokenizer.json"))
    app.state.catalogue.models["tiny"] = replace(model, reader=reader)
    engine.release.release(1)
    body = json.dumps({"sequences": ["the cat"]}) + " " * 2000

    async def conversation(client):
        # As long as millions of ids are parsed.
        async with app.state.parsing, asyncio.timeout(20):
            answer = await client.post(PREDICT, content=body)
        assert answer.status_code == 200, answer.text

    talk(app, conversation)
