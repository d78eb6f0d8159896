"""Runs a command and ends whatever it leaves running: `python -m tests.supervise COMMAND …`.

Servers and Ray's daemons have sessions of their own, so a signal to the command's process group
does not reach them, and they outlive an interrupted test run. Linux gives orphans to the nearest
ancestor that asked for them (PR_SET_CHILD_SUBREAPER, prctl(2)), which is this process: when the
command has ended, all of its descendants that are still running are children of this process.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress

import psutil

PR_SET_CHILD_SUBREAPER = 36
CLEAN_UP_S = 30
TERMINATE_S = 3.0


def main(words: list[str], *, clean_up_s: int = CLEAN_UP_S) -> int:
    """Runs the command, which may take `clean_up_s` to end once interrupted; its exit code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    command: subprocess.Popen[bytes] | None = None

    def interrupt(number: int, _: object) -> None:
        ends_it = number == signal.SIGALRM
        signal.alarm(0 if ends_it else clean_up_s)
        if command is not None:
            _signal_group(command.pid, signal.SIGKILL if ends_it else signal.SIGINT)

    # Before the command starts, which would ignore what this process ignores.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, interrupt)
    # A group of its own: each interrupt reaches it once, through this process.
    command = subprocess.Popen(words, stdin=subprocess.DEVNULL, process_group=0)
    while True:
        pid, status = os.wait()  # orphans too, as init would
        if pid == command.pid:
            break
    signal.alarm(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ended = end_descendants()
    if ended:
        print(f"Ended what was left running: {', '.join(sorted(ended))}", file=sys.stderr)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"CPU time: {(spent.ru_utime + spent.ru_stime) / 60:.1f} min", file=sys.stderr)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def end_descendants() -> list[str]:
    """Terminates, then kills, until there are none; their names."""
    names: dict[int, str] = {}
    while left := _running_descendants():
        for process in left:
            names.setdefault(process.pid, _name(process))
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in left:
                if process.is_running():
                    end(process)
            _, left = psutil.wait_procs(left, timeout=TERMINATE_S)
    return list(names.values())


def _running_descendants() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                if process.ppid() == os.getpid():
                    os.waitpid(process.pid, 0)
            else:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:80] or process.name()
    except psutil.Error:
        return f"process {process.pid}"


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
