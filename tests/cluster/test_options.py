"""cluster/options.py: what a cluster is told to run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pyworker import cluster


def test_settings_that_make_no_sense_are_refused() -> None:
    made = cluster.Cluster()
    with pytest.raises(ValueError, match="scheduling is 'round-robin' or 'none'"):
        made.setup_primary("x.py", scheduling="random")
    with pytest.raises(ValueError, match="either exec or module"):
        made.setup_primary("x.py", module="y")
    with pytest.raises(FileNotFoundError, match=r"there is no such script for workers to run: 'x\.py'"):
        made.setup_primary("x.py")
    with pytest.raises(TypeError, match="arguments are a list of texts, not one text"):
        made.setup_primary(__file__, "8000")
    with pytest.raises(ValueError, match="workers is a whole number, 0 for as many as there are CPUs, not -1"):
        made.setup_primary(__file__, workers=-1)
    with pytest.raises(ValueError, match=r"workers is a whole number, 0 for as many as there are CPUs, not 2\.5"):
        made.setup_primary(__file__, workers=2.5)
    with pytest.raises(ValueError, match="drain_timeout is a number of seconds, not '10s'"):
        made.setup_primary(__file__, drain_timeout="10s")


@pytest.mark.parametrize(
    ("restart", "why"),
    [
        ({"policy": "alway"}, "restart.policy is one of always, on-failure, never, not 'alway'"),
        ({"max_restarts": 0}, "restart.max_restarts is at least 1, not 0"),
        ({"max_restarts": 2.5}, "restart.max_restarts is a whole number, not 2.5"),
        ({"min_uptime": "10s"}, "restart.min_uptime is a number of seconds, not '10s'"),
        ({"window": float("inf")}, "restart.window is a number of seconds, not inf"),
        ({"retry": float("nan")}, "restart.retry is a number of seconds, not nan"),
        ({"windows": 60}, "there is no restart.windows; there are: policy, min_uptime, max_restarts, window, retry"),
    ],
)
def test_what_would_end_the_restarts_of_a_cluster_at_the_first_death_is_refused(
    restart: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        cluster.Cluster().setup_primary(__file__, restart=restart)


def test_no_module_of_the_library_hides_what_it_offers_by_that_name() -> None:
    """`cluster.settings` would be a module once it had been imported."""
    modules = {path.stem for path in Path(cluster.__file__).parent.iterdir()}
    assert modules.isdisjoint(cluster._OF_CLUSTER | set(cluster._TYPES))
