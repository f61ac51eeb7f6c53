"""What is shipped: wheel and sdist hold the project and nothing else, and the lock serves all they ask."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("proxy", "storage", "verifier")
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, built from the checkout and unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    archive = next(SdistBuilder(str(ROOT)).build(directory=str(folder)))
    with tarfile.open(archive) as tar:
        # Early patch releases of 3.10 and 3.11 have no filters; later ones warn where none is chosen.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        tar.extractall(folder)
    return folder / f"seedproof-{PROJECT['version']}"


def shipped_files() -> set[str]:
    """Every file of the three packages, and the command's module."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    kept = (path for path in paths if "__pycache__" not in path.parts)
    return {"seedproof.py", *(path.relative_to(ROOT).as_posix() for path in kept)}


def contents(wheel: Path) -> tuple[set[str], set[str]]:
    """The wheel's modules and data, and its metadata."""
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    return names - metadata, metadata


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    files, metadata = contents(wheel)
    assert files == shipped_files()
    assert {f"{package}/py.typed" for package in PACKAGES} <= files
    assert [name for name in files if re.fullmatch(r"storage/migrations/versions/\w+\.py", name)]
    info = f"seedproof-{PROJECT['version']}.dist-info"
    assert metadata == {
        f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }


def test_the_command_runs_out_of_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import seedproof, proxy, storage, verifier\n"
        "print(*(module.__file__ for module in (seedproof, proxy, storage, verifier)), sep='\\n')\n"
        "sys.argv = ['seedproof', '--help']; seedproof.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    origins = done.stdout.splitlines()[:4]
    assert [Path(origin).is_relative_to(tmp_path) for origin in origins] == [True] * 4
    assert "Usage:" in done.stdout


def test_the_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    built = next(WheelBuilder(str(sdist)).build(directory=str(tmp_path), versions=["standard"]))
    assert contents(Path(built)) == contents(wheel)


def test_the_sdist_holds_what_setup_and_the_tests_need_and_no_leavings(sdist: Path) -> None:
    files = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    assert {"Makefile", "requirements.lock", "pyproject.toml", "README.md", "LICENSE"} <= files
    assert {"tests/test_packaging.py", ".ci/run"} <= files
    leavings = re.compile(r"(^|/)(\.venv|\.git|__pycache__|\.\w+_cache|\.hypothesis|build|dist)/|\.db$|\.db-")
    assert [name for name in sorted(files) if leavings.search(name)] == []


def test_the_installed_version_is_the_projects() -> None:
    assert importlib.metadata.version("seedproof") == PROJECT["version"]


def test_the_installed_command_is_the_projects() -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts", name="seedproof")
    assert {script.value for script in scripts} == {PROJECT["scripts"]["seedproof"]}


def test_no_other_distribution_owns_our_package_names() -> None:
    """Their names are generic; pip would overwrite one by the other in silence."""
    owners = importlib.metadata.packages_distributions()
    names = {name for package in (*PACKAGES, "seedproof") for name in owners.get(package, [])}
    assert names <= {"seedproof"}


def locked() -> list[Requirement]:
    """The lock's entries, each with its marker, without hashes."""
    lines = re.findall(r"^([a-z0-9][^\\\n]*?) *\\?$", LOCK, flags=re.MULTILINE)
    return [Requirement(line) for line in lines]


def asked() -> list[Requirement]:
    """What pyproject.toml asks for in the extras that the lock serves, without torch (see the Makefile)."""
    extras = [PROJECT["optional-dependencies"][name] for name in ("cpu", "postgres", "demo", "dev")]
    lines = (line for group in (PROJECT["dependencies"], *extras) for line in group)
    return [wanted for line in lines if (wanted := Requirement(line)).name != "torch"]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_lock_pins_one_fitting_version_of_all_that_pyproject_asks(python: str) -> None:
    machine = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    pins: dict[str, list[str]] = {}
    for pin in locked():
        if pin.marker is None or pin.marker.evaluate(machine):
            pins.setdefault(canonicalize_name(pin.name), []).append(str(pin.specifier).removeprefix("=="))
    assert {name: versions for name, versions in pins.items() if len(versions) != 1} == {}
    for wanted in asked():
        if wanted.marker is None or wanted.marker.evaluate(machine):
            version = pins[canonicalize_name(wanted.name)][0]
            assert wanted.specifier.contains(version), f"{wanted} is locked at {version}: run make lock"


def test_every_locked_version_has_hashes_and_no_place_of_its_own() -> None:
    blocks = re.split(r"\n(?=[a-z0-9])", LOCK)[1:]
    assert len(blocks) == len(locked()) > 50
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []
    assert re.findall(r"^.*(?:://|index-url|find-links| @ |\s/\w).*$", LOCK, flags=re.MULTILINE) == []


def test_the_lock_brings_no_torch_and_no_cuda() -> None:
    heavy = re.compile(r"torch|nvidia|cuda|vllm")  # Triton is there: its interpreter runs the kernels' tests
    assert [pin.name for pin in locked() if heavy.match(pin.name)] == []


def test_the_ci_script_is_executable() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_image_and_the_makefile_take_the_same_torch() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    taken = re.search(r"^TORCH := (\S+)$", makefile, flags=re.MULTILINE)
    assert taken is not None
    assert f"ARG TORCH={taken[1]}\n" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    wanted = next(Requirement(line) for line in PROJECT["optional-dependencies"]["cpu"] if "torch" in line)
    assert wanted.specifier.contains(taken[1])
