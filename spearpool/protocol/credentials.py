"""Who may do what: tokens, how they are made and checked, and the identity that a good one gives.

A token of ours carries its own meaning under a mac, so every worker verifies it alone. A token that is not ours is put
to the `SecretValidator`, if there is one. A `Refusal` holds the true cause, for the log and the event; the peer is told
less. The mac is compared before anything in the token is believed, in constant time.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from spearpool.errors import ConfigError

from .identifiers import InstanceId
from .identity import RIGHTS, Identity, Role
from .messages import AuthRequest

__all__ = [
    "MAX_LABEL_BYTES",
    "RIGHTS",
    "Grant",
    "Identity",
    "Refusal",
    "Role",
    "SecretValidator",
    "TokenKey",
    "Verifier",
    "make_token",
    "new_nonce",
]

_MAX_REMEMBERED = 1024
"""Tokens whose mac is not computed again when they come again; only good ones are remembered."""

MAX_LABEL_BYTES = 128

_VERSION = "v1"
_PARTS = 8
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_-]+")
_ROW = re.compile(r"(0|[1-9][0-9]{0,9}):(0|[1-9][0-9]{0,9})")


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A key for tokens. `key_id` is public and stands in each token; the secret never leaves the pool."""

    key_id: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Authentication failed. `cause` is the true reason, for the log and the event only."""

    cause: str


@dataclass(frozen=True, slots=True)
class Grant:
    """What a `SecretValidator` grants: an agent its task, a client its rights."""

    role: Role
    task: str = ""
    rights: Collection[str] = ()


SecretValidator = Callable[[str, str], Grant | None]
"""Asked with instance id and token about tokens that are not ours; None refuses."""


def new_nonce() -> str:
    """72 random bits: two tokens for the same subject differ."""
    return secrets.token_urlsafe(9)


def make_token(
    key: TokenKey, role: Role, subject: str, scope: str, expires_at: int = 0, nonce: str | None = None
) -> str:
    """A token `v1.KEY.ROLE.ID.SCOPE.EXPIRY.NONCE.MAC` for `subject`.

    `scope` is `ROW:GENERATION` for a launched agent, the task for an issued one, and rights joined by `+` for a client.
    `expires_at` is in wall-clock seconds, 0 for never. Raises `ConfigError` for what a token cannot carry.
    """
    nonce = new_nonce() if nonce is None else nonce
    for name, word in (("key_id", key.key_id), ("nonce", nonce)):
        if not _PLAIN_WORD.fullmatch(word):
            raise ConfigError(name, word, "letters, digits, dashes and underscores")
    if not subject or len(subject.encode()) > MAX_LABEL_BYTES:
        raise ConfigError("subject", subject, f"1 to {MAX_LABEL_BYTES} bytes")
    if expires_at < 0:
        raise ConfigError("expires_at", expires_at, "0, or seconds since 1970")
    mac = _mac(key, role.value, subject, scope, str(expires_at), nonce)
    parts = (_VERSION, key.key_id, role.value, _to_b64(subject.encode()), _escape(scope), str(expires_at), nonce, mac)
    return ".".join(parts)


def _mac(key: TokenKey, *fields: str) -> str:
    # Each field with its length before it: otherwise `web1` + expiry `7` and `web` + expiry `17` would sign alike.
    digest = hmac.new(key.secret, digestmod=hashlib.sha256)
    for text in (_VERSION, key.key_id, *fields):
        data = text.encode()
        digest.update(len(data).to_bytes(4, "big") + data)
    return _to_b64(digest.digest())


def _to_b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _from_b64(text: str) -> str:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode()


def _escape(scope: str) -> str:
    return quote(scope, safe=":+").replace(".", "%2E")


@dataclass(frozen=True, slots=True)
class _Token:
    """A token of ours, taken apart and its mac found right."""

    role: Role
    subject: str
    scope: str
    expires_at: int | None


class _Refused(Exception):
    """Carries the true cause out of the checks; `verify` makes a `Refusal` of it."""


class Verifier:
    """Checks the token of an AuthRequest. `row_is_alive(row, generation)` asks the instances table."""

    def __init__(
        self,
        keys: Iterable[TokenKey],
        *,
        row_is_alive: Callable[[int, int], bool],
        revoked: Collection[str] = (),
        validator: SecretValidator | None = None,
        min_token_bytes: int = 8,
    ) -> None:
        self._keys = {key.key_id: key for key in keys}
        self._row_is_alive = row_is_alive
        self._revoked = frozenset(revoked)
        self._validator = validator
        self._min_token_bytes = min_token_bytes
        self._opened: dict[bytes, _Token] = {}

    def revoke(self, ids: Collection[str]) -> None:
        """Replace the list of revoked token ids."""
        self._revoked = frozenset(ids)

    def is_revoked(self, token_id: str) -> bool:
        return token_id in self._revoked

    def verify(self, request: AuthRequest, wall_now: float) -> Identity | Refusal:
        """Whose token this is. `wall_now` is wall-clock seconds, which expiry is written in."""
        try:
            if _size(request.instance_id) > MAX_LABEL_BYTES:
                raise _Refused(f"instance_id has more than {MAX_LABEL_BYTES} bytes")
            if request.token.startswith(f"{_VERSION}."):
                identity = self._verify_own(request, wall_now)
            else:
                identity = self._ask_validator(request)
            if identity.token_id in self._revoked:
                raise _Refused(f"token {identity.token_id!r} is revoked")
        except _Refused as refused:
            return Refusal(str(refused))
        return identity

    def _verify_own(self, request: AuthRequest, wall_now: float) -> Identity:
        token = self._recall(request.token)
        if token.expires_at is not None and wall_now >= token.expires_at:
            raise _Refused(f"token {token.subject!r} has expired")
        if token.role is Role.CLIENT:
            rights = frozenset(filter(None, token.scope.split("+")))
            if not rights.issubset(RIGHTS):
                raise _Refused(f"token {token.subject!r} names unknown rights: {token.scope!r}")
            return Identity(token.role, request.instance_id, token.subject, rights=rights, expires_at=token.expires_at)
        if request.instance_id != token.subject:
            raise _Refused(f"instance_id {request.instance_id!r} shows the token of {token.subject!r}")
        row = _ROW.fullmatch(token.scope)
        if row is None:
            return Identity(token.role, token.subject, token.subject, task=token.scope, expires_at=token.expires_at)
        instance = InstanceId(int(row[1]), int(row[2]))
        if not self._row_is_alive(instance.row, instance.generation):
            raise _Refused(f"instance {token.subject!r} is not alive")
        return Identity(token.role, token.subject, token.subject, instance, expires_at=token.expires_at)

    def _recall(self, text: str) -> _Token:
        """`_open`, once for a token that comes again and again; what can change about it is checked each time.

        Remembered by digest: looking up the token itself would take a time that depends on what is remembered.
        """
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
        token = self._opened.get(digest)
        if token is None:
            token = self._open(text)
            if len(self._opened) >= _MAX_REMEMBERED:
                self._opened.clear()
            self._opened[digest] = token
        return token

    def _open(self, text: str) -> _Token:
        parts = text.split(".")
        if len(parts) != _PARTS:
            raise _Refused(f"token has {len(parts)} parts instead of {_PARTS}")
        _, key_id, role, subject, scope, expiry, nonce, mac = parts
        key = self._keys.get(key_id)
        if key is None:
            raise _Refused("token was made with a key that is not known here")
        try:
            subject, scope = _from_b64(subject), unquote(scope, errors="strict")
            expected = _mac(key, role, subject, scope, expiry, nonce)
            if not hmac.compare_digest(expected.encode(), mac.encode()):
                raise _Refused("token has a wrong mac")
            return _Token(Role(role), subject, scope, int(expiry) or None)
        except ValueError:
            raise _Refused("token is garbled") from None

    def _ask_validator(self, request: AuthRequest) -> Identity:
        if _size(request.token) < self._min_token_bytes:
            raise _Refused(f"token has fewer than {self._min_token_bytes} bytes")
        if self._validator is None:
            raise _Refused("token is not one of spearpool's, and no validator is configured")
        try:
            grant: object = self._validator(request.instance_id, request.token)
            if not isinstance(grant, Grant):
                raise _Refused("the validator refused" if grant is None else f"the validator returned {grant!r}")
            role, rights = Role(grant.role), frozenset(grant.rights)
        except _Refused:
            raise
        except Exception as error:  # the user's code: whatever goes wrong in it is a refusal
            raise _Refused(f"the validator raised {error!r}") from error
        if not rights.issubset(RIGHTS):
            raise _Refused(f"the validator granted unknown rights: {sorted(rights.difference(RIGHTS))}")
        if role is Role.AGENT and not grant.task:
            raise _Refused("the validator granted an agent without a task")
        return Identity(role, request.instance_id, request.instance_id, task=grant.task, rights=rights)


def _size(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))
