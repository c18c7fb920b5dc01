"""The report of a session: tables in Markdown, plots beside it, and all figures in results.json.

The text holds no name or path of the machine. Ratios are taken pair by pair within a round, then their median and
quartiles.
"""

import json
import statistics
from dataclasses import asdict, dataclass

COST = ("results", "cost", "server_cpu_us_per_message")
CLIENT_COST = ("results", "cost", "client_cpu_us_per_message")
CORE_BUSY = ("results", "cost", "server_core_busy")
CORES = ("results", "cost", "server_cores")
SERVER_BUSY = ("results", "cost", "server_busy")
CLIENT_BUSY = ("results", "cost", "client_busy")
THROUGHPUT = ("results", "messages_per_second")
HANDSHAKES = ("results", "handshakes_per_second")
LATENCY = ("results", "latency")
STORM = ("results", "storm", "seconds")
STORM_P99 = ("results", "storm", "latency", "p99_us")
IDLE = ("results", "resident_bytes_per_connection")
KERNEL = ("results", "kernel", "both_ends_bytes_per_connection")

# More than this of the server's core used by somebody else: the figures of that run are doubtful.
DISTURBED = 0.1
# A client as busy as this, in front of a server's core that is less busy than that, is the limit.
CLIENT_BUSY_MIN = 0.95
SERVER_IDLE_MAX = 0.9
# The reports of what is sent at fixed times, which may be in step with the kernel's ticks.
ON_SCHEDULE = ("rate", "scheduled", "slow")
# Rates that differ by no more are the same: what a message costs hardly depends on that.
RATE_DIFFERENCE_MAX = 0.05


@dataclass
class Context:
    """What the figures belong to."""

    command: str
    commit: str
    date: str
    machine: list
    stolen: float
    server_cpus: str
    client_cpus: str
    client_threads: dict
    loads: dict
    wait: str
    rounds: dict
    timing: dict
    reference: str
    notes: list


def write(folder, context, scenarios, engines, records):
    """Writes results.json, the plots and report.md, and returns the report's path."""
    (folder / "results.json").write_text(json.dumps({"context": asdict(context), "records": records}, indent=1) + "\n")
    table = Table(context, engines, records)
    plotted = plot(folder, table, scenarios)
    lines = header(context) + contestants(engines)
    for scenario in scenarios:
        lines += ["", f"## {scenario['name']}", "", scenario["title"] + ".", ""]
        lines += conditions(context, scenario)
        lines += TABLES[scenario["report"]](table, scenario)
        lines += remarks(table, scenario)
        lines += [line for name in plotted.get(scenario["name"], ()) for line in ("", f"![{scenario['title']}]({name})")]
    path = folder / "report.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def headline(scenario, result):
    """The main figure of one measurement, for the progress."""
    if scenario["report"] == "mesh":
        return f"asleep p50 {pick(result, ('results', 'hop_asleep', 'p50_us')):.1f} us"
    if scenario["report"] in ("rate", "slow"):
        latency = pick(result, LATENCY)
        return f"p50 {latency['p50_us']:.0f} us, p99 {latency['p99_us']:.0f} us"
    if scenario["report"] == "idle":
        return f"{pick(result, IDLE):.0f} B per connection"
    return f"{number(pick(result, COST), 3)} us"


def pick(record, path):
    """The figure at `path` of a record, or None."""
    for name in path:
        if not isinstance(record, dict):
            return None
        record = record.get(name)
    return record


class Table:
    """The records, ready to be asked."""

    def __init__(self, context, engines, records):
        self.context = context
        self.engines = engines
        self.records = records

    def runs(self, scenario, engine, share=None):
        """The measurements that gave figures, by round."""
        return {
            record["round"]: record
            for record in self.records
            if "results" in record and record["scenario"] == scenario["name"] and record["engine"] == engine.name
            and record.get("share") == share
        }

    def figures(self, scenario, engine, path, share=None):
        picked = (pick(record, path) for record in self.runs(scenario, engine, share).values())
        return [figure for figure in picked if figure is not None]

    def median(self, scenario, engine, path, share=None):
        figures = self.figures(scenario, engine, path, share)
        return statistics.median(figures) if figures else None

    def highest(self, scenario, engine, path, share=None):
        return max(self.figures(scenario, engine, path, share), default=None)

    def reference(self, scenario):
        """The engine that ratios are to, if it took part in the session."""
        name = scenario.get("reference", self.context.reference)
        return next((engine for engine in self.engines if engine.name == name), None)

    def ratios(self, scenario, engine, path, share=None):
        """The ratios to the reference, each within one round in which both had the same rate due, if any."""
        reference = self.reference(scenario)
        if reference is None:
            return []
        theirs = self.runs(scenario, reference, share)
        pairs = [
            (pick(run, path), pick(theirs[number], path))
            for number, run in self.runs(scenario, engine, share).items()
            if number in theirs and have_same_rate(run, theirs[number])
        ]
        return [one / other for one, other in pairs if one is not None and other]

    def rounds(self, scenario, engine):
        """In how many rounds the engine gave figures."""
        return len({
            record["round"] for record in self.records
            if "results" in record and record["scenario"] == scenario["name"] and record["engine"] == engine.name
        })

    def measured(self, scenario):
        """The engines that gave figures, best first by the scenario's main figure."""
        path = {"connect": COST, "idle": IDLE}.get(scenario["report"], COST)
        engines = [engine for engine in self.engines if self.rounds(scenario, engine)]
        if scenario["report"] in ("mesh", "rate", "slow"):
            return engines
        return sorted(engines, key=lambda engine: self.median(scenario, engine, path) or 0)


def header(context):
    lines = ["# Measurements", "", f"{context.date}, commit {context.commit}.", "", "```sh", context.command, "```", ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in context.machine]
    lines += [
        f"| CPU stolen by other virtual machines during the run | {context.stolen:.1%} |",
        f"| Server's cores | {context.server_cpus} |",
        f"| Client's cores | {context.client_cpus}, one thread where nothing else is said, waits by {context.wait} |",
        "",
        "CPU is user and system time of all the server's threads, and of the kernel's for soft interrupts on its cores, in "
        "microseconds; the share in the kernel is of all rounds together. Other figures are medians over the rounds, with their quartiles where it says so. Ratios are taken pair by pair within a round, then their median and quartiles; "
        f"{context.reference} = 1.00 unless the table names another; lower is better. Every reply is compared byte by byte, "
        "but not by load_test, which only counts the bytes, nor where it says `--verify length`. "
        "How it is measured, and what that leaves out, is in bench/README.md.",
    ]
    lines += [line for note in context.notes for line in ("", f"**{note}**")]
    return lines


def contestants(engines):
    lines = ["", "## Engines", "", "| engine | language | version | settings |", "|---|---|---|---|"]
    for engine in engines:
        settings = engine.settings if not engine.missing else f"**{engine.missing}**"
        lines.append(f"| {engine.title} | {engine.language} | {engine.version} | {settings} |")
    return lines


def conditions(context, scenario):
    rounds = context.rounds[scenario["name"]]
    warm_up, seconds = context.timing[scenario["name"]]
    timing = "" if scenario.get("untimed") or scenario["report"] == "yardstick" else f" of {seconds:g} s after {warm_up:g} s of warm-up"
    load = context.loads[scenario["name"]].replace("{port}", "PORT")
    program = {"yardstick": "load_test", "mesh": "ringwire-bench mesh"}.get(scenario["report"], "ringwire-bench")
    threads = context.client_threads[scenario["name"]]
    client = f", {threads} client threads" if threads > 1 else ""
    return [f"`{program} {load}`, {rounds} round{'s' if rounds > 1 else ''}{timing}{client}.", ""]


def unit(scenario):
    """What a figure is per: its name for one and for many."""
    if scenario["report"] == "connect":
        return "handshake", "handshakes"
    return ("delivery", "deliveries") if scenario["load"][0] == "fanout" else ("message", "messages")


def ratio_title(table, scenario):
    """The head of a column of ratios, which names a reference of the scenario's own."""
    reference = table.reference(scenario)
    own = "reference" in scenario and reference is not None
    return f"ratio to {reference.title} (quartiles)" if own else "ratio (quartiles)"


def have_same_rate(run, other):
    """Whether as much was due in both, nearly; also where nothing was due at any time."""
    rate, other_rate = run.get("rate"), other.get("rate")
    return rate == other_rate or abs(rate - other_rate) <= RATE_DIFFERENCE_MAX * other_rate


def ratio_cell(table, scenario, engine, path, share=None):
    ratios = table.ratios(scenario, engine, path, share)
    if not ratios:
        return "-"
    median = number(statistics.median(ratios), 2)
    if len(ratios) == 1 or engine is table.reference(scenario):
        return median
    return f"{median} ({middle_half(ratios, 2)})"


def middle_half(figures, digits=None):
    """From the first to the third quartile, as text."""
    return interval(quartiles(figures), digits) if len(figures) > 1 else "-"


def span(figures):
    """From the lowest to the highest, as text."""
    return interval((min(figures), max(figures))) if len(figures) > 1 else "-"


def quartiles(figures):
    """The first and the third."""
    if len(figures) == 1:
        return figures[0], figures[0]
    first, _, third = statistics.quantiles(figures, n=4, method="inclusive")
    return first, third


LATENCY_TITLES = "p50 us | p99 us (quartiles) | p99.9 us | max us"
LATENCY_NOTE = "Medians over the rounds; max us is the highest of all of them."


def latency_cells(table, scenario, engine, share=None):
    """What stands under LATENCY_TITLES."""
    def median(name):
        return number(table.median(scenario, engine, (*LATENCY, name), share), 0)

    p99s = table.figures(scenario, engine, (*LATENCY, "p99_us"), share)
    p99 = f"{median('p99_us')} ({middle_half(p99s, 0)})" if len(p99s) > 1 else median("p99_us")
    highest = number(table.highest(scenario, engine, (*LATENCY, "max_us"), share), 0)
    return median("p50_us"), p99, median("p999_us"), highest


def kernel_share(table, scenario, engine):
    """How much of the server's processor time the kernel took, over all rounds: one alone has too few ticks."""
    def total(name):
        return sum(table.figures(scenario, engine, ("results", "cost", name)))

    kernel = total("server_system_seconds") + total("soft_interrupt_daemons_seconds")
    both = kernel + total("server_user_seconds")
    return kernel / both if both else None


def cost_table(table, scenario):
    one, many = unit(scenario)
    lines = [
        f"| engine | CPU us/{one} | quartiles | lowest - highest | {ratio_title(table, scenario)} | in the kernel | {many}/s "
        f"| core busy | client CPU us/{one} | client busy |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for engine in table.measured(scenario):
        costs = table.figures(scenario, engine, COST)
        lines.append(row(
            engine.title,
            number(statistics.median(costs)),
            middle_half(costs),
            span(costs),
            ratio_cell(table, scenario, engine, COST),
            percent(kernel_share(table, scenario, engine)),
            number(table.median(scenario, engine, THROUGHPUT), 0),
            percent(core_busy_median(table, scenario, engine)),
            number(table.median(scenario, engine, CLIENT_COST)),
            percent(table.median(scenario, engine, CLIENT_BUSY)),
        ))
    if comparisons := compared(table, scenario, CLIENT_COST):
        lines += ["", f"CPU of the client to that of load_test in {scenario['beside']}, pair by pair: against {comparisons}."]
    return lines


def rate_table(table, scenario):
    one, many = unit(scenario)
    lines = [
        f"| engine | load | {many}/s due | answered | {LATENCY_TITLES} | client late p99 us | CPU us/{one} "
        f"| {ratio_title(table, scenario)} | client CPU us/{one} |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for engine in table.measured(scenario):
        for share in scenario["shares"]:
            def median(*path):
                return table.median(scenario, engine, path, share)

            if median("rate") is None:
                continue
            lines.append(row(
                engine.title, f"{share:.0%}", number(median("rate"), 0), number(median(*THROUGHPUT), 0),
                *latency_cells(table, scenario, engine, share),
                number(median("results", "client_lateness", "p99_us"), 0),
                number(median(*COST)), ratio_cell(table, scenario, engine, COST, share), number(median(*CLIENT_COST)),
            ))
    lines += [
        "", "Load is a share of the lower of two highest rates: the engine's own and the reference's. Answered is per second of the "
        "measured phase, and what CPU is divided by. The ratio is of CPU, at the same load in the same round, and only where the "
        f"rates that were due differ by no more than {RATE_DIFFERENCE_MAX:.0%}: an engine that reaches less than the reference is "
        f"loaded with less at the same share, and a message costs more where fewer come together. {LATENCY_NOTE}",
    ]
    return lines


def scheduled_table(table, scenario):
    lines = [
        f"| engine | CPU us/delivery | quartiles | lowest - highest | {ratio_title(table, scenario)} | in the kernel "
        "| deliveries/s | core busy | p50 us | p99 us | client CPU us/delivery | client busy |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for engine in table.measured(scenario):
        costs = table.figures(scenario, engine, COST)
        lines.append(row(
            engine.title,
            number(statistics.median(costs)),
            middle_half(costs),
            span(costs),
            ratio_cell(table, scenario, engine, COST),
            percent(kernel_share(table, scenario, engine)),
            number(table.median(scenario, engine, THROUGHPUT), 0),
            percent(core_busy_median(table, scenario, engine)),
            *(number(table.median(scenario, engine, (*LATENCY, name)), 0) for name in ("p50_us", "p99_us")),
            number(table.median(scenario, engine, CLIENT_COST)),
            percent(table.median(scenario, engine, CLIENT_BUSY)),
        ))
    return lines


def mesh_table(table, scenario):
    lines = [
        "| engine | hop asleep p50 us | p99 us | hop awake p50 us | p99 us | deliveries/s | envelopes "
        "| wakes per million messages | per million deliveries |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for engine in table.measured(scenario):
        def median(*path):
            return table.median(scenario, engine, ("results", *path))

        hops = [number(median(state, name), 1) for state in ("hop_asleep", "hop_awake") for name in ("p50_us", "p99_us")]
        lines.append(row(
            engine.title, *hops, number(median("messages_per_second"), 0), number(median("envelopes_sent"), 0),
            number(median("wakes_per_million_messages"), 0), number(median("wakes_per_million_deliveries"), 0),
        ))
    return lines


def slow_table(table, scenario):
    lines = [
        f"| engine | {LATENCY_TITLES} | CPU us/delivery | client CPU us/delivery | RSS before MiB "
        "| RSS highest MiB | slow ones missed | slow ones cut off |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for engine in table.measured(scenario):
        def median(*path):
            return table.median(scenario, engine, path)

        memory = [number(median("results", name) / 2**20, 1) for name in ("resident_before_bytes", "resident_peak_bytes")]
        dropped = f"{median('results', 'slow_subscribers_dropped'):.0f} of {median('results', 'slow_subscribers'):.0f}"
        missed = number(median("results", "slow_subscribers_missed"), 0)
        costs = [number(median(*COST)), number(median(*CLIENT_COST))]
        lines.append(row(engine.title, *latency_cells(table, scenario, engine), *costs, *memory, missed, dropped))
    lines += ["", f"{LATENCY_NOTE} What slow ones missed is messages, of all of them that were not cut off, read when all was over."]
    if comparisons := compared(table, scenario, (*LATENCY, "p99_us")):
        lines += ["", f"p99 to the engine's own in {scenario['beside']}, pair by pair: {comparisons}."]
    return lines


def compared(table, scenario, path):
    """What each engine's figure is of that in the scenario it was measured by turns with."""
    comparisons = []
    for engine in table.measured(scenario):
        theirs = table.runs({"name": scenario.get("beside")}, engine)
        own = table.runs(scenario, engine)
        if ratios := [pick(own[turn], path) / pick(theirs[turn], path) for turn in own if turn in theirs]:
            comparisons.append(f"{engine.title} {number(statistics.median(ratios), 2)} ({middle_half(ratios, 2)})")
    return "; ".join(comparisons)


def connect_table(table, scenario):
    lines = [
        "| engine | CPU us/handshake | quartiles | ratio (quartiles) | handshakes/s | p99 us | client CPU us/handshake "
        "| all back after ms | p99 back ms |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for engine in table.measured(scenario):
        def median(path, scale=1.0):
            figure = table.median(scenario, engine, path)
            return None if figure is None else figure * scale

        lines.append(row(
            engine.title, number(median(COST), 1), middle_half(table.figures(scenario, engine, COST), 1),
            ratio_cell(table, scenario, engine, COST), number(median(HANDSHAKES), 0), number(median((*LATENCY, "p99_us")), 0),
            number(median(CLIENT_COST), 1), number(median(STORM, 1e3), 0), number(median(STORM_P99, 1e-3), 0),
        ))
    return lines


def idle_table(table, scenario):
    lines = [
        "| engine | connections | RSS bytes/connection | quartiles | ratio (quartiles) | kernel bytes/connection, both ends |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for engine in table.measured(scenario):
        lines.append(row(
            engine.title, number(table.median(scenario, engine, ("results", "connections")), 0),
            number(table.median(scenario, engine, IDLE), 0), middle_half(table.figures(scenario, engine, IDLE), 0),
            ratio_cell(table, scenario, engine, IDLE),
            number(table.median(scenario, engine, KERNEL), 0),
        ))
    return lines


TABLES = {
    "cost": cost_table,
    "yardstick": cost_table,
    "rate": rate_table,
    "mesh": mesh_table,
    "scheduled": scheduled_table,
    "slow": slow_table,
    "connect": connect_table,
    "idle": idle_table,
}


def remarks(table, scenario):
    """What is missing from the table, and what is doubtful in it."""
    lines, obstacles = [], {}
    rounds = table.context.rounds[scenario["name"]]
    fewer = [(e.title, table.rounds(scenario, e)) for e in table.measured(scenario) if table.rounds(scenario, e) < rounds]
    if fewer:
        lines.append(f"- Fewer rounds: {', '.join(f'{title} {count}' for title, count in fewer)}.")
    for engine in table.engines:
        own = [r for r in table.records if r["scenario"] == scenario["name"] and r["engine"] == engine.name]
        for record in own:
            if "obstacle" in record:
                obstacles.setdefault(record["obstacle"], []).append(engine.title)
        failures = [record["failure"] for record in own if "failure" in record]
        if failures:
            lines.append(f"- {engine.title}: {len(failures)} failed: {failures[0]}.")
        # Where server and client share cores, they disturb each other, and that is meant. In step with the ticks they tell
        # nothing about others.
        is_unknown = shares_cores(table.context, scenario) or scenario["report"] in ON_SCHEDULE
        disturbed = 0 if is_unknown else sum(is_disturbed(record) for record in own)
        if disturbed:
            lines.append(f"- {engine.title}: in {disturbed} of {len(own)} measurements others used its core too.")
        # A client that spins is always busy.
        limited = sum(is_limited_by_client(record) for record in own) if table.context.wait == "sleep" else 0
        if limited:
            is_open_loop = any(pick(record, ("results", "client_lateness")) for record in own)
            meaning = "latencies are partly its own" if is_open_loop else "what is per second says how fast the client is"
            lines.append(f"- {engine.title}: in {limited} of {len(own)} measurements the client was the limit: {meaning}.")
    lines += [f"- {', '.join(titles)}: {obstacle}." for obstacle, titles in obstacles.items()]
    return [""] + lines if lines else []


def shares_cores(context, scenario):
    return scenario.get("spread", False) or bool(set(context.server_cpus.split(",")) & set(context.client_cpus.split(",")))


def core_busy(record):
    """How busy the server's cores were, on the average. The kernel looks only at every tick whether a core works, and misses
    much of what is done in step with the ticks; the server's own time is exact, and its cores were no less busy than that."""
    core, server = pick(record, CORE_BUSY), server_share(record)
    return max((share for share in (core, server) if share is not None), default=None)


def server_share(record):
    """The same by the server and the kernel's soft interrupt threads alone."""
    busy = pick(record, SERVER_BUSY)
    return None if busy is None else busy / len(pick(record, CORES))


def core_busy_median(table, scenario, engine):
    shares = [share for run in table.runs(scenario, engine).values() if (share := core_busy(run)) is not None]
    return statistics.median(shares) if shares else None


def is_disturbed(record):
    core, server = core_busy(record), server_share(record)
    return core is not None and server is not None and core - server > DISTURBED


def is_limited_by_client(record):
    core, client = core_busy(record), pick(record, CLIENT_BUSY)
    return core is not None and client is not None and client > CLIENT_BUSY_MIN and core < SERVER_IDLE_MAX


def plot(folder, table, scenarios):
    """The plots by scenario; none, with a note, where matplotlib is not there."""
    try:
        import plots
    except ImportError:
        table.context.notes.append("No plots: matplotlib is not installed.")
        return {}
    return plots.draw(folder, table, scenarios)


def row(*cells):
    return "| " + " | ".join(cells) + " |"


def number(figure, digits=None):
    """A figure with as many digits as it deserves."""
    if figure is None:
        return "-"
    if digits is None:
        digits = 3 if figure < 1 else 2 if figure < 100 else 1
    return f"{figure:,.{digits}f}".replace(",", " ")


def interval(ends, digits=None):
    return " - ".join(number(end, digits) for end in ends)


def percent(share):
    return "-" if share is None else f"{share:.0%}"
