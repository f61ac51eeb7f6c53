"""The one thing that the proxy and the verifier share: rows.

=============  ===========================================  ==================================================
table          one row is                                   written by
=============  ===========================================  ==================================================
exchanges      one request and its answer                   the proxy, once, and never changed
jobs           one exchange that has to be audited          the proxy makes it, in the exchange's transaction;
                                                            workers move it: todo -> leased -> done | failed
audits         scores and verdict of one choice             workers, in the transaction that completes the job
streams        the evidence and verdict of one stream       workers, in the same transaction as its audits
calibrations   the honest band of a reference and sampler   `seedproof calibrate`
dead_letters   a record that the database refused           the writer
retention      how long an upstream's rows are kept         the proxy, when it starts
erasures       a user whose exchanges were deleted          `seedproof db forget`
seedproof_version  the schema's revision                    `storage.schema`, when a database is opened
=============  ===========================================  ==================================================

The proxy's rows come by way of the journal: `storage.journal` appends to segments, `storage.writer` empties them.

`storage.database.open_database` is the door: it migrates the schema and gives transactions. `exchanges`,
`jobs`, `audits`, `streams` and `calibrations` hold the statements; each of their functions takes the session
of the caller's transaction, so that what belongs together commits together. Nothing here reads a clock: the
time is an argument. Statements are the same on SQLite and on Postgres.

storage imports neither proxy nor verifier.
"""
