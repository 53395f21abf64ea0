"""Curves of hypervolume over trials as an SVG, from the JSON files of `sample_efficiency.py`: a panel per file, medians and all seeds.

python benchmarks/searching/curves.py digits-cnn.json digits-vit.json digits-gru.json --to curves.svg
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

COLORS = (
    "#d1495b",
    "#2e6f9e",
    "#7a9e2e",
    "#8a5fb0",
    "#c98a1b",
    "#3a9c8f",
    "#888888",
    "#b05f8a",
    "#5f5f9e",
    "#9e6b2e",
    "#222222",
)
WIDTH, HEIGHT, MARGIN = 330, 240, 42
TICKS = (10, 20, 50, 100, 200, 400)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--to", type=Path, required=True, metavar="SVG")
    parser.add_argument("--reference", default="floor", help="floor, wide or tight")
    options = parser.parse_args()
    documents = [json.loads(file.read_text()) for file in options.files]
    options.to.write_text(drawing(documents, options.reference))


def drawing(documents: Sequence[Mapping[str, Any]], reference: str) -> str:
    arms = list(dict.fromkeys(run["arm"] for document in documents for run in document["runs"]))
    colors = {arm: COLORS[index % len(COLORS)] for index, arm in enumerate(arms)}
    panels = [
        f'<g transform="translate({i * WIDTH},0)">{panel(d, reference, colors)}</g>' for i, d in enumerate(documents)
    ]
    legend = [
        f'<text x="{MARGIN + 150 * (i % 6)}" y="{HEIGHT + 14 + 16 * (i // 6)}" fill="{colors[arm]}">— {escape(arm)}</text>'
        for i, arm in enumerate(arms)
    ]
    size = f'width="{WIDTH * len(documents)}" height="{HEIGHT + 12 + 16 * math.ceil(len(arms) / 6)}"'
    style = 'font-family="sans-serif" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}><rect width="100%" height="100%" fill="white"/>{"".join(panels + legend)}</svg>\n'


def panel(document: Mapping[str, Any], reference: str, colors: Mapping[str, str]) -> str:
    """One task: trials on a logarithmic axis, the fraction of the union front's hypervolume from 0 to 1."""
    parts = [
        f'<text x="{MARGIN}" y="16" font-weight="bold">{escape(document["task"])}, {escape(document.get("cost", "bops"))}</text>'
    ]
    for tick in TICKS:
        x, y = place(tick, 0)
        parts.append(f'<path d="M{x:.1f},{y:.1f}V{place(tick, 1)[1]:.1f}" stroke="#e8e8e8"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 14:.1f}" text-anchor="middle" fill="#444">{tick}</text>')
    for tenth in range(0, 11, 2):
        x, y = place(TICKS[0], tenth / 10)
        parts.append(f'<path d="M{x:.1f},{y:.1f}H{place(TICKS[-1], 0)[0]:.1f}" stroke="#e8e8e8"/>')
        parts.append(f'<text x="{x - 5:.1f}" y="{y + 4:.1f}" text-anchor="end" fill="#444">{tenth / 10:.1f}</text>')
    for arm, color in colors.items():
        runs = [points(run[reference]) for run in document["runs"] if run["arm"] == arm]
        parts += [line(run, color, 'stroke-width="0.7" opacity="0.35"') for run in runs]
        if runs:
            shared = set.intersection(*(set(run) for run in runs))
            parts.append(
                line({n: statistics.median(run[n] for run in runs) for n in sorted(shared)}, color, 'stroke-width="2"')
            )
    return "".join(parts)


def points(curve: Mapping[str, float]) -> dict[int, float]:
    return {int(trials): value for trials, value in curve.items() if int(trials) >= TICKS[0]}


def line(curve: Mapping[int, float], color: str, look: str) -> str:
    path = "L".join("{:.1f},{:.1f}".format(*place(trials, value)) for trials, value in curve.items())
    return f'<path d="M{path}" fill="none" stroke="{color}" {look}/>'


def place(trials: float, fraction: float) -> tuple[float, float]:
    """x and y in a panel."""
    along = math.log(trials / TICKS[0]) / math.log(TICKS[-1] / TICKS[0])
    return MARGIN + along * (WIDTH - MARGIN - 14), 26 + (1 - fraction) * (HEIGHT - 26 - MARGIN + 10)


if __name__ == "__main__":
    main()
