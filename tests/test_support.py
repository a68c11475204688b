"""What the tests start is gone when they are, whatever ended them."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from .support.postgres_server import ends_with_us

LIMIT_S = 10
SUPPORT = Path(__file__).parent / "support"
STARTER = """
import subprocess, sys
sys.path.insert(0, sys.argv[1])
from postgres_server import as_nobody, ends_with_us
print(subprocess.Popen([*{under}, "tail", "-f", "/dev/null"], start_new_session=True).pid, flush=True)
input()
"""


@pytest.mark.skipif(not ends_with_us(), reason="there is no setpriv --pdeathsig (util-linux 2.33)")
@pytest.mark.parametrize("under", ["ends_with_us()", "as_nobody()"])
def test_a_program_ends_when_the_tests_are_killed(under):
    command = [sys.executable, "-c", STARTER.format(under=under), str(SUPPORT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        program = psutil.Process(int(tests.stdout.readline()))
        while program.name() != "tail":  # what it is under has not done its part yet
            assert tests.poll() is None

        tests.send_signal(signal.SIGKILL)

        assert psutil.wait_procs([program], LIMIT_S)[1] == []
