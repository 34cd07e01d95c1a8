"""Tokens: what they carry, that nothing in them can be changed, and whom they let in."""

from __future__ import annotations

import base64
import hashlib
import hmac
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spearpool.errors import ConfigError
from spearpool.protocol.credentials import (
    Grant,
    Refusal,
    SecretValidator,
    TokenKey,
    Verifier,
    make_token,
    new_nonce,
)
from spearpool.protocol.identifiers import InstanceId
from spearpool.protocol.identity import RIGHTS, Identity, Role
from spearpool.protocol.messages import AuthRequest

KEY = TokenKey("k1", b"0123456789abcdef0123456789abcdef")
OTHER = TokenKey("k2", b"another secret of the same pool!")
NOW = 1_700_000_000.0


def request(instance_id: str, token: str) -> AuthRequest:
    return AuthRequest(instance_id, token, "1.0", "test", {})


def verifier(
    *keys: TokenKey, alive: tuple[int, int] | None = None, validator: SecretValidator | None = None
) -> Verifier:
    return Verifier(keys or (KEY,), row_is_alive=lambda *row: row == alive, validator=validator)


def cause(verdict: Identity | Refusal) -> str:
    assert isinstance(verdict, Refusal), verdict
    return verdict.cause


# The token itself


def test_a_token_is_as_the_protocol_says() -> None:
    token = make_token(KEY, Role.CLIENT, "cli", "submit+observe", 1_800_000_000, "n0nce")
    fields = ("v1", "k1", "client", "cli", "submit+observe", "1800000000", "n0nce")
    signed = b"".join(len(field).to_bytes(4, "big") + field.encode() for field in fields)
    mac = base64.urlsafe_b64encode(hmac.digest(KEY.secret, signed, hashlib.sha256)).rstrip(b"=").decode()
    assert token == f"v1.k1.client.Y2xp.submit+observe.1800000000.n0nce.{mac}"


def test_two_tokens_are_never_the_same() -> None:
    assert make_token(KEY, Role.CLIENT, "cli", "submit") != make_token(KEY, Role.CLIENT, "cli", "submit")
    assert set(new_nonce()) <= set(string.ascii_letters + string.digits + "-_")


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30), st.text(st.characters(codec="utf-8")))
def test_names_survive_whatever_is_in_them(subject: str, task: str) -> None:
    token = make_token(KEY, Role.AGENT, subject, f"task/{task}")
    assert token.count(".") == 7
    assert verifier().verify(request(subject, token), NOW) == Identity(
        Role.AGENT, subject, subject, task=f"task/{task}"
    )


@pytest.mark.parametrize(
    ("key_id", "subject", "expires_at", "nonce", "wrong"),
    [
        ("k.1", "s", 0, "n", "key_id"),
        ("", "s", 0, "n", "key_id"),
        ("k", "s", 0, "n.n", "nonce"),
        ("k", "s", 0, "", "nonce"),
        ("k", "", 0, "n", "subject"),
        ("k", "é" * 65, 0, "n", "subject"),
        ("k", "s", -1, "n", "expires_at"),
    ],
)
def test_what_a_token_cannot_carry(key_id: str, subject: str, expires_at: int, nonce: str, wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_token(TokenKey(key_id, b"x"), Role.CLIENT, subject, "submit", expires_at, nonce)
    assert caught.value.key == wrong


def test_a_key_does_not_show_its_secret() -> None:
    assert "0123456789" not in repr(KEY)


# Launched agents

LAUNCHED = make_token(KEY, Role.AGENT, "thumb-3-17", "3:17")


def test_a_launched_agent_is_its_instance() -> None:
    assert verifier(alive=(3, 17)).verify(request("thumb-3-17", LAUNCHED), NOW) == Identity(
        Role.AGENT, "thumb-3-17", "thumb-3-17", InstanceId(3, 17)
    )


@pytest.mark.parametrize("alive", [None, (3, 18), (4, 17)])
def test_no_row_no_entry(alive: tuple[int, int] | None) -> None:
    assert "not alive" in cause(verifier(alive=alive).verify(request("thumb-3-17", LAUNCHED), NOW))


def test_the_row_is_asked_each_time() -> None:
    rows = {(3, 17)}
    check = Verifier([KEY], row_is_alive=lambda row, generation: (row, generation) in rows)
    assert isinstance(check.verify(request("thumb-3-17", LAUNCHED), NOW), Identity)
    assert isinstance(check.verify(request("thumb-3-17", LAUNCHED), NOW), Identity)  # reconnects are welcome
    rows.clear()
    assert isinstance(check.verify(request("thumb-3-17", LAUNCHED), NOW), Refusal)


def test_an_agent_must_give_its_own_name() -> None:
    assert "shows the token of" in cause(verifier(alive=(3, 17)).verify(request("thumb-3-18", LAUNCHED), NOW))


@pytest.mark.parametrize("scope", ["3:17:1", "a:1", ":1", "1:", "01:2", "-1:2", "٣:١"])
def test_only_row_and_generation_are_a_row(scope: str) -> None:
    identity = verifier(alive=(3, 17)).verify(request("a", make_token(KEY, Role.AGENT, "a", scope)), NOW)
    assert isinstance(identity, Identity)
    assert (identity.instance, identity.task) == (None, scope)


# Issued tokens


def test_an_issued_agent_has_a_task() -> None:
    token = make_token(KEY, Role.AGENT, "outside.1", "resize.v2", int(NOW) + 60)
    assert verifier().verify(request("outside.1", token), NOW) == Identity(
        Role.AGENT, "outside.1", "outside.1", task="resize.v2", expires_at=NOW + 60
    )


@pytest.mark.parametrize(("scope", "rights"), [("", set()), ("submit", {"submit"}), ("+".join(RIGHTS), set(RIGHTS))])
def test_a_client_has_rights_and_a_label_of_its_own_choice(scope: str, rights: set[str]) -> None:
    token = make_token(KEY, Role.CLIENT, "default", scope)
    assert verifier().verify(request("anything", token), NOW) == Identity(
        Role.CLIENT, "anything", "default", rights=frozenset(rights)
    )


@pytest.mark.parametrize(("label", "good"), [("", True), ("é" * 64, True), ("é" * 64 + "x", False)])
def test_a_label_has_at_most_128_bytes(label: str, good: bool) -> None:
    verdict = verifier().verify(request(label, make_token(KEY, Role.CLIENT, "default", "submit")), NOW)
    assert isinstance(verdict, Identity) == good


def test_unknown_rights_are_refused() -> None:
    token = make_token(KEY, Role.CLIENT, "default", "submit+root")
    assert "unknown rights" in cause(verifier().verify(request("x", token), NOW))


@pytest.mark.parametrize(("after", "good"), [(-1, True), (-0.001, True), (0, False), (1, False)])
def test_a_token_expires(after: float, good: bool) -> None:
    token = make_token(KEY, Role.CLIENT, "default", "submit", int(NOW))
    verdict = verifier().verify(request("x", token), NOW + after)
    assert isinstance(verdict, Identity) == good
    if not good:
        assert "expired" in cause(verdict)


def test_a_token_without_expiry_never_does() -> None:
    token = make_token(KEY, Role.CLIENT, "default", "submit")
    assert isinstance(verifier().verify(request("x", token), 1e18), Identity)


def test_revocation_replaces_the_list() -> None:
    check = Verifier([KEY], row_is_alive=lambda *row: False, revoked=["a"])
    tokens = {name: make_token(KEY, Role.CLIENT, name, "submit") for name in "ab"}

    def let_in() -> set[str]:
        return {name for name in tokens if isinstance(check.verify(request("x", tokens[name]), NOW), Identity)}

    assert let_in() == {"b"}
    assert (check.is_revoked("a"), check.is_revoked("b")) == (True, False)
    check.revoke(["b"])
    assert (check.is_revoked("a"), check.is_revoked("b")) == (False, True)
    assert let_in() == {"a"}
    check.revoke([])
    assert let_in() == {"a", "b"}
    assert "is revoked" in cause(verifier_revoking("a").verify(request("x", tokens["a"]), NOW))


def verifier_revoking(*ids: str) -> Verifier:
    return Verifier([KEY], row_is_alive=lambda *row: False, revoked=ids)


# Forgeries


def test_every_key_of_the_pool_is_known_and_no_other() -> None:
    token = make_token(OTHER, Role.CLIENT, "default", "submit")
    assert isinstance(verifier(KEY, OTHER).verify(request("x", token), NOW), Identity)
    assert "key that is not known" in cause(verifier(KEY).verify(request("x", token), NOW))


def test_the_mac_is_under_the_named_key() -> None:
    forged = make_token(TokenKey("k1", OTHER.secret), Role.CLIENT, "default", "submit")
    assert "wrong mac" in cause(verifier(KEY, OTHER).verify(request("x", forged), NOW))


FIELDS = {
    1: "k2",
    2: "agent",
    3: base64.urlsafe_b64encode(b"root").decode().rstrip("="),
    4: "submit+control",
    5: "0",
    6: "other",
    7: "A" * 43,
}


@pytest.mark.parametrize(("part", "value"), FIELDS.items())
def test_no_part_can_be_changed(part: int, value: str) -> None:
    parts = make_token(KEY, Role.CLIENT, "default", "submit", int(NOW) + 60).split(".")
    parts[part] = value
    assert "wrong mac" in cause(verifier(KEY, OTHER).verify(request("root", ".".join(parts)), NOW))


def test_fields_cannot_be_moved_into_their_neighbours() -> None:
    one = make_token(KEY, Role.CLIENT, "web1", "submit", 17, "n").split(".")
    moved = [*one[:3], base64.urlsafe_b64encode(b"web").decode(), one[4], "117", *one[6:]]
    assert "wrong mac" in cause(verifier().verify(request("x", ".".join(moved)), NOW))


@pytest.mark.parametrize(
    "token",
    [
        "v1.",
        "v1.k1",
        "v1.......",
        "v1.k1.client.Y2xp.submit.0.n",
        "v1.k1.client.Y2xp.submit.0.n.mac.more",
        "v1.k1.client.!.submit.0.n.mac",
        "v1.k1.client.Y2xpA.submit.0.n.mac",
        "v1.k1.client._w.submit.0.n.mac",
        "v1.k1.client.Y2xp.%FF.0.n.mac",
        "v1.k1.client.é.submit.0.n.mac",
        "v1.k1.client.Y2xp.submit.0.n.é",
        "v1.k1.client.Y2xp.submit.0.n.\udc80",
        "v1.k1.client.Y2xp.submit.0.n." + "A" * 100_000,
    ],
)
def test_garbled_tokens_are_refused(token: str) -> None:
    assert cause(verifier().verify(request("cli", token), NOW))


@given(st.text(max_size=60), st.text(max_size=60), st.booleans())
def test_any_text_is_refused(instance_id: str, token: str, ours: bool) -> None:
    assert cause(verifier().verify(request(instance_id, "v1." * ours + token), NOW))


def test_a_good_mac_over_nonsense_is_refused() -> None:
    text = ("nobody", "cli", "submit", "0", "n")
    signed = b"".join(len(field).to_bytes(4, "big") + field.encode() for field in ("v1", "k1", *text))
    mac = base64.urlsafe_b64encode(hmac.digest(KEY.secret, signed, hashlib.sha256)).rstrip(b"=").decode()
    assert "garbled" in cause(verifier().verify(request("cli", f"v1.k1.nobody.Y2xp.submit.0.n.{mac}"), NOW))


# Tokens that are not ours


@pytest.mark.parametrize(
    ("grant", "identity"),
    [
        (Grant(Role.AGENT, "thumb"), Identity(Role.AGENT, "me", "me", task="thumb")),
        (Grant(Role.CLIENT, rights=["submit"]), Identity(Role.CLIENT, "me", "me", rights=frozenset({"submit"}))),
        (Grant(Role.CLIENT), Identity(Role.CLIENT, "me", "me")),
    ],
)
def test_the_validator_decides(grant: Grant, identity: Identity) -> None:
    asked = []

    def validate(instance_id: str, token: str) -> Grant | None:
        asked.append((instance_id, token))
        return grant

    assert verifier(validator=validate).verify(request("me", "password"), NOW) == identity
    assert asked == [("me", "password")]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "the validator refused"),
        (True, "returned True"),
        ("agent", "returned 'agent'"),
        (Grant(Role.CLIENT, rights="submit"), "unknown rights"),
        (Grant(Role.CLIENT, rights=["root"]), r"unknown rights: ['root']"),
        (Grant(Role.CLIENT, rights=None), "raised TypeError"),  # type: ignore[arg-type]
        (Grant("boss"), "raised ValueError"),  # type: ignore[arg-type]
        (Grant(Role.AGENT), "without a task"),
    ],
)
def test_a_validator_that_answers_nonsense_refuses(answer: Grant | None, words: str) -> None:
    assert words in cause(verifier(validator=lambda *_: answer).verify(request("me", "password"), NOW))


def test_a_validator_that_raises_refuses() -> None:
    def validate(instance_id: str, token: str) -> Grant | None:
        raise RuntimeError("database is down")

    assert "database is down" in cause(verifier(validator=validate).verify(request("me", "password"), NOW))


def test_a_validated_name_can_be_revoked() -> None:
    check = Verifier(
        [], row_is_alive=lambda *row: False, revoked=["me"], validator=lambda *_: Grant(Role.AGENT, "thumb")
    )
    assert "revoked" in cause(check.verify(request("me", "password"), NOW))


@pytest.mark.parametrize(("token", "words"), [("", "fewer than 8"), ("1234567", "fewer than 8")])
def test_short_tokens_are_not_even_shown_to_the_validator(token: str, words: str) -> None:
    def validate(instance_id: str, token: str) -> Grant | None:
        pytest.fail("was asked")

    assert words in cause(verifier(validator=validate).verify(request("me", token), NOW))


def test_without_a_validator_they_are_refused() -> None:
    assert "no validator" in cause(verifier().verify(request("me", "password"), NOW))


def test_a_token_of_ours_never_reaches_the_validator() -> None:
    def validate(instance_id: str, token: str) -> Grant | None:
        pytest.fail("was asked")

    assert "wrong mac" in cause(
        verifier(validator=validate).verify(request("x", "v1.k1.client.Y2xp.submit.0.n.mac"), NOW)
    )


# What is remembered of good tokens


def test_a_token_that_comes_again_is_checked_again_for_what_can_change() -> None:
    alive: list[tuple[int, int]] = [(3, 7)]
    asked = Verifier((KEY,), row_is_alive=lambda *row: row in alive)
    launched = make_token(KEY, Role.AGENT, "a-3-7", "3:7")
    issued = make_token(KEY, Role.CLIENT, "cli", "submit", int(NOW) + 10)
    for _ in range(2):
        assert isinstance(asked.verify(request("a-3-7", launched), NOW), Identity)
        assert isinstance(asked.verify(request("me", issued), NOW), Identity)
    alive.clear()
    assert "not alive" in cause(asked.verify(request("a-3-7", launched), NOW))
    assert "expired" in cause(asked.verify(request("me", issued), NOW + 11))
    asked.revoke(["cli"])
    assert "revoked" in cause(asked.verify(request("me", issued), NOW))


def test_a_good_token_does_not_vouch_for_a_bad_one() -> None:
    asked = verifier()
    good = make_token(KEY, Role.CLIENT, "cli", "submit")
    assert isinstance(asked.verify(request("me", good), NOW), Identity)
    bad = good[:-1] + ("A" if good[-1] != "A" else "B")
    for _ in range(2):
        assert isinstance(asked.verify(request("me", bad), NOW), Refusal)
    assert isinstance(asked.verify(request("me", good), NOW), Identity)


def test_what_is_remembered_is_bounded() -> None:
    asked = verifier()
    for number in range(2000):
        asked.verify(request("me", make_token(KEY, Role.CLIENT, f"cli-{number}", "submit")), NOW)
    assert len(asked._opened) <= 1024
