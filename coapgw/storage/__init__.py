"""Everything that must survive: the registry of devices and the spool."""
