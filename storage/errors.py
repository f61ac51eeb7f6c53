# ruff: noqa: N818 (an error here is named for what is wrong, in the words of its sentence)
"""What can go wrong in storage, split by who can mend it.

::

    StorageError
    ├── BadDatabaseUrl        who configured it: the address is no database address
    ├── DriverMissing         who installed it: the address needs an optional package
    ├── DatabaseUnreachable   who runs the machine: server, disk, rights
    │   └── DatabaseBusy      nobody: other writers held the database too long; try again
    ├── SchemaError           who runs the upgrade
    │   ├── SchemaMissing     the database holds no tables of ours yet
    │   ├── SchemaOutdated    the tables are older than the code
    │   ├── SchemaTooNew      the tables are newer than the code
    │   └── SchemaForeign     another program's tables stand where ours belong
    ├── CorruptScores         the bytes of a per-token array are not what `storage.scores` wrote
    ├── CorruptRecord         the bytes of a journal record are not what `storage.exchange_codec` wrote
    ├── BrokenExport          an exported file is not as it was written
    ├── JournalFull           who runs the machine: the journal is at its cap, or its disk is full or broken
    ├── BadKeys               who configured it: the keys of payloads cannot be understood
    └── PayloadSealed         who configured it: a payload's key is not among those given
"""


class StorageError(Exception):
    """Any failure of storage; its text is one sentence for a person."""


class BadDatabaseUrl(StorageError):
    """The database address cannot be understood."""


class DriverMissing(StorageError):
    """The address asks for a database whose driver is not installed."""


class DatabaseUnreachable(StorageError):
    """The database does not answer, or cannot be opened or written."""


class DatabaseBusy(DatabaseUnreachable):
    """Other writers held the database for longer than the timeout; the same call may succeed later."""


class SchemaError(StorageError):
    """The tables are not the ones that this code works with."""


class SchemaMissing(SchemaError):
    """The database holds no seedproof tables yet."""


class SchemaOutdated(SchemaError):
    """The tables are of an older revision than the code."""


class SchemaTooNew(SchemaError):
    """The tables are of a revision that the code does not know."""


class SchemaForeign(SchemaError):
    """Tables that seedproof did not make stand where its own belong."""


class CorruptScores(StorageError):
    """Stored per-token arrays cannot be read."""


class CorruptRecord(StorageError):
    """A record of the journal cannot be read."""


class BrokenExport(StorageError):
    """An exported file was changed, cut or is none of ours."""


class JournalFull(StorageError):
    """The journal cannot take a record: its cap is reached, or its disk refuses."""


class BadKeys(StorageError):
    """The keys that seal payloads cannot be understood."""


class PayloadSealed(StorageError):
    """A payload is sealed under a key that is not held here."""
