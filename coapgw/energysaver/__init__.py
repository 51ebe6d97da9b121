"""Energy Saver: templates that turn a device's packed bytes into JSON, checked once and compiled."""
