"""Daemon: the worker runtime as a zip, which templates and scripts import from a sealed memfd in any interpreter.

Reads pyworker's own files and imports none of them. Whatever is installed in the app's environment, `import pyworker`
in a worker is the one that the daemon is.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import marshal
import os
import struct
import zipfile

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_FOLDERS = ("protocol", "policy", "unix", "worker", "template", "cluster")
_FILES = (
    "__init__.py",
    "errors.py",
    "failpoint.py",
    "record.py",
    "config/__init__.py",
    "config/option.py",
    "config/schema.py",
    "config/address.py",
)
_U32 = 0xFFFF_FFFF
_UNCHECKED = (1).to_bytes(4, "little")  # PEP 552: a hash-based pyc that is never compared with its source


def runtime_zip() -> bytes:
    """Return the zip: sources for every interpreter, and beside them bytecode that is used when its version fits."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in _names():
            path = os.path.join(_ROOT, name)
            with open(path, "rb") as source:
                text = source.read()
            archive.writestr(zipfile.ZipInfo(f"pyworker/{name}"), text)
            if name == "template/boot.py":
                archive.writestr(zipfile.ZipInfo("__main__.py"), text)
            else:
                archive.writestr(zipfile.ZipInfo(f"pyworker/{name}c"), _bytecode(name, path, text))
    return out.getvalue()


def enter_text() -> str:
    """Return the program that becomes a template's interpreter (template/enter.py)."""
    with open(os.path.join(_ROOT, "template", "enter.py"), encoding="utf-8") as source:
        return source.read()


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
