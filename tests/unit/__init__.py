"""Machines and values: no sockets, no sleeps."""
