"""The same apps and the same fake daemon as for the tests of workers."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pyworker import open_to_all
from tests.worker.conftest import APP
from tests.worker.conftest import daemon as daemon
from tests.worker.conftest import folder as folder
from tests.worker.conftest import no_fd_is_left as no_fd_is_left


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder with the app that every user may enter (pytest's own are private)."""
    with tempfile.TemporaryDirectory() as name:
        open_to_all(name)
        Path(name, "shop.py").write_text(APP)
        yield Path(name)
