"""CLI: `pyworker export`: the config of an app as files for another engine. Reads one file, asks no daemon."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys

import click

from pyworker.cli import render
from pyworker.cli.files import as_bytes, cannot
from pyworker.cli.here import absolute, here
from pyworker.cli.options import Settings, common, of_profile, option
from pyworker.cli.render import line
from pyworker.errors import PyworkerError
from pyworker.unix.files import open_regular, write_file

_REQUIREMENTS = ("requirements.txt", "pyproject.toml")
_MADE = b"# Made by `pyworker export "
ENGINES = ("systemd", "compose", "kubernetes", "nomad", "docker", "procfile")


class _Engine(click.Choice[str]):
    """One of ENGINES; of any other, supervisord for one, what to do instead."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in ENGINES:
            import difflib

            message = f"there is no export for {line(value)}; for these: {', '.join(ENGINES)}"
            hint = "what starts programs can start this one, which stays in the foreground: pyworker run app.toml"
            if near := difflib.get_close_matches({"k8s": "kubernetes"}.get(value, value), ENGINES, n=1):
                hint = f"did you mean {near[0]}?"
            raise PyworkerError(message, hint=hint, code="usage")
        return value


@click.command()
@click.argument("engine", type=_Engine(ENGINES), metavar=f"{{{' | '.join(ENGINES)}}}")  # it wraps at blanks
@click.argument("names", nargs=-1, metavar="[NAME]...")
@option("-f", "--file", "file", metavar="FILE.toml", help="The config file; default: that of this folder.")
@option("-o", "--output", metavar="DIR", help="Write the files there; default: print them.")
@option("--image", default="", metavar="NAME", help="The image; default: the app's name, tag latest.")
@option("--replicas-from-workers", is_flag=True, help="One worker per pod instead of a pool in each.")
@option("--per-worker", is_flag=True, help="systemd, for commands: a socket and a unit per worker.")
@option(
    "--autoscale",
    type=click.Choice(("cpu", "in-flight", "none")),
    default="cpu",
    help="kubernetes: what the autoscaler looks at; in-flight needs a metrics adapter.",
)
@option("--force", is_flag=True, help="With -o: overwrite files that `pyworker export` has not made.")
@of_profile
@common
def cmd(
    settings: Settings,
    engine: str,
    names: tuple[str, ...],
    file: str | None,
    output: str | None,
    image: str,
    replicas_from_workers: bool,
    per_worker: bool,
    autoscale: str,
    force: bool,
    profile: str,
) -> int:
    """Write an app for systemd, Compose, Kubernetes, Nomad, as a Dockerfile or a Procfile.

    Each file begins with what could not be carried over. Values of secrets are in none. The same config gives the
    same bytes.

    \b
    pyworker export kubernetes api -o deploy/
    pyworker export docker -o .           a Dockerfile and its .dockerignore
    pyworker export procfile > Procfile
    """
    from pyworker.config.load import find, load, run_config, says_name
    from pyworker.export.plan import Options

    named = next((name for name in names if name.endswith(".toml")), None)
    if named is not None:
        hint = f"pyworker export {engine} -f {render.argument(named)}"
        raise PyworkerError(f"{named} is no app's name; the file is named by -f", hint=hint, code="usage")
    path = absolute(file) if file else find(here(), os.environ)
    if path is None:
        raise PyworkerError("there is no config file in this folder", hint="name one: -f FILE.toml", code="usage")
    loaded = load(path, only=names, profile=profile)
    every = load(path, profile=profile).apps
    folder = os.path.dirname(path)
    options = Options(
        file=os.path.basename(path),
        folder=folder,
        image=image,
        replicas_from_workers=replicas_from_workers,
        per_worker=per_worker,
        pyworker=shutil.which("pyworker") or f"{os.path.dirname(sys.executable)}/pyworker",
        profile=profile,
        autoscale=autoscale,
        several=len(every) > 1,
        every=every,
        named=says_name(path),
        requirements=next((n for n in _REQUIREMENTS if os.path.isfile(os.path.join(folder, n))), ""),
    )
    module = importlib.import_module(f"pyworker.export.{engine}")
    files: dict[str, str] = module.export(loaded.apps, run_config(path, {}), options)
    texts = {name: as_bytes(text) for name, text in files.items()}
    if output is not None:
        _write(output, texts, force)
    if settings.json:
        import json

        render.out(json.dumps({"v": 1, "files": files}))
    elif output is None:
        for name, text in files.items():
            if len(files) > 1:
                render.out(f"# ==== {name} ====")
            render.out(text.rstrip("\n"))
    elif not settings.quiet:
        for name in files:
            render.note(f"wrote {os.path.join(output, name)}")
    return 0


def _write(folder: str, files: dict[str, bytes], force: bool) -> None:
    paths = {os.path.join(folder, name): text for name, text in files.items()}
    try:
        os.makedirs(folder, exist_ok=True)
        theirs = [path for path in paths if not force and os.path.lexists(path) and not _is_ours(path)]
        if theirs:
            message = f"{', '.join(theirs)}: is there, and not made by `pyworker export`; nothing was written"
            raise PyworkerError(message, hint="another folder: -o DIR; or overwrite it: --force", code="exists")
    except OSError as error:
        raise cannot("write to", folder, error, "choose another folder with -o") from None
    for path, text in paths.items():
        try:
            write_file(path, text)
        except OSError as error:
            raise cannot("write", path, error, "choose another folder with -o") from None


def _is_ours(path: str) -> bool:
    with contextlib.suppress(OSError), open_regular(path) as file:
        return file.read(len(_MADE)) == _MADE
    return False
