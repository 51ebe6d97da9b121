"""Twisted protocols that pump the machines: sockets, batches, one timer each."""
