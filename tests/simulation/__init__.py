"""A simulation of the daemon: lives of the real one in a world that is made up, by one seed each.

What happens in rare orders is not found by real processes: time decides there, and it decides nearly always the same.
Here the daemon's own code (brain, policy, memos, store, control socket) meets a guardian, templates, workers, scripts,
commands, dispatchers and clients that are objects, speak the real messages over real sockets, and do one thing at a time.
A scheduler chooses by the seed which of all that could happen is next: a message is read, a worker crashes, a fork fails,
a timer is due, somebody asks for a reload or hangs up, no descriptor is left, the disk is full, the daemon is killed
between any two of its messages and another one goes on with what the guardian has kept. After some hundred such steps
the world becomes kind, and what is wanted must come to be.

    world.py       the clock, the scheduler, how daemons come and go
    kernel.py      pidfds, signals, credentials, time: what the daemon asks of the kernel
    processes.py   what each kind of process may do next
    guardian.py    the store, and the logger's part of it
    clients.py     commands, and what their answers have promised
    apps.py        the apps and their file
    daemon.py      the real daemon, put together
    invariants.py  what must hold after each step, and in the end
    lives.py       each life in a process of its own, which it may leave in any state

A seed repeats its run to the letter. `make lives SEEDS="17 99"` repeats two, `make lives SECONDS=600` tries new ones for
ten minutes; a violation prints the last steps. Python's own state (the addresses of objects, hashes) decides nothing.
"""
