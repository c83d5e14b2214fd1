"""What an error of Postgres, or of the way to it, means: one that passes, or one that somebody must mend."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass

import asyncpg

# What a lost, refused or restarting server looks like, from asyncpg and from the socket.
CONNECTION_ERRORS: tuple[type[BaseException], ...] = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
# SQLSTATE classes, and codes, of a server that cannot do its work now but may later: connection, authorization, unknown
# database, rollback (deadlock), resources, object state, intervention, system, internal; and a read-only transaction,
# as during a failover.
UNAVAILABLE_CLASSES = frozenset({"08", "28", "3D", "40", "53", "55", "57", "58", "XX"})
UNAVAILABLE_CODES = frozenset({"25006"})
# Those of them that no waiting mends; by class where no code is named.
LASTING = {
    "28P01": "Postgres refuses the user or the password: check both in DATABASE_URL",
    "28": "Postgres does not admit this user from this host: check DATABASE_URL, its sslmode, and pg_hba.conf",
    "3D": "Postgres has no such database: check its name in DATABASE_URL, or create it",
    "42501": "The user of DATABASE_URL may not read the tables: make it their owner, or grant it the rights",
    "58P01": "A file of the database is missing, the database is damaged: restore it from a backup",
    "XX001": "The database is damaged: restore it from a backup",
    "XX002": "An index of the database is damaged: REINDEX it, or restore the database from a backup",
}
PASSING = {
    "53300": "Postgres has no connection left",
    "57P03": "Postgres is starting or stopping",
}


# What a process exits with that such a fault kept from starting.
DATABASE_FAULT = 3


class DatabaseFault(Exception):
    """Postgres cannot be used until somebody mends what the text says."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`sentence` names the fault without a secret or a path; `lasting` ones are not mended by waiting."""

    sentence: str
    lasting: bool


# What Postgres says of a statement that is too large for it, and of trouble of its own as well.
AMBIGUOUS_CODES = frozenset({"08P01", "53200", "XX000"})
# SQLSTATE classes of what a row holds: cardinality, data, constraints, limits of the program.
ROW_CLASSES = frozenset({"21", "22", "23", "54"})


def may_be_the_statement(error: BaseException | None) -> bool:
    """Whether an error that looks like a Postgres in trouble may come from the statement, where it stays."""
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate in AMBIGUOUS_CODES


def is_of_the_row(error: BaseException) -> bool:
    """Whether what the row holds is the cause, so that no further try with it can succeed."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "")[:2] in ROW_CLASSES or may_be_the_statement(error)
    # A value that cannot be encoded.
    return isinstance(error, ValueError | OverflowError | TypeError)


def is_too_large(error: BaseException) -> bool:
    """Whether a row, or a document in it, is beyond what Postgres can hold."""
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate == "54000"


def is_unavailable(error: BaseException) -> bool:
    """Whether Postgres, not the statement, is in trouble."""
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        return state[:2] in UNAVAILABLE_CLASSES or state in UNAVAILABLE_CODES
    return isinstance(error, CONNECTION_ERRORS)


def diagnose(error: BaseException) -> Diagnosis:
    """What to tell of an error that kept Postgres from being used."""
    if isinstance(error, asyncpg.PostgresError) and error.sqlstate:
        state = error.sqlstate
        lasting = LASTING.get(state) or LASTING.get(state[:2])
        sentence = lasting or PASSING.get(state) or "Postgres cannot serve"
        return Diagnosis(f"{sentence} (SQLSTATE {state}).", lasting is not None)
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = error.verify_message.rstrip(".")
        return Diagnosis(
            f"The certificate of Postgres is not accepted ({reason}): check sslmode, sslrootcert and the host in "
            "DATABASE_URL.",
            True,
        )
    if type(error) is ConnectionError and "rejected SSL upgrade" in str(error):
        return Diagnosis("Postgres offers no TLS, and sslmode in DATABASE_URL demands it.", True)
    if isinstance(error, ssl.SSLError):
        return Diagnosis(
            "The TLS connection to Postgres fails: check sslmode, sslcert and sslkey in DATABASE_URL.", True
        )
    if isinstance(error, asyncpg.ClientConfigurationError):
        return Diagnosis("DATABASE_URL, or a PG* variable, is not one that Postgres can be reached by.", True)
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return Diagnosis("No host of DATABASE_URL is what its target_session_attrs asks for.", False)
    return Diagnosis("Postgres cannot be reached; check DATABASE_URL and that it runs.", False)
