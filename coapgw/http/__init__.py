"""The management API: one table of operations, and what carries it over HTTP."""
