"""CLI: `pyworker completion`: the shell's part (printed), and the hidden part that answers it (`pyworker __complete`).

The answer must come while the finger is still on the key: it imports no command, and asks the daemon for names only
where names are wanted.
"""

from __future__ import annotations

import json
import os

import click

from pyworker.cli.files import cannot
from pyworker.cli.homes import config_home, data_home
from pyworker.cli.options import Settings, common, option
from pyworker.cli.render import note, out
from pyworker.errors import PyworkerError
from pyworker.unix.files import write_file

_BASH = """\
_pyworker() {
    local IFS=$'\\n'
    COMPREPLY=($(PYWORKER_COMPLETE=1 "${COMP_WORDS[0]}" __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null | cut -f1))
    if [ "${COMPREPLY[0]}" = "__files__" ]; then
        compopt -o default 2>/dev/null; COMPREPLY=()
    elif [ "${#COMPREPLY[@]}" = 1 ] && [ "${COMPREPLY[0]: -1}" = "=" ]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -F _pyworker pyworker
"""
_ZSH = """\
#compdef pyworker
_pyworker() {
    local -a lines shown more
    lines=("${(@f)$(PYWORKER_COMPLETE=1 ${words[1]} __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ "$lines[1]" == __files__ ]]; then _files; return; fi
    shown=("${(@)lines/$'\\t'/:}")
    [[ "${lines[1]%%$'\\t'*}" == *= ]] && more=(-S '')
    _describe 'pyworker' shown "${more[@]}"
}
if [ "$funcstack[1]" = "_pyworker" ]; then _pyworker "$@"; else compdef _pyworker pyworker; fi
"""
_FISH = """\
function __pyworker_complete
    set -l words (commandline -opc) (commandline -ct)
    set -l found (env PYWORKER_COMPLETE=1 $words[1] __complete $words[2..-1] 2>/dev/null)
    if test "$found[1]" = __files__
        __fish_complete_path (commandline -ct)
    else
        printf '%s\\n' $found
    end
end
complete -c pyworker -f -a '(__pyworker_complete)'
"""
_BASH_LOADER = "/usr/share/bash-completion/bash_completion"  # what reads the folder that --install writes to
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


@click.command()
@click.argument("shell", required=False, type=click.Choice(tuple(_SCRIPTS)))
@option("--install", is_flag=True, help="Write it where the shell looks for it.")
@common
def cmd(settings: Settings, shell: str | None, install: bool) -> int:
    """Print the completion of a shell: commands, options, the names of running apps.

    \b
    pyworker completion --install      for the shell that you use
    bash   eval "$(pyworker completion bash)"         in ~/.bashrc
    zsh    eval "$(pyworker completion zsh)"          in ~/.zshrc, after compinit
    fish   pyworker completion fish | source          in ~/.config/fish/config.fish
    """
    name = shell or os.path.basename(os.environ.get("SHELL", ""))
    if name not in _SCRIPTS:
        hint = "pyworker completion bash, zsh or fish"
        raise PyworkerError("for which shell?", hint=hint, code="usage")
    if not install:
        script = _SCRIPTS[name]
        out(json.dumps({"v": 1, "shell": name, "script": script}) if settings.json else script.rstrip("\n"))
        return 0
    path = _place(name)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_file(path, _SCRIPTS[name].encode())
    except OSError as error:
        raise cannot("write", path, error, f"put it elsewhere: pyworker completion {name} > FILE") from None
    if settings.json:
        out(json.dumps({"v": 1, "ok": True, "written": path}))
        return 0
    more = "" if name != "zsh" else f"; your ~/.zshrc needs before compinit: fpath+=({os.path.dirname(path)})"
    if name == "bash" and not os.path.exists(_BASH_LOADER):
        more = ' when the package bash-completion is installed; without it: eval "$(pyworker completion bash)" in ~/.bashrc'
    note(f"Wrote {path}; a new {name} has it{more}")
    return 0


def _place(shell: str) -> str:
    return {
        "bash": os.path.join(data_home(), "bash-completion", "completions", "pyworker"),
        "zsh": os.path.join(data_home(), "zsh", "site-functions", "_pyworker"),
        "fish": os.path.join(config_home(), "fish", "completions", "pyworker.fish"),
    }[shell]
