"""A process that ends with the one that started it, however that one ends."""

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel keeps this promise on Linux only")

CHILD = """
import sys, time
from attnserve.lifeline import die_with
die_with(int(sys.argv[1]))
print("bound", flush=True)
time.sleep(600)
"""
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())])
child.wait()
"""


def test_it_is_killed_with_its_parent():
    # The child holds the pipe too: it is at its end when both are gone.
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"bound\n"
        parent.kill()
        assert parent.stdout.read() == b""


def test_a_parent_that_is_gone_already_is_noticed():
    somebody_else = os.getppid()
    done = subprocess.run([sys.executable, "-c", CHILD, str(somebody_else)], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not done.stdout
