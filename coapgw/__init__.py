"""coapgw: a CoAP endpoint of one's own for cellular IoT devices.

A message's way in, and the rooms it passes::

    datagram - net/udp - coap/messaging    once per (endpoint, Message ID), the same answer bytes to a repeat
                         coap/site         option block to resource
                         gateway/resources "/", "/data", "/bootstrap", "/.well-known/core"; the one error table
                         gateway/uplink    who is it, which topic, translate, envelope, store
                         storage/spool     group commit; here the 2.04 is earned
                         mqtt/publisher    to the embedded broker (mqtt/broker, or aMQTT), or a bridge to another

``energysaver`` compiles templates, which ``gateway/uplink`` translates payloads with.

Beside it ``http`` serves the management API: one table of operations, which ``http/openapi`` describes.

Protocols are machines without I/O (``coap``, ``mqtt.packets``, ``mqtt.session``, ``mqtt.broker``): bytes and ``now`` go
in, bytes and events come out; ``net`` pumps them.  The domain (``gateway``) sees devices, topics and payloads and meets
the outside through ``interfaces``.  What must not be lost is on disk before it is promised.

``outlets`` are the ways out: the broker of this process, aMQTT instead of it, a bridge to another.  ``secure`` is DTLS
with what it keeps.  ``service`` wires it all together, top to bottom; ``tap`` and ``cli`` are the two ways to start it.
"""

__version__ = "0.1.0"
