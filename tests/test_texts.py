"""Passwords that are not shown, and texts that no database refuses and no terminal obeys."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from slimfront.core.errors import StoreError
from slimfront.core.texts import one_line, plain_text, redacted
from slimfront.studies.store.database import Database, database_url

# URLs

CANARY = "Zq"
SECRETS = st.text("ab1:/@?&=#% ;+[]'\"\\.", max_size=8).map(lambda middle: f"{CANARY}{middle}{CANARY}")
SHAPES = st.sampled_from(
    [
        "postgresql://me:{}@host/name",
        "postgresql://me:{}@host:5432/name?sslmode=require",
        "postgresql+psycopg://me:{}@host:port/name",
        "postgresql://me:{}@[::1]:5432/name",
        "postgresql//me:{}@host/name",
        "postgresql:me:{}@host/name",
        "postgresql:/me:{}@host/name",
        "postgresql:///me:{}@host/name",
        "postgresql://me@corp:{}@host/name",
        "postgresql://me:{}",
        "me:{}@host/name",
        "mysql://me:{}@host/name",
        "postgresql://host/name?password={}",
        "postgresql://host/name?sslmode=require&password={}&connect_timeout=3",
        "postgresql://me:{}@host/name?PassWord={}",
        "postgresql://host/name?pass%77ord={}",
        "postgresql://host/name?sslpassword={}",
        "sqlite:///slimfront.db?password={}",
        "host=here user=me password={}",
    ]
)


def refusal(url: str) -> str:
    """What is said of a URL that is refused."""
    try:
        database_url(url)
    except StoreError as error:
        return str(error)
    return ""


@given(SHAPES, SECRETS)
def test_no_password_is_shown_wherever_it_stands_and_however_it_is_written(shape: str, secret: str):
    assume("{}@" in shape or "={}" in shape or "@" not in secret)  # what follows would be a host
    url = shape.replace("{}", secret)
    assert CANARY not in redacted(url)
    assert redacted(redacted(url)) == redacted(url)
    assert CANARY not in refusal(url)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////home/me@here/slim:front.db", "slimfront.db", "postgresql://me@host/name", "postgresql:///name",
        "postgresql://host:5432/name?connect_timeout=3", "postgresql://me@/name?host=/run/x", "postgresql://[::1]:5432/n",
    ],
)  # fmt: skip
def test_a_url_without_a_password_is_shown_as_it_is(url: str):
    assert redacted(url) == url


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql//me:secret@host/name", "storage 'postgresql//me:***@host/name' is not a database URL"),
        ("postgresql://me:secret@host:word/name", "postgresql://me:***@host:word/name: the port is not a number"),
        ("postgresql://me:sec@ret@host/name", "postgresql://me:***@host/name: a password's own characters are escaped"),
        ("mysql://me:secret@host/name", "mysql://me:***@host/name: storage is SQLite or PostgreSQL, not mysql"),
    ],
)
def test_a_wrong_url_is_named_without_its_password(url: str, problem: str):
    with pytest.raises(StoreError) as caught:
        database_url(url)
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@127.0.0.1:1/name",
        "postgresql://me:secret@no-such-host.invalid/name",
        f"postgresql://me:secret@{'h' * 300}/name",
        "postgresql://me@127.0.0.1/name?port=word&password=secret",
        "postgresql://me:secret@127.0.0.1/name?connect_timeout=word",
        "postgresql://me@127.0.0.1/name?secret=secret",
        "sqlite:///slimfront.db?timeout=word&password=secret",
        "sqlite:///slim\0front.db",
    ],
)
def test_a_server_that_cannot_be_reached_is_one_line(url: str, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError) as caught:
        Database(url, create=True)
    assert "\n" not in str(caught.value)
    assert "=secret" not in str(caught.value)
    assert '"secret"' not in str(caught.value)
    assert ":secret@" not in str(caught.value)


# Texts


@given(st.text(st.characters() | st.sampled_from("\0\x1b\r\u202e\ud800\udfff\u2028:x")), st.integers(60, 200))
def test_a_plain_text_is_short_and_holds_no_command(text: str, limit: int):
    plain = plain_text(text, limit)
    assert len(plain) <= limit
    plain.encode()  # no surrogate is left
    assert not {"\0", "\x1b", "\r", "\u202e", "\u2028"} & set(plain)
    assert plain_text(plain, limit) == plain
    assert "\n" not in one_line(text, limit)


def test_what_is_escaped_and_what_was_cut_can_be_read():
    assert plain_text("a\0b\x1b[31m\ud800 ü :x:\n") == r"a\x00b\x1b[31m\ud800 ü :x:" + "\n"
    assert plain_text("x" * 100_000).endswith("xxx... (100000 characters in all)")
    assert one_line("two\n  lines") == "two lines"
