"""MQTT: the codec, the embedded broker, and the publisher that empties the spool into a broker."""
