"""MQTT 3.1.1 on the wire, once: what packets look like, and what is none.  Encode, decode and broker tests read it."""

from __future__ import annotations

from typing import NamedTuple

from coapgw.mqtt.packets import (
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
    UnsupportedConnect,
    Will,
)


class Good(NamedTuple):
    """A packet and its only encoding."""

    name: str
    wire: bytes
    packet: Packet


class Bad(NamedTuple):
    """Bytes at which a connection ends; *section* says why."""

    name: str
    wire: bytes
    section: str


_LONG = b"x" * 200

GOOD = [
    Good("smallest CONNECT", b"\x10\x0c\0\4MQTT\4\2\0\0\0\0", Connect("")),
    Good("persistent CONNECT", b"\x10\x0d\0\4MQTT\4\0\0\x3c\0\1a", Connect("a", False, 60)),
    Good(
        "CONNECT with everything",
        b"\x10\x20\0\4MQTT\4\xee\xff\xff\0\2me\0\3w/t\0\4gone\0\1u\0\2\0\xff",
        Connect("me", True, 65535, Will(b"w/t", b"gone", 1, True), "u", b"\0\xff"),
    ),
    Good(
        "CONNECT with an empty will of QoS 2",
        b"\x10\x12\0\4MQTT\4\x16\0\1\0\1c\0\1w\0\0",
        Connect("c", True, 1, Will(b"w", b"", 2)),
    ),
    Good("CONNECT with a user and no password", b"\x10\x10\0\4MQTT\4\x82\0\0\0\1c\0\1u", Connect("c", user="u")),
    Good("CONNECT of MQTT 5", b"\x10\x07\0\4MQTT\5", UnsupportedConnect(b"MQTT", 5)),
    Good("CONNECT of MQTT 3.1", b"\x10\x09\0\6MQIsdp\3", UnsupportedConnect(b"MQIsdp", 3)),
    Good("CONNACK", b"\x20\2\0\0", ConnAck(False, 0)),
    Good("CONNACK, session present", b"\x20\2\1\0", ConnAck(True, 0)),
    Good("CONNACK, refused", b"\x20\2\0\5", ConnAck(False, 5)),
    Good("PUBLISH of QoS 0", b"\x30\x05\0\1aok", Publish(b"a", b"ok")),
    Good("PUBLISH without a payload", b"\x30\x03\0\1a", Publish(b"a", b"")),
    Good("PUBLISH retained", b"\x31\x04\0\1ab", Publish(b"a", b"b", retain=True)),
    Good("PUBLISH of QoS 1", b"\x32\x08\0\3a/b\1\2p", Publish(b"a/b", b"p", 1, packet_id=258)),
    Good("PUBLISH again", b"\x3a\x05\0\1a\0\7", Publish(b"a", b"", 1, False, True, 7)),
    Good("PUBLISH of QoS 2, again, retained", b"\x3d\x05\0\1a\xff\xff", Publish(b"a", b"", 2, True, True, 65535)),
    Good("PUBLISH with a two-byte length", b"\x30\xcb\1\0\1a" + _LONG, Publish(b"a", _LONG)),
    Good("PUBLISH with a topic in UTF-8", b"\x30\x07\0\5\xc3\xa9/\xc3\x9f", Publish("é/ß".encode(), b"")),
    Good("PUBLISH with a zero byte payload", b"\x30\x04\0\1a\0", Publish(b"a", b"\0")),
    Good("PUBACK", b"\x40\2\0\1", PubAck(1)),
    Good("PUBREC", b"\x50\2\0\2", PubRec(2)),
    Good("PUBREL", b"\x62\2\1\0", PubRel(256)),
    Good("PUBCOMP", b"\x70\2\xff\xff", PubComp(65535)),
    Good("SUBSCRIBE", b"\x82\x06\0\1\0\1#\1", Subscribe(1, ((b"#", 1),))),
    Good(
        "SUBSCRIBE to several",
        b"\x82\x0f\0\2\0\3a/+\0\0\4+/b/\2",
        Subscribe(2, ((b"a/+", 0), (b"+/b/", 2))),
    ),
    Good("SUBACK", b"\x90\6\0\1\0\1\2\x80", SubAck(1, (0, 1, 2, 0x80))),
    Good("UNSUBSCRIBE", b"\xa2\x0a\0\1\0\1a\0\3b/#", Unsubscribe(1, (b"a", b"b/#"))),
    Good("UNSUBACK", b"\xb0\2\0\1", UnsubAck(1)),
    Good("PINGREQ", b"\xc0\0", PingReq()),
    Good("PINGRESP", b"\xd0\0", PingResp()),
    Good("DISCONNECT", b"\xe0\0", Disconnect()),
]

BAD = [
    Bad("type 0", b"\0\0", "2.2.1"),
    Bad("type 15", b"\xf0\0", "2.2.1"),
    Bad("length of five bytes", b"\x30\x80\x80\x80\x80\1", "2.2.3"),
    Bad("CONNECT flags", b"\x11\x0c\0\4MQTT\4\2\0\0\0\0", "2.2.2"),
    Bad("PUBACK flags", b"\x42\2\0\1", "2.2.2"),
    Bad("PUBREL flags", b"\x60\2\0\1", "2.2.2"),
    Bad("SUBSCRIBE flags", b"\x80\x06\0\1\0\1#\1", "2.2.2"),
    Bad("UNSUBSCRIBE flags", b"\xa0\x05\0\1\0\1#", "2.2.2"),
    Bad("PINGREQ flags", b"\xc1\0", "2.2.2"),
    Bad("DISCONNECT flags, length to come", b"\xe1\x05", "2.2.2"),
    Bad("CONNECT, empty", b"\x10\0", "3.1"),
    Bad("CONNECT, cut in the client id", b"\x10\x0d\0\4MQTT\4\2\0\0\0\5a", "3.1.3"),
    Bad("CONNECT, bytes too many", b"\x10\x0d\0\4MQTT\4\2\0\0\0\0x", "3.1"),
    Bad("CONNECT, reserved flag", b"\x10\x0c\0\4MQTT\4\3\0\0\0\0", "3.1.2.3"),
    Bad("CONNECT, will QoS without a will", b"\x10\x0c\0\4MQTT\4\x0a\0\0\0\0", "3.1.2.6"),
    Bad("CONNECT, will retain without a will", b"\x10\x0c\0\4MQTT\4\x22\0\0\0\0", "3.1.2.7"),
    Bad("CONNECT, will QoS 3", b"\x10\x11\0\4MQTT\4\x1e\0\0\0\0\0\1w\0\0", "3.1.2.6"),
    Bad("CONNECT, will topic with a wildcard", b"\x10\x11\0\4MQTT\4\6\0\0\0\0\0\1#\0\0", "4.7.1"),
    Bad("CONNECT, password without a user", b"\x10\x0f\0\4MQTT\4\x42\0\0\0\0\0\1p", "3.1.2.9"),
    Bad("CONNECT, client id with NUL", b"\x10\x0d\0\4MQTT\4\2\0\0\0\1\0", "1.5.3"),
    Bad("CONNECT, client id no UTF-8", b"\x10\x0d\0\4MQTT\4\2\0\0\0\1\xff", "1.5.3"),
    Bad("CONNECT, user is a surrogate", b"\x10\x11\0\4MQTT\4\x82\0\0\0\0\0\3\xed\xa0\x80", "1.5.3"),
    Bad("CONNACK, unknown flags", b"\x20\2\2\0", "3.2.2.1"),
    Bad("CONNACK, refused with a session", b"\x20\2\1\1", "3.2.2.2"),
    Bad("CONNACK, short", b"\x20\1\0", "3.2"),
    Bad("PUBLISH, QoS 3", b"\x36\x05\0\1a\0\1", "3.3.1.2"),
    Bad("PUBLISH, DUP at QoS 0", b"\x38\x03\0\1a", "3.3.1.1"),
    Bad("PUBLISH, empty", b"\x30\0", "3.3.2"),
    Bad("PUBLISH, one byte", b"\x30\1\0", "3.3.2"),
    Bad("PUBLISH, no topic", b"\x30\2\0\0", "4.7.3"),
    Bad("PUBLISH, topic longer than the packet", b"\x30\3\0\2a", "3.3.2"),
    Bad("PUBLISH, + in the topic", b"\x30\5\0\3a/+", "3.3.2.1"),
    Bad("PUBLISH, # in the topic", b"\x30\5\0\3a/#", "3.3.2.1"),
    Bad("PUBLISH, NUL in the topic", b"\x30\4\0\2a\0", "1.5.3"),
    Bad("PUBLISH, topic no UTF-8", b"\x30\3\0\1\xc3", "1.5.3"),
    Bad("PUBLISH, packet identifier 0", b"\x32\5\0\1a\0\0", "2.3.1"),
    Bad("PUBLISH, no packet identifier", b"\x32\3\0\1a", "2.3.1"),
    Bad("PUBLISH, half a packet identifier", b"\x34\4\0\1a\1", "2.3.1"),
    Bad("PUBACK, packet identifier 0", b"\x40\2\0\0", "2.3.1"),
    Bad("PUBACK, short", b"\x40\1\0", "3.4"),
    Bad("PUBACK, long", b"\x40\3\0\1\0", "3.4"),
    Bad("PUBREC, packet identifier 0", b"\x50\2\0\0", "2.3.1"),
    Bad("SUBSCRIBE, no filter", b"\x82\2\0\1", "3.8.3"),
    Bad("SUBSCRIBE, packet identifier 0", b"\x82\x06\0\0\0\1#\1", "2.3.1"),
    Bad("SUBSCRIBE, QoS 3", b"\x82\x06\0\1\0\1#\3", "3.8.3"),
    Bad("SUBSCRIBE, reserved bits", b"\x82\x06\0\1\0\1#\x81", "3.8.3"),
    Bad("SUBSCRIBE, no QoS", b"\x82\x05\0\1\0\1#", "3.8.3"),
    Bad("SUBSCRIBE, empty filter", b"\x82\x05\0\1\0\0\1", "4.7.3"),
    Bad("SUBSCRIBE, # in the middle", b"\x82\x08\0\1\0\3#/a\1", "4.7.1.2"),
    Bad("SUBSCRIBE, a#", b"\x82\x07\0\1\0\2a#\1", "4.7.1.2"),
    Bad("SUBSCRIBE, a+", b"\x82\x07\0\1\0\2a+\1", "4.7.1.3"),
    Bad("SUBSCRIBE, filter no UTF-8", b"\x82\x06\0\1\0\1\xff\1", "1.5.3"),
    Bad("SUBACK, no code", b"\x90\2\0\1", "3.9.3"),
    Bad("SUBACK, code 3", b"\x90\3\0\1\3", "3.9.3"),
    Bad("UNSUBSCRIBE, no filter", b"\xa2\2\0\1", "3.10.3"),
    Bad("UNSUBSCRIBE, empty filter", b"\xa2\4\0\1\0\0", "4.7.3"),
    Bad("PINGREQ with a body", b"\xc0\1\0", "3.12"),
    Bad("DISCONNECT with a body", b"\xe0\1\0", "3.14"),
]
