"""Tokens for SASL OAUTHBEARER: from a file that is read again, or from a token endpoint (RFC 6749, section 4.4)."""

from __future__ import annotations

import threading
import time
from base64 import b64encode, urlsafe_b64decode
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import quote_plus, urlencode
from urllib.request import Request

import orjson

from lstmstream.config.files import UnreadableFile, read_secret
from lstmstream.config.schema import OAuth
from lstmstream.logs import escape_untrusted
from lstmstream.transport.web import make_opener, read_response

TIMEOUT_S = 5.0  # of the token endpoint
UNKNOWN_LIFETIME_S = 300.0  # of a token that does not say when it expires
FRESH_FRACTION = 0.8  # of its lifetime a token of the endpoint is used for new connections
RETRY_S = 5.0  # before an endpoint that was away is asked again, while there is a valid token
_REFUSED = {400, 401, 403}


class Token(NamedTuple):
    """A bearer token, and until when it is valid, in seconds since 1970."""

    text: str
    expires_s: float
    principal: str = ""  # for the client library's log


class NoToken(OSError):
    """There is no token now."""


class TokenRefused(NoToken):
    """The endpoint does not accept the client."""


class TokenSource:
    """Tokens as `kafka.security.oauth` says. May be asked by several threads."""

    def __init__(self, oauth: OAuth, folder: Path, files: Mapping[str, Path]) -> None:
        """`files`: where `token` and `client_secret` were read from, by their names; they are read again."""
        self._oauth = oauth
        self._files = files
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._fresh_until_s = 0.0
        self._opener = None if oauth.token_url is None else make_opener(_path(folder, oauth.ca))

    def token(self) -> Token:
        """The token to use for a new connection. Raises NoToken; no secret is in its text.

        Where the endpoint is away, a token that is still valid is used for longer.
        """
        if self._oauth.token_url is None:
            return _described(self._secret("token"), UNKNOWN_LIFETIME_S)
        with self._lock:
            now_s = time.time()
            if self._token is not None and now_s < self._fresh_until_s:
                return self._token
            try:
                self._token = self._request_token(self._oauth.token_url)
            except TokenRefused:
                raise
            except NoToken:
                if self._token is None or now_s >= self._token.expires_s:
                    raise
                self._fresh_until_s = now_s + RETRY_S
            else:
                self._fresh_until_s = now_s + FRESH_FRACTION * (self._token.expires_s - now_s)
            return self._token

    def _request_token(self, url: str) -> Token:
        assert self._opener is not None
        # The identifiers are form-encoded before they become those of basic authentication (RFC 6749, section 2.3.1).
        client = f"{quote_plus(self._oauth.client_id or '')}:{quote_plus(self._secret('client_secret'))}"
        form = {"grant_type": "client_credentials"} | ({"scope": self._oauth.scope} if self._oauth.scope else {})
        headers = {
            "Authorization": f"Basic {b64encode(client.encode()).decode()}",
            "Content-Type": "application/x-www-form-urlencoded",
            "Accept": "application/json",
            "User-Agent": "lstmstream",
        }
        request = Request(url, urlencode(form).encode(), headers)  # noqa: S310 - the configuration allows http and https
        try:
            answer = orjson.loads(read_response(self._opener, request, TIMEOUT_S))
        except HTTPError as error:
            with error:
                kind = TokenRefused if error.code in _REFUSED else NoToken
                raise kind(f"kafka.security.oauth.token_url answers {error.code}{_error_code(error)}") from None
        except (OSError, HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            what = "its answer is not JSON" if isinstance(error, ValueError) else str(reason) or type(error).__name__
            raise NoToken(f"kafka.security.oauth.token_url gives no token: {what}") from None
        text = answer.get("access_token") if isinstance(answer, dict) else None
        if not isinstance(text, str) or not text or not text.isprintable():
            raise NoToken("kafka.security.oauth.token_url gives no token: its answer has no access_token")
        lifetime = answer.get("expires_in")
        valid = isinstance(lifetime, int | float) and lifetime > 0
        return _described(text, float(lifetime) if valid else UNKNOWN_LIFETIME_S)

    def _secret(self, name: str) -> str:
        if name in self._files:
            try:
                if secret := read_secret(self._files[name]).strip():
                    return secret
                problem = "is empty"
            except UnicodeDecodeError:
                problem = "is not UTF-8"
            except UnreadableFile as error:
                problem = str(error)
            raise NoToken(f"the file of kafka.security.oauth.{name} {problem}")
        given = getattr(self._oauth, name)
        return "" if given is None else str(given.get_secret_value())


def _described(text: str, lifetime_s: float) -> Token:
    """A token with what a JWT says of itself; the broker checks it, and nobody else."""
    claims: dict[str, Any] = {}
    parts = text.split(".")
    if len(parts) >= 2:
        try:
            found = orjson.loads(urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
            claims = found if isinstance(found, dict) else {}
        except ValueError:
            pass
    expires = claims.get("exp")
    expires_s = float(expires) if isinstance(expires, int | float) else time.time() + lifetime_s
    return Token(text, expires_s, str(claims.get("sub", "")))


def _error_code(error: HTTPError) -> str:
    """What the endpoint calls its error: one of the words of RFC 6749, section 5.2."""
    try:
        return f" ({escape_untrusted(str(orjson.loads(error.read(10_000))['error']), 40)})"
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return ""


def _path(folder: Path, path: Path | None) -> str | None:
    return None if path is None else str(folder / path)
