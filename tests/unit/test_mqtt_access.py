"""Users of the embedded broker: hashed and plain passwords, and what never shows."""

from __future__ import annotations

import pytest

from coapgw.mqtt.access import (
    FAILED_HOSTS,
    FAILURE_SECONDS,
    FAILURES_LIMIT,
    ITERATION_LIMIT,
    AccessList,
    BrokerUser,
    PasswordHashRefused,
)

# Made with mosquitto_passwd 2.0.11: "-b" and "-H sha512 -b", user alice, password secret.
PBKDF2 = (
    "$7$101$RFjMMDIcLgo/RnJy$o6YaJdzzOB1wPe2X+f6+vZ+zV64vXXQJJtvSlMLj2zstKt/JuWPdK3YTSr4O9hYoq65ZKpcFoe3S615eQJ0gcQ=="
)
SHA512 = "$6$C9feTGxy92kIJajt$ReoVd++sh3eFDphq+FVxv89Uvu+/jN+stQAyOkSgcpFKFTddojKZ7reJrX5myBUzdlKoNPoZcYfXyoQLWylheQ=="


@pytest.mark.parametrize("password", [PBKDF2, SHA512, "secret"])
def test_a_password_fits_its_hash_and_no_other(password: str) -> None:
    access = AccessList([BrokerUser("alice", password), BrokerUser("bob", PBKDF2.replace("$101$", "$200$"))])
    assert access.authenticate("alice", b"secret", False) is not None
    assert access.authenticate("alice", b"Secret", True) is None
    assert access.authenticate("alice", password.encode(), True) is None or password == "secret"
    assert access.authenticate("alice", b"", True) is None
    assert access.authenticate("alice", None, True) is None
    assert access.authenticate("bob", b"secret", True) is None
    assert access.authenticate("eve", b"secret", True) is None


def test_an_empty_password_is_one_that_must_be_given() -> None:
    access = AccessList([BrokerUser("alice", "")])
    assert access.authenticate("alice", None, True) is None
    assert access.authenticate("alice", b"", True) is not None


@pytest.mark.parametrize(
    "password",
    [
        "$7$",
        "$7$0$c2FsdA==$aGFzaA==",
        PBKDF2.replace("$101$", f"${ITERATION_LIMIT + 1}$"),
        PBKDF2.replace("$101$", "$x$"),
        PBKDF2[:-5],
        "$6$c2FsdA==$aGFzaA==",
        "$6$a$b",
        SHA512 + "\n",
    ],
)
def test_what_looks_like_a_hash_must_be_one_and_is_not_shown(password: str) -> None:
    with pytest.raises(PasswordHashRefused, match="alice") as refused:
        AccessList([BrokerUser("alice", password)])
    assert password[4:] not in str(refused.value) or password == "$7$"
    assert "aGFzaA" not in str(refused.value)


def test_a_user_does_not_show_its_password() -> None:
    assert "hidden" not in repr(BrokerUser("alice", "hidden"))


def test_a_host_may_fail_so_often_and_then_nothing_is_spent_on_it_for_a_while() -> None:
    access = AccessList([BrokerUser("alice", PBKDF2), BrokerUser("bob", "b")])
    assert access.authenticate("bob", b"b", False, "host", 100.0) is not None
    for attempt in range(FAILURES_LIMIT):
        assert access.authenticate("alice", b"%d" % attempt, False, "host", 100.0) is None
    assert access.authenticate("alice", b"secret", False, "host", 100.0) is None
    assert access.authenticate("bob", b"b", False, "host", 100.0) is not None  # was here before
    assert access.authenticate("alice", b"secret", False, "other", 100.0) is not None
    assert access.authenticate("alice", b"secret", False, "host", 100.0) is not None
    access = AccessList([BrokerUser("alice", PBKDF2)])
    for _ in range(FAILURES_LIMIT):
        assert access.authenticate("alice", b"wrong", False, "host", 100.0) is None
    assert access.authenticate("alice", b"secret", False, "host", 100.0 + FAILURE_SECONDS - 1) is None
    assert access.authenticate("alice", b"secret", False, "host", 100.0 + FAILURE_SECONDS) is not None


def test_hosts_that_failed_are_not_remembered_without_end() -> None:
    access = AccessList([BrokerUser("alice", "secret")])
    for number in range(FAILED_HOSTS + 100):
        access.authenticate("alice", b"wrong", False, f"host {number}", 100.0)
    assert len(access._failures) <= FAILED_HOSTS
