"""What is secret does not get into a message; what is not stays as it is; nothing in a message acts on a terminal."""

from __future__ import annotations

import json
import pickle
import string
import unicodedata
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastfill_ray import sanitize
from fastfill_ray.errors import StorageError
from fastfill_ray.sanitize import hide, one_line, printable, redact

# Long and random enough that no message holds one by chance.
ALPHABET = string.ascii_letters + string.digits
secrets = st.text(ALPHABET, min_size=16, max_size=40)
passwords = st.text(ALPHABET + "!$%*+-./:;<=>_~^|", min_size=12, max_size=40).map(lambda text: f"c4{text}")
keys = st.sampled_from(
    ["token", "hf_token", "api_key", "apiKey", "password", "client_secret", "AWS_SECRET_ACCESS_KEY", "db.passwd"]
)
# What stands around it. No quote, which would end a quoted value, and no name of a secret.
around = st.text(st.characters(exclude_characters="\"'\\", exclude_categories=("Cs",)), max_size=30).map(
    lambda text: f"{text} "
)

WRITTEN: dict[str, Any] = {
    "key = value": lambda key, value: f"{key}={value}",
    "key: value": lambda key, value: f"{key}: {value}",
    "a dict": lambda key, value: repr({"device": "cpu", key: value}),
    "compact JSON": lambda key, value: json.dumps({key: value, "b": 1}, separators=(",", ":")),
    "key:value": lambda key, value: f"{key}:{value}",
    "JSON": lambda key, value: json.dumps({key: value, "b": 1}),
    "JSON in JSON": lambda key, value: json.dumps({"body": json.dumps({key: f"{value} {value}"})}),
    "keywords": lambda key, value: f"Client({key}={value!r}, b=1)",
    "a query": lambda key, value: f"with url: /path?{urlencode({'a': 1, key: value})}",
    "any query": lambda key, value: f"https://host.example/path?{urlencode({'x': value})}",
    "user info": lambda key, value: f"postgres://user:{quote(value, safe='')}@host/db",
    "user info as it is": lambda key, value: f"https://user:{value}@host.example/a",
    "a user alone": lambda key, value: f"https://{quote(value, safe='')}@host.example/a",
    "a header": lambda key, value: f"Authorization: Bearer {value}",
    "headers": lambda key, value: repr({"Authorization": f"Basic {value}"}),
}


@pytest.mark.parametrize("form", WRITTEN)
@settings(max_examples=30)
@given(before=around, after=around, key=keys, value=secrets)
def test_what_stands_where_secrets_stand_is_redacted(form: str, before: str, after: str, key: str, value: str) -> None:
    assume(value not in before + after)
    assert value not in redact(before + WRITTEN[form](key, value) + " " + after)


@pytest.mark.parametrize("form", ["key = value", "a dict", "JSON", "keywords", "a query", "any query", "user info"])
@settings(max_examples=30)
@given(key=keys, value=passwords)
def test_so_is_a_password_of_any_characters(form: str, key: str, value: str) -> None:
    text = redact(f"cannot connect {WRITTEN[form](key, value)} there")
    assert value not in text
    assert quote(value, safe="") not in text


@pytest.mark.parametrize(
    "token",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "hf_" + "aB3" * 11,
        "sk-" + "x1Y" * 14,
        "ghp_" + "0aZ" * 12,
        "xoxb-123456789012-abcdefABCDEF",
        "AIza" + "Sy0_" * 9,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
    ],
)
@settings(max_examples=10)
@given(before=around, after=around)
def test_a_token_of_a_known_form_is_redacted_anywhere(token: str, before: str, after: str) -> None:
    assert token not in redact(f"{before}{token} {after}")


@given(value=passwords, key=keys, before=around)
def test_a_value_of_kwargs_is_replaced_by_its_key_however_it_is_quoted(value: str, key: str, before: str) -> None:
    hide({"client": {"inner": [{key: value}]}})
    for written in (value, repr(value), json.dumps(value), quote(value, safe=""), f"x{value}y"):
        assert value not in one_line(f"{before}{written}")
    assert one_line(f"refused: {value} .") == f"refused: <kwargs.client.inner.{key}> ."


def test_other_values_of_kwargs_are_redacted_unless_they_say_nothing(tmp_path: Any) -> None:
    ordinary = {"device": "cuda:0", "prefix": "passage: ", "dtype": "float", "n": 256, "on": True, "max_tokens": 512}
    hide({**ordinary, "folder": str(tmp_path), "hub": "https://hub.example/models", "nothing": None})
    hide({"user": "Canary-77-value", "token": "ab1!", "multi": "first-line-1\nsecond-line-2", "pin": 123456789})
    said = f"{ordinary} {tmp_path} https://hub.example/models"
    assert redact(said) == said
    hide({"api_key": "other"})
    assert redact("another way, other") == "another way, <kwargs.api_key>"
    assert redact("Canary-77-value / ab1! / second-line-2") == "<kwargs.user> / <kwargs.token> / <kwargs.multi>"


def test_secret_variables_of_the_environment_are_replaced_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MYSQL_PWD", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, f"canary/{name}")
        assert redact(f"said canary/{name}!") == f"said <${name}>!"
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "disabled")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert redact(f"disabled in {monkeypatch}") == f"disabled in {monkeypatch}"


ORDINARY = [
    "wrong_shape: found (1, 4), expected (1, 3)",
    "embedder raised TypeError: column 'text': expected str, found NoneType",
    "s3://bucket/run/index/p/w00-b00000-new-e00000001-0a1b.faiss: sha256 is 00ff, expected ff00. Restore it.",
    "tokenizer.pad_token = tokenizer.eos_token",
    "new_model.kwargs.api_key: found str (not shown), expected a number",
    "id 'bob:x@y.com' (row 3): embedder raised ValueError: empty",
    "reading s3://bucket/a@b/c: NoCredentialsError: Unable to locate credentials. Check the bucket, the credentials in "
    "the environment, storage.s3_endpoint and the network.",
    "An error occurred (SignatureDoesNotMatch) when calling the PutObject operation: The request signature we "
    "calculated does not match the signature you provided. Check your key and signing method.",
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are expected",
    "index.factory 'IVF64,Flat': 64 lists, max_tokens: 256, tokenizer: bert-base, tokens=12",
    "Could not connect to the endpoint URL: http://127.0.0.1:9000/bucket/log/0.json",
    "config: new_model.kwargs: found str; a mapping is expected",
    "embedder 'my_pkg.token_models:Embedder': module 'my_pkg.token_models' has no attribute 'Embedder'.",
    "id 'käse ☃ 東京　駅 👩‍🔬' at 2026-11-02T10:11:12.123Z; gallery.path = /data/a-b_c.d/part-000.parquet row 7",
]


@pytest.mark.parametrize("message", ORDINARY)
def test_an_ordinary_message_stays_as_it_is(message: str) -> None:
    assert one_line(message) == message
    assert str(StorageError(message)) == message


@given(st.lists(st.text(string.ascii_letters + string.digits + "-_.,()", min_size=1, max_size=12), max_size=12))
def test_words_and_figures_stay_as_they_are(words: list[str]) -> None:
    text = " ".join(word for word in words if not any(name in word.lower() for name in ("akia", "asia")))
    assert redact(text) == text


@given(st.text(max_size=300) | st.text("\x00\x1b\x9b\u202e\u2066\r\n\t ab=:?@/\"'*token", max_size=60))
def test_a_line_holds_nothing_that_acts_on_a_terminal_and_is_stable(text: str) -> None:
    line = one_line(text)
    assert not {unicodedata.category(character) for character in line} & {"Cc", "Cs", "Zl", "Zp"}
    assert not set(line) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\ufeff")
    line.encode()
    assert one_line(line) == line
    assert str(pickle.loads(pickle.dumps(StorageError(text)))) == str(StorageError(text)) == line


def test_line_breaks_of_a_message_become_spaces_and_those_of_an_id_stay_visible() -> None:
    assert one_line("not Parquet:\n  bad footer\n") == "not Parquet: bad footer"
    assert printable("a\nb\x1b[2J\u202ec") == r"a\nb\x1b[2J\u202ec"


def test_a_long_text_is_cut_and_its_end_is_not_half_a_secret() -> None:
    value = "Canary" + "x7" * 200
    hide({"token": value})
    assert len(one_line("word " * 100_000)) <= sanitize.MAX_MESSAGE_CHARS
    for start in range(18_500, 20_100, 37):
        assert "x7x7" not in redact("a" * start + value)


@pytest.mark.parametrize("hostile", ["a", "a:", "a.b-", "token", "\\", "'", "://", "?a=", "token='\\", "-----BEGIN "])
def test_no_text_takes_long(hostile: str) -> None:
    # A pattern that backtracks would take hours for these; what is asserted is that it ends.
    redact(hostile * (19_000 // len(hostile)))
