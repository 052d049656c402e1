#!/usr/bin/env python3
"""Instructions a pass of each case of benches/instructions.rs takes, against the committed baseline.

  benches/instructions.py             compare; exit 1 where a case takes over 5 % more than it did
  benches/instructions.py --update    write the baseline

Counted by callgrind, which offers programs no AVX-512 and no SHA extensions: the counts are of the code those
processors run that have neither, and the same on all. A new compiler changes them; the baseline says which one
it is of, and under another one differences are printed but are no failure.
"""

import json
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BASELINE = os.path.join(ROOT, "benches", "instructions.json")
TOLERANCE = 0.05
PASSES = (20, 60)


def built():
    command = ["cargo", "bench", "--locked", "--bench", "instructions", "--no-run", "--message-format", "json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found = [json.loads(line) for line in lines]
    return next(line["executable"] for line in found
                if line.get("executable") and line["target"]["name"] == "instructions")


def count(program, case, passes, scratch):
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={scratch}", program, case, str(passes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(re.search(r"Collected : (\d+)", done.stderr).group(1))


def measure():
    program = built()
    cases = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    few, many = PASSES
    with tempfile.NamedTemporaryFile() as scratch:
        return {case: round((count(program, case, many, scratch.name) - count(program, case, few, scratch.name))
                            / (many - few)) for case in cases}


def main():
    if sys.argv[1:] not in ([], ["--update"]):
        sys.exit(__doc__)
    compiler = subprocess.run(["rustc", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    found = measure()
    if sys.argv[1:] == ["--update"]:
        with open(BASELINE, "w") as file:
            json.dump({"compiler": compiler, "instructions": found}, file, indent=2)
            file.write("\n")
        return
    with open(BASELINE) as file:
        baseline = json.load(file)
    known, worse = baseline["instructions"], []
    for case in sorted(found.keys() | known.keys()):
        now, before = found.get(case), known.get(case)
        if now is None or before is None:
            print(f"{case:<24} {now or 'gone'} {before or 'new'}")
            worse.append(case)
            continue
        change = now / before - 1
        print(f"{case:<24} {now:>12,} {before:>12,} {change:+8.2%}")
        if change > TOLERANCE:
            worse.append(case)
        elif change < -TOLERANCE:
            print(f"{case}: fewer than the baseline has: write a new one (--update)")
    if worse and compiler != baseline["compiler"]:
        print(f"not judged: this is {compiler}, the baseline is of {baseline['compiler']}")
    elif worse:
        sys.exit(f"more instructions than the baseline: {', '.join(worse)}")


if __name__ == "__main__":
    main()
