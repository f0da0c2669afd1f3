#!/usr/bin/env python3
"""Runs the conformance cases whose components are built and compares the outcome with what is decided.

  ./check.py PATH/TO/penstock            all areas; exit code 1 on anything that is not decided
  ./check.py PATH/TO/penstock netcat     some areas, comma separated

`differences.txt` lists the cases in which Penstock differs from Flume on purpose, each with its reason; `docs/compatibility.md`
has the longer text. `not-built.txt` lists what no build has yet: a case that uses one of those is counted and left out. A listed
case that passes is an error too, so that both lists stay true.
"""
import fnmatch
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.dont_write_bytecode = True
import run  # noqa: E402  (the folder of this script is on the path)

HERE = Path(__file__).resolve().parent
# component kind, inner part (interceptors, selector, processor, sink ...), key, value
SETTING = re.compile(r"^\s*a1\.(\w+)\.[^.\s]+\.((?:[\w@]+\.)*)(type|compression-type|fileType|codeC|deserializer|handler|serializer|compressionCodec)"
                     r"\s*[=:]\s*(\S+)", re.MULTILINE)


def lines(name: str) -> list[tuple[str, str]]:
    """First word and rest of each line that is no comment."""
    found = []
    for line in (HERE / name).read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            found.append((word, rest.strip()))
    return found


def missing_parts(conf: str, not_built: set[str]) -> set[str]:
    """Settings of a configuration that name something not built, as `sources.type=exec`."""
    found = set()
    for kind, inner, key, value in SETTING.findall(conf):
        inner = inner.replace("@", "").split(".")[0]
        found.add((".".join(filter(None, [kind, inner, key])) + "=" + value).lower())
    found |= {f"{kind}.type={value.lower()}" for kind, value in re.findall(r"^\s*a1\.(configfilters)\.\w+\.type\s*=\s*(\S+)", conf, re.M)}
    return {part for part in found if part in not_built}


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    sut, areas = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "*"
    not_built = {word.lower() for word, _ in lines("not-built.txt")}
    differences = lines("differences.txt")
    cases, left_out = [], Counter()
    known = run.load_cases("*")
    for case in run.load_cases(areas):
        if missing_parts(case.conf, not_built):
            left_out[case.name.split("/")[0]] += 1
        else:
            cases.append(case)
    outcome = subprocess.run([sys.executable, "-B", str(HERE / "run.py"), "--json", "--sut", sut,
                              "--case", ",".join(case.name for case in cases)], stdout=subprocess.PIPE, check=False)
    results = json.loads(outcome.stdout)["results"]

    counts = {area: Counter(left_out=left_out[area]) for area in sorted({case.name.split("/")[0] for case in cases} | set(left_out))}
    problems, used = [], set()
    for result in results:
        name = result["case"]
        area = counts[name.split("/")[0]]
        decided = next(((pattern, why) for pattern, why in differences if fnmatch.fnmatch(name, pattern.lstrip("?"))), None)
        if decided:
            used.add(decided[0])
        may_pass = decided and decided[0].startswith("?")   # a race in Flume's own behaviour
        if result["pass"]:
            area["passed"] += 1
            if decided and not may_pass:
                problems.append(f"{name} passes, but differences.txt says it differs: {decided[1]}")
        elif decided:
            area["differ"] += 1
            if not decided[1]:
                problems.append(f"{name}: differences.txt gives no reason")
        else:
            area["failed"] += 1
            note = f" (Flume quirk: {result['quirk']})" if result["quirk"] else ""
            problems.append(f"{name} failed{note}\n{result['diff']}")
    for pattern, _ in differences:
        if not any(fnmatch.fnmatch(case.name, pattern.lstrip("?")) for case in known):
            problems.append(f"differences.txt: no case is named {pattern}")
    for problem in problems:
        print(problem)
    total = Counter()
    for area, count in counts.items():
        total += count
        print(f"conformance {area}: {count['passed']} passed, {count['differ']} decided differences, "
              f"{count['failed']} failed, {count['left_out']} need parts that are not built")
    print(f"conformance: {total['passed']} passed, {total['differ']} decided differences, {total['failed']} failed, "
          f"{total['left_out']} need parts that are not built")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
