"""DTLS 1.2 with pre-shared keys, without I/O: OpenSSL makes the handshake, an association carries the data."""
