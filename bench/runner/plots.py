"""The report's plots, as SVG: bars of cost and memory, and latency over load."""

import statistics

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "ringwire"
matplotlib.rcParams["svg.fonttype"] = "none"
matplotlib.rcParams["font.size"] = 10

import matplotlib.pyplot as pyplot  # noqa: E402
from matplotlib.ticker import EngFormatter, LogLocator  # noqa: E402

import report  # noqa: E402

OURS = "#0b7285"
REFERENCE = "#868e96"
OTHERS = "#ced4da"


def draw(folder, table, scenarios):
    """Draws what there are figures for, and gives the files by scenario."""
    drawn = {}
    for scenario in scenarios:
        if not table.measured(scenario):
            continue
        name = scenario["name"]
        one, _ = report.unit(scenario)
        if scenario["report"] in ("cost", "scheduled", "yardstick", "connect"):
            drawn[name] = [bars(folder, table, scenario, report.COST, f"server CPU, us per {one}")]
        elif scenario["report"] == "idle":
            drawn[name] = [bars(folder, table, scenario, report.IDLE, "resident bytes per connection")]
        elif scenario["report"] == "rate":
            drawn[name] = [curves(folder, table, scenario)]
    return drawn


def bars(folder, table, scenario, path, label):
    """One bar per engine, best on top, with the quartiles of its rounds."""
    engines = table.measured(scenario)
    figures = [table.figures(scenario, engine, path) for engine in engines]
    medians = [statistics.median(own) for own in figures]
    low = [median - report.quartiles(own)[0] for median, own in zip(medians, figures)]
    high = [report.quartiles(own)[1] - median for median, own in zip(medians, figures)]
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.38 * len(engines)))
    positions = range(len(engines))
    colours = [colour(table, engine) for engine in engines]
    axes.barh(positions, medians, xerr=(low, high), color=colours, height=0.7, ecolor="#495057", capsize=2)
    for position, median, above in zip(positions, medians, high):
        axes.annotate(
            report.number(median), (median + above, position), xytext=(5, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(positions, [engine.title for engine in engines])
    axes.invert_yaxis()
    axes.set_xlim(0, max(median + above for median, above in zip(medians, high)) * 1.15)
    axes.set_xlabel(label)
    axes.set_title(scenario["title"], loc="left", fontsize=10)
    return save(folder, figure, axes, scenario)


def curves(folder, table, scenario):
    """p50 and p99 over the rate, one colour per engine."""
    figure, axes = pyplot.subplots(figsize=(8, 5))
    palette = pyplot.get_cmap("tab20")
    for index, engine in enumerate(table.measured(scenario)):
        def medians(*path):
            figures = (table.median(scenario, engine, path, share) for share in scenario["shares"])
            return [figure for figure in figures if figure is not None]

        rates = medians(*report.THROUGHPUT)
        tint = OURS if engine.name == "ringwire" else palette(index % 20)
        axes.plot(rates, medians(*report.LATENCY, "p99_us"), marker="o", color=tint, label=engine.title)
        axes.plot(rates, medians(*report.LATENCY, "p50_us"), marker=".", color=tint, linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(EngFormatter(sep=""))
        # Numbers at every step would run into each other.
        axis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.set_minor_formatter(EngFormatter(sep=""))
    axes.set_xlabel(f"{report.unit(scenario)[1]} per second")
    axes.set_ylabel("latency, us (line p99, dots p50)")
    axes.set_title(scenario["title"], loc="left", fontsize=10)
    axes.legend(fontsize=8)
    return save(folder, figure, axes, scenario)


def colour(table, engine):
    if engine.folder is None:
        return OURS
    return REFERENCE if engine.name == table.context.reference else OTHERS


def save(folder, figure, axes, scenario):
    axes.spines[["top", "right"]].set_visible(False)
    name = f"{scenario['name']}.svg"
    figure.savefig(folder / name, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return name
