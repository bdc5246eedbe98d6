"""Which signals a foreground pyworker takes."""

from __future__ import annotations

import signal

from pyworker.protocol.run import RELOAD, STOPS, orders


def test_every_signal_that_may_be_taken_is_but_faults_job_control_and_our_own() -> None:
    left = signal.valid_signals() - orders(at_a_terminal=False)
    assert {signal.Signals(n).name.removeprefix("SIG") for n in left} == {
        "KILL", "STOP", "CHLD", "PIPE", "XFSZ", "ILL", "TRAP", "ABRT", "BUS", "FPE", "SEGV", "SYS", "TSTP", "TTIN", "TTOU",
    }  # fmt: skip
    assert orders(at_a_terminal=False) > STOPS | {RELOAD}


def test_a_resized_terminal_is_no_order() -> None:
    assert orders(at_a_terminal=False) - orders(at_a_terminal=True) == {signal.SIGWINCH}
