"""Daemon: what the CLI can ask for, a module per kind of request. Checks first, so that what is refused has changed nothing."""
