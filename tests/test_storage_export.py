"""Exports: whole ones are told apart from changed ones, and each format holds what the database holds."""

import asyncio
import csv
import json

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from storage_rows import audit, exchange

from seedproof import cli
from storage import audits, exchanges
from storage.database import open_database
from storage.errors import BrokenExport
from storage.export import Chain, verify

VALUES = st.one_of(st.integers(), st.text(max_size=9), st.none())
RECORDS = st.lists(st.dictionaries(st.text(max_size=5), VALUES), max_size=6)


def lines_of(records):
    chain = Chain("audits")
    return [chain.opening, *(chain.line(record) for record in records), chain.closing()]


@given(RECORDS)
def test_what_was_written_verifies(records):
    head = verify(lines_of(records))
    assert (head.table, head.count) == ("audits", len(records))


@given(RECORDS.filter(bool), st.data())
def test_every_change_shows(records, data):
    lines = lines_of(records)
    number = data.draw(st.integers(1, len(records)))
    value = json.loads(lines[number])
    value["record"]["added"] = 1
    changed = [*lines[:number], json.dumps(value), *lines[number + 1 :]]
    removed = lines[:number] + lines[number + 1 :]
    for broken in (changed, removed, lines[:-1], [*lines, lines[-1]], lines[1:], ["[]", *lines], ["{"]):
        with pytest.raises(BrokenExport):
            verify(broken)


def test_records_that_change_places_show():
    first, one, two, last = lines_of([{"a": 1}, {"a": 2}])
    with pytest.raises(BrokenExport, match="line 2"):
        verify([first, two, one, last])


async def store_of(url):
    async with open_database(url) as database, database.writing() as session:
        await exchanges.record(session, [exchange(1), exchange(2, upstream="cheap")])
        await audits.add(session, [audit(1), audit(2, upstream="cheap", model="=1+1", exact_match_rate=0.5)])


def ran(*arguments):
    return CliRunner().invoke(cli, ["export", *map(str, arguments)])


async def test_the_command_writes_each_format_and_checks_its_own(database_url, tmp_path):
    await store_of(database_url)
    asked = ("--store", database_url)
    jsonl, table, parquet = tmp_path / "audits.jsonl", tmp_path / "audits.csv", tmp_path / "audits.parquet"
    written = await asyncio.to_thread(ran, jsonl, *asked)
    assert "2 audits written; keep this head elsewhere" in written.output
    head = written.output.split()[-1]
    checked = await asyncio.to_thread(ran, jsonl, "--verify")
    assert (checked.exit_code, checked.output.split()[-1]) == (0, head)
    jsonl.write_text(jsonl.read_text().replace('"tokens":100', '"tokens":999', 1))
    broken = await asyncio.to_thread(ran, jsonl, "--verify")
    assert broken.exit_code == 1
    assert "line 2 (record 1) was changed" in broken.output

    only_cheap = await asyncio.to_thread(ran, table, *asked, "--format", "csv", "--upstream", "cheap")
    assert "1 audits written" in only_cheap.output
    (row,) = csv.DictReader(table.read_text().splitlines())
    assert (row["model"], row["exact_match_rate"]) == ("'=1+1", "0.5")

    pq = pytest.importorskip("pyarrow.parquet")
    assert "2 audits written" in (await asyncio.to_thread(ran, parquet, *asked, "--format", "parquet")).output
    read = pq.read_table(parquet).to_pylist()
    assert sorted(one["upstream"] for one in read) == ["cheap", "honest"]
    assert {one["tokens"] for one in read} == {100}


async def test_exchanges_are_exported_whole(database_url, tmp_path):
    await store_of(database_url)
    file = tmp_path / "exchanges.jsonl"
    done = await asyncio.to_thread(ran, file, "--store", database_url, "--table", "exchanges")
    assert done.exit_code == 0, done.output
    records = [json.loads(line)["record"] for line in file.read_text().splitlines()[1:-1]]
    assert [record["request"]["model"] for record in records] == ["smollm2", "smollm2"]
