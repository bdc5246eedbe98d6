"""The bytes of a head that the server makes by itself."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from pyworker.worker.engines import heads


@pytest.mark.parametrize("moment", [0, 951782400, 1709164799.999, 1735689599, 1798761600.5, 4102444800])
def test_date_is_what_the_standard_library_would_write(moment: float) -> None:
    assert heads.date_line(moment) == f"date: {formatdate(moment, usegmt=True)}\r\n".encode()
