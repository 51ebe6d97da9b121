"""DTLS 1.2 with pre-shared keys as machines without I/O: OpenSSL makes the handshake, an association carries the data."""
