"""Code that has changed is not taken for what was compiled of it in the same second."""

from __future__ import annotations

import os
from importlib.machinery import SourceFileLoader
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from pyworker.template import bytecode

SECOND = 1_700_000_000 * 10**9


def test_bytecode_that_is_older_than_its_source_is_compiled_again_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SourceFileLoader, "path_stats", SourceFileLoader.path_stats)  # is as it was at the end
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    bytecode.install()
    source = tmp_path / "m.py"
    kept = cache_from_source(str(source))
    compiled: list[str] = []

    class Loader(SourceFileLoader):
        def source_to_code(self, data, path, *more, **options):  # type: ignore[no-untyped-def, override]
            compiled.append(path)
            return super().source_to_code(data, path, *more, **options)

    def value() -> object:
        found: dict[str, object] = {}
        code = Loader("m", str(source)).get_code("m")
        assert code is not None
        exec(code, found)
        return found["A"]

    def changed(path: str | Path, milliseconds: int) -> None:
        at = SECOND + milliseconds * 10**6
        os.utime(path, ns=(at, at))

    source.write_text("A = 1\n")
    changed(source, 100)
    assert value() == 1
    changed(kept, 200)
    assert (value(), len(compiled)) == (1, 1)
    source.write_text("A = 2\n")
    changed(source, 300)
    assert (value(), len(compiled)) == (2, 2)
    changed(kept, 400)
    assert (value(), len(compiled)) == (2, 2)
    os.remove(kept)
    assert (value(), len(compiled)) == (2, 3)
