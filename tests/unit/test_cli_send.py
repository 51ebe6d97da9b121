"""``coapgw send``: what a command line means, and how answers are shown; the network is in tests/integration."""

from __future__ import annotations

import getpass
import io
import json
from pathlib import Path

import pytest

from coapgw.cli.conversation import (
    answer_json,
    answer_lines,
    is_first_block,
    sighting_lines,
)
from coapgw.cli.main import main, make_parser
from coapgw.cli.send_order import Order, UsageMistake, understand
from coapgw.coap.codec import DELETE, GET, POST, PUT
from coapgw.coap.outgoing import Response
from coapgw.coap.url import UrlRefused, parse_url
from coapgw.net.bootstrap import BootstrapRefused, parse_bootstrap
from coapgw.net.client import Answer, Sighting

PLAIN = "coap://127.0.0.1/"
SECURE = "coaps://127.0.0.1/"
KEY = "q8Yt2LmZ0aXw4RbK"


def order(*words: str, stdin: bytes = b"", key_variable: str | None = None) -> Order:
    return understand(make_parser().parse_args(["send", *words]), io.BytesIO(stdin), key_variable)


@pytest.mark.parametrize(
    ("words", "method", "payload"),
    [
        ((PLAIN,), GET, b""),
        ((PLAIN, "hello"), POST, b"hello"),
        ((PLAIN, ""), POST, b""),
        ((PLAIN, "hello", "-m", "put"), PUT, b"hello"),
        ((PLAIN, "--method", "post"), POST, b""),
        ((PLAIN, "-m", "delete"), DELETE, b""),
        ((PLAIN, "--payload-hex", "00 ff"), POST, b"\x00\xff"),
        ((PLAIN, "ü"), POST, "ü".encode()),
    ],
)
def test_the_method_follows_the_payload(words: tuple[str, ...], method: int, payload: bytes) -> None:
    meant = order(*words)
    assert (meant.method, meant.payload) == (method, payload)


def test_options_may_stand_between_the_url_and_the_payload() -> None:
    meant = order("--repeat", "2", PLAIN, "--non", "text", "-v")
    assert (meant.payload, meant.confirmable, meant.repeat, meant.show) == (b"text", False, 2, 1)
    assert order("-v", PLAIN, "--", "-text").payload == b"-text"


def test_a_payload_comes_from_a_file_or_from_stdin(tmp_path: Path) -> None:
    (tmp_path / "payload").write_bytes(b"\x00from a file")
    assert order(PLAIN, "--file", str(tmp_path / "payload")).payload == b"\x00from a file"
    assert order(PLAIN, "--file", "-", stdin=b"from\nstdin\n").payload == b"from\nstdin\n"


def test_options_are_what_was_asked_for() -> None:
    meant = order(PLAIN, "--content-format", "50", "--accept", "0", "-O", "15,t=x", "--option", "4,0x01")
    assert meant.options == ((12, b"\x32"), (17, b""), (15, b"t=x"), (4, b"\x01"))


def test_the_rest_has_defaults() -> None:
    meant = order(PLAIN)
    assert (meant.confirmable, meant.timeout, meant.retransmit, meant.repeat, meant.show) == (True, 30.0, True, None, 0)
    meant = order(PLAIN, "--non", "--timeout", "2.5", "--no-retransmit", "--repeat", "3", "-vv", "--bind", "127.1.0.1")
    assert (meant.confirmable, meant.timeout, meant.retransmit, meant.repeat, meant.show) == (False, 2.5, False, 3, 2)
    assert meant.bind == "127.1.0.1"


@pytest.mark.parametrize(
    ("words", "stdin", "variable"),
    [
        (("--key", KEY), b"", None),
        (("--key", KEY), b"", "another"),
        (("--key", "-"), KEY.encode() + b"\n", None),
        (("--key", "-"), KEY.encode() + b"\r\nmore", None),
        (("--hex-key", KEY.encode().hex()), b"", None),
        (("--hex-key", "-"), KEY.encode().hex().encode() + b"\n", None),
        ((), b"", KEY),
    ],
)
def test_the_key_comes_from_where_it_was_put_and_is_never_shown(
    words: tuple[str, ...], stdin: bytes, variable: str | None
) -> None:
    meant = order(SECURE, "--identity", "me", *words, stdin=stdin, key_variable=variable)
    assert (meant.identity, meant.secret) == (b"me", KEY.encode())
    assert KEY not in repr(meant)


class Terminal(io.BytesIO):
    """Standard input where a person sits."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_that_ends_instead_of_a_key_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr(getpass, "getpass", end)
    asked = make_parser().parse_args(["send", SECURE, "--identity", "me", "--key", "-"])
    with pytest.raises(UsageMistake, match="no key was given"):
        understand(asked, Terminal(), None)


def test_suites_are_offered_in_the_order_given() -> None:
    words = ("--cipher", "PSK-AES128-CBC-SHA256", "--cipher", "PSK-AES128-CCM8")
    assert order(SECURE, "--identity", "me", "--key", KEY, *words).suites == (words[1], words[3])


def test_a_bootstrap_url_gets_its_path() -> None:
    for url in ("coap://127.0.0.1", "coap://127.0.0.1/", "coap://127.0.0.1/bootstrap"):
        meant = order("--bootstrap", url, "/?t=x", "hello")
        assert meant.bootstrap == parse_url("coap://127.0.0.1/bootstrap")
        assert meant.target is None
    assert order("--bootstrap", "coap://127.0.0.1/other", "/").bootstrap == parse_url("coap://127.0.0.1/other")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((SECURE,), "needs --identity"),
        ((SECURE, "--identity", "me"), "needs a key"),
        ((SECURE, "--identity", "", "--key", KEY), "an identity has 1 to 127 bytes"),
        ((SECURE, "--identity", "x" * 128, "--key", KEY), "an identity has 1 to 127 bytes"),
        ((SECURE, "--identity", "me", "--key", ""), "a key has 1 to 256 bytes"),
        ((SECURE, "--identity", "me", "--key", KEY * 17), "a key has 1 to 256 bytes"),
        ((SECURE, "--identity", "me", "--hex-key", KEY), "pairs of hexadecimal digits"),
        ((SECURE, "--identity", "me", "--key", KEY, "--cipher", "NULL"), "there are PSK-AES128-CCM8, "),
        ((PLAIN, "--identity", "me"), "--identity is for coaps://"),
        ((PLAIN, "--key", KEY), "--key is for coaps://"),
        ((PLAIN, "--cipher", "PSK-AES128-CCM8"), "--cipher is for coaps://"),
        ((PLAIN, "text", "--payload-hex", "00"), "one payload"),
        ((PLAIN, "--payload-hex", "0"), "pairs of hexadecimal digits"),
        ((PLAIN, "--file", "/nonexistent/file"), "/nonexistent/file: No such file"),
        ((SECURE, "--identity", "me", "--key", "-", "--file", "-"), "both the key and the payload"),
        (("--bootstrap", SECURE, "/"), "bootstraps over coap://"),
        (("--bootstrap", PLAIN, "/", "--identity", "me"), "--identity comes from the bootstrap"),
        (("--bootstrap", PLAIN, "/", "--key", KEY), "--key comes from the bootstrap"),
    ],
)
def test_what_makes_no_sense_is_told(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UsageMistake) as mistake:
        order(*words)
    assert sentence in str(mistake.value)
    assert KEY not in str(mistake.value)


@pytest.mark.parametrize(
    "words",
    [
        ["send"],
        ["send", "http://127.0.0.1/"],
        ["send", "--bootstrap", PLAIN, "no-slash"],
        ["send", PLAIN, "-O", "nothing,1"],
        ["send", PLAIN, "--timeout", "0"],
        ["send", PLAIN, "--timeout", "nan"],
        ["send", PLAIN, "--repeat", "0"],
        ["send", PLAIN, "--content-format", "65536"],
        ["send", PLAIN, "-m", "ping"],
        ["send", PLAIN, "--payload-hex", "00", "--file", "x"],
        ["send", SECURE],
    ],
)
def test_usage_mistakes_end_with_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err
    assert "Traceback" not in said.err


def test_a_mistake_is_json_if_that_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["send", "http://127.0.0.1/", "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {"error": "'http://127.0.0.1/': http is neither coap nor coaps"}


def test_a_key_written_like_a_password_is_not_repeated() -> None:
    with pytest.raises(UrlRefused) as refused:
        order(f"coaps://me:{KEY}@127.0.0.1/")
    assert KEY not in str(refused.value)
    assert "no user" in str(refused.value)


# ---------------------------------------------------------------------- the bootstrap's answer


def test_a_bootstrap_is_taken_apart() -> None:
    found = parse_bootstrap(f"8988280666000000017,{KEY},coaps://192.0.2.10:5684".encode())
    assert (found.identity, found.secret) == (b"8988280666000000017", KEY.encode())
    assert found.gateway == parse_url("coaps://192.0.2.10:5684")
    assert KEY not in repr(found)


def test_a_key_may_have_commas() -> None:
    assert parse_bootstrap(b"1,a,b,,c,coaps://192.0.2.10\n").secret == b"a,b,,c"


@pytest.mark.parametrize(
    "payload", [b"", b",,", b"1,2", b"1,,coaps://h", b"{}", b"8,q8Yt2LmZ0aXw4RbK,http://h", b"8,q8Yt2LmZ0aXw4RbK,\xff"]
)
def test_an_answer_that_is_none_is_refused_without_being_shown(payload: bytes) -> None:
    with pytest.raises(BootstrapRefused) as refused:
        parse_bootstrap(payload)
    assert KEY not in str(refused.value)


# ---------------------------------------------------------------------- what is shown


def answer(
    code: int = 0x45, options: tuple[tuple[int, bytes], ...] = (), payload: bytes = b"", repeated: int = 0
) -> Answer:
    return Answer(Response(code, options, payload), 0.01234, repeated)


def test_an_answer_is_shown_to_people() -> None:
    assert answer_lines(answer(0x44)) == ["2.04 Changed, 12.3 ms"]
    assert answer_lines(answer(0x44, repeated=1)) == ["2.04 Changed, 12.3 ms, repeated once"]
    assert answer_lines(answer(0x44, repeated=3)) == ["2.04 Changed, 12.3 ms, repeated 3 times"]
    assert answer_lines(answer(options=((12, b""),), payload=b"two\nlines\n")) == [
        "2.05 Content, 12.3 ms",
        "  Content-Format: 0 (text/plain)",
        "two\nlines",
    ]
    assert answer_lines(answer(payload=b"\x1b[2J"))[-1] == "0x1b5b324a"
    assert "first block" in answer_lines(answer(options=((23, b"\x0e"),), payload=b"x"))[-2]


def test_an_answer_is_shown_to_programs() -> None:
    value = {"code": "2.05", "name": "Content", "seconds": 0.01234, "retransmissions": 0}
    option = {"number": 14, "name": "Max-Age", "value": "30"}
    assert answer_json(answer(options=((14, b"\x1e"),), payload=b"x")) == value | {"options": [option], "payload": "x"}
    assert answer_json(answer(payload=b"\xff")) == value | {"options": [], "payloadHex": "ff"}


def test_only_a_block_with_more_behind_it_is_a_first_block() -> None:
    assert is_first_block(((23, b"\x0e"),))
    assert not is_first_block(((23, b"\x06"), (27, b"\x0e")))
    assert not is_first_block(((23, b""),))


def test_datagrams_are_shown_with_time_and_direction() -> None:
    ping = Sighting(0.1234, True, False, b"\x40\x00\x00\x07")
    assert sighting_lines(ping, show_bytes=False) == ["  0.1234 -> CON 0.00 Empty id 7"]
    assert sighting_lines(ping, show_bytes=True)[1].strip() == "40000007"
    assert sighting_lines(Sighting(1, False, True, b"x"), show_bytes=False) == ["  1.0000 <- no DTLS record"]
