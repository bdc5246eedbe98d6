"""The same apps and the same fake daemon as for the tests of workers."""

from tests.worker.conftest import daemon as daemon
from tests.worker.conftest import folder as folder
from tests.worker.conftest import no_fd_is_left as no_fd_is_left
