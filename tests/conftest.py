"""Fixtures every test may ask for, and the option behind `tests/run --all`."""

import shutil
from pathlib import Path

import pytest

import databases
import doors
import firstprocess
import pamkit
import systemdbox
import systemdsite
from mailsite import Site
from samples import MESSAGES, spool_of
from systemdsite import SystemdSite
from tpop3d.settings import DIRECTIVES

DEFAULT_STATE = Path(DIRECTIVES["state-directory"].default)


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="a skipped test is a failure")


def pytest_configure():
    firstprocess.leave_to_init()


def not_run(config):
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not config.getoption("--all"):  # None: one of several workers
        return []
    return reporter.stats.get("skipped", [])


def pytest_sessionfinish(session):
    if not_run(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    reports = not_run(config)
    if reports:
        terminalreporter.section("not run, although --all was asked for", red=True)
        for report in reports:
            terminalreporter.line(report.nodeid, red=True)


@pytest.fixture(autouse=True, scope="session")
def default_state_directory():
    """Tests have state directories of their own, and never make the real one."""
    before = DEFAULT_STATE.exists()
    yield
    assert DEFAULT_STATE.exists() == before, f"a test has made {DEFAULT_STATE}"


@pytest.fixture
def site():
    site = Site()
    yield site
    site.close()


@pytest.fixture(params=["socketpair", "pipes"])
def inetd(request, site):
    """A conversation with the server on its stdin and stdout."""
    with doors.inetd(site, pipes=request.param == "pipes") as wire:
        yield wire


@pytest.fixture(params=doors.TCP_DOORS)
def tcp_door(request, site):
    """A port at which each connection gets a server of its own."""
    with doors.TCP_DOORS[request.param](site) as door:
        yield door


@pytest.fixture(scope="session")
def installation():
    """A systemd of our own with the server installed, for all tests that want one."""
    systemdbox.require()
    box = SystemdSite()
    try:
        box.install()
        yield box
    finally:
        box.close()


@pytest.fixture
def box(installation):
    """That systemd as if nobody had been there."""
    installation.reset()
    yield installation
    print(installation.journal())  # which pytest shows if the test has failed
    installation.reset()  # what still runs may be what a failing test has left


@pytest.fixture
def library(box):
    """What filters system calls, among the packages of the box while the test runs."""
    if not systemdsite.SECCOMP.exists():
        pytest.skip("pyseccomp is not installed")
    place = box.directory / "opt/tpop3d/site-packages" / systemdsite.SECCOMP.name
    shutil.copy(systemdsite.SECCOMP, place)
    yield
    place.unlink()


@pytest.fixture(scope="session")
def mariadb():
    """A MariaDB of our own, for all tests that want one."""
    databases.require()
    server = databases.MariaDB()
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def database(mariadb):
    """That MariaDB with vmail-sql's tables, empty; it runs before and after each test."""
    mariadb.furnish()
    yield mariadb
    if mariadb.process is None:
        mariadb.start()


@pytest.fixture
def vmail(database):
    """Two domains in it, with an ann in each."""
    for domain, password in (("example.org", "secret"), ("example.net", "other")):
        database.add_domain(domain, f"/var/mail/{domain}")
        database.add("ann", domain, f"{{plaintext}}{password}")
    return database


@pytest.fixture
def mail_site(database, site):
    """A site that serves ann@example.org out of the database."""
    return database.serve(site, spool_of(MESSAGES))


@pytest.fixture
def pam(monkeypatch):
    """PAM with services of our own, and the driver that asks it."""
    with pamkit.site(monkeypatch) as site:
        yield site
