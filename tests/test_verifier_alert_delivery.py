"""Alerts from a database to real receivers: what they get, what is tried again, and through a crash."""

import asyncio
import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from alert_receivers import ROUTING_KEY, SECRET, hooks, mail_server
from sqlalchemy import select
from test_proxy_metrics import free_port
from test_proxy_processes import until
from watched import fill, one

from storage import alerts
from storage.database import open_database
from storage.models_alerts import Evaluation, Notice
from verifier import alert_watch
from verifier.alert_config import load_alerts, parse_alerts
from verifier.alert_delivery import GuardedResolver, Message, Receiver, Undelivered, deliver
from verifier.alert_watch import Watch
from verifier.errors import InputError

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {"SECRET": SECRET, "KEY": ROUTING_KEY}
BASE = "http://127.0.0.1:8081/dashboard"


# the mail server warns, rightly, of passwords without TLS: these do not leave the machine
without_tls = pytest.mark.filterwarnings("ignore:Requiring AUTH:UserWarning")


def configured(url: str, *kinds: str, port: int = 0, argv=(), **rule):
    tables = {
        "webhook": {"url": f"{url}/webhook", "secret_env": "SECRET", "allow_private": True},
        "slack": {"url": f"{url}/slack", "allow_private": True},
        "pagerduty": {"url": f"{url}/pagerduty", "routing_key_env": "KEY", "allow_private": True},
        "email": {"host": "127.0.0.1", "port": port, "tls": "none", "from": "seedproof@example.com",
                  "to": ["ops@example.com"], "user": "seedproof", "password_env": "SECRET"},
        "command": {"argv": list(argv)},
    }  # fmt: skip
    receivers = [{"name": kind, "kind": kind, **tables[kind]} for kind in kinds]
    rules = [{"name": "Deviates", "when": "verdict", "severity": "critical", "receivers": list(kinds), **rule}]
    return parse_alerts({"receivers": receivers, "rules": rules, "dashboard_url": BASE}, ENVIRONMENT)


async def told(database, config):
    """One evaluation, whenever the last one was, and everything that is due."""
    async with database.writing() as session:
        if (row := (await session.scalars(select(Evaluation))).first()) is not None:
            row.evaluated_at -= timedelta(days=1)
    watch = Watch(database, config)
    assert await watch.evaluate()
    while await watch.send():
        pass


async def notices(database) -> list[Notice]:
    async with database.reading() as session:
        return list(await session.scalars(select(Notice).order_by(Notice.id)))


async def test_a_webhook_gets_alertmanagers_json_signed(database_url):
    async with hooks() as received, open_database(database_url) as database:
        await fill(database)
        await told(database, configured(received.url, "webhook"))
        await told(database, configured(received.url, "webhook"))
    (taken,) = received.taken
    assert set(taken.json) == {
        "version", "groupKey", "truncatedAlerts", "status", "receiver", "groupLabels", "commonLabels",
        "commonAnnotations", "externalURL", "alerts",
    }  # fmt: skip
    assert (taken.json["version"], taken.json["status"], taken.json["receiver"]) == ("4", "firing", "webhook")
    assert taken.json["groupLabels"] == {"alertname": "Deviates"}
    (alert,) = taken.json["alerts"]
    assert alert["labels"] == {
        "alertname": "Deviates", "severity": "critical", "upstream": "cheap", "model": "smollm2",
        "reference": "smollm2-bf16", "sampler": "vllm@0.26.0/v2",
    }  # fmt: skip
    assert alert["annotations"]["summary"].startswith("cheap (smollm2): deviates: ")
    assert (alert["status"], alert["endsAt"]) == ("firing", "0001-01-01T00:00:00Z")
    assert datetime.fromisoformat(alert["startsAt"].replace("Z", "+00:00")) <= datetime.now(timezone.utc)
    assert alert["generatorURL"] == f"{BASE}/alerts"
    assert len(alert["fingerprint"]) == 16
    signed = taken.headers["X-Seedproof-Timestamp"].encode() + b"." + taken.body
    expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert taken.headers["X-Signature-256"] == f"sha256={expected}"


@without_tls
async def test_every_kind_gets_what_it_must_and_no_secret_is_stored(database_url, tmp_path):
    page = tmp_path / "page.json"
    argv = ["/bin/sh", "-c", f"cat > {page}; env > {page}.env"]
    with mail_server(free_port()) as mails:
        async with hooks() as received, open_database(database_url) as database:
            await fill(database)
            kinds = ("webhook", "slack", "pagerduty", "email", "command")
            await told(database, configured(received.url, *kinds, port=mails.port, argv=argv))
            kept = await notices(database)
    by_path = {taken.path: taken.json for taken in received.taken}
    assert set(by_path) == {"/webhook", "/slack", "/pagerduty"}
    assert "cheap (smollm2): deviates" in by_path["/slack"]["blocks"][1]["text"]["text"]
    event = by_path["/pagerduty"]
    assert (event["event_action"], event["payload"]["severity"]) == ("trigger", "critical")
    assert event["dedup_key"].startswith("seedproof/")
    (mail,) = mails.mails
    assert mail["Subject"].startswith("[seedproof] FIRING Deviates: cheap (smollm2): deviates")
    assert mails.recipients == ["ops@example.com"]
    assert f"{BASE}/alerts" in mail.get_content()
    assert page.read_bytes() == next(taken.body for taken in received.taken if taken.path == "/webhook").replace(
        b'"receiver":"webhook"', b'"receiver":"command"'
    )
    assert "HOME" not in (tmp_path / "page.json.env").read_text()
    assert [notice.state for notice in kept] == ["sent"] * 5
    stored = " ".join(f"{notice.payload} {notice.error}" for notice in kept)
    assert not any(secret in stored for secret in (SECRET, ROUTING_KEY, received.url))


async def test_the_end_is_told_as_the_same_incident(sqlite_url):
    async with hooks() as received, open_database(sqlite_url) as database:
        await fill(database)
        await told(database, configured(received.url, "pagerduty", "webhook"))
        await told(database, configured(received.url, "pagerduty", "webhook", verdicts=["unsupported"]))
    events = [taken.json for taken in received.taken if taken.path == "/pagerduty"]
    assert [event["event_action"] for event in events] == ["trigger", "resolve"]
    assert len({event["dedup_key"] for event in events}) == 1
    ended = [taken.json for taken in received.taken if taken.path == "/webhook"][-1]
    assert (ended["status"], ended["alerts"][0]["status"]) == ("resolved", "resolved")
    assert ended["alerts"][0]["endsAt"] > ended["alerts"][0]["startsAt"]


@without_tls
async def test_a_receiver_that_fails_is_tried_again_and_one_that_refuses_is_not(sqlite_url, monkeypatch):
    monkeypatch.setattr(alert_watch, "FIRST_RETRY", timedelta())
    with mail_server(free_port()) as mails:
        mails.refuse = 2
        async with hooks() as received, open_database(sqlite_url) as database:
            received.statuses = [503, 429, 500]
            await fill(database)
            await told(database, configured(received.url, "webhook", "email", port=mails.port))
            assert (len(received.taken), len(mails.mails)) == (1, 1)
            received.statuses = [404]
            good = {"verdicts": ["consistent", "inconclusive"], "name": "Two"}
            await told(database, configured(received.url, "webhook", **good))
            kept = await notices(database)
    assert [(notice.state, notice.attempts) for notice in kept][:2] == [("sent", 4), ("sent", 3)]
    assert (kept[-1].state, kept[-1].attempts) == ("failed", 1)
    assert "404" in kept[-1].error


async def test_a_message_made_for_another_kind_of_receiver_holds_up_no_other(sqlite_url, tmp_path):
    argv = [sys.executable, "-c", "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()", str(tmp_path / "told")]
    async with open_database(sqlite_url) as database:
        await fill(database)
        config = configured("http://127.0.0.1:9", "slack", "command", argv=argv)
        await Watch(database, config).evaluate()
        mail = Receiver(name="slack", kind="email", host="127.0.0.1", port=9, sender="a@example.com", to=("b@c.d",))
        changed = replace(config, receivers={**config.receivers, "slack": mail})
        assert await Watch(database, changed).send() == 2
        slack, command = await notices(database)
        assert (slack.state, slack.attempts, slack.error) == ("todo", 1, "it cannot be sent (KeyError)")
        assert slack.run_at > slack.created_at
        assert (command.state, (tmp_path / "told").exists()) == ("sent", True)


async def test_a_receiver_that_hangs_holds_up_its_own_topic_alone(sqlite_url):
    now = datetime.now(timezone.utc)
    async with open_database(sqlite_url) as database, database.writing() as session:
        topics = (("a", "x"), ("a", "x"), ("a", "y"), ("b", "x"))
        await alerts.post(session, [alerts.NewNotice(*topic, {}) for topic in topics], now=now)
        due = {"limit": 10, "lease": timedelta(minutes=1)}
        first = await alerts.due(session, **due, now=now)
        assert [notice.id for notice in first] == [1, 3, 4]
        assert await alerts.due(session, **due, now=now) == []
        await alerts.sent(session, first[0], now=now)
        assert [notice.id for notice in await alerts.due(session, **due, now=now)] == [2]
        again = await alerts.due(session, **due, now=now + timedelta(minutes=2))
        assert [(notice.id, notice.attempts) for notice in again] == [(2, 2), (3, 2), (4, 2)]
        # the first sender is late: it no longer has a say
        await alerts.fail(session, first[1], error="late")
        assert [n.state for n in await alerts.latest_notices(session)] == ["todo", "todo", "todo", "sent"]


async def test_two_workers_decide_once(database_url):
    async with hooks() as received, open_database(database_url) as database:
        await fill(database)
        config = configured(received.url, "webhook")
        watches = [Watch(database, config) for _ in range(4)]
        evaluated = await asyncio.gather(*(watch.evaluate() for watch in watches))
        await asyncio.gather(*(watch.send() for watch in watches))
    assert sorted(evaluated) == [False, False, False, True]
    assert len(received.taken) == 1


async def test_a_silence_in_the_database_keeps_quiet(sqlite_url):
    now = datetime.now(timezone.utc)
    async with hooks() as received, open_database(sqlite_url) as database:
        await fill(database)
        async with database.writing() as session:
            during = {"starts_at": now, "ends_at": now + timedelta(hours=1), "comment": "x", "now": now}
            number = await alerts.silence(session, {"upstream": "ch*"}, **during)
        await told(database, configured(received.url, "webhook"))
        assert received.taken == []
        async with database.writing() as session:
            assert await alerts.end_silence(session, number, now=datetime.now(timezone.utc))
        await told(database, configured(received.url, "webhook"))
    assert len(received.taken) == 1


TOML = """
[[receivers]]
name = "ops"
kind = "webhook"
url = "{url}/webhook"
secret_env = "SECRET"
allow_private = true
[[receivers]]
name = "chat"
kind = "slack"
url = "{url}/slack"
allow_private = true
[[receivers]]
name = "mail"
kind = "email"
host = "127.0.0.1"
port = {port}
tls = "none"
from = "seedproof@example.com"
to = ["ops@example.com"]
user = "seedproof"
password_env = "SECRET"
[[rules]]
name = "Deviates"
when = "verdict"
receivers = {receivers}
"""


def rules_of(url: str, *receivers: str, port: int = 25) -> str:
    return TOML.format(url=url, port=port, receivers=json.dumps(receivers))


def script(body: str) -> str:
    return textwrap.dedent(
        """
        import asyncio, os, signal, sys
        from datetime import timedelta
        from pathlib import Path
        from storage.database import open_database
        from verifier.alert_config import load_alerts
        from verifier.alert_watch import Watch

        async def main():
            async with open_database(sys.argv[1]) as database:
                watch = Watch(database, load_alerts(Path(sys.argv[2])), lease=timedelta(seconds=1))
                await watch.evaluate()
                BODY

        asyncio.run(main())
        """
    ).replace("BODY", body)


def run_script(body: str, store: str, rules: Path) -> subprocess.Popen:
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", script(body), store, str(rules)], env=environment)


async def deliver_with_the_command(store: str, rules: Path) -> None:
    command = [sys.executable, "-m", "seedproof", "alerts", "run", str(rules), "--store", store, "--once"]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@without_tls
async def test_a_kill_between_decision_and_delivery_loses_no_message(sqlite_url, tmp_path):
    rules = tmp_path / "alerts.toml"
    async with open_database(sqlite_url) as database:
        await fill(database)
    with mail_server(free_port()) as mails:
        async with hooks() as received:
            rules.write_text(rules_of(received.url, "ops", "chat", "mail", port=mails.port))
            process = run_script("os.kill(os.getpid(), signal.SIGKILL)", sqlite_url, rules)
            assert await asyncio.to_thread(process.wait, 60) == -signal.SIGKILL
            assert (received.taken, mails.mails) == ([], [])
            await deliver_with_the_command(sqlite_url, rules)
            await deliver_with_the_command(sqlite_url, rules)
    assert sorted(taken.path for taken in received.taken) == ["/slack", "/webhook"]
    by_path = {taken.path: taken.json for taken in received.taken}
    assert [alert["labels"]["upstream"] for alert in by_path["/webhook"]["alerts"]] == ["cheap"]
    assert by_path["/webhook"]["status"] == "firing"
    assert "cheap (smollm2): deviates" in by_path["/slack"]["blocks"][1]["text"]["text"]
    (mail,) = mails.mails
    assert mail["Subject"].startswith("[seedproof] FIRING Deviates: cheap (smollm2): deviates")


async def test_a_kill_while_it_is_sent_sends_it_again_under_the_same_id(sqlite_url, tmp_path):
    rules, reached = tmp_path / "alerts.toml", asyncio.Event()
    ids = []

    async def answers_late(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        ids.append(next(line for line in head.decode().split("\r\n") if line.startswith("X-Seedproof-Delivery")))
        reached.set()
        await reader.read()
        writer.close()

    async with open_database(sqlite_url) as database:
        await fill(database)
    server = await asyncio.start_server(answers_late, "127.0.0.1", port := free_port())
    async with server:
        rules.write_text(rules_of(f"http://127.0.0.1:{port}", "ops"))
        process = run_script("await watch.send()", sqlite_url, rules)
        await asyncio.wait_for(reached.wait(), 60)
        process.kill()
        await asyncio.to_thread(process.wait, 60)
    async with hooks() as received, open_database(sqlite_url) as database:
        rules.write_text(rules_of(received.url, "ops"))

        async def lease_over():
            (notice,) = await notices(database)
            return notice.state == "todo" and notice.run_at < datetime.now(timezone.utc)

        await until(lease_over)
        await deliver_with_the_command(sqlite_url, rules)
        assert [f"X-Seedproof-Delivery: {taken.headers['X-Seedproof-Delivery']}" for taken in received.taken] == ids


async def test_a_database_that_is_away_ends_nothing(sqlite_url, monkeypatch, caplog):
    async with hooks() as received, open_database(sqlite_url) as database:
        await fill(database)
        watch = Watch(database, configured(received.url, "webhook"))
        failures = [0]
        real = watch.evaluate

        async def fails_at_first():
            failures[0] += 1
            if failures[0] == 1:
                raise OSError("away")
            return await real()

        monkeypatch.setattr(watch, "evaluate", fails_at_first)
        monkeypatch.setattr(alert_watch, "SEND_POLL_SECONDS", 0.02)
        object.__setattr__(watch._config, "every", timedelta(milliseconds=20))
        running = asyncio.create_task(watch.run())

        async def arrived():
            return bool(received.taken)

        await until(arrived)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert "could not be worked on" in caplog.text


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("https://127.0.0.1/x", False), ("https://10.0.0.8/x", False), ("https://[::1]/x", False),
        ("https://169.254.169.254/latest/meta-data", False), ("https://169.254.169.254/x", True),
        ("https://[fe80::1]/x", True), ("https://[::ffff:169.254.169.254]/x", True), ("https://0.0.0.0/x", True),
        ("https://[::ffff:10.0.0.1]/x", False), ("https://224.0.0.1/x", True), ("http://example.com/x", False),
        ("ftp://example.com/x", True), ("https://user:pass@example.com/x", False), ("file:///etc/passwd", True),
    ],
)  # fmt: skip
def test_an_address_that_nobody_should_send_to_is_refused(url, private):
    table = {"name": "a", "kind": "slack", "url": url, "allow_private": private}
    with pytest.raises(InputError, match="receiver 'a'"):
        parse_alerts({"receivers": [table]}, {})


async def test_a_name_that_leads_inside_is_refused_when_it_is_resolved():
    with pytest.raises(Undelivered, match="not allowed"):
        await GuardedResolver(allow_private=False).resolve("localhost", 80)
    receiver = Receiver(name="a", kind="webhook", url="https://localhost:1/x")
    with pytest.raises(Undelivered, match="not allowed"):
        await deliver(receiver, Message(id="1", payload={}, timestamp=0))


async def test_a_redirect_is_not_followed(sqlite_url):
    async with hooks() as received:
        received.statuses = [302]
        receiver = Receiver(name="a", kind="webhook", url=f"{received.url}/webhook", allow_private=True)
        with pytest.raises(Undelivered, match="302") as error:
            await deliver(receiver, Message(id="1", payload={}, timestamp=0))
    assert not error.value.again


def test_the_shipped_file_loads():
    environment = {"SEEDPROOF_ALERT_WEBHOOK": "https://alerts.example.com/hook", "SEEDPROOF_ALERT_SECRET": SECRET}
    config = load_alerts(ROOT / "configs/alerts.toml", environment)
    assert {rule.when for rule in config.rules} == {
        "verdict", "match_rate_below", "drift", "lag_above", "losses_above", "reference_failing"
    }
    assert SECRET not in repr(config)
    assert "alerts.example.com" not in repr(config)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"when": "verdikt"}, "did you mean 'verdict'"),
        ({"recievers": []}, "did you mean 'receivers'"),
        ({"receivers": ["opps"]}, "did you mean 'ops'"),
        ({"holds": "5 minutes"}, "must be a duration"),
        ({"when": "match_rate_below"}, "threshold must be a number"),
        ({"when": "match_rate_below", "threshold": 93}, "at most 1"),
        ({"verdicts": ["bad"]}, "verdicts must be"),
        ({"severity": "high"}, "must be one of critical, warning, info"),
    ],
)
def test_a_mistake_in_a_rule_is_named(change, sentence):
    receiver = {"name": "ops", "kind": "command", "argv": ["/bin/true"]}
    rule = {"name": "x", "when": "verdict", "receivers": ["ops"], **change}
    with pytest.raises(InputError, match=sentence):
        parse_alerts({"receivers": [receiver], "rules": [rule]}, {})


async def test_a_window_reads_what_was_audited_within_it(database_url):
    async with hooks() as received, open_database(database_url) as database:
        for number in range(8):
            at = datetime.now(timezone.utc) - (timedelta(days=20) if number < 4 else timedelta(minutes=5))
            await one(database, number, "honest", 1.0 if number < 4 else 0.6, at)
        window = {"when": "match_rate_below", "threshold": 0.8, "window": "6h"}
        await told(database, configured(received.url, "webhook", **window))
    (taken,) = received.taken
    assert "match rate 0.6000" in taken.json["alerts"][0]["annotations"]["summary"]
