"""daemon/owner.py: who somebody is, in words."""

from __future__ import annotations

import os
import pwd

from pyworker.daemon.owner import user_name


def test_a_user_without_a_name_is_named_by_number() -> None:
    assert user_name(os.getuid()) == pwd.getpwuid(os.getuid()).pw_name
    assert user_name(3_999_999_999) == "uid 3999999999"
