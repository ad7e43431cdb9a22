"""Options: what is refused, and in which words."""

import argparse

import pytest

from attnserve.service.bench.command import add_arguments
from attnserve.service.bench.options import LoadOptions, read_options


def read(*words, environment=None):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return read_options(parser.parse_args(["--url", "http://h:1", "--model", "m", *words]), environment or {})


def test_nothing_is_needed_but_url_and_model():
    assert read() == LoadOptions(url="http://h:1", model="m")


def test_every_option():
    words = "--rate 5 --arrivals constant --duration 3 --warmup 0 --lengths 7 --sequences 2 --deadline-ms 50"
    words += " --timeout-s 9 --seed 4 --api-key k --quiet"
    assert read(*words.split()) == LoadOptions(
        url="http://h:1",
        model="m",
        api_key="k",
        rate=5,
        arrivals="constant",
        duration_s=3,
        warmup_s=0,
        timeout_s=9,
        deadline_ms=50,
        lengths="7",
        num_sequences=2,
        seed=4,
    )
    assert read("--closed", "8").num_connections == 8


def test_the_key_may_be_in_the_environment():
    environment = {"ATTNSERVE_API_KEY": "secret"}
    assert read(environment=environment).api_key == "secret"
    assert read("--api-key", "other", environment=environment).api_key == "other"
    assert "secret" not in repr(read(environment=environment))


WRONG = {
    "--rate 0": "--rate: expected a number > 0, got 0",
    "--rate nan": "--rate: expected a number > 0, got nan",
    "--rate inf": "--rate: expected a number > 0, got inf",
    "--rate 1e9": "--rate: expected at most 10,000,000 requests in a run, got 1e+09/s for 12 s",
    "--duration 0": "--duration: expected a number > 0 and <= 86400, got 0",
    "--duration 1e9": "--duration: expected a number > 0 and <= 86400, got 1e+09",
    "--warmup -1": "--warmup: expected a number >= 0 and <= 86400, got -1",
    "--timeout-s 0": "--timeout-s: expected a number > 0 and <= 86400, got 0",
    "--deadline-ms 0": "--deadline-ms: expected a number > 0 and <= 8.64e+07, got 0",
    "--sequences 0": "--sequences: expected a number >= 1, got 0",
    "--seed -1": "--seed: expected a number >= 0, got -1",
    "--closed 0": "--closed: expected a number >= 1 and <= 1e+07, got 0",
    "--closed 2 --rate 5": "--closed: expected no --rate and no --arrivals with it",
    "--lengths 0": "--lengths: expected 64, 8-256,",
    "--url ftp://h": "--url: expected http://HOST:PORT, got 'ftp://h'",
    "--url h:8000": "--url: expected http://HOST:PORT, got 'h:8000'",
    "--url http://": "--url: expected http://HOST:PORT, got 'http://'",
    "--url http://h?a=b": "--url: expected http://HOST:PORT, got 'http://h?a=b'",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_is_refused(words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read(*words.split())
    assert str(caught.value).startswith(WRONG[words])


@pytest.mark.parametrize("words", [("--api-key", "s\nt"), ("--api-key", "sécret"), ("--url", "http://u:secret@h")])
def test_secrets_are_not_repeated(words):
    with pytest.raises(ValueError, match=r"^--(api-key|url)") as caught:
        read(*words)
    assert words[1] not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_model_is_needed():
    with pytest.raises(ValueError, match="--model: expected the name of a model, got none"):
        read("--model", "")
