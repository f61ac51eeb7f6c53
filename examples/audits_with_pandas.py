"""The audit database with pandas: match rate by upstream and day, and the worst answers.

    pip install pandas && python examples/audits_with_pandas.py sqlite:///seedproof.db
"""

import sys

import pandas as pd
from sqlalchemy import create_engine


def main(url: str) -> None:
    """Print two tables."""
    columns = "exchange_id, created_at, upstream, model, tokens, exact_matches, outside_support, clipped_margin"
    query = f"SELECT {columns} FROM audits WHERE verdict_status = 'verified'"  # noqa: S608 (no input in it)
    audits = pd.read_sql(query, create_engine(url), parse_dates=["created_at"])
    by_day = audits.groupby(["upstream", audits["created_at"].dt.date])[["tokens", "exact_matches"]].sum()
    by_day["match_rate"] = by_day["exact_matches"] / by_day["tokens"]
    print(by_day, end="\n\n")
    audits["match_rate"] = audits["exact_matches"] / audits["tokens"]
    print(audits[audits["tokens"] >= 20].nsmallest(10, "match_rate").to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1])
