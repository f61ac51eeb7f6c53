"""What the documents promise: their SQL runs on both databases, their paths and commands exist."""

import contextlib
import re
import shlex

import click
import pytest
from documented import DOCUMENTS, ROOT, commands_of
from sqlalchemy import text
from storage_rows import audit, exchange

from proxy import config, config_upstreams, dashboard_config, metrics_config
from seedproof import cli
from storage import audits, exchanges
from storage.database import open_database


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
def test_commands_in_documents_parse_with_their_options(document):
    refused = {}
    for line in commands_of((ROOT / document).read_text()):
        try:
            parse(cli, shlex.split(line)[1:])
        except click.ClickException as error:
            refused[line] = error.format_message()
    assert refused == {}


def parse(command: click.Command, arguments: list[str]) -> None:
    """Find the subcommand and read its options, without running or asking for what is missing."""
    if isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        known = command.commands.get(arguments[0].split("|")[0])
        if known is None:
            raise click.UsageError(f"no command {arguments[0]!r}")
        return parse(known, arguments[1:])
    if isinstance(command, click.Group):
        command.make_parser(click.Context(command)).parse_args(arguments)
        return None
    # placeholders are no files, and what is only mentioned leaves out what is needed
    with contextlib.suppress(click.BadParameter, click.BadOptionUsage):
        command.parse_args(click.Context(command), arguments)
    return None


def test_every_configuration_key_is_documented_and_no_other():
    documented: dict[str, set[str]] = {}
    for section in re.split(r"^##+ ", (ROOT / "docs/configuration.md").read_text(), flags=re.MULTILINE)[1:]:
        title = section.split("\n")[0].strip("`[] ")
        first_cells = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
        documented[title] = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    known = {
        "The top level": config._TOP, "seed": config._SEED, "limits": config._LIMITS, "clients": config._CLIENT,
        "journal": config._JOURNAL, "dashboard": dashboard_config.KEYS, "metrics": metrics_config.KEYS,
        "upstreams": config_upstreams._UPSTREAM,
        'upstreams.models."NAME"': set(config_upstreams._MODEL) - set(config_upstreams._POLICY),
        "upstreams.sampling": config_upstreams._SAMPLING, "upstreams.retention": config_upstreams._RETENTION,
        "upstreams.bounds": tuple(config_upstreams.BOUNDS),
    }  # fmt: skip
    assert documented == {section: set(keys) for section, keys in known.items()}
