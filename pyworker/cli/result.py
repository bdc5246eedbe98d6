"""CLI: how an operation ended, app by app: a sentence on stdout, or the cause and the next step on stderr."""

from __future__ import annotations

import sys
from typing import Any

from pyworker.cli import render
from pyworker.cli.client import Answer
from pyworker.cli.fail import is_said, without_causes, words
from pyworker.cli.options import Settings
from pyworker.cli.progress import Board
from pyworker.cli.render import Look, line, note, out, out_json, paint
from pyworker.config.activated import or_activated
from pyworker.errors import Exit
from pyworker.protocol.events import failed_in_words, workers_in_words

_SHOWN_CHANGES = 10  # of an app that runs already; `diff` shows all


def finish(settings: Settings, verb: str, answer: Answer, board: Board) -> int:
    """Say how it ended, app by app; return the exit code."""
    results: list[dict[str, Any]] = [r for r in answer.body.get("apps") or () if isinstance(r, dict)]
    how, err = render.look(sys.stdout, settings.color), render.look(sys.stderr, settings.color)
    if settings.json:
        for result in results:
            out_json({"v": 1, "type": "result", **_for_json(result)}, how)
    else:
        good = [] if settings.quiet else [r for r in results if r.get("ok")]
        if good and how.tty and err.tty and verb in {"start", "reload", "restart"} and board.rows:
            note("", err)
        causes = [str(r.get("reason") or "") for r in results if not r.get("ok")]
        for result in results:
            if result in good:
                _say_result(result, board, how, err)
            elif not result.get("ok"):
                note(_failure(result, verb, err, causes), err)
        if len(good) == len(results):  # what failed has said what to do
            _say_next(good, how, err)
        if not results and not settings.quiet:
            note("Nothing to do.", err)
    if answer.ok:
        return 0
    return int(answer.body.get("exit") or Exit.FAILED)


def _for_json(result: dict[str, Any]) -> dict[str, Any]:
    names = (
        "ok", "app", "action", "state", "gen", "workers", "listen", "took_s", "reason", "traceback", "hint", "notes",
        "changes", "requests", "failed",
    )  # fmt: skip
    return {k: result[k] for k in names if k in result and result[k] not in ("", None)}


def _say_result(result: dict[str, Any], board: Board, how: Look, err: Look) -> None:
    app = line(result.get("app") or "?")
    action = str(result.get("action") or "")
    out(_sentence(app, action, result, board, how), how)
    for text in result.get("notes") or ():
        if (result.get("app"), text) not in board.notes:  # else it was said as it happened
            note(f"{app}: {line(text)}", err)
    if changes := result.get("changes"):
        from pyworker.cli.commands.diff import change_lines

        note("\n".join(change_lines(changes[:_SHOWN_CHANGES], err)), err)
        if len(changes) > _SHOWN_CHANGES:
            note(f"  … and {len(changes) - _SHOWN_CHANGES} more: pyworker diff {app}", err)


def _say_next(good: list[dict[str, Any]], how: Look, err: Look) -> None:
    if how.tty and (then := _next(good)):
        note(paint(f"  {then}", "dim", err), err)
    elif not how.tty and (then := _next([r for r in good if r.get("action") == "already_running"])):
        note(then.replace("   ", " "), err)


def _next(good: list[dict[str, Any]]) -> str:
    """Return what may be typed next, once for all of them."""
    started = [r for r in good if r.get("action") == "started"]
    running = [r for r in good if r.get("action") == "already_running"]
    name = " " + line(good[0].get("app") or "?") if len(good) == 1 else ""
    if started:
        return f"pyworker logs -f{name} · pyworker ps · pyworker reload{name}"
    if running:
        return f"pyworker reload{name}   applies new code and settings"
    return ""


def _sentence(app: str, action: str, result: dict[str, Any], board: Board, how: Look) -> str:
    workers = result.get("workers") or {}
    ready, want = workers.get("ready", 0), workers.get("want", 0)
    count = f"{ready}/{want}"
    took = f"{result.get('took_s') or 0:.1f}s"
    where = [line(a) for a in result.get("listen") or ()]
    state = line(result.get("state") or "")
    gen = result.get("gen")
    kept = state if state == "scheduled" else f"{count} ready"
    match action:
        case "started" | "already_running" if not how.tty:
            already = " already" if action == "already_running" else ""
            return " ".join([app, state + already, count, *([took] if not already else []), ",".join(where) or "-"])
        case "started" | "already_running" if state == "scheduled":
            return f"{paint(app, 'bold', how)} is scheduled: it runs when its time comes"
        case "started" if state == "stopped":
            has_begun = any(row.app == app for row in board.rows.values())
            return f"{paint(app, 'bold', how)} {f'has ended, with code 0, after {took}' if has_begun else 'has no workers'}"
        case "started" if ready < want:
            return f"{app} is {state}: {count} workers ready so far"
        case "started":
            arrow = f" → {', '.join(where)}" if where else ""
            return f"{paint(app, 'bold', how)} is {paint(state, 'green', how)}: {count} workers ready in {took}{arrow}"
        case "already_running":
            arrow = f" → {', '.join(where)}" if where else ""
            return f"{paint(app, 'bold', how)} is {state} already: {count} workers ready, gen {gen}{arrow}"
        case "reloaded":
            old = board.generations.get(app)
            answered = failed_in_words(result)
            return f"{app} reloaded: gen {f'{old[0]} → {old[1]}' if old else gen}, {kept}, {took}{answered and f', {answered}'}"
        case "aborted":
            return f"{app}: the reload was given up, gen {gen} goes on, {count} ready, {took}"
        case "restarted":
            what = app if app in board.started else _slots(app, board, {"ready"}) or app
            return f"{what} restarted: gen {gen}, {kept}, {took}"
        case "scaled":
            old, new = board.scaled.get(app, (want, want))
            return f"{app}: {f'{old} → ' if old != new else ''}{workers_in_words(new)}, {count} ready in {took}"
        case "stopped" if state != "stopped":  # single workers of it
            gone = _slots(app, board, {"stopped", "failed"})
            return f"{gone or 'nothing was'} stopped; {app} is {state}: {count} ready"
        case "stopped":
            return f"{app} stopped in {took}" if how.tty else f"{app} stopped {took}"
        case "deleted":
            return f"{app} deleted"
        case "under_way":
            return f"{app} is {state}: not waited for"
        case _:
            return f"{app}: nothing to do ({state})"


def _slots(app: str, board: Board, states: set[str]) -> str:
    return ", ".join(f"{app}.{r.worker}" for _, r in sorted(board.rows.items()) if r.app == app and r.state in states)


_NOT = {
    "start": "did not start",
    "reload": "was not reloaded",
    "abort": "did not go back",
    "restart": "did not start again",
    "stop": "was not stopped",
    "delete": "was not deleted",
    "scale": "was not scaled",
}


def _failure(result: dict[str, Any], verb: str, how: Look, causes: list[str]) -> str:
    app = line(result.get("app") or "?")
    reason = without_causes(str(result.get("reason") or "no reason was given"), causes)
    failed = _NOT[verb]
    # else something else is under way with it by now, another command's
    stays = (result.get("workers") or {}).get("ready") and result.get("state") in {"running", "degraded"}
    if verb in {"reload", "restart"} and stays:
        failed = f"was not {verb}ed, gen {result.get('gen')} goes on"
    elif verb == "scale" and stays:  # what is wanted is not taken back
        failed = "has {ready} of {want} workers, which stay wanted".format(**result["workers"])
    message = f"{app} runs, but {reason}" if result.get("action") == "unhealthy" else f"{app} {failed}: {reason}"
    said = str(result.get("traceback") or "")
    said = "" if is_said(said, reason) else said  # one line, which the message has already
    hint = or_activated(str(result.get("hint") or ""), str(result.get("cwd") or ""))
    notes = [str(n) for n in result.get("notes") or ()]  # but for what is said already
    notes = [n for n in notes if not (hint and hint in n) and not n.endswith(reason)]
    return "\n" * how.tty + words(
        message, said, hint or f"pyworker logs {app}   shows what it printed", how, notes=notes
    )
