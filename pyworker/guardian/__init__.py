"""Guardian: keeps file descriptors, reaps, starts daemon and logger again. No policy."""
