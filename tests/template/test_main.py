"""The template: imports once, forks on request, tells why it cannot."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest

from pyworker.config.schema import TlsConfig
from pyworker.protocol.names import CLOSED_BY_APP
from pyworker.protocol.scoreboard import F
from pyworker.protocol.template import Fork, ForkFailed, Loaded, LoadFailed, Parked, Retire
from pyworker.protocol.worker import Drain, Drained, Hello, Ready
from pyworker.template import forksafe, main
from tests.support.certificates import make_certificate
from tests.support.descriptors import open_fds
from tests.support.wait import wait_until
from tests.worker.conftest import get

pytestmark = pytest.mark.usefixtures("no_fd_is_left")


CRASHES = {signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGBUS, signal.SIGILL}  # stacks are written first


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_app_is_imported_once_and_its_output_goes_to_the_right_pipes(daemon: Any, folder: Path) -> None:
    shop = (folder / "shop.py").read_text()
    (folder / "shop.py").write_text("print('importing')\n" + shop)
    d = daemon()
    template = d.load()
    assert d.loaded.preload
    assert d.loaded.why == ""
    assert d.loaded.interface == "asgi"
    workers = [d.fork(template, slot) for slot in (1, 2, 3)]
    for worker in workers:
        worker.expect(Hello)
        worker.expect(Ready)
        assert worker.read_out() == b""
        assert parent(worker.pid) == os.getpid()  # the subreaper's child, not the template's
        assert os.getsid(worker.pid) == worker.pid
    assert template.read_out() == b"importing\n"
    children = Path(f"/proc/{template.pid}/task/{template.pid}/children")
    # no zombie stays in between; one may be there just now, over the next worker ahead of need
    wait_until(lambda: children.read_text() == "", what="no child of the template's")


def test_what_an_import_writes_itself_is_no_file_that_was_changed(daemon: Any, folder: Path) -> None:
    shop = (folder / "shop.py").read_text()
    make = "import time\ntry:\n    import parsed\nexcept ImportError:\n    open('parsed.py', 'w').close()\n"
    (folder / "shop.py").write_text(make + "open('now.py', 'w').write(str(time.time()))\nimport now\n" + shop)
    first, second = (daemon() for _ in range(2))
    first.load()
    second.load()
    assert first.loaded.code != second.loaded.code
    assert second.loaded.newest_at <= first.loaded.looked_at, second.loaded.newest


def test_what_is_said_of_the_same_code_is_the_same_as_an_older_daemon_goes_by_that_alone(daemon: Any) -> None:
    first, second = (daemon() for _ in range(2))
    first.load()
    second.load()
    assert first.loaded.code == second.loaded.code


def test_a_fork_warns_of_no_threads_where_there_are_none(daemon: Any, folder: Path) -> None:
    """Since 3.12 Python looks for them in /proc/self/stat, and counts its fields by the blanks."""
    shop = (folder / "shop.py").read_text()
    (folder / "shop.py").write_text("import os, warnings\nos.nice(5)\nwarnings.simplefilter('always')\n" + shop)
    d = daemon()
    template = d.load()
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)
    template.send(Retire())  # nor does its end, of a socket that is left open
    template.wait_closed()
    d.reap(template.pid)
    assert template.read_err() + worker.read_err() == b""


SIGNALS = """
import faulthandler, signal
faulthandler.enable()
faulthandler.register(signal.SIGQUIT)
signal.signal(signal.SIGUSR1, print)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGTERM, print)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
"""


def signals(pid: int, kind: str) -> set[int]:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.partition(f"{kind}:")[2].split()[0], 16)
    return {number for number in range(1, 32) if mask & 1 << number - 1}


def test_what_an_import_does_at_signals_its_workers_do_but_for_those_that_are_ours(daemon: Any, folder: Path) -> None:
    (folder / "shop.py").write_text(SIGNALS + (folder / "shop.py").read_text())
    d = daemon()
    template = d.load()
    own = {signal.SIGQUIT, signal.SIGUSR1}
    assert signals(template.pid, "SigIgn") == {signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT}
    assert not signals(template.pid, "SigCgt") & {signal.SIGUSR1, signal.SIGTERM}
    template.expect(Parked)
    for slot in (1, 2):  # who was forked ahead, and one who was not
        worker = d.fork(template, slot)
        worker.expect(Hello)
        worker.expect(Ready)
        assert signals(worker.pid, "SigBlk") == set()
        ignored = {signal.SIGPIPE, signal.SIGXFSZ}  # in any Python
        assert signals(worker.pid, "SigIgn") == {*ignored, signal.SIGCHLD, signal.SIGHUP}
        answered = {signal.SIGTERM, signal.SIGINT, *CRASHES, *own}
        assert signals(worker.pid, "SigCgt") == answered


def test_what_is_ours_is_not_for_an_import_in_the_worker_to_say_either(daemon: Any, folder: Path) -> None:
    own = "import faulthandler, io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer)\nprint('imported')\n"
    crash = "faulthandler.enable(open('crash', 'w'))\n"
    (folder / "shop.py").write_text(own + SIGNALS + crash + (folder / "shop.py").read_text())
    d = daemon(preload=False)
    worker = d.fork(d.load(), 1)
    worker.expect(Hello)
    worker.expect(Ready)
    assert signal.SIGPIPE in signals(worker.pid, "SigIgn")
    assert worker.read_out() == b"imported\n"
    os.kill(worker.pid, signal.SIGABRT)
    d.reap(worker.pid)
    assert b"Fatal Python error: Aborted" in worker.read_err()


def test_an_import_that_adopts_orphans_does_not_adopt_the_workers(daemon: Any, folder: Path) -> None:
    adopts = "import ctypes\nctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER\n"
    (folder / "shop.py").write_text(adopts + (folder / "shop.py").read_text())
    d = daemon()
    worker = d.fork(d.load(), 1)
    worker.expect(Hello)
    worker.expect(Ready)
    assert parent(worker.pid) == os.getpid()


TEE = """
class Tee:
    def __init__(self, stream): self.stream = stream
    def write(self, text): return self.stream.write(text)
"""
FLUSHED = TEE + "    def flush(self): self.stream.flush()\n"


WRITER = "import codecs\ndef Tee(stream): return codecs.getwriter('utf-8')(stream.detach())"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize(
    "tee",
    [FLUSHED, TEE, "def Tee(stream): pass", WRITER, "def Tee(stream): stream.close(); return stream"],
    ids=["tee", "cannot flush", "none", "writer", "closed"],
)
def test_an_app_may_put_something_of_its_own_in_the_place_of_its_output(
    daemon: Any, folder: Path, stream: str, tee: str
) -> None:
    shop = (folder / "shop.py").read_text()
    (folder / "shop.py").write_text(f"import sys\n{tee}\nsys.{stream} = Tee(sys.{stream})\n{shop}")
    d = daemon()
    template = d.load()
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)
    template.send(Retire())
    assert d.reap(template.pid) == 0
    worker.send(Drain(5.0, to_empty=False))
    worker.expect(Drained)
    assert d.reap(worker.pid) == 0


@pytest.mark.parametrize(
    "text",
    [
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",  # so as to leave no zombies
        "def reap(*_):\n    while True: os.waitpid(-1, 0)\nsignal.signal(signal.SIGCHLD, reap)",
    ],
)
def test_what_an_import_does_with_ended_children_does_not_keep_it_from_being_tried(daemon: Any, folder: Path, text: str) -> None:
    shop = (folder / "shop.py").read_text()
    (folder / "shop.py").write_text(f"import os, signal\n{text}\nreads, writes = os.pipe()\n{shop}")
    d = daemon()
    template = d.load()
    assert d.loaded.why == "a pipe was left open by the import"
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)


def test_an_app_may_put_a_class_of_its_own_in_the_place_of_sockets(daemon: Any, folder: Path) -> None:
    """As those do that go through a SOCKS proxy: socket.socket = socks.socksocket."""
    text = """
import socket

class Socks(socket.socket):
    def __init__(self, family=socket.AF_INET, type=socket.SOCK_STREAM, proto=0, *args, **kwargs):
        if type not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            raise ValueError(f"Socket type must be stream or datagram, not {type!r}")
        super().__init__(family, type, proto, *args, **kwargs)

socket.socket = Socks
"""
    (folder / "shop.py").write_text(text + (folder / "shop.py").read_text())
    d = daemon()
    template = d.load()
    template.expect(Parked)
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)
    assert get(d.listeners[0].getsockname()) == str(worker.pid).encode()


def test_an_app_may_put_a_function_of_its_own_in_the_place_of_open(daemon: Any, folder: Path) -> None:
    """As those do that want each encoding named, or no file opened at all."""
    text = "import builtins, io\ndef opens(*args, **more): raise RuntimeError('name the encoding')\nbuiltins.open = io.open = opens\n"
    (folder / "shop.py").write_text(text + (folder / "shop.py").read_text())
    d = daemon()
    template = d.load()
    assert d.loaded.why == ""
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)
    assert get(d.listeners[0].getsockname()) == str(worker.pid).encode()


def test_no_process_for_a_look_is_no_reason_against_forking_workers() -> None:
    """Theirs are tried later, and it is said then what is wanting."""

    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    handler = signal.getsignal(signal.SIGCHLD)
    try:
        assert not forksafe._fork_in_vain(fork)
    finally:
        signal.signal(signal.SIGCHLD, handler)


LATE = """
import importlib.util, sys

class Late:  # as keras has one for what is not installed
    def __getattr__(self, name):
        raise ImportError("keras is not installed")

sys.modules["shop.late"] = Late()
spec = importlib.util.find_spec("prices")
spec.loader = importlib.util.LazyLoader(spec.loader)
prices = sys.modules["prices"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prices)
"""


def test_modules_that_come_only_when_they_are_used_are_left_alone(daemon: Any, folder: Path) -> None:
    (folder / "prices.py").write_text("raise RuntimeError('no database is configured yet')")
    (folder / "shop.py").write_text(LATE + (folder / "shop.py").read_text())
    d = daemon()
    template = d.load()
    assert d.loaded.preload
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)


def test_what_an_app_registers_for_forks_runs_once_for_each_worker(daemon: Any, folder: Path) -> None:
    hooks = "import os\nos.register_at_fork(before=lambda: os.write(1, b'b'), after_in_child=lambda: os.write(1, b'c'))\n"
    (folder / "shop.py").write_text(hooks + (folder / "shop.py").read_text())
    d = daemon()
    template = d.load()
    template.expect(Parked)
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)
    template.expect(Parked)  # the next one ahead of need
    wait_until(lambda: template.read_out() == b"bcbc")  # the template says so before the fork itself has run


LOOKED_UP = """
import os, sys
class Thing: pass
name = "".join(["looked", "_", "up"])
before = sys.getrefcount(name)
setattr(Thing, name, 1)
getattr(Thing, name)
assert sys.getrefcount(name) > before + 1  # the key in the class, and what was looked up
os.register_at_fork(after_in_child=lambda: os.write(1, b"%d" % (sys.getrefcount(name) - before)))
"""


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="names are not counted")
def test_no_worker_lets_go_of_the_names_that_an_import_has_looked_up(daemon: Any, folder: Path) -> None:
    (folder / "shop.py").write_text(LOOKED_UP + (folder / "shop.py").read_text())
    d = daemon()
    template = d.load()
    d.fork(template, 1).expect(Hello)
    assert set(template.read_out().decode()) == {"1"}  # of this one, and maybe of the next


def test_template_ends_when_told_and_when_left_alone(daemon: Any, folder: Path) -> None:
    shop = (folder / "shop.py").read_text()
    (folder / "shop.py").write_text("import atexit\natexit.register(print, 'at exit')\n" + shop)
    d = daemon()
    template = d.load()
    template.send(Retire())
    assert d.reap(template.pid) == 0
    assert template.read_out() == b""  # what the app does at its end is for processes that served
    template = d.load()
    template.sock.shutdown(socket.SHUT_RDWR)
    assert d.reap(template.pid) == 0
    assert template.read_out() == b""


@pytest.mark.parametrize(
    ("text", "kind", "message", "code"),
    [
        ("import no_such_thing", "import", "No module named 'no_such_thing'", 1),
        ("def app(:", "import", "SyntaxError", 1),
        ("import sys; sys.exit(3)", "import", "3", 1),
        ("raise KeyboardInterrupt", "import", "KeyboardInterrupt", 1),
        ("App = 1", "target", "app", 78),
    ],
)
def test_app_that_does_not_load_is_told_with_its_cause(
    daemon: Any, folder: Path, text: str, kind: str, message: str, code: int
) -> None:
    (folder / "shop.py").write_text(text + "\n")
    d = daemon()
    template = d.launch("template")
    failed = template.expect(LoadFailed)
    assert failed.kind == kind
    assert message in failed.message
    assert "template/main.py" not in failed.traceback
    assert d.reap(template.pid) == code


@pytest.mark.parametrize(
    ("ends", "code"),
    [("pass", 0), ("sys.exit()", 0), ("sys.exit(3)", 3), ("sys.exit('no')", 1), ("raise ValueError('no')", 1)],
)
def test_what_an_import_forks_ends_with_its_code_and_never_as_a_second_template(
    daemon: Any, folder: Path, ends: str, code: int
) -> None:
    forks = f"""
import os, sys
child = os.fork()
if not child:
    {ends}
else:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
    (folder / "shop.py").write_text(forks + (folder / "shop.py").read_text())
    d = daemon()
    template = d.load()
    assert template.read_out() == b"%d\n" % code


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True, name='poller').start()", "poller"),
        ("import socket\nserver = socket.create_server(('127.0.0.1', 0))\nc = socket.create_connection(server.getsockname())", "127.0.0.1"),
        ("import asyncio\nloop = asyncio.new_event_loop()", "an event loop"),
        ("import asyncio, os\nloop = asyncio.new_event_loop()\nos.chdir('/')", "an event loop"),
        ("import socket\nc = socket.create_connection(LISTENER)", "127.0.0.1"),
        ("import socket\na, b = socket.socketpair(type=socket.SOCK_DGRAM)", "another socket"),
        ("data = open(__file__)", "shop.py was left open"),
        ("import shutil\ndata = open(shutil.copy(__file__, 'caf\\udce9'))", "caf\\udce9 was left open"),
        ("import sqlite3\ndb = sqlite3.connect('shop.db')\ndb.execute('CREATE TABLE IF NOT EXISTS toys (name)')", "shop.db was left open"),
        ("import signal\nsignal.signal(signal.SIGPROF, lambda *_: None)\nsignal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)", "a timer was left"),
        ("import subprocess\nhelper = subprocess.Popen(['cat'], stdin=-1, stdout=-1)", "a pipe was left open"),
        ("from concurrent.futures import ProcessPoolExecutor\npool = ProcessPoolExecutor(2)", "a pipe was left open"),
        ("import signal, threading\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\nthreading.Thread(target=signal.sigwait, args=([signal.SIGTERM],), daemon=True, name='waiter').start()", "waiter"),
        ("import ctypes\nseen = ctypes.CDLL(None).inotify_init1(0)", "inotify was left open"),
        ("import gc\ndata = open(__file__)\ngc.freeze()", "shop.py was left open"),
        ("import fcntl\nlock = open('lock', 'w')\nfcntl.flock(lock, fcntl.LOCK_SH)", "lock was left locked"),
        ("import fcntl\nlock = open('lock', 'a+')\nfcntl.lockf(lock, fcntl.LOCK_SH, 1)", "lock was left locked"),
    ],
)  # fmt: skip
def test_what_must_not_be_forked_makes_each_worker_import_the_app(
    daemon: Any, folder: Path, text: str, why: str
) -> None:
    shop = (folder / "shop.py").read_text()
    d = daemon()
    (folder / "shop.py").write_text(f"LISTENER = {d.listeners[0].getsockname()!r}\n{text}\n{shop}")
    template = d.load()
    assert not d.loaded.preload
    assert why in d.loaded.why or (why == "an event loop" and "socket connected" in d.loaded.why)
    assert len(os.listdir(f"/proc/{template.pid}/task")) == 1
    workers = [d.fork(template, slot) for slot in (1, 2)]
    for worker in workers:
        worker.expect(Hello)
        worker.expect(Ready)
    pids = {str(worker.pid).encode() for worker in workers}
    wait_until(lambda: {get(d.listeners[0].getsockname()) for _ in range(4)} == pids)


def test_an_app_may_put_a_function_of_its_own_in_the_place_of_exec(daemon: Any, folder: Path) -> None:
    """As debugpy does, so as to debug what is executed: only for a template that is replaced by a clean one."""
    text = "import os, threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nos.execve = lambda *_: os._exit(1)\n"
    (folder / "shop.py").write_text(text + (folder / "shop.py").read_text())
    d = daemon()
    worker = d.fork(d.load(), 1)
    worker.expect(Hello)
    worker.expect(Ready)


def test_an_import_in_each_worker_begins_with_the_cpus_and_the_niceness_of_the_first(daemon: Any, folder: Path) -> None:
    text = """
import asyncio, os
print(len(os.sched_getaffinity(0)), os.nice(0), flush=True)
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
os.nice(1)
loop = asyncio.new_event_loop()
"""
    (folder / "shop.py").write_text(text + (folder / "shop.py").read_text())
    d = daemon()
    template = d.load()
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)
    first, again = (each.read_out().split() for each in (template, worker))
    assert again[0] == first[0]
    assert again[1] == first[1] or os.geteuid() != 0  # who is not root has no way back


def test_the_lock_that_an_import_took_is_left_to_the_worker(daemon: Any, folder: Path) -> None:
    """Though its file stays open over an exec, as files of C code may."""
    lock = """
import fcntl, os
lock = open("lock", "w")
os.set_inheritable(lock.fileno(), True)
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
"""
    (folder / "shop.py").write_text(lock + (folder / "shop.py").read_text())
    d = daemon()
    template = d.load()
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)


def test_files_that_a_fork_may_share_do_not_make_each_worker_import_the_app(daemon: Any, folder: Path) -> None:
    text = """
import fcntl, gc, logging, mmap, os, socket, sqlite3, subprocess, tempfile
from pyworker import state
gc.disable()  # what is garbage below is still there when it is looked at
logging.basicConfig(filename="app.log")
written = open("written", "w")
counters = open("counters", "a+b")
null = open(os.devnull)
ended = subprocess.Popen(["true"], stdout=subprocess.PIPE)
ended.wait()
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.bind("log")
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sender.connect("log")
anew = os.pipe()
os.register_at_fork(after_in_child=lambda: (os.close(anew[0]), os.close(anew[1])))
with open("lock", "a") as lock: fcntl.flock(lock, fcntl.LOCK_EX)
with open(__file__) as file: mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
loop = [open(__file__)]
loop.append(loop)
del loop
class Asked:
    db = sqlite3.connect("asked.db")
    db.execute("CREATE TABLE toys (name)")
Asked.itself = Asked
del Asked
shared = state.connect("sqlite:./state")
shared.set("greeting", "closed before a fork")
"""
    (folder / "shop.py").write_text(text + (folder / "shop.py").read_text())
    d = daemon()
    d.load()
    assert (d.loaded.preload, d.loaded.why) == (True, "")


NATIVE = """
import ctypes
libc = ctypes.CDLL(None)
thread = ctypes.c_ulong()
libc.pthread_create(ctypes.byref(thread), None, libc.pause, None)
"""
ENDS_BEFORE_A_FORK = """
@ctypes.CFUNCTYPE(None)
def end():
    if thread.value:
        libc.pthread_cancel(thread)
        libc.pthread_join(thread, None)
        thread.value = 0
is_glibc = hasattr(libc, "__register_atfork")  # which links pthread_atfork() into each program
libc["__register_atfork"](end, None, None, None) if is_glibc else libc.pthread_atfork(end, None, None)
"""


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("", "1 thread runs after the import"),
        ("libc.pthread_setname_np(thread, b'polars-ooc')", "1 thread runs after the import: polars-ooc"),
        ("libc.pthread_setname_np(thread, b'jemalloc_bg_thd')", ""),  # which lets itself be forked
        (ENDS_BEFORE_A_FORK, ""),  # as those of OpenBLAS, and with it numpy, do
    ],
)
def test_native_threads_keep_from_a_fork_unless_they_are_prepared_for_it(
    daemon: Any, folder: Path, more: str, why: str
) -> None:
    (folder / "native.py").write_text(NATIVE + more)
    (folder / "shop.py").write_text("import native\n" + (folder / "shop.py").read_text())
    d = daemon()
    template = d.load()
    assert (d.loaded.preload, d.loaded.why) == (not why, why)
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)


BEGINS_WITH_A_THREAD = """
import os, threading
def begin(*_):
    global thread, over
    over = threading.Event()
    thread = threading.Thread(target=over.wait, daemon=True, name="tracer")
    thread.start()
def end():
    over.set()
    thread.join()
begin()
os.register_at_fork(before=end, after_in_parent=begin, after_in_child=begin)
"""


def test_who_starts_threads_before_any_import_is_told_of_each_fork(daemon: Any, folder: Path) -> None:
    """As ddtrace does, from a sitecustomize: its handlers would wait for a thread that no fork has."""
    (folder / "sitecustomize.py").write_text(BEGINS_WITH_A_THREAD)
    d = daemon()
    d.env["PYTHONPATH"] = str(folder)
    template = d.load()
    assert d.loaded.why == "1 thread runs after the import: tracer"
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)
    wait_until(lambda: len(os.listdir(f"/proc/{template.pid}/task")) == 2, what="its thread to run again")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_an_import_that_leaves_too_few_descriptors_is_refused_and_one_that_leaves_enough_is_served(
    daemon: Any, folder: Path, loop: str
) -> None:
    needed = main._FREE[loop]
    takes = (
        "import os, resource\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
        "held = []\n"
        "try:\n"
        "    while True: held.append(os.dup(2))\n"
        "except OSError: pass\n"
        "for _ in range(int(os.environ['LEFT'])): os.close(held.pop())\n"
    )
    (folder / "shop.py").write_text(takes + (folder / "shop.py").read_text())
    d = daemon(loop=loop)
    d.env["LEFT"] = str(needed - 1)
    failed = d.launch("template").expect(LoadFailed)
    assert f"fewer than {needed} of 100 are left for its worker" in failed.message
    d = daemon(loop=loop)
    d.env["LEFT"] = str(needed)
    worker = d.fork(d.load(), 1)
    worker.expect(Hello)
    worker.expect(Ready)
    address = d.listeners[0].getsockname()
    assert get(address) == str(worker.pid).encode()
    with socket.create_connection(address, timeout=30) as late:  # what asks later than it connects, too
        wait_until(lambda: d.row(1)[F.OPEN] == 1)
        late.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert late.recv(4096).startswith(b"HTTP/1.1 200")


def test_folder_of_the_app_comes_first_but_shadows_nothing_of_ours(daemon: Any, folder: Path) -> None:
    (folder / "json.py").write_text("raise SystemExit('json of the app')\n")
    (folder / "pyworker.py").write_text("raise SystemExit('pyworker of the app')\n")
    other = folder / "lib"
    other.mkdir()
    (other / "extra.py").write_text("here = 1\n")
    (folder / "shop.py").write_text("import extra, pyworker\n" + (folder / "shop.py").read_text())
    d = daemon()
    d.env["PYTHONPATH"] = str(other)
    template = d.load()
    assert d.loaded.preload
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)


@pytest.mark.parametrize("goes", ["os.chdir('/')", "os.mkdir('away'); os.chdir('away'); os.rmdir('../away')"])
def test_what_serves_websockets_is_not_shadowed_where_the_import_goes_elsewhere(
    daemon: Any, folder: Path, goes: str
) -> None:
    (folder / "websockets.py").write_text("raise ImportError('websockets of the app')\n")
    (folder / "shop.py").write_text(f"import os, uvicorn\n{goes}\n" + (folder / "shop.py").read_text())
    d = daemon()
    template = d.load()
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)
    assert template.read_err() == b""


@pytest.mark.parametrize("error", ["ImportError('no such name')", "AttributeError('no such name')"])
def test_an_app_with_a_package_that_cannot_serve_websockets_is_served(daemon: Any, folder: Path, error: str) -> None:
    """As websockets 8 of the app's environment, which asks asyncio for what it has no more."""
    (folder / "old").mkdir()
    (folder / "old" / "websockets.py").write_text(f"raise {error}")
    shop = (folder / "shop.py").read_text()
    (folder / "shop.py").write_text("import os, sys, uvicorn\nsys.path.insert(0, os.path.abspath('old'))\n" + shop)
    d = daemon()
    template = d.load()
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)
    assert template.read_err() == b"pyworker: websockets cannot be served: no such name\n"


def test_a_hint_names_a_folder_whose_name_is_no_text(daemon: Any, folder: Path) -> None:
    other = Path(os.fsdecode(b"caf\xe9"))
    (folder / other).mkdir()
    (folder / "shop.py").rename(folder / other / "shop.py")
    failed = daemon().launch("template").expect(LoadFailed)
    assert "in the folder caf\\udce9" in failed.hint


@pytest.mark.parametrize(
    ("library", "patch"),
    [
        ("gevent", "def start(*args): ...\nthreading._start_new_thread = start\ndel select.epoll"),
        ("eventlet", "class Green(socket.socket): ...\nsocket.socket = Green\ndel select.epoll, select.poll"),
    ],
)
def test_an_app_that_puts_green_threads_under_python_is_refused_in_words(
    daemon: Any, folder: Path, library: str, patch: str
) -> None:
    (folder / f"{library}.py").write_text(f"import select, socket, threading\n{patch}\n")
    (folder / "shop.py").write_text(f"import {library}\n" + (folder / "shop.py").read_text())
    failed = daemon().launch("template").expect(LoadFailed)
    assert failed.kind == "import"
    assert failed.message == f"its import has {library} replace Python's own sockets and threads, on which pyworker serves it"
    assert f"gunicorn -k {library}" in failed.hint


def test_an_import_that_closes_what_it_has_not_opened_is_told_so_on_stderr(daemon: Any, folder: Path) -> None:
    """As daemonize() does. The channel is one of them, and its number another file's by now."""
    shop = folder / "shop.py"
    shop.write_text("import os, tempfile\nos.closerange(3, 256)\nkept = tempfile.TemporaryFile()\n" + shop.read_text())
    d = daemon()
    template = d.launch("template")
    assert d.reap(template.pid) == 1
    assert template.read_err().decode() == f"pyworker: {CLOSED_BY_APP}\n"
    shop.write_text("import os\nos.closerange(3, 256)\nraise ValueError('no more')\n")
    template = d.launch("template")
    assert d.reap(template.pid) == 1
    assert b"\nValueError: no more\n" in template.read_err()


def test_an_import_that_stops_the_clock_took_as_long_as_it_took(daemon: Any, folder: Path) -> None:
    """As freezegun does."""
    shop = folder / "shop.py"
    shop.write_text("import time\ntime.monotonic = time.time_ns = lambda: 10**9\n" + shop.read_text())
    loaded = daemon().launch("template").expect(Loaded)
    assert 0 < loaded.took < 1e6
    assert loaded.looked_at > loaded.newest_at, "what was changed before it was looked at"


def test_fork_without_its_three_fds_is_refused(daemon: Any) -> None:
    d = daemon()
    template = d.load()
    template.send(Fork(1, 7, 1, held=False, workers=1))
    assert template.expect(ForkFailed).serial == 7
    template.sock.send(b"rubbish")
    assert b"ignored a message" in wait_until(template.read_err)
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)


def test_tls_files_are_read_once_and_served(daemon: Any, tmp_path: Path) -> None:
    make_certificate(str(tmp_path), "localhost")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    d = daemon(tls=TlsConfig("c.pem", "k.pem"))
    d.pem = (cert.read_bytes(), key.read_bytes())
    template = d.load()
    worker = d.fork(template, 1)
    worker.expect(Hello)
    worker.expect(Ready)
    context = ssl.create_default_context(cafile=str(cert))
    plain = socket.create_connection(d.listeners[0].getsockname(), timeout=30)
    with context.wrap_socket(plain, server_hostname="localhost") as client:  # takes the plain one's fd over
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    for fd in Path(f"/proc/{worker.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the client's connection may just be closed
            assert "pem" not in os.readlink(fd)


@pytest.mark.parametrize("pem", [(b"no certificate", b"no key"), None])
def test_unusable_tls_files_are_a_config_failure(daemon: Any, pem: tuple[bytes, bytes] | None) -> None:
    d = daemon(tls=TlsConfig("c.pem", "k.pem"))
    d.pem = pem
    template = d.launch("template")
    assert template.expect(LoadFailed).kind == "config"
    assert d.reap(template.pid) == 78


def test_a_fork_that_fails_is_told_by_its_errno_and_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "bare_fork", lambda: -errno.EAGAIN)
    before = open_fds()
    assert main.fork_worker() == -errno.EAGAIN
    assert open_fds() == before


def test_who_has_forked_for_a_template_that_was_killed_meanwhile_just_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would run what the app has registered for its end."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    reader, writer = os.pipe()
    os.close(reader)
    for module, name, made in ((main, "bare_fork", 0), (os, "pipe", (reader, writer)), (os, "fork", 4711)):
        monkeypatch.setattr(module, name, lambda made=made: made)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit):
        main.fork_worker()
    os.close(writer)


def test_a_fork_for_which_there_is_no_pipe_is_told_by_its_errno(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pipe", refuse)
        assert main.fork_worker() == -errno.EMFILE
