"""auth-mysql: virtual domains in a real database, the driver asked in a process of its own."""

import grp
import hashlib

import pytest

from authkit import converse
from databases import DATABASE, decide
from mailsite import MAIL_USER
from tpop3d.auth.driver import CANNOT_SAY, NO, YES
from tpop3d.auth.mysql import VMAIL_SQL
from tpop3d.configuration import WrongConfiguration

MD5 = hashlib.md5(b"secret", usedforsecurity=False).hexdigest()
TIMESTAMP = b"<1896.697170952@dbc.mtview.ca.us>"


def apop(config, name, password=b"secret"):
    digest = hashlib.md5(TIMESTAMP + password, usedforsecurity=False).hexdigest().encode()
    return decide(config, name, None, timestamp=TIMESTAMP, digest=digest)


def said(verdict):
    return verdict.answer, verdict.reason


def test_who_knows_the_password_gets_the_account(vmail, tmp_path):
    verdict = decide(vmail.config(tmp_path), "ann@example.org")
    assert (verdict.answer, verdict.driver) == (YES, "mysql")
    account = verdict.account
    assert account.name == b"ann@example.org"
    assert (account.uid, account.gid) == (MAIL_USER.pw_uid, MAIL_USER.pw_gid)
    assert account.mailboxes == ["/var/mail/example.org/ann"]
    assert account.required == ["/var/mail/example.org"]


def test_which_directory_must_be_there_can_be_said(vmail, tmp_path):
    verdict = decide(vmail.config(tmp_path, mail_directory="/var/mail/"), "ann@example.org")
    assert verdict.account.required == ["/var/mail"]
    verdict = decide(vmail.config(tmp_path, mail_directory="/var/ma"), "ann@example.org")
    assert said(verdict) == (CANNOT_SAY, "mailbox path: is not below /var/ma")


def test_who_does_not_is_refused(vmail, tmp_path):
    config = vmail.config(tmp_path)
    vmail.add("nul", "example.org", None)
    vmail.add("odd", "example.org", "{nosuchscheme}secret")
    for name, password, reason in (
        ("ann@example.org", b"wrong", "wrong password"),
        ("ann@example.org", b"other", "wrong password"),  # that of the other ann
        ("ann@example.org", b"{plaintext}secret", "wrong password"),
        ("ann@example.com", b"secret", "unknown user"),
        ("bert@example.org", b"secret", "unknown user"),
        ("ann", b"secret", "unknown user"),
        ("nul@example.org", b"secret", "password hash is NULL"),
        ("odd@example.org", b"secret", "unknown password scheme"),
    ):
        assert said(decide(config, name, password)) == (NO, reason)
    assert decide(config, "ann@example.net", b"other").answer == YES


def test_a_hash_that_names_no_scheme_is_md5(vmail, tmp_path):
    config = vmail.config(tmp_path)
    vmail.add("bert", "example.org", MD5)
    vmail.add("carl", "example.org", f"{{md5}}{MD5}")
    for name in ("bert@example.org", "carl@example.org"):
        assert decide(config, name).answer == YES
        assert decide(config, name, b"wrong").answer == NO
        assert decide(config, name, MD5.encode()).answer == NO


def test_the_group_is_the_users_unless_it_is_given(vmail, tmp_path):
    given = decide(vmail.config(tmp_path, mail_group="mail"), "ann@example.org").account
    assert given.lock_gid == grp.getgrnam("mail").gr_gid
    given = decide(vmail.config(tmp_path, mail_group="12345"), "ann@example.org").account
    assert (given.uid, given.gid, given.lock_gid) == (*MAIL_USER[2:4], 12345)


# Where the server is


def test_a_host_is_a_socket_or_a_name_with_or_without_a_port(vmail, tmp_path):
    row = f"'{{plaintext}}secret', '{MAIL_USER.pw_name}', 'bsd'"
    query = f"SELECT CONCAT('/', CURRENT_USER()), {row}"
    for host, seen in (
        (vmail.socket, "localhost"),
        (f"127.0.0.1:{vmail.port}", "127.0.0.1"),
        # To the library, localhost is a socket; with a port it cannot be.
        (f"localhost:{vmail.port}", "127.0.0.1"),
    ):
        config = vmail.config(tmp_path, hostname=host, pass_query=query)
        verdict = decide(config, "ann")
        assert verdict.answer == YES, verdict.reason
        assert verdict.account.mailboxes[0].endswith(f"@{seen}")


@pytest.mark.parametrize("hostname", ["localhost", None])
def test_localhost_is_the_librarys_socket(database, mail_site, hostname):
    """In a server of its own: the library looks once where that is."""
    mail_site.configure({"auth-mysql-hostname": hostname})
    script = b"USER ann@example.org\r\nPASS secret\r\nQUIT\r\n"
    ended = converse(mail_site.conf, script, env={"MYSQL_UNIX_PORT": str(database.socket)})
    assert [line[:3] for line in ended.lines] == [b"+OK"] * 4, ended.stderr


@pytest.mark.parametrize("hosts", ["", "localhost:0", "localhost:x", "localhost:65536", ":3306",
                                   "::1", "[::1", "[::1]x"])  # fmt: skip
def test_what_is_no_host_is_an_error(mariadb, tmp_path, hosts):
    with pytest.raises(WrongConfiguration, match="auth-mysql-hostname: "):
        mariadb.config(tmp_path, hostname=hosts)


# Queries of the administrator's own

TABLE = """
    CREATE TABLE people (mail VARCHAR(99), pass VARCHAR(99), uid INT, box VARCHAR(99));
    INSERT INTO people VALUES ('ann@a.example', '{plaintext}secret', %d, '/var/mail/a')
"""
ROW = "SELECT box, pass, uid, 'bsd' FROM people"
QUERIES = {
    "quoted": f"{ROW} WHERE mail = '$(local_part)@$(domain)'",
    "in double quotes": f'{ROW} WHERE mail = "$(user)"',
    "not quoted": f"{ROW} WHERE mail = $(user)",
    "CONCAT": f"{ROW} WHERE mail = CONCAT('$(local_part)', '@', $(domain))",
    "LIKE": f"{ROW} WHERE mail LIKE '%@$(domain)' AND 7 % 4 = 3 AND mail LIKE '$(local_part)@%'",
    "an address": f"{ROW} WHERE mail = '$(user)' AND '$(clienthost)' = '192.0.2.1'",
    "in a UNION": f"{ROW} WHERE mail = '$(user)' UNION {ROW} WHERE mail = '$(local_part)'",
    "a procedure": "CALL who_is('$(user)')",
}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_other_queries_find_other_tables(database, tmp_path, query):
    database.sql(TABLE % MAIL_USER.pw_uid)
    database.sql(f"CREATE PROCEDURE who_is(name VARCHAR(99)) {ROW} WHERE mail = name")
    database.sql(f"GRANT EXECUTE ON {DATABASE}.* TO 'tpop3d-reader'@'localhost'")
    config = database.config(tmp_path, pass_query=query)
    verdict = decide(config, "ann@a.example", client="192.0.2.1")
    assert verdict.answer == YES, verdict.reason
    assert verdict.account.uid == MAIL_USER.pw_uid  # which is a number in this table
    assert verdict.account.mailboxes == ["/var/mail/a"]
    assert decide(config, "ann@a.example", b"wrong", client="192.0.2.1").answer == NO
    assert decide(config, "ann@b.example", client="192.0.2.1").answer == NO


def test_a_query_may_be_continued_on_further_lines(vmail, tmp_path):
    query = VMAIL_SQL.replace(" FROM", " \\\n    FROM").replace(" WHERE", " \\\n  WHERE")
    assert query.count("\n") == 2
    config = vmail.config(tmp_path, pass_query=query)
    assert decide(config, "ann@example.org").answer == YES


def test_apop_is_for_plaintext(vmail, tmp_path):
    vmail.add("bert", "example.org", MD5)
    config = vmail.config(tmp_path)
    assert apop(config, "ann@example.org").answer == YES
    assert said(apop(config, "ann@example.org", b"wrong")) == (NO, "wrong password")
    assert said(apop(config, "bert@example.org")) == (NO, "APOP needs a {plaintext} password")
    assert said(apop(config, "carl@example.org")) == (NO, "unknown user")


def test_a_query_that_is_none_lets_nobody_in_by_its_way(vmail, tmp_path):
    config = vmail.config(tmp_path, pass_query="none")
    assert said(decide(config, "ann@example.org")) == (NO, "auth-mysql-pass-query is none")
    assert apop(config, "ann@example.org").answer == YES
    config = vmail.config(tmp_path, apop_query="none")
    assert decide(config, "ann@example.org").answer == YES
    assert not config.drivers["mysql"].checks_apop


def test_apop_may_have_a_query_of_its_own(vmail, tmp_path):
    config = vmail.config(tmp_path, apop_query=VMAIL_SQL.replace("'bsd'", "'maildir'"))
    assert decide(config, "ann@example.org").answer == YES
    assert apop(config, "ann@example.org").answer == CANNOT_SAY


# Accounts


def account_of(
    database, tmp_path, *, path="'/var/mail/ann'", user=f"'{MAIL_USER.pw_name}'", kind="'bsd'"
):
    query = f"SELECT {path}, '{{plaintext}}secret', {user}, {kind}"
    return decide(database.config(tmp_path, pass_query=query), "ann")


@pytest.mark.parametrize("user", [str(MAIL_USER.pw_uid), f"'{MAIL_USER.pw_uid}'"])
def test_the_unix_user_may_be_a_number(database, tmp_path, user):
    assert account_of(database, tmp_path, user=user).account.uid == MAIL_USER.pw_uid


@pytest.mark.parametrize("user", ["'root'", "0", "'0'", "'00'"])
def test_root_has_no_mailbox(database, tmp_path, user):
    assert said(account_of(database, tmp_path, user=user)) == (NO, "root has no mailbox here")


BAD_USERS = ["'no-such-user-here'", "''", "4294967295", "-1", "1e0", "'no\\0body'", "X'ff'", "9e99"]


@pytest.mark.parametrize("user", BAD_USERS)
def test_a_unix_user_that_is_missing_is_the_administrators_problem(database, tmp_path, user):
    verdict = account_of(database, tmp_path, user=user)
    assert verdict.answer == CANNOT_SAY
    assert verdict.reason.startswith("unix user: ")


@pytest.mark.parametrize("kind", ["'maildir'", "''", "1", "'bsd '"])
def test_other_types_of_mailboxes_are_unknown(database, tmp_path, kind):
    verdict = account_of(database, tmp_path, kind=kind)
    assert verdict.answer == CANNOT_SAY
    assert verdict.reason.startswith("mailbox type: ")


BAD_PATHS = ["'mail/ann'", "''", "'ann'", "'/var/mail/../ann'", "'/var/mail/..'", "'../ann'",
             "'/var/mail/'", "'/'", "'/var/mail/a\\0nn'", "12", "REPEAT('/x', 40000)"]  # fmt: skip


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_mailbox_is_a_file_from_the_root(database, tmp_path, path):
    verdict = account_of(database, tmp_path, path=path)
    assert verdict.answer == CANNOT_SAY
    assert verdict.reason.startswith("mailbox path: ")


@pytest.mark.parametrize("path", ["/var/mail/..ann", "/var/mail/ann n.", "/var/mail/änn", "/ann"])
def test_paths_are_taken_as_they_are(database, tmp_path, path):
    assert account_of(database, tmp_path, path=f"'{path}'").account.mailboxes == [path]


def test_numbers_are_as_good_as_texts(database, tmp_path):
    query = f"SELECT CONCAT('/', 7), 12345678, {MAIL_USER.pw_uid}, 'BSD'"
    config = database.config(tmp_path, pass_query=query)
    # Eight digits are no MD5, but they are checked like one.
    assert said(decide(config, "ann", b"12345678")) == (NO, "wrong password")
    config = database.config(tmp_path, pass_query=query.replace("12345678", f"'{MD5}'"))
    assert decide(config, "ann").account.mailboxes == ["/7"]


def test_a_row_without_the_right_password_says_nothing_of_the_account(database, tmp_path):
    query = "SELECT 'no path', '{plaintext}secret', 'root', 'maildir'"
    config = database.config(tmp_path, pass_query=query)
    assert said(decide(config, "ann", b"wrong")) == (NO, "wrong password")
