#!/usr/bin/env python3
"""Measures every scenario on every engine, interleaved, and writes the raw results and a report.

Started by scripts/bench.sh, which builds what it needs. Engines take turns within a round, in another order each time,
so that a drift of the machine and the place behind another engine meet all of them. Each measurement has a server of
its own.
"""

import argparse
import datetime
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import engines as engine_files
import machine
import measure
import report

BENCH = pathlib.Path(__file__).resolve().parent.parent
REFERENCE = "uwebsockets"
# Short rounds and many of them: a machine's bad moments then spoil a few figures, not all a little.
COST_ROUNDS = 9
OTHER_ROUNDS = 5
QUICK_ROUNDS = 3
FAILURES_MAX = 2
# A quick run measures until then and leaves the last seconds to the report.
QUICK_BUDGET_S = 275
# What a measurement takes besides its own time: server and connections come and go.
AROUND_S = 0.4
# Hops between shards, in both states.
HOPS_S = 3.5
YARDSTICK_S = 9.5
IDLE_S = 6.0


def main():
    options = parse_options()
    session = Session(options)
    session.install()
    session.measure()
    return session.finish()


def parse_options():
    parser = argparse.ArgumentParser(prog="scripts/bench.sh", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true",
        help="three short rounds of ours and uWebSockets, and a look at the others: within five minutes, not counting what is "
        "built and installed before",
    )
    parser.add_argument("--smoke", action="store_true", help="every scenario for a moment, as a test")
    parser.add_argument("--scenario", action="append", metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--engine", action="append", metavar="NAME", help="only this one; may be repeated")
    parser.add_argument(
        "--compare", action="append", metavar="COMMIT", default=[],
        help="also measure our engine, in the same configurations, as of this commit; may be repeated. It is built first"
    )
    parser.add_argument(
        "--reference", metavar="ENGINE", help=f"what ratios are to, in every scenario; by default {REFERENCE} in most"
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N",
        help="of each scenario; by default 9 of cost, 5 or fewer of others, 3 in a quick run"
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="length of one measurement")
    parser.add_argument("--wait", choices=("sleep", "spin"), default="sleep", help="how the client waits for replies")
    parser.add_argument("--server-cpus", type=cpu_list, metavar="LIST", help="the last core by default")
    parser.add_argument("--client-cpus", type=cpu_list, metavar="LIST", help="the first core by default; echo has a thread for each")
    parser.add_argument("--output", type=pathlib.Path, metavar="FOLDER", help="instead of a new one under bench/results")
    parser.add_argument("--target", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    return parser.parse_args()


def cpu_list(text):
    return [int(part) for part in text.split(",")]


@dataclass
class Turn:
    """One engine's turn in one round of a scenario, and the seconds that it takes, roughly."""

    scenario: dict
    engine: engine_files.Engine
    round: int
    seconds: float


class Session:
    """One run of this script."""

    def __init__(self, options):
        self.options = options
        # Without being told, these measure ours and the reference; the other peers only in a few scenarios.
        self.is_brief = (options.quick or options.smoke) and not options.engine
        self.started = time.monotonic()
        # What was just built; who works in the tree meanwhile may change it.
        self.commit = commit()
        self.target = options.target.resolve()
        self.generator = self.target / "release" / "ringwire-bench"
        self.load_test = self.target / "peers" / REFERENCE / "load_test"
        available = sorted(os.sched_getaffinity(0))
        self.all_cpus = available
        self.server_cpus = options.server_cpus or available[-1:]
        self.client_cpus = options.client_cpus or available[:1]
        self.ports = measure.free_ports()
        self.compared = [short_hash(commit) or sys.exit(f"no such commit: {commit}") for commit in options.compare]
        self.reference = options.reference or REFERENCE
        self.scenarios = self.choose_scenarios()
        self.notes = []
        self.engines = self.choose_engines()
        self.records = []
        self.rates = {}
        self.ticks = machine.cpu_ticks()
        self.folder = self.output_folder()
        self.log = self.target / "bench-server.log"

    # ---- what ----

    def choose_scenarios(self):
        scenarios = tomllib.loads((BENCH / "scenarios.toml").read_text())["scenario"]
        if self.options.reference:
            scenarios = [scenario | {"reference": self.reference} for scenario in scenarios]
        names = [scenario["name"] for scenario in scenarios]
        wanted = self.options.scenario
        if unknown := set(wanted or ()) - set(names):
            sys.exit(f"no such scenario: {', '.join(unknown)}; there are {', '.join(names)}")
        if wanted:
            return [scenario for scenario in scenarios if scenario["name"] in wanted]
        if self.options.smoke:
            return [scenario for scenario in scenarios if scenario.get("quick", True) or "smoke" in scenario]
        if self.options.quick:
            return [scenario for scenario in scenarios if scenario.get("quick", True)]
        return scenarios

    def choose_engines(self):
        engines = engine_files.load(BENCH, self.target, self.commit, self.compared)
        names = [engine.name for engine in engines]
        wanted = self.options.engine
        if unknown := {*(wanted or ()), self.reference} - set(names):
            sys.exit(f"no such engine: {', '.join(unknown)}; there are {', '.join(names)}")
        # One that is wanted is wanted as of every commit.
        chosen = [engine for engine in engines if not wanted or {engine.name, engine.name.partition("@")[0]} & set(wanted)]
        if all(engine.name != self.reference for engine in chosen):
            self.notes.append(f"No ratios to {self.reference}: it was not asked for.")
        return chosen

    def output_folder(self):
        if self.options.smoke:
            folder = self.target / "bench-smoke"
            shutil.rmtree(folder, ignore_errors=True)
            return folder
        if self.options.output:
            return self.options.output
        name = datetime.datetime.now().strftime("%Y-%m-%d-%H%M-") + machine.slug()
        return BENCH / "results" / name

    def is_of_the_field(self, engine):
        """Whether a brief run measures this engine only where it measures the whole field."""
        return self.is_brief and engine.folder is not None and engine.name not in (REFERENCE, self.reference)

    def is_invited(self, scenario, engine):
        """Whether the engine is measured without being asked for."""
        if "engines" in scenario and engine.name.partition("@")[0] not in scenario["engines"]:
            return False
        if self.options.quick and not engine.quick:
            return False
        return scenario.get("field", False) or not self.is_of_the_field(engine)

    def rounds_of(self, scenario):
        if self.options.smoke:
            return 1
        if self.options.rounds:
            return self.options.rounds
        if self.options.quick:
            return scenario.get("quick_rounds", QUICK_ROUNDS)
        return scenario.get("rounds", COST_ROUNDS if scenario["report"] == "cost" else OTHER_ROUNDS)

    def timing_of(self, scenario):
        """Seconds of warm-up and of measuring."""
        if self.options.smoke:
            return 0.1, 0.4
        if self.options.quick:
            return 0.2, self.options.seconds or scenario.get("quick_seconds", 0.8)
        warm_up, seconds = (0.3, 1.0) if scenario["report"] == "cost" else (0.5, 2.0)
        # What has a length of its own needs it to show anything.
        seconds = scenario.get("seconds") or self.options.seconds or seconds
        return scenario.get("warm_up", warm_up), seconds

    def load_of(self, scenario):
        """The load generator's arguments, without server, timing and cores."""
        return scenario.get("smoke", scenario["load"]) if self.options.smoke else scenario["load"]

    def client_threads_of(self, scenario):
        """The load generator's threads: one for each of the client's cores where it can share out its connections."""
        can_share = scenario["report"] == "cost" and scenario["load"][0] == "echo"
        return len(self.client_cpus) if can_share else 1

    # ---- how ----

    def install(self):
        """Builds what is compared and installs the peers, several at a time: nothing is measured meanwhile."""
        for commit in self.compared:
            try:
                engine_files.build(BENCH, self.target, commit, say)
            except (OSError, subprocess.SubprocessError) as error:
                sys.exit(f"{commit} could not be built: {error}; see its build.log under the target folder")
        with ThreadPoolExecutor(max(len(self.all_cpus), 2)) as pool:
            list(pool.map(lambda engine: engine_files.install(engine, say), self.engines))
        (self.folder / "raw").mkdir(parents=True, exist_ok=True)
        # A quick run's budget is for all but this, which happens once.
        self.started = time.monotonic()

    def measure(self):
        turns = list(self.all_turns())
        left = sum(turn.seconds for turn in turns)
        say(f"server on core {commas(self.server_cpus)}, client on {commas(self.client_cpus)}, about {minutes(left)}")
        failures, dropped = Counter(), Counter()
        self.ticks = machine.cpu_ticks()
        for turn in turns:
            left -= turn.seconds
            contestant = turn.scenario["name"], turn.engine.name
            if failures[contestant] >= FAILURES_MAX:
                continue
            if self.is_out_of_time(turn):
                dropped[turn.scenario["name"]] += 1
                continue
            failures[contestant] += not self.measure_one(turn, left)
        self.ticks = machine.cpu_ticks().since(self.ticks)
        for name, count in dropped.items():
            self.notes.append(f"Out of time: {count} measurements of {name} were left out.")

    def all_turns(self):
        """Scenario by scenario, but for those that are compared with another: they and it by turns, or the machine's pace
        would be compared."""
        names = {scenario["name"] for scenario in self.scenarios}
        compared = defaultdict(list)
        for scenario in self.scenarios:
            compared[scenario.get("beside")].append(scenario)
        for scenario in self.scenarios:
            if scenario.get("beside") in names:
                continue
            group = [scenario, *compared[scenario["name"]]]
            turns = {(turn.scenario["name"], turn.round, turn.engine.name): turn for one in group for turn in self.turns(one)}
            for number, (_, *contestant) in enumerate(list(turns)):
                together = [turns.pop((one["name"], *contestant), None) for one in group]
                yield from filter(None, together if number % 2 == 0 else together[::-1])

    def turns(self, scenario):
        able = self.contestants(scenario)
        for round_number in range(1, self.rounds_of(scenario) + 1):
            for engine in in_turn(able, round_number):
                # Once is enough for a look at the whole field.
                if round_number == 1 or not self.is_of_the_field(engine):
                    yield Turn(scenario, engine, round_number, self.estimate(scenario, round_number))

    def contestants(self, scenario):
        """The engines that can serve the scenario; the others are noted."""
        able = []
        for engine in self.engines:
            if engine.folder is None and scenario["mode"] not in engine.start:
                # One of ours that was made for other scenarios.
                continue
            if engine.reports and scenario["report"] not in engine.reports:
                continue
            if not self.options.engine and not self.is_invited(scenario, engine):
                continue
            obstacle = engine.obstacle(mode_of(scenario, engine))
            if len(self.all_cpus) < scenario.get("cores_min", 1):
                obstacle = f"takes {scenario['cores_min']} cores, and there are {len(self.all_cpus)}"
            if obstacle:
                self.records.append({"scenario": scenario["name"], "engine": engine.name, "obstacle": obstacle})
            else:
                able.append(engine)
        return able

    def estimate(self, scenario, round_number):
        """Seconds that one turn takes, roughly."""
        if scenario["report"] == "yardstick":
            return YARDSTICK_S
        if scenario.get("untimed"):
            return AROUND_S if self.options.smoke else IDLE_S
        hops = HOPS_S if scenario["report"] == "mesh" and not self.options.smoke else 0
        # To read what waits for those who do not read takes as long as the load.
        leftovers = sum(self.timing_of(scenario)) if "--slow-percent" in scenario["load"] else 0
        loads = len(scenario.get("shares", [1])) + ("calibrate" in scenario and round_number == 1)
        return loads * (sum(self.timing_of(scenario)) + AROUND_S) + hops + leftovers

    def is_out_of_time(self, turn):
        limited = self.options.quick and not self.options.engine
        return limited and time.monotonic() - self.started + turn.seconds > QUICK_BUDGET_S

    def measure_one(self, turn, left):
        """One engine's turn; says whether it gave figures."""
        scenario, engine = turn.scenario, turn.engine
        where = f"{scenario['name']} {turn.round}/{self.rounds_of(scenario)} {engine.name}"
        record = {"scenario": scenario["name"], "engine": engine.name, "round": turn.round}
        try:
            if scenario["report"] == "rate":
                for share in scenario["shares"]:
                    rate = self.highest_rate(scenario, engine) * share
                    asked = rate / scenario.get("deliveries", 1)
                    result = self.load(scenario, engine, extra=["--rate", f"{asked:.1f}"])
                    self.keep(record | {"share": share, "rate": rate, **result})
                    say(f"{where} at {share:.0%}: {report.headline(scenario, result)} ({minutes(left)} left)")
            else:
                result = self.load(scenario, engine)
                self.keep(record | result)
                say(f"{where}: {report.headline(scenario, result)} ({minutes(left)} left)")
            return True
        except measure.Failure as failure:
            self.keep(record | {"failure": str(failure)})
            say(f"{where}: FAILED: {failure}")
            return False

    def highest_rate(self, scenario, engine):
        """What the shares are shares of: the lower of what the engine and the reference reach in closed loop."""
        for name in (self.reference, engine.name):
            contender = next((e for e in self.engines if e.name == name and not e.obstacle(mode_of(scenario, e))), None)
            if contender and (scenario["name"], name) not in self.rates:
                try:
                    result = self.load(scenario | {"load": scenario["calibrate"]}, contender)
                except measure.Failure as failure:
                    raise measure.Failure(f"calibration of {contender.title}: {failure}") from failure
                self.rates[scenario["name"], name] = result["results"]["messages_per_second"]
        own = self.rates[scenario["name"], engine.name]
        return min(self.rates.get((scenario["name"], self.reference), own), own)

    def load(self, scenario, engine, extra=()):
        """A fresh server, loaded once."""
        port = next(self.ports)
        warm_up, seconds = self.timing_of(scenario)
        command = engine.command(mode_of(scenario, engine), port)
        if scenario["report"] == "mesh":
            # The engine is inside the load generator.
            arguments = [*command[1:], *self.load_of(scenario), "--warm-up", str(warm_up), "--seconds", str(seconds)]
            return measure.load(command[0], arguments, warm_up + seconds)
        server_cpus, client_cpus = self.server_cpus, self.client_cpus
        if scenario.get("spread"):
            server_cpus = client_cpus = self.all_cpus
        with measure.server(command, port, server_cpus, self.log) as server:
            if scenario["report"] == "yardstick":
                arguments = [part.format(port=port) for part in self.load_of(scenario)]
                return measure.yardstick(self.load_test, arguments, server, server_cpus, client_cpus)
            arguments = [*self.load_of(scenario), *extra, "--server", f"127.0.0.1:{port}", "--server-pid", str(server.pid)]
            arguments += ["--wait", self.options.wait]
            if not scenario.get("spread"):
                arguments += ["--cpus", commas(client_cpus)]
            if self.client_threads_of(scenario) > 1:
                arguments += ["--threads", str(self.client_threads_of(scenario))]
            if not scenario.get("untimed"):
                arguments += ["--warm-up", str(warm_up), "--seconds", str(seconds)]
            return measure.load(self.generator, arguments, warm_up + seconds)

    def keep(self, record):
        self.records.append(record)
        number = sum("obstacle" not in kept for kept in self.records)
        name = f"{number:04}-{record['scenario']}-{record['engine']}.json"
        (self.folder / "raw" / name).write_text(json.dumps(record, indent=1) + "\n")

    # ---- what came out ----

    def finish(self):
        if (at_the_end := commit()) != self.commit:
            self.notes.append(f"The tree changed during the run, at whose end it was {at_the_end}.")
        context = report.Context(
            command="scripts/bench.sh " + shlex.join(own_arguments()),
            commit=self.commit,
            date=datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
            machine=machine.describe(),
            stolen=self.ticks.stolen_share(),
            server_cpus=commas(self.server_cpus),
            client_cpus=commas(self.client_cpus),
            client_threads={scenario["name"]: self.client_threads_of(scenario) for scenario in self.scenarios},
            loads={scenario["name"]: " ".join(self.load_of(scenario)) for scenario in self.scenarios},
            wait=self.options.wait,
            rounds={scenario["name"]: self.rounds_of(scenario) for scenario in self.scenarios},
            timing={scenario["name"]: self.timing_of(scenario) for scenario in self.scenarios},
            reference=self.reference,
            notes=self.notes,
        )
        path = report.write(self.folder, context, self.scenarios, self.engines, self.records)
        say(f"{minutes(time.monotonic() - self.started)} of measuring; report: {os.path.relpath(path)}")
        passed = sum("results" in record for record in self.records)
        failed = sum("failure" in record for record in self.records)
        if self.options.smoke:
            self.close_test(passed, failed)
        elif failed or not passed:
            say(f"{passed} measurements passed, {failed} failed")
        return 1 if failed or not passed else 0

    def close_test(self, passed, failed):
        """A test's closing line. What could not be had is skipped, what no engine is made for does not count."""
        skipped = [
            f"{record['scenario']} {record['engine']}: {record['obstacle']}" for record in self.records
            if "obstacle" in record and record["obstacle"] not in engine_files.NO_SERVER
        ]
        if not any(self.folder.glob("*.svg")):
            skipped.append("plots: matplotlib is not installed")
        for line in skipped:
            say(f"skipped: {line}")
        print(f"{passed} passed, {failed} failed, {len(skipped)} skipped", flush=True)


def in_turn(engines, round_number):
    """The engines in a round's order: backwards every second time and then rotated, so that none always has the same
    place or the same one before it."""
    first = (round_number - 1) // 2 % len(engines) if engines else 0
    order = engines[first:] + engines[:first]
    return order if round_number % 2 else order[::-1]


def mode_of(scenario, engine):
    """What the engine is to do: the scenario's mode, or what it asks of engines that have no server for it."""
    mode = scenario["mode"]
    return mode if mode in engine.start else scenario.get("fallback_mode", mode)


def own_arguments():
    """The arguments that the user gave to the script."""
    arguments = sys.argv[1:]
    return [a for i, a in enumerate(arguments) if a != "--target" and (i == 0 or arguments[i - 1] != "--target")]


def commit():
    """The commit that is measured, and whether there are changes on top of it."""
    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (short_hash("HEAD") or "unknown") + changed


def short_hash(commit):
    """Of what git knows by that name; empty if it knows nothing."""
    return git("rev-parse", "--quiet", "--short=10", "--verify", f"{commit}^{{commit}}")


def git(*arguments):
    run = subprocess.run(["git", "-C", BENCH, *arguments], capture_output=True, text=True)
    return run.stdout.strip() if run.returncode == 0 else ""


def commas(numbers):
    return ",".join(map(str, numbers))


def minutes(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def say(text):
    print(f"[{datetime.datetime.now():%H:%M:%S}] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    # Servers and clients end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    sys.exit(main())
