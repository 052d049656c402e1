#!/usr/bin/env python3
"""Draws a trace of a relay's ticks: ticks.py TRACE.csv [OUT.svg]

TRACE.csv is what `rheostr relay --trace-ticks` wrote. Upper part: CPU time of each turn over time, by shard;
lower part: the same over the frames the turn put out. Prints the totals, and CPU time by frames a turn.
"""

import csv
import sys
from collections import defaultdict

WIDTH, HEIGHT, LEFT, TOP, GAP = 900, 260, 70, 40, 70
COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf"]
# More points say no more, and make a file nobody can open.
POINTS_MAX = 20_000


def read(path):
    # The last row of a relay that was killed may be cut short.
    with open(path, newline="") as file:
        whole = (row for row in csv.DictReader(file) if None not in row.values())
        return [{name: int(value) for name, value in row.items()} for row in whole]


def scale(values, length):
    top = max(values, default=1) or 1
    return top, length / top


def plot(rows, column, title, unit, y0):
    """One part of the picture: CPU µs a turn over a column."""
    start = min((row[column] for row in rows), default=0) if column == "from_us" else 0
    xs = [row[column] - start for row in rows]
    ys = [row["cpu_ns"] / 1000 for row in rows]
    x_top, x_scale = scale(xs, WIDTH)
    y_top, y_scale = scale(ys, HEIGHT)
    out = [f'<text x="{LEFT}" y="{y0 - 10}">{title}</text>',
           f'<path d="M{LEFT} {y0}v{HEIGHT}h{WIDTH}" fill="none" stroke="#888"/>']
    for part in range(5):
        x, y = LEFT + WIDTH * part / 4, y0 + HEIGHT - HEIGHT * part / 4
        out.append(f'<text x="{x:.0f}" y="{y0 + HEIGHT + 18}" text-anchor="middle">'
                   f'{x_top * part / 4:,.0f}{unit if part == 4 else ""}</text>')
        out.append(f'<text x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{y_top * part / 4:,.0f}</text>')
    for row, x, y in zip(rows, xs, ys):
        colour = COLOURS[row["shard"] % len(COLOURS)]
        out.append(f'<circle cx="{LEFT + x * x_scale:.1f}" cy="{y0 + HEIGHT - y * y_scale:.1f}" r="1.5" '
                   f'fill="{colour}" fill-opacity="0.5"/>')
    return out


def draw(rows):
    rows = rows[:: len(rows) // POINTS_MAX + 1]
    height = 2 * HEIGHT + TOP + 2 * GAP
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH + LEFT + 40}" height="{height}" '
             'font-family="sans-serif" font-size="12">', '<rect width="100%" height="100%" fill="white"/>']
    lines += plot(rows, "from_us", "CPU µs of a turn, over time (a colour a shard)", " µs", TOP)
    lines += plot(rows, "frames_out", "CPU µs of a turn, over the frames it put out", " frames",
                  TOP + HEIGHT + GAP)
    return "\n".join(lines + ["</svg>\n"])


def report(rows):
    totals = defaultdict(int)
    for row in rows:
        for name, value in row.items():
            totals[name] += value
    print(f"{len(rows)} turns, {totals['cpu_ns'] / 1e9:.3f} s of CPU, "
          f"{max((row['dropped_rows'] for row in rows), default=0)} rows dropped at most by a shard")
    for name in ["from_bus", "messages_in", "verified", "matched", "delivered_live", "delivered_stored",
                 "frames_out", "batches_out", "bytes_out"]:
        print(f"  {name:<17} {totals[name]:>12,}  {totals[name] / max(len(rows), 1):>10.2f} a turn")
    groups = defaultdict(list)
    for row in rows:
        groups[row["frames_out"].bit_length()].append(row)
    print("  frames a turn       turns   CPU µs a turn   CPU µs a frame")
    for bits, group in sorted(groups.items()):
        least, most = (1 << bits) >> 1, max((1 << bits) - 1, 0)
        cpu_us = sum(row["cpu_ns"] for row in group) / 1000
        frames = sum(row["frames_out"] for row in group)
        each = f"{cpu_us / frames:16.2f}" if frames else " " * 16
        print(f"  {f'{least}-{most}':<15} {len(group):>9,} {cpu_us / len(group):>15.1f} {each}")


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    rows = read(sys.argv[1])
    out = sys.argv[2] if len(sys.argv) == 3 else sys.argv[1].removesuffix(".csv") + ".svg"
    with open(out, "w") as file:
        file.write(draw(rows))
    report(rows)
    print(out)


if __name__ == "__main__":
    main()
