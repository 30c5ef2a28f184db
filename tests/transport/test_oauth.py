"""Tokens of OAUTHBEARER: what is asked for, how often, and what is said where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lstmstream.config.schema import OAuth
from lstmstream.transport import oauth
from lstmstream.transport.oauth import NoToken, TokenRefused, TokenSource
from tests.broker.secured import unsigned_token
from tests.transport.token_endpoint import TokenEndpoint

SECRET = "canary & secret"


@pytest.fixture
def endpoint() -> TokenEndpoint:
    return TokenEndpoint("daemon", SECRET)


@pytest.fixture
def url(endpoint: TokenEndpoint) -> Iterator[str]:
    with endpoint.serving() as at:
        yield at


def source(url: str, **options: Any) -> TokenSource:
    given = {"token_url": url, "client_id": "daemon", "client_secret": SECRET, **options}
    return TokenSource(OAuth.model_validate(given), Path(), {})


def test_a_token_is_used_until_it_is_about_to_expire(
    endpoint: TokenEndpoint, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = source(url, scope="kafka read")
    first = tokens.token()
    assert first.principal == "daemon"
    assert tokens.token() is first
    assert endpoint.forms == [{"grant_type": ["client_credentials"], "scope": ["kafka read"]}]
    now_s = time.time()
    monkeypatch.setattr(oauth.time, "time", lambda: now_s + 0.75 * endpoint.lifetime_s)
    assert tokens.token() is first
    monkeypatch.setattr(oauth.time, "time", lambda: now_s + 0.85 * endpoint.lifetime_s)
    assert tokens.token() is not first
    assert endpoint.given == 2


def test_an_endpoint_that_is_away_is_done_without_for_as_long_as_the_token_is_valid(
    endpoint: TokenEndpoint, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = source(url)
    first, now_s = tokens.token(), time.time()
    endpoint.answer = (503, b"")
    monkeypatch.setattr(oauth.time, "time", lambda: now_s + 0.9 * endpoint.lifetime_s)
    assert tokens.token() is tokens.token() is first
    assert len(endpoint.forms) == 2, "it is not asked all the time"
    monkeypatch.setattr(oauth.time, "time", lambda: now_s + 1.1 * endpoint.lifetime_s)
    with pytest.raises(NoToken, match="answers 503"):
        tokens.token()
    endpoint.answer = None
    assert tokens.token() is not first


def test_a_token_of_a_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    tokens = TokenSource(OAuth.model_validate({"token": "old"}), Path(), {"token": file})
    for text in (unsigned_token("a", lifetime_s=100), "no-jwt", "a.b.c"):
        file.write_text(text + "\n")
        assert tokens.token().text == text
    file.write_text(unsigned_token("a", lifetime_s=100))
    assert tokens.token().expires_s == pytest.approx(time.time() + 100, abs=10)
    file.unlink()
    with pytest.raises(NoToken, match=r"the file of kafka\.security\.oauth\.token does not exist"):
        tokens.token()


def test_a_wrong_secret_is_refused_and_not_said(url: str) -> None:
    with pytest.raises(TokenRefused) as caught:
        source(url, client_secret="canary-wrong").token()
    assert str(caught.value) == "kafka.security.oauth.token_url answers 401 (invalid_client)"
    assert caught.value.__cause__ is None, "the answer may hold the secret"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, b"canary"), "gives no token: its answer is not JSON"),
        ((200, b"[]"), "its answer has no access_token"),
        ((200, b'{"access_token": ""}'), "its answer has no access_token"),
        ((200, b'{"access_token": "a\\u0001b"}'), "its answer has no access_token"),
        ((503, b"canary"), "answers 503"),
        ((302, b""), "answers 302"),
        ((400, b'{"error": "a\\u001b[2Jb"}'), "answers 400 (a\\x1b[2Jb)"),
    ],
)
def test_answers_without_a_token(endpoint: TokenEndpoint, url: str, answer: tuple[int, bytes], said: str) -> None:
    endpoint.answer = answer
    with pytest.raises(NoToken) as caught:
        source(url).token()
    assert said in str(caught.value)
    assert "canary" not in str(caught.value)


def test_nobody_is_there(endpoint: TokenEndpoint) -> None:
    with endpoint.serving() as url:
        pass
    with pytest.raises(NoToken, match=r"gives no token: .*refused"):
        source(url).token()
