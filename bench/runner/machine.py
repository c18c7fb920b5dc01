"""What the figures were measured on: facts about the machine and its tools, without names or paths of it."""

import os
import pathlib
import platform
import re
import subprocess
from collections import Counter
from dataclasses import dataclass

CPUS = pathlib.Path("/sys/devices/system/cpu")


def describe():
    """Pairs of what and its value, in the order of the report."""
    return [
        ("Processor", cpu_model()),
        ("Cores", f"{os.cpu_count()} online"),
        ("Memory", memory()),
        ("Kernel", f"{platform.system()} {platform.release()}"),
        ("Virtual machine", "yes" if " hypervisor " in first_line("/proc/cpuinfo", "flags") + " " else "no"),
        ("Threads that share a core (SMT)", siblings()),
        ("Frequency governor", governors()),
        ("Mitigations", mitigations()),
        ("Open files", open_files()),
        ("rustc", tool("rustc", "--version")),
        ("g++", tool("g++", "--version")),
        ("node", tool("node", "--version")),
        ("python", platform.python_version()),
    ]


@dataclass
class CpuTicks:
    """What CPUs did since the machine started, in ticks."""

    idle: int = 0
    stolen: int = 0
    total: int = 0

    def since(self, earlier):
        return CpuTicks(self.idle - earlier.idle, self.stolen - earlier.stolen, self.total - earlier.total)

    def busy_share(self):
        return 1 - self.idle / max(self.total, 1)

    def stolen_share(self):
        return self.stolen / max(self.total, 1)


def cpu_ticks(cpus=None):
    """The ticks of these CPUs, or of all."""
    names = {"cpu"} if cpus is None else {f"cpu{cpu}" for cpu in cpus}
    sums = CpuTicks()
    for line in read("/proc/stat").splitlines():
        name, *fields = line.split()
        if name in names:
            user, nice, system, idle, iowait, irq, softirq, steal = map(int, fields[:8])
            sums.idle += idle + iowait
            sums.stolen += steal
            sums.total += user + nice + system + idle + iowait + irq + softirq + steal
    return sums


def slug():
    """A name for this kind of machine that names no machine."""
    words = re.findall(r"[a-z0-9]+", cpu_model().lower())
    words = [word for word in words if word not in ("r", "tm", "cpu", "processor", "core")]
    return "-".join(words[:4] + [f"{os.cpu_count()}c"])


def cpu_model():
    return first_line("/proc/cpuinfo", "model name").partition(":")[2].strip() or platform.machine()


def siblings():
    shared = {read(file) for file in CPUS.glob("cpu[0-9]*/topology/thread_siblings_list")}
    return "; ".join(sorted(cpus for cpus in shared if cpus and not cpus.isdigit())) or "none exposed"


def governors():
    counts = Counter(read(file) for file in CPUS.glob("cpu[0-9]*/cpufreq/scaling_governor"))
    return ", ".join(f"{name} on {count}" for name, count in counts.most_common()) or "not exposed"


def memory():
    match = re.search(r"MemTotal:\s+(\d+)", read("/proc/meminfo"))
    return f"{int(match[1]) / 1024 / 1024:.0f} GiB" if match else "unknown"


def mitigations():
    folder = CPUS / "vulnerabilities"
    states = ((file.name, read(file)) for file in sorted(folder.glob("*"))) if folder.exists() else ()
    concerned = [f"{name}: {state}" for name, state in states if state != "Not affected"]
    return "; ".join(concerned) or "none needed"


def open_files():
    import resource

    return f"at most {resource.getrlimit(resource.RLIMIT_NOFILE)[1]} per process"


def tool(*command):
    """The first line that a tool says about its version."""
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return output.splitlines()[0]
    except (OSError, IndexError, subprocess.SubprocessError):
        return "not there"


def first_line(path, start):
    return next((line for line in read(path).splitlines() if line.startswith(start)), "")


def read(path):
    try:
        return pathlib.Path(path).read_text().strip()
    except OSError:
        return ""
