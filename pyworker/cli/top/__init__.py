"""CLI: `pyworker top`. `model.py` what is known and what a key does, `frame.py` a picture of it (both pure),
`keys.py` bytes into keys, `screen.py` the terminal, `feed.py` the threads that ask the daemon."""
