"""Read result files with pandas: one row per run, one accuracy per test task."""

from pathlib import Path

import pandas as pd

QUICK = Path(__file__).parent.parent / "results" / "quick"


def main() -> None:
    """Print accuracies, and a comparison of two strategies task by task."""
    rows = pd.concat([pd.read_csv(path) for path in sorted(QUICK.rglob("result.csv"))])
    rows = rows[rows["changes"] == "{}"]  # a changed preset, here bfloat16, is another protocol
    print(rows.groupby(["dataset", "shots", "algo"])["accuracy"].agg(["mean", "min", "max", "count"]).round(4))

    km, anil = (pd.read_csv(QUICK / "omniglot-20w1s" / algo / "seed0" / "tasks.csv") for algo in ("km", "anil"))
    difference = km["accuracy"] - anil["accuracy"]  # the same 600 test episodes
    half_width = 1.96 * difference.std() / len(difference) ** 0.5
    print(f"KM minus ANIL, seed 0: {difference.mean():+.4f} +- {half_width:.4f} over {len(difference)} tasks")


if __name__ == "__main__":
    main()
