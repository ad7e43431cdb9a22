"""One declaration per setting: flag, variable, default, table. The service and the worker each have a class of them."""

import argparse

import pytest
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from attnserve.flags import add_flags, default_of, flag_of, read_flags, settings_table, spell


class Lamps(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="ATTNSERVE_", extra="forbid")

    num_lamps: int = Field(3, ge=1, le=9, description="How many, 100% of them.")
    is_lit: bool = Field(False, description="Whether they shine.")
    switch: str = Field("", pattern="^[a-z]*$", description="What they hang on.", json_schema_extra={"accepts": "word"})


def parse(*arguments: str) -> Lamps:
    parser = argparse.ArgumentParser()
    add_flags(parser, Lamps)
    return read_flags(parser.parse_args(arguments), Lamps, secret={"switch"})


def test_flag_over_environment_over_default(monkeypatch):
    assert parse() == read_flags(None, Lamps) == Lamps()
    monkeypatch.setenv("ATTNSERVE_NUM_LAMPS", "4")
    assert parse().num_lamps == 4
    assert parse("--num-lamps", "5").num_lamps == 5


def test_a_fault_is_named_however_it_came(monkeypatch):
    expected = r"^--num-lamps \(ATTNSERVE_NUM_LAMPS\): input should be less than or equal to 9, got '10'$"
    with pytest.raises(ValueError, match=expected):
        parse("--num-lamps", "10")
    monkeypatch.setenv("ATTNSERVE_NUM_LAMPS", "10")
    with pytest.raises(ValueError, match=expected):
        parse()


def test_a_secret_is_not_repeated():
    with pytest.raises(ValueError, match=r"^--switch \(ATTNSERVE_SWITCH\): string should match pattern") as refused:
        parse("--switch", "GEHEIM")
    assert "GEHEIM" not in str(refused.value)


def test_names_and_defaults_in_words():
    assert (flag_of("num_lamps"), spell("num_lamps")) == ("--num-lamps", "--num-lamps (ATTNSERVE_NUM_LAMPS)")
    assert [default_of(Lamps, name) for name in Lamps.model_fields] == ["3", "false", "none"]


def test_help_has_all_of_them(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "--num-lamps NUM_LAMPS How many, 100% of them. (default: 3)" in text


def test_the_table_has_a_row_for_each():
    assert settings_table(Lamps).splitlines()[2:] == [
        "| `--num-lamps` | `ATTNSERVE_NUM_LAMPS` | `3` | integer >= 1 <= 9 | How many, 100% of them. |",
        "| `--is-lit` | `ATTNSERVE_IS_LIT` | `false` | `true`, `false` | Whether they shine. |",
        "| `--switch` | `ATTNSERVE_SWITCH` | `none` | word | What they hang on. |",
    ]
