"""Daemon: the worker runtime as a zip, which templates and scripts import from a sealed memfd in any interpreter.

Reads pyworker's own files and imports none of them. Whatever is installed in the app's environment, `import pyworker`
in a worker is the one that the daemon is.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import marshal
import os
import struct
import zlib
from collections.abc import Iterator

from pyworker.unix.process import umask_of_imports

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_FOLDERS = ("protocol", "policy", "unix", "worker", "template", "cluster")
_FILES = (
    "__init__.py", "errors.py", "failpoint.py", "record.py", "regular.py", "config/__init__.py", "config/option.py",
    "config/schema.py", "config/address.py", "config/cpus.py",
)  # fmt: skip
_U32 = 0xFFFF_FFFF
_UNCHECKED = (1).to_bytes(4, "little")  # PEP 552: a hash-based pyc that is never compared with its source
_FACTS = struct.Struct("<5H3I2H")  # of a zip: what both the head of a file and the directory at the end say of it
_PLACE = struct.Struct("<3H2I")
_END = struct.Struct("<4H2IH")
_DATE = 0x21  # 1980-01-01


def runtime_zip() -> bytearray:
    """Return the zip: sources for every interpreter, and beside them bytecode that is used when its version fits."""
    # not by `zipfile`: its import and its work were an eighth of a daemon's start
    out, entries = bytearray(), list[bytes]()  # grown in place: a copy would leave the daemon with 2 MB of free heap
    for name, data in _files():
        facts = _FACTS.pack(20, 0, 0, 0, _DATE, zlib.crc32(data), len(data), len(data), len(name), 0)
        entries.append(b"PK\1\2\x14\0" + facts + _PLACE.pack(0, 0, 0, 0, len(out)) + name)
        out += b"PK\3\4" + facts + name
        out += data
    directory = b"".join(entries)
    end = _END.pack(0, 0, len(entries), len(entries), len(directory), len(out), 0)
    out += directory
    out += b"PK\5\6" + end
    return out


def enter_text() -> str:
    """Return the program that becomes a template's interpreter (template/enter.py)."""
    with open(os.path.join(_ROOT, "template", "enter.py"), encoding="utf-8") as source:
        return source.read()


def _files() -> Iterator[tuple[bytes, bytes]]:
    for name in _names():
        path = os.path.join(_ROOT, name)
        with open(path, "rb") as source:
            text = source.read()
        yield f"pyworker/{name}".encode(), text
        if name == "template/boot.py":
            yield b"__main__.py", text
        else:
            yield f"pyworker/{name}c".encode(), _bytecode(name, path, text)


def _names() -> list[str]:
    names = [name for name in _FILES if os.path.exists(os.path.join(_ROOT, name))]
    for folder in _FOLDERS:
        for where, _, files in os.walk(os.path.join(_ROOT, folder)):
            names += [os.path.relpath(os.path.join(where, f), _ROOT) for f in sorted(files) if f.endswith(".py")]
    return names


def _bytecode(name: str, path: str, text: bytes) -> bytes:
    code = cached(path)
    if not code:
        module = "pyworker." + name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        with umask_of_imports():  # it is left in __pycache__
            code = marshal.dumps(importlib.machinery.SourceFileLoader(module, path).get_code(module))
    return importlib.util.MAGIC_NUMBER + _UNCHECKED + importlib.util.source_hash(text) + code


def cached(path: str) -> bytes:
    """Return what __pycache__ has of a source, as it is; b"" when that is not of this very source, by PEP 552's time and size."""
    try:
        with open(importlib.util.cache_from_source(path), "rb") as file:
            head, code = file.read(16), file.read()
        seen = os.stat(path)
    except (OSError, NotImplementedError):
        return b""
    wanted = importlib.util.MAGIC_NUMBER + struct.pack("<3L", 0, int(seen.st_mtime) & _U32, seen.st_size & _U32)
    return code if head == wanted else b""
