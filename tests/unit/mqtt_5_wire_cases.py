"""MQTT 5 on the wire, where it differs from 3.1.1: what packets look like, and what is none.

``GOOD`` packets have this as their shortest encoding; ``LONGER`` ones are read as well, but not written.  ``BAD`` ones
name the reason code that MQTT 5 has the peer told.  CONNECT stands alone, everything else is read after one.
"""

from __future__ import annotations

from typing import NamedTuple

from coapgw.mqtt.packets import (
    Auth,
    ConnAck,
    Connect,
    Disconnect,
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
    Will,
)
from coapgw.mqtt.properties import Properties
from tests.unit.mqtt_wire_cases import Good

MALFORMED, PROTOCOL = 0x81, 0x82


class Bad5(NamedTuple):
    """Bytes at which a connection of MQTT 5 ends, and the reason code for it; *section* says why."""

    name: str
    wire: bytes
    code: int
    section: str


def connect(after: bytes) -> bytes:
    """Return a CONNECT whose properties and payload are *after*."""
    return bytes((0x10, 10 + len(after))) + b"\0\4MQTT\5\2\0\0" + after


CONNECTS = [
    Good("smallest CONNECT", connect(b"\0\0\0"), Connect("", level=5)),
    Good(
        "CONNECT with properties",
        connect(b"\x0b\x11\0\0\0\x3c\x21\0\x14\x22\0\1\0\1a"),
        Connect("a", level=5, properties=Properties(session_expiry=60, receive_maximum=20, topic_alias_maximum=1)),
    ),
    Good(
        "CONNECT with a will",
        b"\x10\x1f\0\4MQTT\5\x0c\0\5\0\0\1c\x07\1\1\x18\0\0\0\7\0\1w\0\4gone",
        Connect("c", False, 5, Will(b"w", b"gone", 1, properties=Properties(payload_format=1, will_delay=7)), level=5),
    ),
    Good(
        "CONNECT with a password and no user",
        b"\x10\x11\0\4MQTT\5\x42\0\0\0\0\0\0\2pw",
        Connect("", password=b"pw", level=5),
    ),
    Good(
        "CONNECT with enhanced authentication",
        connect(b"\x09\x15\0\1m\x16\0\2\0\xff\0\0"),
        Connect("", level=5, properties=Properties(authentication_method="m", authentication_data=b"\0\xff")),
    ),
]

GOOD_5 = [
    Good("CONNACK", b"\x20\3\0\0\0", ConnAck(False, 0)),
    Good("CONNACK, session present", b"\x20\3\1\0\0", ConnAck(True, 0)),
    Good("CONNACK, refused", b"\x20\3\0\x87\0", ConnAck(False, 0x87)),
    Good(
        "CONNACK with limits",
        b"\x20\x16\0\0\x13\x12\0\1x\x13\0\x0a\x21\0\x14\x24\1\x27\0\0\1\0\x2a\1",
        ConnAck(
            False,
            0,
            Properties(
                assigned_client_id="x",
                server_keepalive=10,
                receive_maximum=20,
                maximum_qos=1,
                maximum_packet_size=256,
                shared_subscription_available=1,
            ),
        ),
    ),
    Good("PUBLISH of QoS 0", b"\x30\x06\0\1a\0ok", Publish(b"a", b"ok")),
    Good("PUBLISH of QoS 1", b"\x32\x09\0\3a/b\1\2\0p", Publish(b"a/b", b"p", 1, packet_id=258)),
    Good(
        "PUBLISH with user properties",
        b"\x32\x16\0\1a\0\1\x0e\x26\0\1k\0\1v\x26\0\1k\0\1wok",
        Publish(b"a", b"ok", 1, packet_id=1, properties=Properties(user_properties=((b"k", b"v"), (b"k", b"w")))),
    ),
    Good(
        "PUBLISH with everything about the message",
        b"\x30\x21\0\1a\x1c\1\1\2\0\0\0\x3c\3\0\1j\x08\0\1r\x09\0\2\0\1\x0b\x05\x0b\x80\1\x23\0\1p",
        Publish(
            b"a",
            b"p",
            properties=Properties(
                payload_format=1,
                message_expiry=60,
                content_type=b"j",
                response_topic=b"r",
                correlation_data=b"\0\1",
                subscription_identifiers=(5, 128),
                topic_alias=1,
            ),
        ),
    ),
    Good("PUBLISH to an alias", b"\x30\x07\0\0\3\x23\0\1p", Publish(b"", b"p", properties=Properties(topic_alias=1))),
    Good("PUBACK", b"\x40\2\0\1", PubAck(1)),
    Good("PUBACK, nobody subscribed", b"\x40\3\0\1\x10", PubAck(1, 0x10)),
    Good("PUBACK, refused", b"\x40\3\0\1\x97", PubAck(1, 0x97)),
    Good("PUBACK with a reason", b"\x40\x0a\0\1\x87\x06\x1f\0\3why", PubAck(1, 0x87, Properties(reason_string="why"))),
    Good("PUBREC, refused", b"\x50\3\0\1\x99", PubRec(1, 0x99)),
    Good("PUBREL", b"\x62\2\0\1", PubRel(1)),
    Good("PUBREL of an unknown one", b"\x62\3\0\1\x92", PubRel(1, 0x92)),
    Good("PUBCOMP", b"\x70\2\0\1", PubComp(1)),
    Good("SUBSCRIBE", b"\x82\x07\0\1\0\0\1a\1", Subscribe(1, ((b"a", 1),))),
    Good(
        "SUBSCRIBE with options",
        b"\x82\x09\0\1\2\x0b\5\0\1a\x2e",
        Subscribe(1, ((b"a", 0x2E),), Properties(subscription_identifiers=(5,))),
    ),
    Good("SUBACK", b"\x90\5\0\1\0\2\x87", SubAck(1, (2, 0x87))),
    Good("UNSUBSCRIBE", b"\xa2\x06\0\1\0\0\1a", Unsubscribe(1, (b"a",))),
    Good("UNSUBACK", b"\xb0\5\0\1\0\0\x11", UnsubAck(1, (0, 0x11))),
    Good("PINGREQ", b"\xc0\0", PingReq()),
    Good("PINGRESP", b"\xd0\0", PingResp()),
    Good("DISCONNECT", b"\xe0\0", Disconnect()),
    Good("DISCONNECT with will", b"\xe0\1\4", Disconnect(4)),
    Good(
        "DISCONNECT, moved",
        b"\xe0\x06\x9d\x04\x1c\0\1h",
        Disconnect(0x9D, Properties(server_reference="h")),
    ),
    Good("AUTH", b"\xf0\x06\x18\4\x15\0\1m", Auth(0x18, Properties(authentication_method="m"))),
    Good("AUTH, done", b"\xf0\0", Auth()),
]

LONGER_5 = [
    Good("PUBACK with a reason it need not give", b"\x40\3\0\1\0", PubAck(1)),
    Good("PUBACK with all it need not give", b"\x40\4\0\1\0\0", PubAck(1)),
    Good("DISCONNECT with a reason it need not give", b"\xe0\1\0", Disconnect()),
    Good("CONNACK of a broker that knows 3.1.1 only", b"\x20\2\0\1", ConnAck(False, 1)),
]

BAD_CONNECTS = [
    Bad5("CONNECT without properties", b"\x10\x0a\0\4MQTT\5\2\0\0", MALFORMED, "3.1.2.11"),
    Bad5("CONNECT with a reserved flag", b"\x10\x0d\0\4MQTT\5\3\0\0\0\0\0", MALFORMED, "3.1.2.3"),
    Bad5("CONNECT with Receive Maximum 0", connect(b"\3\x21\0\0\0\0"), PROTOCOL, "3.1.2.11.3"),
    Bad5("CONNECT with Maximum Packet Size 0", connect(b"\5\x27\0\0\0\0\0\0"), PROTOCOL, "3.1.2.11.4"),
    Bad5("CONNECT with authentication data only", connect(b"\3\x16\0\0\0\0"), PROTOCOL, "3.1.2.11.10"),
    Bad5("CONNECT with a server's property", connect(b"\2\x24\1\0\0"), PROTOCOL, "2.2.2.2"),
    Bad5("CONNECT with a flag of 2", connect(b"\2\x17\2\0\0"), PROTOCOL, "3.1.2.11.7"),
    Bad5(
        "CONNECT with a will property among its own",
        connect(b"\5\x18\0\0\0\1\0\0"),
        PROTOCOL,
        "2.2.2.2",
    ),
]

BAD_5 = [
    Bad5("no such packet flags", b"\xf1\0", MALFORMED, "2.1.3"),
    Bad5("CONNECT again", connect(b"\0\0\0"), PROTOCOL, "3.1.0-2"),
    Bad5("CONNACK of 3.1.1, accepted", b"\x20\2\0\0", MALFORMED, "3.2"),
    Bad5("CONNACK, refused with a session", b"\x20\3\1\x87\0", MALFORMED, "3.2.2.1.1"),
    Bad5("CONNACK with an unknown reason", b"\x20\3\0\7\0", PROTOCOL, "3.2.2.2"),
    Bad5("CONNACK with more behind it", b"\x20\4\0\0\0\0", MALFORMED, "3.2"),
    Bad5("PUBLISH without properties", b"\x30\3\0\1a", MALFORMED, "3.3.2.3"),
    Bad5("PUBLISH without a topic", b"\x30\4\0\0\0p", MALFORMED, "3.3.2.1"),
    Bad5("PUBLISH with alias 0", b"\x30\6\0\0\3\x23\0\0", PROTOCOL, "3.3.2.3.4"),
    Bad5("PUBLISH with properties longer than itself", b"\x30\5\0\1a\5\1", MALFORMED, "2.2.2.1"),
    Bad5("PUBLISH with an unknown property", b"\x30\5\0\1a\1\x7f", MALFORMED, "2.2.2.2"),
    Bad5("PUBLISH with a property cut short", b"\x30\6\0\1a\2\2\0", MALFORMED, "2.2.2.1"),
    Bad5("PUBLISH with two expiries", b"\x30\x0e\0\1a\x0a\2\0\0\0\1\2\0\0\0\1", PROTOCOL, "3.3.2.3.3"),
    Bad5("PUBLISH with a session expiry", b"\x30\x09\0\1a\5\x11\0\0\0\1", PROTOCOL, "2.2.2.2"),
    Bad5("PUBLISH with a wildcard to respond to", b"\x30\x08\0\1a\4\x08\0\1#", PROTOCOL, "3.3.2.3.5"),
    Bad5("PUBLISH with subscription identifier 0", b"\x30\6\0\1a\2\x0b\0", PROTOCOL, "3.3.2.3.8"),
    Bad5("PUBLISH with a length that is too long", b"\x30\6\0\1a\x80\0p", MALFORMED, "1.5.5"),
    Bad5("PUBLISH with a user property that is no UTF-8", b"\x30\x0a\0\1a\6\x26\0\1\xff\0\0", MALFORMED, "1.5.4"),
    Bad5("PUBLISH with half a user property", b"\x30\x08\0\1a\4\x26\0\1k", MALFORMED, "1.5.7"),
    Bad5("PUBACK with an unknown reason", b"\x40\3\0\1\1", PROTOCOL, "3.4.2.1"),
    Bad5("PUBACK for nothing", b"\x40\2\0\0", MALFORMED, "2.2.1"),
    Bad5("PUBACK with a topic alias", b"\x40\x07\0\1\0\3\x23\0\1", PROTOCOL, "2.2.2.2"),
    Bad5("PUBREL with a PUBREC's reason", b"\x62\3\0\1\x97", PROTOCOL, "3.6.2.1"),
    Bad5("SUBSCRIBE with reserved options", b"\x82\x07\0\1\0\0\1a\x40", MALFORMED, "3.8.3.1"),
    Bad5("SUBSCRIBE with QoS 3", b"\x82\x07\0\1\0\0\1a\3", PROTOCOL, "3.8.3.1"),
    Bad5("SUBSCRIBE with retain handling 3", b"\x82\x07\0\1\0\0\1a\x30", PROTOCOL, "3.8.3.1"),
    Bad5("SUBSCRIBE shared, without local", b"\x82\x10\0\1\0\0\x0a$share/g/a\4", PROTOCOL, "3.8.3-4"),
    Bad5("SUBSCRIBE with two identifiers", b"\x82\x0b\0\1\4\x0b\1\x0b\2\0\1a\0", PROTOCOL, "3.8.2.1.2"),
    Bad5("SUBSCRIBE to nothing", b"\x82\3\0\1\0", MALFORMED, "3.8.3-2"),
    Bad5("SUBACK without codes", b"\x90\3\0\1\0", MALFORMED, "3.9.3"),
    Bad5("UNSUBACK without codes", b"\xb0\3\0\1\0", MALFORMED, "3.11.3"),
    Bad5("PINGREQ with something in it", b"\xc0\1\0", MALFORMED, "3.12"),
    Bad5("DISCONNECT with an unknown reason", b"\xe0\1\1", PROTOCOL, "3.14.2.1"),
    Bad5("AUTH with an unknown reason", b"\xf0\1\x87", PROTOCOL, "3.15.2.1"),
]
