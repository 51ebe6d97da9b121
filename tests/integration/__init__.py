"""Real sockets, real processes, real disks."""
