"""The domain: who is it, which topic, what is published.  No socket, SQL or MQTT packet in here."""
