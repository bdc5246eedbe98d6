"""Restart policy: whether and when a worker that ended by itself is replaced.

Backoff bounds the rate; the limiter only changes the label and the interval of the probes. First starts and reloads
do not come here: they have a deadline and an outcome of their own. All instants are the caller's monotonic clock.
"""

from __future__ import annotations

from pyworker.config.schema import RestartConfig
from pyworker.record import record, replace

FIRST_DELAY = 0.1  # seconds
FACTOR = 2.0
MAX_DELAY = 30.0


@record
class Record:
    """The unstable deaths of an app since the last stable one."""

    tries: int = 0  # unstable deaths since the record was cleared
    deaths: tuple[float, ...] = ()  # the instants of the last `max_restarts` of them
    next_at: float = 0.0  # no start before this
    failed: bool = False  # the limiter has tripped: only probes now
    permanent: bool = False  # exit code 78, or a first start that failed: nothing is tried any more

    @property
    def is_clear(self) -> bool:
        return self.tries == 0 and not self.permanent


CLEAR = Record()


def is_stable(ready_at: float | None, ended_at: float, config: RestartConfig) -> bool:
    """A death is stable when the worker had been ready and lived `min_uptime` after that."""
    return ready_at is not None and ended_at - ready_at >= config.min_uptime


def after_unstable_death(record: Record, now: float, config: RestartConfig, *, jitter: float) -> Record:
    """Count one unstable death. `jitter` is a number in 0..1 that the caller has drawn.

    What is waited between the deaths is no part of the window, or only what dies within a second would ever fail.
    """
    tries = record.tries + 1
    deaths = (*record.deaths, now)[-config.max_restarts :]
    waited = sum(_delay(n, 0.0) for n in range(max(1, tries - config.max_restarts + 1), tries))
    too_many = len(deaths) == config.max_restarts and now - deaths[0] < config.window + waited
    failed = record.failed or too_many
    if failed:
        delay = config.retry
    else:
        delay = _delay(tries, jitter)
    return Record(tries, deaths, now + delay, failed, record.permanent or (failed and config.retry == 0))


def after_helper_death(
    record: Record, ready_at: float | None, now: float, config: RestartConfig, *, jitter: float
) -> Record:
    """Count the death of a template or dispatcher, which is never given up: nothing of the app can be started without it."""
    if is_stable(ready_at, now, config):
        return CLEAR
    return Record(record.tries + 1, next_at=now + _delay(record.tries + 1, jitter))


def _delay(tries: int, jitter: float) -> float:
    # the exponent is capped: 0.1 * 2**9 is past MAX_DELAY already, and 2.0**1100 would overflow. Jitter only shortens
    return min(MAX_DELAY, FIRST_DELAY * FACTOR ** min(tries - 1, 16)) * (1 - jitter / 4)


def after_refusal(record: Record) -> Record:
    """Exit code 78 or a first start that failed: do not try again. It is no restart."""
    return replace(record, tries=record.tries + 1, permanent=True)


def wants_replacement(config: RestartConfig, *, clean: bool) -> bool:
    """Whether a worker that ended by itself is replaced at all; `clean`: with exit code 0."""
    match config.policy:
        case "always":
            return True
        case "on-failure":
            return not clean
        case "never":
            return False
