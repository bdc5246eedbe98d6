"""CLI: `pyworker schema`: the JSON Schema of config files, for editors."""

from __future__ import annotations

import json
import os

import click

from pyworker.cli.files import cannot
from pyworker.cli.options import Settings, common, option, say
from pyworker.cli.render import home, out
from pyworker.unix.files import write_file


@click.command()
@option("-o", "--output", metavar="FILE", help="Write it there instead of to stdout.")
@common
def cmd(settings: Settings, output: str | None) -> int:
    """Print the JSON Schema (draft-07) of app.toml.

    Editors with TOML support complete keys and mark mistakes when the file's first line names it:

    \b
    pyworker schema -o .app.schema.json
    #:schema ./.app.schema.json          (first line of app.toml; `pyworker init` writes both)
    """
    from pyworker.config.jsonschema import schema

    text = json.dumps(schema(), indent=2)
    if output is None:
        out(text)
        return 0
    try:
        write_file(output, text.encode() + b"\n")
    except OSError as error:
        raise cannot("write", output, error) from None
    path = output if os.path.isabs(output) else f"./{output}"
    text = f"Wrote {home(output)}; first line of app.toml: #:schema {path}"
    return say(settings, {"ok": True, "written": output}, text)
