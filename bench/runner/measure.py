"""One measurement: start a server on its core, load it from another, stop it."""

import contextlib
import json
import os
import pathlib
import pty
import re
import resource
import select
import signal
import socket
import subprocess
import time

import machine

READY_TIMEOUT_S = 15
STOP_TIMEOUT_S = 3
LOAD_SLACK_S = 120
SERVER_FILES_MAX = 65536


class Failure(Exception):
    """A measurement that gave no figure; the text says why."""


@contextlib.contextmanager
def server(command, port, cpus, log):
    """Runs a server pinned to `cpus` for the length of the block, and gives its process."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            preexec_fn=lambda: prepare_server(cpus),
        )
    try:
        wait_until_ready(process, port, log)
        yield process
    finally:
        stop(process)


def prepare_server(cpus):
    """Pins it, and gives every server the same limit on open files: some raise their own, others would be left with the
    1024 that are usual."""
    os.sched_setaffinity(0, cpus)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    soft = SERVER_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, SERVER_FILES_MAX)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def wait_until_ready(process, port, log):
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Failure(f"server ended with code {process.returncode}: {tail(log)}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise Failure(f"server not ready after {READY_TIMEOUT_S} s: {tail(log)}")


def stop(process):
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def load(generator, arguments, timeout):
    """Runs the load generator and gives the object it prints."""
    try:
        run = subprocess.run(
            [generator, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout + LOAD_SLACK_S,
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"load generator still running after {timeout + LOAD_SLACK_S:.0f} s") from None
    if run.returncode != 0:
        raise Failure((run.stderr.strip().splitlines() or ["load generator failed"])[-1])
    return json.loads(run.stdout)


def yardstick(program, arguments, server_process, server_cpus, client_cpus):
    """Runs uWebSockets' load_test over one of its four-second intervals and gives figures named like ours."""
    if not pathlib.Path(program).exists():
        raise Failure("load_test is not built")
    # It buffers what it prints unless it prints to a terminal.
    ours, theirs = pty.openpty()
    client = subprocess.Popen(
        [program, *arguments], stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
        preexec_fn=lambda: os.sched_setaffinity(0, client_cpus),
    )
    os.close(theirs)
    try:
        lines = lines_of(ours)
        next_rate(lines)
        ticks_before = machine.cpu_ticks(server_cpus)
        before = (server_seconds(server_process.pid, server_cpus), cpu_seconds(client.pid), time.monotonic())
        rate = next_rate(lines)
        after = (server_seconds(server_process.pid, server_cpus), cpu_seconds(client.pid), time.monotonic())
        ticks = machine.cpu_ticks(server_cpus).since(ticks_before)
    finally:
        client.send_signal(signal.SIGKILL)
        client.wait()
        os.close(ours)
    server_cpu, client_cpu, seconds = (late - early for late, early in zip(after, before))
    messages = rate * YARDSTICK_INTERVAL_S
    return {
        "inputs": {"yardstick": arguments},
        "results": {
            "messages": messages,
            "messages_per_second": rate,
            "cost": {
                "seconds": seconds,
                "server_cpu_us_per_message": server_cpu / messages * 1e6,
                "client_cpu_us_per_message": client_cpu / messages * 1e6,
                "server_busy": server_cpu / seconds,
                "server_core_busy": ticks.busy_share(),
                "server_cores": [{"core": cpu} for cpu in server_cpus],
                "client_busy": client_cpu / seconds,
            },
        },
    }


YARDSTICK_INTERVAL_S = 4
# It speaks once in an interval; one that waits for a connection that does not come never does.
YARDSTICK_SILENCE_MAX_S = 30


def next_rate(lines):
    for line in lines:
        # It goes on with the connections that are left.
        if "Closed!" in line:
            raise Failure("load_test lost a connection")
        if "error" in line.lower():
            raise Failure(f"load_test: {line.strip()}")
        if match := re.search(r"Msg/sec: ([0-9.]+)", line):
            if float(match[1]) == 0:
                raise Failure("load_test got no replies")
            return float(match[1])
    raise Failure("load_test ended early")


def lines_of(terminal):
    """What load_test prints, line by line until it ends."""
    unread = b""
    while True:
        if not select.select([terminal], [], [], YARDSTICK_SILENCE_MAX_S)[0]:
            raise Failure(f"load_test said nothing for {YARDSTICK_SILENCE_MAX_S} s")
        try:
            chunk = os.read(terminal, 4096)
        except OSError:
            # A terminal's way to say that nobody has its other end open.
            chunk = b""
        # Its last words have no line's end.
        *whole, unread = (unread + (chunk or b"\n")).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
        if not chunk:
            return


def server_seconds(pid, cpus):
    """The same of a server, and of the kernel's threads that do soft interrupts on its cores."""
    names = {f"ksoftirqd/{cpu}" for cpu in cpus}
    daemons = [name.parent.name for name in pathlib.Path("/proc").glob("[0-9]*/comm") if read_or_nothing(name).strip() in names]
    return sum(cpu_seconds(process) for process in (pid, *daemons))


def read_or_nothing(path):
    try:
        return path.read_text()
    except OSError:
        return ""


def cpu_seconds(pid):
    """User and system time of all threads of a process."""
    tasks = pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def free_ports():
    """Ports that nobody listens on, outside the range that the kernel gives to clients."""
    port = PORT_FIRST + os.getpid() % 1000
    while True:
        port = port + 1 if port < PORT_LAST else PORT_FIRST
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


PORT_FIRST = 21000
PORT_LAST = 29000


def tail(log):
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "it said nothing"
