"""The rooms of DESIGN: who may import what, and that the page says what the code does."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

from mailsite import CHECKOUT
from tpop3d.privsep import lifecycle

ROOT = CHECKOUT / "tpop3d"
DESIGN = (CHECKOUT / "DESIGN").read_text()
# From the top down: nobody imports what stands above it.
ROOMS = [
    "__main__", "cli", "options", "commands", "doors", "listener", "privsep", "configuration",
    "settings", "proxy", "tls", "session", "auth", "mailspool", "pop3", "config", "system",
]  # fmt: skip
FILES = {
    ".".join(path.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
DRIVERS = {"pam": "auth.pam", "MySQLdb": "auth.mysql", "argon2": "auth.passwords",
           "crypt_r": "auth.passwords"}  # fmt: skip


def room_of(module):
    return module.split(".")[1] if "." in module else ""


def imports_of(path):
    """(module, is it imported when this one is, and not later or for annotations alone?)"""
    tree = ast.parse(path.read_text())
    late = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            late.update(ast.walk(node))
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            late.update(below for one in node.body for below in ast.walk(one))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node not in late
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in FILES else node.module, node not in late


def test_every_room_is_known_and_on_the_page():
    assert {room_of(module) for module in FILES} - {""} == {*ROOMS}
    rooms = DESIGN[DESIGN.index("ROOMS") : DESIGN.index("WHAT IS PROMISED")]
    named = re.findall(r"^ (\w+)(?:/|,| )", rooms, re.MULTILINE)
    assert [room for room in ROOMS[1:] if room != "options"] == named


def test_no_import_points_up():
    """Not even for annotations alone."""
    for module, path in FILES.items():
        for other, _ in imports_of(path):
            if other in FILES and room_of(module) and room_of(other):
                here, there = ROOMS.index(room_of(module)), ROOMS.index(room_of(other))
                assert here <= there, f"{module} imports {other}"


def test_no_modules_import_each_other_in_a_circle():
    """Not even late, inside a function, or for annotations alone."""
    arrows = {
        module: {other for other, _ in imports_of(path) if other in FILES}
        for module, path in FILES.items()
    }
    done = set()

    def walk(module, way):
        assert module not in way, " -> ".join([*way, module])
        if module not in done:
            for other in arrows[module] - {module}:
                walk(other, [*way, module])
            done.add(module)

    for module in FILES:
        walk(module, [])


def test_the_core_imports_the_standard_library_alone():
    for module, path in FILES.items():
        for other, _ in imports_of(path):
            top = other.split(".")[0]
            if top in ("tpop3d", "__future__") or top in sys.stdlib_module_names:
                continue
            allowed = ("system.privileges", "system.journald", "listener.sd_notify",
                       "doors.activation", *DRIVERS.values())  # fmt: skip
            assert module.removeprefix("tpop3d.").startswith(allowed), f"{module}: {other}"


def test_what_is_foreign_is_imported_when_it_is_wanted():
    for module, path in FILES.items():
        for other, is_early in imports_of(path):
            top = other.split(".")[0]
            if top not in ("tpop3d", "__future__") and top not in sys.stdlib_module_names:
                assert not is_early or module.startswith("tpop3d.auth."), f"{module}: {other}"


@pytest.mark.parametrize("engine", ["pop3", "mailspool"])
def test_protocol_and_engine_know_no_connection_and_no_driver(engine):
    for module, path in FILES.items():
        if room_of(module) == engine:
            for other, _ in imports_of(path):
                if other in FILES:
                    assert room_of(other) in ("", engine, "system"), f"{module}: {other}"
                assert other not in ("socket", "_socket", "ssl"), f"{module}: {other}"


@pytest.mark.parametrize("room", ["proxy", "tls", "session", "auth", "mailspool", "pop3"])
def test_what_stands_below_the_settings_does_not_know_them(room):
    """Not even as a type: it says in a Protocol what it goes by."""
    assert ROOMS.index("settings") < ROOMS.index(room)
    for module, path in FILES.items():
        if room_of(module) == room:
            others = {room_of(other) for other, _ in imports_of(path) if other in FILES}
            assert not others & {"settings", "configuration"}, module


@pytest.mark.parametrize("room", [*ROOMS[1:]])
def test_no_text_stands_for_a_failure(room):
    """What is returned in place of something is a Refusal, which says that it is one (DESIGN,
    FAILURES)."""
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())) if room_of(module) == room else ():
            if isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.BinOp):
                parts = {*ast.unparse(node.returns).split(" | ")}
                is_text_alone = parts <= {"str", "list[str]", "None", "Refusal"}
                assert is_text_alone or not parts & {"str", "list[str]"}, f"{module}: {node.name}"


@pytest.mark.parametrize("name", ["signal", "socket"])
def test_what_is_used_of_a_light_module_is_there_at_run_time(name):
    """mypy looks at `signal` and `socket`; what runs are `_signal` and `_socket`."""
    light = importlib.import_module(f"_{name}")
    users = 0
    for module, path in FILES.items():
        tree = ast.parse(path.read_text())
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        if any(one.module == "tpop3d.system" and name in {a.name for a in one.names}
               for one in froms):  # fmt: skip
            users += 1
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and ast.unparse(node.value) == name:
                    assert hasattr(light, node.attr), f"{module}: {name}.{node.attr}"
    assert users > 5


def test_the_page_shows_the_lifecycle_as_it_is():
    lines = []
    for state, row in lifecycle.TABLE.items():
        for number, (event, new) in enumerate(row.items()):
            lines.append(f" {'' if number else state:11}  {event:34}  {new}".rstrip())
    assert "\n".join(lines) in DESIGN


def test_the_page_names_no_file_that_is_not_there():
    for name in re.findall(r"\b([a-z_]+/[a-z_0-9]+\.(?:py|txt))\b", DESIGN):
        assert any(str(path).endswith(f"/{name}") for path in
                   [*ROOT.rglob("*.py"), *(CHECKOUT / "tests").rglob("*.*")]), name  # fmt: skip


def test_each_room_says_what_it_is_for():
    for path in ROOT.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_a_file_fits_in_the_head():
    for path in ROOT.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


def test_the_checkout_is_what_is_tested():
    assert Path(lifecycle.__file__).is_relative_to(CHECKOUT)
