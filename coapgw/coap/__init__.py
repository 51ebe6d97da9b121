"""CoAP as a machine without I/O: RFC 7252 messages, exchanges and the resource tree."""
