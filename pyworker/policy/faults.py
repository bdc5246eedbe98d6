"""Faults that last: said when they begin and when they are over, whatever number of times they are met in between."""

from __future__ import annotations

CALM = 10.0  # seconds without it until a fault counts as over: longer than any pause between two tries


class Faults:
    """The faults that one process meets now, each by a text that stays the same while the fault does."""

    def __init__(self) -> None:
        self._met: dict[str, tuple[int, float]] = {}  # how often, and when last

    def __bool__(self) -> bool:
        return bool(self._met)

    def is_new(self, fault: str, now: float) -> bool:
        """Note that a fault was met; True when it is to be said."""
        count, last = self._met.get(fault, (0, now))
        begins = count == 0 or now - last >= CALM
        self._met[fault] = (1 if begins else count + 1, now)
        return begins

    def over(self, now: float) -> list[str]:
        """Return, in words, those that lasted and have not been met for a while; all of these are forgotten."""
        ended = {fault: count for fault, (count, last) in self._met.items() if now - last >= CALM}
        for fault in ended:
            del self._met[fault]
        return [f"over, after {count} times: {fault}" for fault, count in ended.items() if count > 1]


def place_of(error: BaseException) -> str:
    """Return a text that names what was raised and where: the same for each time, whatever its message says."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" in {trace.tb_frame.f_code.co_qualname}" if trace is not None else ""
    return f"{type(error).__name__}{where}"
