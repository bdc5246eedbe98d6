"""What faulthandler writes is understood, and nothing else is."""

from __future__ import annotations

import faulthandler
import tempfile
import threading

from hypothesis import given
from hypothesis import strategies as st

from pyworker.protocol.stacks import MAX_TEXT, Frame, TaskStack, has_tasks, parse, parse_tasks, whereabouts, write_tasks

PYTHON_3_14 = """\
Thread 0x00007f01 [db pool] (most recent call first):
  File "/srv/db.py", line ??? in wait
  ...

Current thread 0x00007f02 [python] (most recent call first):
  File "/srv/web.py", line 12 in inner
  File "/srv/web.py", line 20 in outer

Current thread's C stack trace (most recent call first):
  Binary file "/usr/lib/libc.so.6", at +0x1
  File "/srv/not_a_frame.c", line 1 in main
"""


def test_a_dump_of_this_python_is_read_back() -> None:
    hold = threading.Event()
    threading.Thread(target=hold.wait).start()
    try:
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            threads = parse(file.read())
    finally:
        hold.set()
    (mine,) = [t for t in threads if t.current]
    assert mine.frames[-1].function == "test_a_dump_of_this_python_is_read_back"
    assert mine.frames[-1].file == __file__
    assert any(f.function == "wait" for t in threads if not t.current for f in t.frames)


def test_a_thread_that_collects_garbage_has_a_stack_too() -> None:
    text = """\
Current thread 0x00007f8a1be28b80 (most recent call first):
  Garbage-collecting
  File "/srv/shop.py", line 3 in __del__
  File "/srv/shop.py", line 9 in <module>
"""
    (mine,) = parse(text)
    assert mine.name == ""
    assert [f.function for f in mine.frames] == ["<module>", "__del__"]
    assert whereabouts([mine]) == "/srv/shop.py:3 in __del__"


def test_tasks_are_read_back_and_are_those_of_one_process_only() -> None:
    tasks = (
        TaskStack("Task-1", 3, (Frame("/srv/a.py", 1, "outer"), Frame("/srv/a.py", 2, "inner"))),
        TaskStack("x\ny" + 100 * "z", 1, (Frame("/srv/a.py", 3, "other"),)),
    )
    others = write_tasks(2, [TaskStack("late", 1, (Frame("/srv/b.py", 1, "b"),))])
    text = PYTHON_3_14 + others + write_tasks(1, tasks)
    assert parse_tasks(text, 1) == (tasks[0], TaskStack("x?y" + 61 * "z", 1, tasks[1].frames))
    assert (parse_tasks(text, 3), has_tasks(text, 3), has_tasks(text, 1)) == ((), False, True)
    assert not has_tasks(text.removesuffix("End of tasks\n"), 1), "the end is another's"
    assert parse(text) == parse(PYTHON_3_14)
    assert whereabouts(tasks) == "/srv/a.py:2 in inner, /srv/a.py:3 in other"
    many = [TaskStack(f"Task-{n}", 1, (Frame("/srv/" + "x" * 1000, n, "f"),)) for n in range(1000)]
    assert len(parse_tasks(write_tasks(1, many), 1)) > 100
    assert len(write_tasks(1, many)) < MAX_TEXT
    wide = [TaskStack("t", 1, (Frame("/srv/" + "店" * 1000, n, "f"),)) for n in range(1000)]
    assert len(write_tasks(1, wide).encode()) < MAX_TEXT
    assert "\udcff.py" in write_tasks(1, [TaskStack("t", 1, (Frame("/srv/\udcff.py", 1, "f"),))])


def test_names_unknown_lines_and_c_stacks_of_newer_pythons() -> None:
    waiting, working = parse(PYTHON_3_14)
    assert (waiting.name, waiting.current, waiting.frames) == ("db pool", False, (Frame("/srv/db.py", 0, "wait"),))
    assert working.current
    assert [f.function for f in working.frames] == ["outer", "inner"]


def test_a_worker_that_its_end_does_not_let_go_is_in_what_that_waits_for() -> None:
    text = """\
Thread 0x1 (most recent call first):
  File "/usr/lib/python3.12/multiprocessing/process.py", line 149 in join
  File "/usr/lib/python3.12/multiprocessing/util.py", line 357 in _exit_function
  File "/proc/self/fd/5/pyworker/worker/ending.py", line 37 in end
  File "/proc/self/fd/5/pyworker/template/main.py", line 100 in main
"""
    assert whereabouts(parse(text)) == "/usr/lib/python3.12/multiprocessing/util.py:357 in _exit_function"


def test_threads_are_where_the_apps_own_code_is() -> None:
    text = """\
Thread 0x1 (most recent call first):
  File "/usr/lib/python3.12/threading.py", line 355 in wait
  File "/srv/.venv/lib/python3.12/site-packages/spy/worker.py", line 7 in run
  File "/usr/lib/python3.12/threading.py", line 1010 in run

Thread 0x2 (most recent call first):
  File "/usr/lib/python3.12/queue.py", line 171 in get
  File "/proc/self/fd/7/pyworker/worker/engines/pool.py", line 40 in work

Current thread 0x3 (most recent call first):
  File "/usr/lib/python3.12/socket.py", line 706 in readinto
  File "/srv/shop.py", line 12 in view
  File "/proc/self/fd/7/pyworker/worker/engines/wsgi.py", line 90 in answer

Thread 0x4 (most recent call first):
  File "/opt/pw/lib/python3.12/site-packages/pyworker/worker/engines/pool.py", line 40 in _work
"""
    third = "/srv/.venv/lib/python3.12/site-packages/spy/worker.py:7 in run"
    assert whereabouts(parse(text)) == f"/srv/shop.py:12 in view, {third}"
    assert whereabouts(()) == ""


@given(st.text() | st.lists(st.sampled_from(PYTHON_3_14.splitlines())).map("\n".join))
def test_no_text_breaks_it(text: str) -> None:
    for thread in (*parse(text), *parse_tasks(text, 1)):
        assert all(frame.line >= 0 for frame in thread.frames)


def test_a_line_of_more_digits_than_python_reads_is_no_frame() -> None:
    """An app may print such a dump before it dies, and the daemon looks there for where it was."""
    text = f'Current thread 0x1 (most recent call first):\n  File "a.py", line {"1" * 5000} in f\n'
    assert [thread.frames for thread in parse(text)] == [()]


def test_no_text_takes_long() -> None:
    text = "Tasks of 1\n" * (MAX_TEXT // 11)
    assert parse_tasks(text, 1) == ()
    assert not has_tasks(text, 1)
