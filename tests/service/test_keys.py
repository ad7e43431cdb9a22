"""Keys: what a file may say, what is shown of what is wrong, and how a key is found."""

import hashlib
import hmac
import json

import pytest

from attnserve.service import keys
from attnserve.service.guard import Need
from attnserve.service.keys import PREFIX, SCOPES, find_key, hash_secret, make_secret, parse_keys, write_entry

DIGITS = "1f" * 32
OTHER = "2e" * 32


def entry(**fields):
    return {"name": "ci", "sha256": DIGITS, "scopes": ["predict"], **fields}


def test_scopes_are_what_routes_can_need():
    assert set(SCOPES) == set(Need) - {Need.NOTHING, Need.KEY}


def test_a_secret_cannot_be_guessed():
    made = {make_secret() for _ in range(100)}
    assert len(made) == 100
    # Six bits a character.
    assert all(secret.startswith(PREFIX) and 6 * (len(secret) - len(PREFIX)) >= 256 for secret in made)


@pytest.mark.parametrize("name", ["ci", "no", "12e4", "2026-01-01", "a.b_c-d"])
@pytest.mark.parametrize("scopes", [[], ["predict"], list(SCOPES)])
def test_what_is_written_is_read(name, scopes):
    secret = make_secret()
    (key,) = parse_keys(write_entry(name, secret, scopes))
    assert (key.name, key.scopes) == (name, set(scopes))
    assert key.digest == hashlib.sha256(secret.encode()).digest()
    assert secret not in write_entry(name, secret, scopes)


def test_yaml_json_and_lists_are_the_same():
    entries = [entry(), entry(name="ops", sha256=OTHER.upper(), scopes=[])]
    assert parse_keys(entries) == parse_keys(json.dumps(entries)) == parse_keys(json.dumps(entries, indent="\t"))
    assert [key.digest.hex() for key in parse_keys(entries)] == [DIGITS, OTHER]


def test_a_key_hides_its_hash():
    (key,) = parse_keys([entry()])
    assert DIGITS not in repr(key)
    assert repr(key.digest) not in repr(key)


WRONG = {
    "nothing": (None, "expected a list of entries with name, sha256, scopes, got nothing"),
    "empty": ([], "got an empty list"),
    "one entry": (entry(), "expected a list of entries with name, sha256, scopes, got a mapping"),
    "no entry": (["ci"], "entry 1: expected name, sha256, scopes, got 'ci'"),
    "no name": ([entry(), {"sha256": OTHER, "scopes": []}], "entry 2, name: missing"),
    "no hash": ([{"name": "ci", "scopes": []}], "entry 1, sha256: missing"),
    "no scopes": ([{"name": "ci", "sha256": DIGITS}], "entry 1, scopes: missing"),
    "name": ([entry(name="c i")], "entry 1, name: expected 1 to 64 letters, .*, got 'c i'"),
    "no text": ([entry(name=True)], "entry 1, name: expected 1 to 64 letters, .*, got yes or no"),
    "long name": ([entry(name="x" * 65)], "got 65 characters"),
    "short hash": ([entry(sha256=DIGITS[1:])], r"entry 1 \(ci\), sha256: expected 64 .*, got 63 characters"),
    "no hexadecimal": ([entry(sha256="x" * 64)], r"entry 1 \(ci\), sha256: expected 64 .*, got 64 characters"),
    "number": ([entry(sha256=10**63)], r"entry 1 \(ci\), sha256: expected 64 .* in quotes, got a number"),
    "scope": ([entry(scopes=["predicts"])], r"\(ci\), scopes: .* predict, attention, admin, got 'predicts' in it"),
    "scopes": ([entry(scopes="predict")], r"entry 1 \(ci\), scopes: expected a list of .*, got 'predict'"),
    "odd scope": ([entry(scopes=[["predict"]])], r"entry 1 \(ci\), scopes: .*, got a list in it"),
    "the key": ([entry(key=PREFIX + "x")], r"entry 1 \(ci\): .* 'key' as well; keys are kept as hashes: attnserve key"),
    "name twice": ([entry(), entry(sha256=OTHER)], r"entry 2 \(ci\), name: expected each name once, .* entry 1 again"),
    "hash twice": (
        [entry(), entry(name="ops")],
        r"entry 2 \(ops\), sha256: expected each key once, got that of ci again",
    ),
}


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_keys(given)
    assert DIGITS[:21] not in str(caught.value)


@pytest.mark.parametrize("field", ["name", "sha256", "scopes", "scope of scopes", "field", "entry"])
def test_a_key_in_the_wrong_place_is_not_shown(field):
    secret = make_secret()
    misplaced = {
        "scope of scopes": [entry(scopes=[secret])],
        "field": [{**entry(), secret: 1}],
        "entry": [secret],
    }
    with pytest.raises(ValueError, match="entry 1") as caught:
        parse_keys(misplaced.get(field, [entry(**{field: secret + " "})]))
    assert secret[:21] not in str(caught.value)


def test_a_key_is_found_by_what_it_hashes_to():
    secrets = [make_secret() for _ in range(3)]
    known = parse_keys([entry(name=f"k{i}", sha256=hash_secret(secret).hex()) for i, secret in enumerate(secrets)])
    assert [find_key(known, secret).name for secret in secrets] == ["k0", "k1", "k2"]
    for other in (make_secret(), secrets[0][:-1], secrets[0] + "x", "", "\xff", known[0].digest.hex()):
        assert find_key(known, other) is None


def test_every_key_is_compared_whole_whichever_it_is(monkeypatch):
    compared = []
    compare_digest = hmac.compare_digest

    def compare(one, other):
        compared.append((one, other))
        return compare_digest(one, other)

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    secret = make_secret()
    known = parse_keys([entry(sha256=hash_secret(secret).hex()), entry(name="ops")])
    for sent in (secret, make_secret()):
        compared.clear()
        find_key(known, sent)
        assert compared == [(key.digest, hash_secret(sent)) for key in known]
