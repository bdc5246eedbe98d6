"""Writes docs/lifecycle.md from policy/lifecycle.py's TABLE: `python docs/make.py`. A test compares the two."""

from __future__ import annotations

import pathlib

from pyworker.policy.lifecycle import TABLE, Happening, State

TARGET = pathlib.Path(__file__).with_name("lifecycle.md")

MEANING = {
    State.STARTING: "asked for; not ready yet",
    State.HELD: "ready, accepts nothing before it is told to",
    State.OPENING: "told to accept, has not answered yet",
    State.READY: "accepts",
    State.UNHEALTHY: "accepts, but is being replaced",
    State.DRAINING: "accepts nothing any more, finishes what it has",
    State.STOPPING: "has been sent the stop signal",
    State.KILLED: "has been sent SIGKILL",
    State.STOPPED: "has ended",
}


def page() -> str:
    """Return the whole document."""
    edges = [
        f"    {state.value} --> {after.value}: {happening.value}"
        for state, row in TABLE.items()
        for happening, after in row.items()
        if after is not state
    ]
    meanings = [f"| `{state.value}` | {MEANING[state]} |" for state in State]
    head = "| state | " + " | ".join(h.value for h in Happening) + " |"
    rule = "|---" * (len(Happening) + 1) + "|"
    rows = [
        f"| `{state.value}` | "
        + " | ".join("·" if row[h] is state else row[h].value for h in Happening)
        + " |"
        for state, row in TABLE.items()
    ]
    return "\n".join(
        [
            "# The life of a worker",
            "",
            "Made by `python docs/make.py` from `TABLE` in [`policy/lifecycle.py`](../pyworker/policy/lifecycle.py),",
            "the only place where a worker changes its state. Do not edit.",
            "",
            "```mermaid",
            "stateDiagram-v2",
            "    [*] --> starting",
            *edges,
            "    stopped --> [*]",
            "```",
            "",
            "| state | meaning |",
            "|---|---|",
            *meanings,
            "",
            "Every pair has an answer; `·` means that nothing changes, so that the late words of a dying worker do no harm.",
            "",
            head,
            rule,
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
