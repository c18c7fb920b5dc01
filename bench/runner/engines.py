"""The engines that are measured: what their files say, whether they are installed, and how they start."""

import hashlib
import pathlib
import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass, field

INSTALL_TIMEOUT_S = 900
BUILD_TIMEOUT_S = 1800
# What an engine lacks that was given no server for a mode: it is ours that is missing, not the library's ability.
NO_FANOUT = "no fan-out server was written here for this library"
NO_MODE = "no server for this scenario was written here for this library"
NO_SERVER = (NO_FANOUT, NO_MODE)


@dataclass
class Engine:
    """One contestant. `missing` says why it cannot be measured; empty means that it can."""

    name: str
    title: str
    language: str
    version: str
    settings: str
    start: dict
    folder: pathlib.Path | None = None
    quick: bool = True
    reports: tuple = ()
    missing: str = ""
    places: dict = field(default_factory=dict)

    def command(self, mode, port):
        """The command that serves `mode` on `port`, or None if the engine has no such mode."""
        template = self.start.get(mode)
        if template is None:
            return None
        return [part.format(port=port, mode=mode, **self.places) for part in template]

    def obstacle(self, mode):
        """Why the engine cannot serve `mode`; empty if it can."""
        if self.missing:
            return self.missing
        command = self.command(mode, 0)
        if command is None:
            return NO_FANOUT if mode == "fanout" else NO_MODE
        if shutil.which(command[0]) is None:
            return "not built"
        return ""


def load(bench, target, version, compared):
    """Every engine there is: our own first, as it is and as of the commits `compared`, then the peers by name."""
    own = tomllib.loads((bench / "engines.toml").read_text())["engine"]
    engines = [own_engine(e, e["name"], e["title"], version, target) for e in own]
    engines += [
        own_engine(e, f"{e['name']}@{commit}", f"{e['title']} at {commit}", commit, folder_of(target, commit))
        for commit in compared
        for e in own
    ]
    for file in sorted((bench / "peers").glob("*/peer.toml")):
        peer = tomllib.loads(file.read_text())
        start = {mode: peer["start"] for mode in peer["modes"]}
        places = {"peer": str(target / "peers" / peer["name"]), "source": str(file.parent)}
        engines.append(
            Engine(
                peer["name"], peer["title"], peer["language"], peer["version"], peer["settings"], start,
                folder=file.parent, places=places,
            )
        )
    # The reference comes right after our own.
    engines.sort(key=lambda e: (e.folder is not None, e.name != "uwebsockets"))
    return engines


def own_engine(entry, name, title, version, target):
    """One of ours, as its entry in engines.toml says."""
    return Engine(
        name, title, entry["language"], version, entry["settings"], entry["start"], quick=entry.get("quick", True),
        reports=tuple(entry.get("reports", ())), places=places_in(target),
    )


def places_in(target):
    return {"release": str(target / "release")}


def folder_of(target, commit):
    """The target folder of our engine as of `commit`."""
    return target / "commits" / commit


def build(bench, target, commit, say):
    """Builds our engine and its load generator as of `commit`, beside today's. Raises what cargo or git make of it."""
    folder = folder_of(target, commit)
    if (folder / "built").exists():
        return
    say(f"building {commit}")
    source = folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    with (folder / "build.log").open("w") as output:
        archive = folder / "source.tar"
        top = ["git", "-C", bench.parent]
        subprocess.run([*top, "archive", "--output", archive, commit], stderr=output, check=True)
        subprocess.run(["tar", "-xf", archive, "-C", source], stderr=output, check=True)
        archive.unlink()
        subprocess.run(
            ["cargo", "build", "--release", "--locked", "-p", "ringwire-examples", "-p", "ringwire-bench", "--target-dir", folder],
            cwd=source, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True, timeout=BUILD_TIMEOUT_S,
        )
    (folder / "built").touch()


def install(engine, say):
    """Installs a peer unless what is there was installed from the same files. Failure is noted, not raised."""
    if engine.folder is None:
        return
    place = pathlib.Path(engine.places["peer"])
    stamp = place / "installed"
    wanted = fingerprint(engine.folder)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    say(f"installing {engine.title}")
    place.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    log = place / "install.log"
    try:
        with log.open("w") as output:
            subprocess.run(
                [engine.folder / "install.sh", place], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                check=True, timeout=INSTALL_TIMEOUT_S,
            )
        stamp.write_text(wanted)
    except subprocess.TimeoutExpired:
        engine.missing = f"could not be installed within {INSTALL_TIMEOUT_S} s"
    except (OSError, subprocess.SubprocessError):
        engine.missing = f"could not be installed: {last_words(log)}"
    if engine.missing:
        say(f"{engine.title} {engine.missing}; see its install.log under the target folder")


def last_words(log):
    """The last line of an installer's log that says something, without the folders of this machine."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    # npm's last line only says where it says more.
    lines = [line for line in lines if line and "complete log of this run" not in line]
    return re.sub(r"(?<![\w:/.])/(?:[^\s/:]+/)+", "", lines[-1])[:200] if lines else "it said nothing"


def fingerprint(folder):
    """Changes when any file of the peer does."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(file.relative_to(folder)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
