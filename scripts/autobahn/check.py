#!/usr/bin/env python3
"""check.py INDEX.json [INDEX.json ...] --expect N

Merges the index files of a run whose cases were split, and exits 1 unless exactly N cases ran and each was OK
or INFORMATIONAL, in behaviour and in how the connection was closed. NON-STRICT is a failure."""

import argparse
import collections
import json
import sys

PASSING = {"OK", "INFORMATIONAL"}


def merge(paths):
    agents = set()
    cases = {}
    for path in paths:
        with open(path) as file:
            for agent, results in json.load(file).items():
                agents.add(agent)
                cases.update(results)
    return agents, cases


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index", nargs="+")
    parser.add_argument("--expect", type=int, required=True)
    arguments = parser.parse_args()

    try:
        agents, cases = merge(arguments.index)
    except FileNotFoundError as error:
        sys.exit(f"no report: {error.filename}")
    if not agents:
        sys.exit("no agent in the report: the server refused every connection")

    failed = 0
    for case in sorted(cases, key=lambda name: [int(part) for part in name.split(".")]):
        result = cases[case]
        if result["behavior"] in PASSING and result["behaviorClose"] in PASSING:
            continue
        failed += 1
        print(
            f"  {case}: {result['behavior']}, close {result['behaviorClose']}"
            f" with code {result['remoteCloseCode']}: {result['reportfile']}"
        )
    behavior = collections.Counter(result["behavior"] for result in cases.values())
    summary = ", ".join(f"{count} {name}" for name, count in sorted(behavior.items()))
    print(f"{', '.join(sorted(agents))}: {len(cases)} cases: {summary}")
    if len(cases) != arguments.expect:
        sys.exit(f"{len(cases)} cases ran, {arguments.expect} were expected")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
