"""Users of the embedded broker: hashed and plain passwords, and what never shows."""

from __future__ import annotations

import pytest

from coapgw.mqtt.access import ITERATION_LIMIT, AccessList, BrokerUser, PasswordHashRefused

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
