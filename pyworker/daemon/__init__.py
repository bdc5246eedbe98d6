"""Daemon: the brain. Desired state, limiter, reload, control socket. Imports no app code."""
