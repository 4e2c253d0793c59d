"""Fixtures every test may ask for, and the option behind `tests/run --all`."""

import pytest

import doors
from mailsite import Site


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="a skipped test is a failure")


def not_run(config):
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return reporter.stats.get("skipped", []) if config.getoption("--all") else []


def pytest_sessionfinish(session):
    if not_run(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    reports = not_run(config)
    if reports:
        terminalreporter.section("not run, although --all was asked for", red=True)
        for report in reports:
            terminalreporter.line(report.nodeid, red=True)


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
