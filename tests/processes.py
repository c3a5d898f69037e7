"""What the tests of real processes share: nothing in them may depend on how fast a machine is."""

import os
import pathlib
import random
import socket
import time

# Far above what anything takes on a busy machine: it only ends tests that would hang.
PATIENCE = 300


def wait_until(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def end_of(process, seconds=PATIENCE):
    """Exit code, standard output and standard error of a process."""
    with process:
        try:
            out, err = process.communicate(timeout=seconds)
        finally:
            process.kill()
    return process.returncode, out, err


def free_ports(count):
    """Ports that a process may take much later: below those that the system gives to whoever asks for any."""
    ports = set()
    while len(ports) < count:
        port = random.SystemRandom().randrange(15000, 32000)
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", port)):
                ports.add(port)
    return sorted(ports)


def left_behind(folder):
    """The processes that have the folder in their command."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words and int(process.name) != os.getpid():
            found.append(words.replace(b"\0", b" ").decode())
    return found


def marked(folder):
    """The processes that have the folder in their environment."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK={folder}\0".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def parent(pid):
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
