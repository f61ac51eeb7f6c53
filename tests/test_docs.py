"""What the documents promise: their SQL runs on both databases, their paths and commands exist."""

import re
from pathlib import Path

import pytest
from sqlalchemy import text
from storage_rows import audit, exchange

from seedproof import cli
from storage import audits, exchanges
from storage.database import open_database

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "docs/api.md", "docs/verdicts.md")


async def test_the_readmes_queries_run_and_find_rows(database_url):
    queries = re.findall(r"```sql\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(queries) == 3
    async with open_database(database_url) as database:
        async with database.writing() as session:
            await exchanges.record(session, [exchange(1)])
            await audits.add(session, [audit(1), audit(2, upstream="cheap", exact_matches=60, exact_match_rate=0.6)])
        async with database.reading() as session:
            by_day, worst, lag = [(await session.execute(text(query.rstrip("; \n")))).all() for query in queries]
    assert [(row.upstream, row.day, float(row.match_rate)) for row in by_day] == [
        ("cheap", "2026-11-23", 0.6), ("honest", "2026-11-23", 0.98)
    ]
    assert worst[0].upstream == "cheap"
    assert [(row.state, row.jobs) for row in lag] == [("todo", 1)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_that_documents_name_exist(document):
    rooms = "proxy|verifier|storage|bench|configs|tests|docs"
    named = set(re.findall(rf"`((?:{rooms})/[\w./-]*)`", (ROOT / document).read_text()))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_that_documents_name_exist(document):
    written = (ROOT / document).read_text()
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", written, re.DOTALL))
    named = {*re.findall(r"^seedproof ([a-z]+)", shell, re.MULTILINE), *re.findall(r"`seedproof ([a-z]+)", written)}
    assert named <= set(cli.commands)
