"""Where a gateway's messages go: the broker of its own process, aMQTT instead of it, or a bridge to another."""
