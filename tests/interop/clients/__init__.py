"""Other people's DTLS clients, each made to POST to a CoAP server over one association."""
