"""What looks like a secret is replaced, and only that."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import long_run

from fim_core.prompts.secrets import mask_secrets


@pytest.mark.parametrize(
    ("text", "expected", "found"),
    [
        ("select 1", "select 1", 0),
        ("to = 'jo.do+x@mail.example.org'", "to = 'masked@example.com'", 1),
        ("PASSWORD = 'hunter2' x", "PASSWORD = 'MASKED_SECRET' x", 1),
        ("AWS_SECRET_KEY='a/b+c' AWS_KEY_ID='AKIAIOSFODNN7EXAMPLE'", "AWS_SECRET_KEY='MASKED_SECRET' AWS_KEY_ID='MASKED_SECRET'", 2),
        ('"api_key": "zzz"', '"api_key": "MASKED_SECRET"', 1),
        ("token => 't'", "token => 'MASKED_SECRET'", 1),
        ("'https://me:pw@host/x'", "'https://me:MASKED_SECRET@host/x'", 1),
        ("ghp_" + "a" * 36, "MASKED_SECRET", 1),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.sig", "MASKED_SECRET", 1),
        ("bearer-eyJhbGciOiJI.eyJzdWIiOiIx.sig -- x", "bearer-MASKED_SECRET -- x", 1),
        ("eyJ-eyJhbGciOiJI.eyJzdWIiOiIx.eyJzdWIiOiIx.", "MASKED_SECRET.", 1),
        ("a.eyJhbGciOiJI.eyJzdWIiOiIx.", "a.MASKED_SECRET", 1),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII\nabc\n-----END", "-----BEGIN RSA PRIVATE KEY-----MASKED_SECRET-----END", 1),
        ("select password, token from users where id = 1", "select password, token from users where id = 1", 0),
        ("copy into @stage from t pattern = '.*@x'", "copy into @stage from t pattern = '.*@x'", 0),
    ],
)  # fmt: skip
def test_kinds_of_secrets(text: str, expected: str, found: int) -> None:
    assert mask_secrets(text) == (expected, found)
    assert mask_secrets(expected) == (expected, 0)


OLD_TOKEN = re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")


@long_run(short=100)
@given(
    st.lists(st.sampled_from(["eyJ", "a" * 8, "a", "_", "-", ".", " ", "é", "7", "eyJaaaaaaaa.aaaaaaaa."])).map("".join)
)
def test_web_tokens_are_found_where_the_plain_pattern_finds_them(text: str) -> None:
    assert mask_secrets(text)[0] == OLD_TOKEN.sub("MASKED_SECRET", text)


@pytest.mark.parametrize("before", ["", "eyJaaaaaaaa."])
@pytest.mark.parametrize("unit", ["eyJ-", "eyJaaaaaaaa-", "a.", "token='"])
def test_time_grows_with_the_text(unit: str, before: str) -> None:
    """8 hostile texts of 100 kB; the plain pattern took up to 30 seconds of processor time for one."""
    began = time.process_time()
    mask_secrets(before + unit * (100_000 // len(unit)))
    assert time.process_time() - began < 1.0


@long_run(short=100)
@given(st.text(st.sampled_from("abAK1 \n\t,;()='*_@:<>-"), max_size=25))
def test_sql_without_secrets_stays_as_it_is(text: str) -> None:
    assert mask_secrets(text) == (text, 0)
