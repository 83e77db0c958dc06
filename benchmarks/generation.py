"""Time of one generation against an empty nested template with two hooks, in pairs, side by side in one run.

    python benchmarks/generation.py [--pairs 15]

Both run the same command (`cookiecutter TEMPLATE --no-input`) in the same way; what is left of the empty template is
what cookiecutter, Python and two hook processes cost by themselves. Writes benchmarks/results/generation.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "generation.json"


def empty_template(place: Path) -> Path:
    """A nested template of one file and two hooks that do nothing."""
    template = place / "template"
    (template / "hooks").mkdir(parents=True)
    (template / "{{cookiecutter.slug}}").mkdir()
    (place / "cookiecutter.json").write_text(
        json.dumps({"templates": {"empty": {"path": "./template", "title": "empty", "description": "nothing"}}})
    )
    (template / "cookiecutter.json").write_text(json.dumps({"slug": "my-detector"}))
    (template / "{{cookiecutter.slug}}" / "README.md").write_text("# {{cookiecutter.slug}}\n")
    for name in ("pre_gen_project", "post_gen_project"):
        (template / "hooks" / f"{name}.py").write_text("pass\n")
    return place


def seconds(template: Path, scratch: Path) -> float:
    """Wall time of one generation into a new folder."""
    with tempfile.TemporaryDirectory(dir=scratch) as output:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "cookiecutter", str(template), "--no-input", "--output-dir", output],
            check=True,
            capture_output=True,
            env={**os.environ, "HOME": str(scratch)},
        )
        return time.perf_counter() - began


def main() -> None:
    """Measure, print the three medians, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as scratch:
        empty = empty_template(Path(scratch, "empty"))
        for template in (ROOT, empty):
            seconds(template, Path(scratch))
        measured = [(seconds(ROOT, Path(scratch)), seconds(empty, Path(scratch))) for _ in range(pairs)]
    ratios = sorted(ours / theirs for ours, theirs in measured)
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.platform(terse=True)}, Python {platform.python_version()}",
        "pairs": pairs,
        "this_template_s": round(statistics.median(ours for ours, _ in measured), 3),
        "empty_template_s": round(statistics.median(theirs for _, theirs in measured), 3),
        "ratio": {
            "min": round(ratios[0], 2),
            "median": round(statistics.median(ratios), 2),
            "max": round(ratios[-1], 2),
        },
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
