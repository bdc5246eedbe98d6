"""What an app imports lazily is imported once, and what is missing is no reason against a start."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pyworker.protocol.worker import Hello, Ready

pytestmark = pytest.mark.skipif(sys.version_info < (3, 15), reason="no lazy imports before Python 3.15")


def test_what_the_app_imports_lazily_is_imported_before_the_forks(daemon: Any, folder: Path) -> None:
    (folder / "prices.py").write_text("lazy from taxes import RATE\nprint('prices')\n")
    (folder / "taxes.py").write_text("print('taxes')\nRATE = 19\n")
    shop = (folder / "shop.py").read_text()
    (folder / "shop.py").write_text("lazy import prices, nosuch\n" + shop)
    d = daemon()
    template = d.load()
    assert d.loaded.preload
    assert template.read_out() == b"prices\ntaxes\n"
    assert template.read_err().startswith(b"pyworker: shop imports nosuch lazily, and that fails: ModuleNotFoundError: ")
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)
    assert worker.read_out() == b""
