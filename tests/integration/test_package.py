"""What ``pip install .`` puts on another machine: everything that runs, and nothing that only tests."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["coapgw", "twisted", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"]
TWISTD = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel without a network, from a copy: a build writes into the tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    leftovers = shutil.ignore_patterns("__pycache__", "dropin.cache")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=leftovers)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"),
        *("--disable-pip-version-check", "--wheel-dir", str(out), str(source)),
        cwd=out,
    )
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install it into an environment of its own, which borrows the libraries of this one; return its interpreter."""
    place = tmp_path_factory.mktemp("installed")
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    (site,) = place.glob("lib/python*/site-packages")
    # what a .pth file names is not searched for further ones: the checkout stays out of sight
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n" + sysconfig.get_path("platlib") + "\n")
    run(
        *(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"),
        *("--disable-pip-version-check", "--ignore-installed", str(wheel)),
        cwd=place,
    )
    return python


def run(*command: str, cwd: Path) -> str:
    """Run a command away from the checkout; return what it prints."""
    done = subprocess.run(
        command, cwd=cwd, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "coapgw").rglob("*.py")}
    for package, patterns in setup["options.package_data"].items():
        place = ROOT / package.replace(".", "/")
        wanted |= {
            path.relative_to(ROOT).as_posix()
            for path in place.rglob("*")
            if path.is_file() and any(fnmatch(path.relative_to(place).as_posix(), one) for one in patterns.split(", "))
        }
    assert "coapgw/py.typed" in wanted
    assert wanted | {"twisted/plugins/coapgw_plugin.py"} <= packed


def test_every_file_beside_the_modules_is_packed(wheel: Path) -> None:
    """Whoever adds a kind of data file is told to add it to setup.cfg."""
    packed = set(zipfile.ZipFile(wheel).namelist())
    beside = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "coapgw").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md"
    }
    assert beside - packed == set()


def test_wheel_holds_nothing_else(wheel: Path) -> None:
    strangers = [
        name
        for name in zipfile.ZipFile(wheel).namelist()
        if not name.startswith("coapgw/") and ".dist-info/" not in name and name != "twisted/plugins/coapgw_plugin.py"
    ]
    assert strangers == []


def test_installed_twistd_knows_coapgw(installed: Path) -> None:
    assert "coapgw" in run(str(installed), "-c", TWISTD, "--help", cwd=installed.parent)
    assert "--config" in run(str(installed), "-c", TWISTD, "coapgw", "--help", cwd=installed.parent)


def test_installed_command_line_tool_answers(installed: Path) -> None:
    assert "device" in run(str(installed.parent / "coapgw"), "--help", cwd=installed.parent)


def test_installed_package_is_the_one_that_runs(installed: Path) -> None:
    where = run(str(installed), "-c", "import coapgw; print(coapgw.__file__)", cwd=installed.parent)
    assert Path(where.strip()).is_relative_to(installed.parents[1])


def test_plugin_scan_loads_neither_the_gateway_nor_a_reactor(installed: Path) -> None:
    script = (
        "import sys; from twisted.plugin import getPlugins; from twisted.application.service import IServiceMaker\n"
        "assert 'coapgw' in [maker.tapname for maker in getPlugins(IServiceMaker)]\n"
        "print(*[name for name in ('txthings', 'coapgw.tap', 'twisted.internet.reactor') if name in sys.modules])"
    )
    assert run(str(installed), "-c", script, cwd=installed.parent).split() == []
