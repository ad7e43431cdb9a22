"""Documents that operators write: YAML and JSON are read, and what is wrong is not quoted."""

import pytest

from attnserve.service.document import read_document

SECRET = "attnserve_hunter2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("# nothing", None),
        ("a: 1\nb: [x, 2.5]", {"a": 1, "b": ["x", 2.5]}),
        ('{"a": null, "b": "\\u00e9"}', {"a": None, "b": "é"}),
        ('[\n\t{"a": 1}\n]', [{"a": 1}]),
        ("- &one {a: 1}\n- {<<: *one, a: 2}", [{"a": 1}, {"a": 2}]),
    ],
)
def test_both_are_read(text, expected):
    assert read_document(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        f"- {SECRET}: [",
        f"*{SECRET}",
        f"!{SECRET} 1",
        f"!!python/object:{SECRET} {{}}",
        f"a: {SECRET}\n b: 1",
        f"{SECRET}\0",
        f"? [{SECRET}]\n: 1",
        f"{SECRET}: !!int x",
        f"{SECRET}: 2026-99-99",
        f'{{"{SECRET}": ',
        "[" * 3000,
    ],
)
def test_what_is_neither_is_said_and_not_shown(text):
    with pytest.raises(ValueError, match="expected YAML or JSON, got something else") as caught:
        read_document(text)
    assert SECRET not in str(caught.value)
    assert type(caught.value) is ValueError


@pytest.mark.parametrize("text", [f"{SECRET}: 1\n{SECRET}: 2", f'{{"{SECRET}": 1,\n"{SECRET}": 2}}'])
def test_a_name_twice_is_a_slip(text):
    with pytest.raises(ValueError, match=r"^expected each name once, got one again at line 2 column 1$"):
        read_document(text)
