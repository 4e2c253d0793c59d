"""Names as users of other servers had them: the log and --test-login say what would take them."""

import pwd
import secrets
import subprocess

import pytest

import doors
import test_passwd
from authkit import config_of
from mailsite import IS_ROOT, need
from pamkit import ANN, SECRET
from tpop3d.auth import flatfile, passwords
from tpop3d.auth.switch import Switch
from tpop3d.pop3.authorization import Attempt
from trying import SPOOL, attempt

as_root = pytest.mark.skipif(not IS_ROOT, reason="only root can make users and read /etc/shadow")
PASSWORD = test_passwd.PASSWORD

WITHOUT = ("without the domain", "strip-domain")
LOWER = ("in lower case", "lowercase-user")
BOTH = ("in lower case and without the domain", "lowercase-user, strip-domain")


def known(how):
    return f"unknown user; {how[0]} it would be known: {how[1]}"


def reason(name, password=b"secret", **settings):
    """Why the switch refuses a name, for the log."""
    config = config_of(settings)
    return Switch(config.drivers, config).decide(Attempt("USER", name, password), b"", "").reason


@pytest.fixture
def file(tmp_path):
    def write(*names, path="passwd"):
        file = tmp_path / path
        file.write_text("".join(f"{name}:{{plaintext}}secret\n" for name in names))
        return {"auth-flatfile-passwd-file": file}

    return write


SPELLED = [
    (b"anna@example.org", ["anna"], {}, known(WITHOUT)),
    (b"anna%example.org", ["anna"], {}, known(WITHOUT)),
    (b"Anna", ["anna"], {}, known(LOWER)),
    (b"Anna@Example.ORG", ["anna@example.org"], {}, known(LOWER)),
    (b"anna@Example.org", ["anna@example.org"], {}, known(LOWER)),
    (b"Anna@example.org", ["anna"], {}, known(BOTH)),
    (b"Anna@example.org", ["Anna"], {}, known(WITHOUT)),
    # Both would be, and the first is told.
    (b"Anna@example.org", ["Anna", "anna@example.org", "anna"], {}, known(WITHOUT)),
    (b"Anna@example.org", ["anna"], {"strip-domain": "yes"}, known(LOWER)),
    (b"Anna@example.org", ["anna"], {"lowercase-user": "yes"}, known(WITHOUT)),
    # What is done already, or would not help.
    (b"Anna@example.org", ["bert"], {}, "unknown user"),
    (b"Anna", ["bert"], {"lowercase-user": "yes"}, "unknown user"),
    (b"anna@example.org", ["bert"], {"strip-domain": "yes"}, "unknown user"),
    (b"anna", ["Anna", "anna@example.org"], {}, "unknown user"),
    (b"anna@example.org", ["anna", "anna@example.org"], {}, "wrong password"),
]


@pytest.mark.parametrize(("name", "names", "settings", "expected"), SPELLED)
def test_the_reason_names_the_directive(file, name, names, settings, expected):
    assert reason(name, b"wrong", **file(*names), **settings) == expected


def test_where_each_domain_has_a_file_no_other_name_is_looked_for_without_one(file, tmp_path):
    file("anna", path="example.org")
    settings = {"auth-flatfile-passwd-file": f"{tmp_path}/$(domain)"}
    none = "no password file for this domain"
    assert reason(b"Anna@example.org", **settings) == known(LOWER)
    assert reason(b"anna@Example.org", **settings) == f"{none}; " + known(LOWER).partition("; ")[2]
    assert reason(b"anna@example.net", **settings) == none
    assert reason(b"bert@Example.org", **settings) == none


def test_no_hash_of_another_name_is_taken_out_of_the_file(file, monkeypatch, tmp_path):
    """This process may become the session of who guesses right next."""
    taken = []
    hash_in = flatfile._hash_in
    monkeypatch.setattr(flatfile, "_hash_in", lambda *args: taken.append(args) or hash_in(*args))
    settings = file("bert", "anna")
    assert reason(b"Anna@example.org", **settings) == known(BOTH)
    assert len(taken) == 1  # bert's, to spend time on
    file("anna", path="example.org")
    taken.clear()
    of_domains = {"auth-flatfile-passwd-file": f"{tmp_path}/$(domain)"}
    assert known(LOWER).partition("; ")[2] in reason(b"anna@Example.org", **of_domains)
    assert taken == []


def test_no_second_password_is_checked(file, monkeypatch):
    """Whoever guesses makes us no more work, but for a look."""
    settings = file("anna", "bert")
    checked, looked = [], []
    check, look = passwords.check, flatfile._look_up
    monkeypatch.setattr(passwords, "check", lambda *args: checked.append(args) or check(*args))
    monkeypatch.setattr(flatfile, "_look_up", lambda *args: looked.append(args) or look(*args))
    assert reason(b"Anna@example.org", **settings) == known(BOTH)
    assert len(checked) == 1
    assert len(looked) == 1
    checked.clear()
    looked.clear()
    assert reason(b"anna", b"wrong", **settings) == "wrong password"
    assert (len(checked), len(looked)) == (1, 1)


def test_another_drivers_better_reason_goes_before(file, tmp_path):
    settings = file("anna@example.org") | {"auth-passwd-enable": "yes"}
    name = pwd.getpwuid(1).pw_name if IS_ROOT else ANN
    assert reason(b"anna@example.org", b"wrong", **settings) == "wrong password"
    if IS_ROOT:
        assert reason(f"{name}@example.org".encode(), **settings) == known(WITHOUT)


# What clients see, and --test-login


@pytest.fixture
def anna(site):
    site.add("anna", SPOOL)
    site.configure({"auth-failure-delay-seconds": 0})
    return site


def test_clients_are_told_the_same_of_all_names(anna):
    names = ["anna@example.org", "Anna", "zoe@example.org", "Zoe", "anna"]
    with doors.standalone(anna) as door:
        answers = set()
        for name in names:
            wire = door.connect()
            wire.line()
            wire.ask(f"USER {name}")
            answers.add(wire.ask("PASS wrong"))
            wire.close()
        assert len(answers) == 1
        for name, why in zip(names, (known(WITHOUT), known(LOWER)), strict=False):
            assert door.logs.wait_for(f'user={name} method=USER driver=flatfile reason="{why}"')
        for name in ("zoe@example.org", "Zoe"):
            assert door.logs.wait_for(
                f'user={name} method=USER driver=flatfile reason="unknown user"'
            )


@pytest.mark.parametrize(
    ("name", "how"), [("anna@example.org", WITHOUT), ("ANNA", LOWER), ("Anna@b.example", BOTH)]
)
def test_a_trial_checks_the_password_and_says_what_would_make_it_good(anna, name, how):
    got = attempt(anna, name)
    assert got.status == 3
    assert got.of("flatfile")[0].startswith(f"no: {known(how)} (")
    assert got.of("hint") == [f"{how[0]} it would be yes: {how[1]}"]
    assert got.words[-2:] == ["hint", "result"]
    anna.configure(dict.fromkeys(how[1].split(", "), "yes"))
    assert attempt(anna, name).status == 0
    # Not with a wrong one.
    anna.configure(dict.fromkeys(how[1].split(", ")))
    got = attempt(anna, name, b"wrong\n")
    assert (got.status, got.of("hint")) == (3, [])


def test_a_domain_that_is_missing(anna):
    anna.add("bert@b.example", SPOOL)
    anna.configure({"listen-address": "127.0.0.1:1110(b.example)"})
    how = ("with the domain b.example", "append-domain")
    got = attempt(anna, "bert")
    assert got.of("flatfile")[0].startswith(f"no: {known(how)} (")
    assert got.of("hint") == [f"{how[0]} it would be yes: {how[1]}"]
    assert attempt(anna, "zoe").of("hint") == []
    anna.configure({"append-domain": "yes"})
    assert "unknown user (" in attempt(anna, "zoe").of("flatfile")[1]


def test_a_name_is_tried_with_a_separator_that_is_one(anna):
    anna.add("bert@b.example", SPOOL)
    anna.configure({"domain-separators": "%"})
    assert attempt(anna, "Bert%b.example").of("hint") == [f"{LOWER[0]} it would be yes: {LOWER[1]}"]


@pytest.fixture
def user():
    """A user of the system, for a test."""
    name = f"t-{secrets.token_hex(6)}"
    subprocess.run([need("useradd"), "--no-create-home", name], check=True)
    try:
        test_passwd.set_password(name, PASSWORD)
        yield name
    finally:
        subprocess.run([need("userdel"), name], check=True, capture_output=True)


@as_root
def test_a_full_address_of_a_user_of_the_system(anna, user):
    settings = {"auth-passwd-enable": "yes", "auth-passwd-mailspool-dir": anna.spools}
    anna.configure(settings)
    said = f"{PASSWORD}\n".encode()
    for name, how in ((f"{user}@example.org", WITHOUT), (user.upper(), LOWER)):
        got = attempt(anna, name, said)
        assert got.of("passwd")[0].startswith(f"no: {known(how)} (")
        assert got.of("hint") == [f"{how[0]} it would be yes: {how[1]}"]
    # root is nobody here, however it is spelled.
    assert attempt(anna, "root@example.org", said).of("passwd")[0].startswith("no: unknown user (")
    for name in ("./x@example.org", "@example.org", "\udcff@example.org"):
        assert "unknown user" in attempt(anna, name, said).text


def test_a_user_whom_pam_knows(pam):
    config = config_of(pam_settings())
    decide = Switch(config.drivers, config).decide
    for name in (f"{ANN}@example.org", ANN.upper()):
        verdict = decide(Attempt("USER", name.encode(), SECRET.encode()), b"", "")
        how = WITHOUT if "@" in name else LOWER
        assert verdict.reason == known(how)
    # The modules are asked about the name that was given, once.
    pam.marking(*pam.matrix())
    decide(Attempt("USER", f"{ANN}@example.org".encode(), b"wrong"), b"", "")
    assert f"PAM_USER={ANN}@example.org\n" in pam.mark.read_text()


def pam_settings():
    from pamkit import ENABLE

    return ENABLE


def test_capitals_where_a_table_minds_them(mail_site, database):
    database.sql("ALTER TABLE popbox CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
    database.sql("ALTER TABLE domain CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
    got = attempt(mail_site, "Ann@Example.org")
    assert got.of("mysql")[0].startswith(f"no: {known(LOWER)} (")
    assert got.of("hint") == [f"{LOWER[0]} it would be yes: {LOWER[1]}"]
    assert attempt(mail_site, "Zoe@Example.org").of("mysql")[0].startswith("no: unknown user (")
