"""Tests of coapgw."""
