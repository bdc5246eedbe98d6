"""Decisions: values in, values out. No I/O, no clock, no randomness, no logging; `now` is always a parameter."""
