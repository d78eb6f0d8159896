"""Memory that is kept inside a block: used again without page faults, and returned afterwards."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="mallopt is a function of glibc"
)

FAULTS = """
import resource
from muva.memory import freed_memory_kept

SIZE = 64 * 2**20

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(SIZE)  # zeroed, therefore touched, and freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

with freed_memory_kept():
    faults()
    kept, held = faults(), resident()
print(kept, held > SIZE, resident() < SIZE)
"""


def run(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_freed_memory_is_used_again_and_returned_at_the_end(monkeypatch):
    faults, held, returned = run({}, monkeypatch)
    assert int(faults) < 50
    assert (held, returned) == ("True", "True")


def test_settings_in_the_environment_are_left_alone(monkeypatch):
    _, held, _ = run({"MALLOC_MMAP_MAX_": "65536"}, monkeypatch)
    assert held == "False"
