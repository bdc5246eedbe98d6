"""The complete environment of an app's workers: clean base, inherit_env, env_file, [env]; and what of it is secret.

The shell's environment is never taken over silently. Only the dotenv files are read here.
"""

from __future__ import annotations

import fnmatch
import functools
import io
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping

from pyworker import regular
from pyworker.config.identity import IdentityError
from pyworker.config.interpolate import MAX_STRING, InterpolationError, expand_dotenv, interpolate
from pyworker.config.spans import Path
from pyworker.errors import WANTING, Hinted

MAX_ENV_FILE = 1024 * 1024
# characters of all variables: no kernel takes more bytes (three quarters of 8 MiB, execve(2))
MAX_ALL = 6 * 1024 * 1024
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_BASE = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR")
# of the shell that types the command, not of the app; or set by pyworker
_NEVER = (
    *("PYWORKER_*", "LISTEN_FD*", "LISTEN_PID*", "NOTIFY_SOCKET"),
    *("_", "SHLVL", "PWD", "OLDPWD", "VIRTUAL_ENV", "VIRTUAL_ENV_PROMPT"),
)
# of the terminal that it is typed on: the app has none, and another terminal is no change of it. Taken by name only
_TERMINAL = (
    *("TERM", "TERM_PROGRAM", "TERM_PROGRAM_VERSION", "TERM_SESSION_ID", "COLORTERM", "COLUMNS", "LINES"),
    *("VTE_VERSION", "TMUX", "TMUX_PANE", "STY", "WINDOW", "WINDOWID"),
    *("GPG_TTY", "SSH_TTY", "SSH_CLIENT", "SSH_CONNECTION", "XDG_SESSION_ID"),
)
SECRET_NAMES = ("*KEY*", "*TOKEN*", "*SECRET*", "*PASS*", "*PWD*", "*AUTH", "*DSN*", "*CREDENTIAL*")
# a password may hold anything that its program lets through, spaces and slashes too; a port and a path are none
# (no scheme before, which a long value would be searched for from each of its letters, and a bound for the same reason)
_URL_PASSWORD = re.compile(r"://[^/\s:@]*:(?!\d{1,5}/)[^@]{1,4096}@")
# in the address's query (a token), or in what drivers take instead of an address: "host=db password=x", "…;AccountKey=x"
_PARAMETER = re.compile(
    r"(?:^|[?&;\s])(?:password|passwd|pwd|token|secret|accountkey|sharedaccesskey)=[^&;\s]", re.IGNORECASE
)
# what is filled in later is none yet; a password with an @ in it ends at the last one, as drivers read it
_IN_ADDRESS = re.compile(r"://[^:/@\s]*:(?!\$\{)")
_WORD = re.compile(r"\S+")
_IN_QUERY = re.compile(r"([?&]password=)(?!\$\{)[^&\s]+", re.IGNORECASE)
_TELLING = 6  # a secret at least this long makes a value secret that contains it; "1" would make all of them so
MOST_TELLING = 200  # to look for each in all the others takes the square of the time: of more, nothing is shown
# in a dotenv file; more is nobody's, and its parser takes seconds for them, and the square of the blanks in a row
_MOST_LINES = 10_000
_BLANKS = re.compile(r"(?<!\s)[^\S\r\n]{1000}")
_NAME = re.compile(r"[^=\0]+\Z")

Check = Callable[[int, str], None]


class EnvironmentProblem(Hinted):
    """A variable or file that does not resolve; `key` is the option's path below the app, which the message continues."""

    def __init__(self, key: Path, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.key = key


def base(base_env: Mapping[str, str], *, name: str, home: str, shell: str, changed_user: bool) -> dict[str, str]:
    """Return the clean base; with another user, what is personal is that user's."""
    env = {k: v for k, v in base_env.items() if (k in _BASE or k.startswith("LC_")) and _is_text(v)}
    personal = {"HOME": home, "USER": name, "LOGNAME": name, "SHELL": shell}
    if changed_user:
        env.pop("TMPDIR", None)  # it may be a private folder of the other one
        env |= personal
    else:
        env = {**{k: v for k, v in personal.items() if v}, **env}
    env.setdefault("PATH", DEFAULT_PATH)
    return env


def inherit(env: dict[str, str], shell_env: Mapping[str, str], patterns: tuple[str, ...]) -> None:
    """Add what the shell has under these names (globs)."""
    for name, value in shell_env.items():
        globs = () if name in _TERMINAL else patterns
        wanted = name in patterns or any(fnmatch.fnmatchcase(name, p) for p in globs)
        fits = _NAME.match(name) and _is_text(name + value)
        if wanted and fits and not any(fnmatch.fnmatchcase(name, p) for p in _NEVER):
            env[name] = value


def _is_text(value: str) -> bool:
    """Whether a message can hold it; a shell's variable may be any bytes."""
    return "\0" not in value and value.encode(errors="replace").decode() == value


def use_venv(env: dict[str, str], python: str) -> None:
    """Put the interpreter's own folder first on PATH when it is in a virtual environment, as `activate` does."""
    bin_dir = os.path.dirname(python)
    if not (name := variable_of(os.path.dirname(bin_dir))):
        return
    rest = [p for p in env["PATH"].split(os.pathsep) if p != bin_dir]
    env["PATH"] = os.pathsep.join([bin_dir, *rest])
    env[name] = os.path.dirname(bin_dir)


def variable_of(folder: str) -> str:
    """Return the variable that names this virtual environment once it is activated; "" of a folder that is none."""
    for mark, name in (("pyvenv.cfg", "VIRTUAL_ENV"), ("conda-meta", "CONDA_PREFIX")):
        if os.path.exists(os.path.join(folder, mark)):
            return name
    return ""


def program(name: str, env: Mapping[str, str], cwd: str) -> str | None:
    """Return the file that a command of this name is for an app in `cwd`; None without one."""
    if "/" in name:
        return shutil.which(os.path.join(cwd, name))
    folders = env.get("PATH", DEFAULT_PATH).split(os.pathsep)
    return shutil.which(name, path=os.pathsep.join(os.path.join(cwd, folder) for folder in folders))


def add_file(
    env: dict[str, str], file: str, key: Path, shell_env: Mapping[str, str], check: Check | None = None
) -> int:
    """Add a dotenv file; a name that ends with "?" need not exist. ${VAR} sees what is there already, then the shell.

    Return the CRC of its content, 0 for one that is not there.

    `check` is given the open file and its path, and raises if it is not to be read.
    """
    optional = file.endswith("?")
    path = file.removesuffix("?")
    name = os.path.basename(path)
    try:
        text = _read(path, check)
    except FileNotFoundError:
        if optional:
            return 0
        hint = f'looked for {path}; if it need not be there: "{name}?"'
        raise EnvironmentProblem(key, f"names {name}, which does not exist", hint) from None
    except OSError as error:
        if error.errno in WANTING:  # no fault of the file's: who reads it is told what is missing
            raise
        raise EnvironmentProblem(key, f"names {name}, which cannot be read: {error.strerror or error}", path) from None
    except IdentityError:
        raise
    except ValueError as error:
        raise EnvironmentProblem(key, f"names {name}, which cannot be read: {error}", path) from None
    import dotenv.parser  # with what it imports the dearest of all, and few apps have such files

    size = 0
    # the mark that some editors put there is part of the first name to older versions of it
    for binding in dotenv.parser.parse_stream(io.StringIO(text.removeprefix("\ufeff"))):
        if binding.error or (binding.key is not None and "\0" in binding.key + (binding.value or "")):
            line = binding.original.line + binding.original.string[: -len(binding.original.string.lstrip())].count("\n")
            raise EnvironmentProblem(key, f"names {name}, whose line {line} is not NAME=value", path)
        if binding.key and binding.value is not None:
            try:
                env[binding.key] = expand_dotenv(binding.value, lambda n: env.get(n, shell_env.get(n)))
                size = _within_all(size, env[binding.key])
            except InterpolationError as error:
                raise EnvironmentProblem(key, f"names {name}, whose {binding.key[:100]} {error}", error.hint) from None
    return zlib.crc32(text.encode())


def _read(path: str, check: Check | None) -> str:
    with open(path, "rb", opener=regular.opener) as file:
        if check is not None:
            check(file.fileno(), path)
        data = file.read(MAX_ENV_FILE + 1)
    if len(data) > MAX_ENV_FILE:
        raise ValueError(f"it is larger than {MAX_ENV_FILE} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    if _BLANKS.search(text) or len(text.splitlines()) > _MOST_LINES:
        raise ValueError(f"it has more than {_MOST_LINES} lines, or a thousand blanks in a row")
    return text


def add_table(env: dict[str, str], table: Mapping[str, str], shell_env: Mapping[str, str]) -> list[EnvironmentProblem]:
    """Add [env] in its order, with variables filled in; return what does not resolve."""
    problems: list[EnvironmentProblem] = []
    size = 0
    for name, text in table.items():
        try:
            value = interpolate(text, lambda n: env.get(n, shell_env.get(n)))
            size = _within_all(size, value)
            env[name] = value
        except InterpolationError as error:
            problems.append(EnvironmentProblem(("env", name), str(error), error.hint))
    return problems


def _within_all(size: int, value: str) -> int:
    """Return what the values before and this one come to."""
    if size + len(value) > MAX_ALL:
        raise InterpolationError(
            f"is too much: with those before it the variables come to more than {MAX_ALL} characters, which the kernel takes",
            "put the values into files, and the names of the files into the variables",
        )
    return size + len(value)


def too_long(env: Mapping[str, str]) -> list[EnvironmentProblem]:
    """Return the variables that are so long that the kernel would run no program with them."""
    sizes = {name: len(f"{name}={value}".encode(errors="surrogateescape")) for name, value in env.items()}
    hint = "put the value into a file, and the name of the file into the variable"
    return [
        EnvironmentProblem(("env", name), f"is {size} bytes with its name; the kernel takes {MAX_STRING - 1}", hint)
        for name, size in sizes.items()
        if size >= MAX_STRING
    ]


def secrets(env: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names whose values must not be shown: by name, what has a password in it, and what contains one of those."""
    known = {n for n, v in env.items() if _is_secret_name(n) or _URL_PASSWORD.search(v) or _PARAMETER.search(v)}
    telling = {env[n] for n in known if len(env[n]) >= _TELLING}
    if len(telling) > MOST_TELLING:
        return tuple(env)
    return tuple(n for n, v in env.items() if n in known or any(secret in v for secret in telling))


def without_passwords(text: str) -> str:
    """Return a text as it may be shown: passwords in addresses are masked."""
    return _IN_QUERY.sub(r"\1***", _WORD.sub(_without_password, text))


def _without_password(word: re.Match[str]) -> str:
    """Look for the last @ once: one expression for all of it would do so again from each "://" on."""
    text = word[0]
    end = text.rfind("@")
    begin = _IN_ADDRESS.search(text)
    return f"{text[: begin.end()]}***{text[end:]}" if begin is not None and begin.end() < end else text


@functools.lru_cache(maxsize=1024)  # hundreds of apps have the same names
def _is_secret_name(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name.upper(), p) for p in SECRET_NAMES)
