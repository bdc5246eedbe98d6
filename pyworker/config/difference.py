"""What differs between two resolved apps, key by key, and what it takes to apply each change. Pure."""

from __future__ import annotations

from typing import Any, Literal

from pyworker.config import canonical
from pyworker.config.convert import hints_of, table_class
from pyworker.config.environment import without_passwords
from pyworker.config.option import Apply, option_of
from pyworker.config.schema import AppConfig, ResolvedApp
from pyworker.record import fields, record, replace

MASK = "***"


@record
class Change:
    """One key. `old` and `new` are as TOML would have them, None where it is absent; secrets are masked."""

    key: str
    old: Any
    new: Any
    apply: Apply
    secret: bool = False


def differences(old: ResolvedApp, new: ResolvedApp) -> list[Change]:
    """Return what a reload would change, in the order of the schema, the environment last."""
    before, after = canonical.flat(old.config), canonical.flat(new.config)
    changes = [
        _hidden(Change(key, before.get(key), after.get(key), applies(key)))
        for key in dict.fromkeys([*after, *before])
        if before.get(key) != after.get(key)
    ]
    if old.python != new.python and not any(c.key == "python" for c in changes):
        changes.append(Change("python", old.python, new.python, "reload"))
    if (old.uid, old.gid, old.groups) != (new.uid, new.gid, new.groups) and not any(c.key == "user" for c in changes):
        changes.append(Change("user", _ids(old), _ids(new), "reload"))
    for name in sorted({*old.env, *new.env}):
        if old.env.get(name) != new.env.get(name):
            secret = name in old.secrets or name in new.secrets
            one, other = old.env.get(name), new.env.get(name)
            if secret:
                one, other = MASK if one is not None else None, MASK if other is not None else None
            changes.append(Change(f"env.{name}", one, other, "reload", secret))
    return changes


def _hidden(change: Change) -> Change:
    """The address of a server may have a password in it."""
    if change.key != "state" or (change.old, change.new) == tuple(map(without_passwords, (change.old, change.new))):
        return change
    return replace(change, old=MASK, new=MASK, secret=True)


def applies(key: str) -> Apply:
    """Return how a changed option takes effect."""
    cls: Any = AppConfig
    apply: Literal["live", "reload", "restart"] = "reload"
    for part in key.split("."):
        field = next((f for f in fields(cls) if f.name == part), None)
        if field is None:
            break
        apply = option_of(field).apply
        cls = table_class(hints_of(cls)[part]) or cls
    return apply


def _ids(app: ResolvedApp) -> str:
    return f"uid {app.uid}, gid {app.gid}, groups {' '.join(map(str, app.groups)) or 'none'}"
