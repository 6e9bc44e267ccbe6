"""What /proc says of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from align.testing.processes import children, command_of, descendants, is_alive, wait_until_gone

PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(flush=True)
time.sleep(600)
"""


def test_descendants_are_found_and_a_zombie_is_not_alive() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.readline()
    assert parent.pid in children(os.getpid())
    (grandchild,) = children(parent.pid)
    assert descendants(parent.pid) == [grandchild]
    assert b"time.sleep(600)" in command_of(parent.pid)
    assert wait_until_gone([parent.pid, grandchild], 0.0) == [parent.pid, grandchild]
    for process in (grandchild, parent.pid):
        os.kill(process, signal.SIGKILL)
    started = time.monotonic()
    assert wait_until_gone([parent.pid, grandchild], 60.0) == []
    assert time.monotonic() - started < 60
    assert parent.pid in children(os.getpid())  # a zombie, until it is waited for
    assert not is_alive(parent.pid)
    parent.communicate()
    assert not is_alive(parent.pid)
    assert (children(parent.pid), command_of(parent.pid)) == ([], b"")
