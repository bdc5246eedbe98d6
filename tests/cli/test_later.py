"""cli/later.py: a module that nobody needs is not imported, and one that somebody needs is itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEFORE = "import sys; from pyworker.cli.later import import_later; import_later('colorsys'); "
LOADED = "sys.modules['colorsys'].__spec__ is not None"


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=60, check=True).stdout


def test_an_import_alone_does_not_load_it() -> None:
    assert python(f"{BEFORE}import colorsys; print({LOADED})") == "False\n"


@pytest.mark.parametrize("use", ["import colorsys; colorsys.rgb_to_hls(0, 0, 0)", "from colorsys import rgb_to_hls"])
def test_the_first_use_loads_the_real_one(use: str) -> None:
    code = f"{BEFORE}import colorsys as before; {use}; print({LOADED}); import colorsys as real; "
    code += "print(before is not real, before.rgb_to_hls is real.rgb_to_hls, before.__file__ == real.__file__)"
    assert python(code) == "True\nTrue True True\n"


def test_what_it_does_not_have_is_an_attribute_error() -> None:
    code = f"{BEFORE}import colorsys\ntry:\n    colorsys.nothing\nexcept AttributeError as error:\n    print(error)"
    assert python(code) == "module 'colorsys' has no attribute 'nothing'\n"


def test_what_is_there_stays() -> None:
    code = "import colorsys, sys; from pyworker.cli.later import import_later; import_later('colorsys'); "
    assert python(f"{code}print(sys.modules['colorsys'] is colorsys)") == "True\n"


@pytest.mark.parametrize("command", ["ps", "start no.toml", "reload x", "logs x", "stop x", "daemon status", "help states"])
def test_no_command_waits_for_what_clicks_help_alone_needs(command: str, home: str) -> None:
    code = (
        "import os, sys; from pyworker.__main__ import main\n"
        "os._exit = sys.exit\n"
        f"sys.argv = ['pyworker', *{command.split()!r}, '--home', {home!r}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'dis', 'tokenize', 'platform'} & set(sys.modules)))"  # not ast: from Python 3.14 typing has a use of its own for it
    )
    assert python(code).endswith("[]\n")


def test_what_stood_for_some_of_it_meanwhile_is_the_real_one_once_it_is_deleted() -> None:
    code = (
        "import sys; from pyworker.cli.later import import_later\n"
        "later = import_later('uuid', UUID=object)\n"
        "import click, uuid\n"
        "print(uuid.UUID is object, 'platform' in sys.modules)\n"
        "del later.UUID\n"
        "print(repr(click.UUID.convert('12345678123456781234567812345678', None, None)), uuid.UUID is object)"
    )
    assert python(code) == "True False\nUUID('12345678-1234-5678-1234-567812345678') False\n"
