"""Whether a TLS certificate is near its end. Pure: no clock here; moments are seconds since the epoch."""

from __future__ import annotations

_SOON = 14 * 86400.0  # most are renewed a month ahead; of those that live for days only, the last tenth counts

_RENEW = "renew it and reload the app: clients refuse it outside of its time"


def trouble(since: float, until: float, now: float) -> tuple[str, str]:
    """Return what is to be said of a certificate that is valid from `since` to `until`, and what to do; "" and "": all is well."""
    if now >= until:
        return f"has expired {_span(now - until)} ago", _RENEW
    if now < since:
        return f"is not valid yet, but in {_span(since - now)}", "is this machine's clock right?"
    if until - now < min(_SOON, (until - since) / 10):
        return f"expires in {_span(until - now)}", _RENEW
    return "", ""


def _span(seconds: float) -> str:
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        count = int(seconds // size)
        if count:
            return f"{count} {name}{'s' if count > 1 else ''}"
    return "less than a minute"
