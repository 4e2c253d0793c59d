"""What a client calls itself never reaches the database as anything but a value."""

import pytest

import doors
from databases import decide
from tpop3d.auth.driver import CANNOT_SAY, NO, YES

# The parts of names; none of them is in a table unless a test puts it there.
ODD = {
    "quote": b"o'hara",
    "double quote": b'o"hara',
    "backslash": b"back\\slash",
    "backslash at the end": b"ann\\",
    "backslash and quote": b"\\' OR 1=1 -- ",
    "percent": b"%",
    "format": b"%s%(x)s%d%%",
    "underscores": b"___",
    "braces": b"{0}{}$(user)$(password)",
    "always true": b"' OR '1'='1",
    "union": b"x' UNION SELECT '/etc/passwd', '{plaintext}secret', 'nobody', 'bsd' -- ",
    "another query": b"'; DROP TABLE popbox; --",
    "comment": b"ann' -- ",
    "block comment": b"ann'/*",
    "hash": b"ann'#",
    "hexadecimal": b"0x616e6e",
    "UTF-8": "ænne😀".encode(),
    "wide quote": "\uff07 OR 1=1 -- ".encode(),
    "half a wide character before a quote": b"\xbf' OR 1=1 -- ",
    "latin1": b"\xe6nne",
    "overlong": b"\xc0\xa7 OR 1=1 -- ",
    "surrogate": b"\xed\xa0\x80",
    "tab": b"a\tnn",
    "escape": b"\x1b[2J",
    "substitute": b"ann\x1a",
    "nothing but blanks": b"   ",
    "blank in front": b" ann",
    "null": b"NULL",
    "number": b"0",
    "as wide as a name is": b"x" * (255 - len("@example.org")),
    "as wide as the column": b"x" * 255,
    "wider": b"x" * 256,
    "much wider": b"'" * 100000,
}
NOT_UTF8 = ("half a wide character before a quote", "latin1", "overlong", "surrogate")
TOO_WIDE = ("as wide as the column", "wider", "much wider")
AT = {"domain-separators": "@"}


def content(server):
    return server.sql("SELECT 'd', domain.* FROM domain"), server.sql("SELECT * FROM popbox")


@pytest.fixture
def harmless(vmail, tmp_path):
    """Whatever a test asks for, nothing changes, and who could log in before can still."""
    before = content(vmail)
    yield vmail
    assert content(vmail) == before
    config = vmail.config(tmp_path)
    assert decide(config, "ann@example.org").answer == YES
    assert decide(config, "ann@example.net", b"other").answer == YES


@pytest.mark.parametrize("mode", ["ANSI_QUOTES", "NO_BACKSLASH_ESCAPES"])
def test_an_odd_name_is_just_unknown(harmless, tmp_path, mode):
    harmless.sql(f"SET GLOBAL sql_mode = CONCAT(@@global.sql_mode, ',{mode}')")
    try:
        config = harmless.config(tmp_path, AT)
        for odd in ODD.values():
            for name in (odd + b"@example.org", b"ann@" + odd):
                verdict = decide(config, name)
                assert verdict.answer == NO, (name[:99], verdict.reason)
    finally:
        harmless.sql("SET GLOBAL sql_mode = DEFAULT")


def test_so_it_is_to_other_queries(harmless, tmp_path):
    query = (
        "SELECT '/var/mail/x', '{plaintext}secret', 'nobody', 'bsd' FROM popbox"
        " WHERE CONCAT('<', local_part, '@', domain_name, '>') = '<$(user)>'"
    )
    config = harmless.config(tmp_path, AT, pass_query=query)
    assert decide(config, "ann@example.org").answer == YES
    for odd in ODD.values():
        assert decide(config, odd + b"@example.org").answer == NO, odd[:99]


@pytest.mark.parametrize("mode", ["ANSI_QUOTES", "NO_BACKSLASH_ESCAPES"])
def test_an_odd_name_that_is_in_the_table_gets_in(vmail, tmp_path, mode):
    here = {kind: odd.decode() for kind, odd in ODD.items() if kind not in (*NOT_UTF8, *TOO_WIDE)}
    for odd in here.values():
        vmail.add(odd, "example.org", "{plaintext}secret", "box")
    vmail.sql(f"SET GLOBAL sql_mode = CONCAT(@@global.sql_mode, ',{mode}')")
    try:
        config = vmail.config(tmp_path, AT)
        for odd in here.values():
            assert decide(config, f"{odd}@example.org").answer == YES, odd
            assert decide(config, f"{odd}@example.org", b"wrong").answer == NO, odd
            assert decide(config, f"{odd}@example.net").answer == NO, odd
    finally:
        vmail.sql("SET GLOBAL sql_mode = DEFAULT")


def test_nobody_is_let_in_without_a_local_part(harmless, tmp_path):
    config = harmless.config(tmp_path, {"permit-empty-password": "yes"})
    for name in ("@example.org", "@", "", "ann@", "@@example.org"):
        for password in (b"secret", b""):
            assert decide(config, name, password).answer == NO, name


def test_case_and_blanks_count_as_the_tables_collation_says(harmless, tmp_path):
    """With that of our schema neither letter case nor a blank at the end makes another name."""
    config = harmless.config(tmp_path)
    for name in (
        "ANN@Example.ORG",
        "ann @example.org",
        "ann@example.org ",
        "\xe1\xf1n@example.org",
    ):
        verdict = decide(config, name)
        assert verdict.answer == YES, name
        assert verdict.account.mailboxes == ["/var/mail/example.org/ann"]
        assert verdict.account.name == b"ann@example.org"  # not what the client calls itself
    to_the_octet = "CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin"
    harmless.sql(f"ALTER TABLE popbox {to_the_octet}; ALTER TABLE domain {to_the_octet}")
    for name in ("ANN@example.org", "ann@Example.ORG", "ann @example.org", "ann@example.org "):
        assert decide(config, name).answer == NO, name


def test_a_query_of_ones_own_may_say_whose_row_it_is(vmail, tmp_path):
    """Else what the collation pads is no name: there would be any number of them."""
    four = (
        "SELECT '/var/mail/ann', password_hash, 'nobody', 'bsd' FROM popbox"
        " WHERE local_part = '$(local_part)' AND domain_name = '$(domain)'"
    )
    five = four.replace("'bsd'", "'bsd', CONCAT(local_part, '@', domain_name)")
    for query, blank in ((four, NO), (five, YES)):
        config = vmail.config(tmp_path, pass_query=query)
        for name in ("ann @example.org", "ann@example.org ", "ann@example.org" + " " * 200):
            verdict = decide(config, name)
            assert verdict.answer == blank, name
            assert blank == NO or verdict.account.name == b"ann@example.org"
            assert decide(config, name, b"wrong").reason == "wrong password"
        assert decide(config, "ann@example.org").account.name == b"ann@example.org"
    config = vmail.config(tmp_path, pass_query=four.replace("'bsd'", "'bsd', NULL"))
    verdict = decide(config, "ann@example.org")
    assert (verdict.answer, verdict.reason) == (NO, "name is NULL")


def test_over_255_octets_the_database_is_not_asked(vmail, tmp_path):
    verdict = decide(vmail.config(tmp_path), b"ann@example.org" + b" " * 9000)
    assert (verdict.answer, verdict.driver) == (NO, "")


@pytest.mark.parametrize("charset", ["latin1", "ascii", "utf8mb3", "latin2 COLLATE latin2_bin"])
def test_tables_of_another_character_set_hold_some_names_and_not_others(vmail, tmp_path, charset):
    """A name with other letters is nobody's; to the database it is an illegal mix of collations."""
    convert = f"CONVERT TO CHARACTER SET {charset}"
    vmail.sql(f"ALTER TABLE popbox {convert}; ALTER TABLE domain {convert}")
    config = vmail.config(tmp_path, AT)
    assert decide(config, "ann@example.org").answer == YES
    if charset != "ascii":
        vmail.add("bjørn" if charset == "latin1" else "žofie", "example.org", "{plaintext}secret")
        name = "bjørn" if charset == "latin1" else "žofie"
        verdict = decide(config, f"{name}@example.org")
        assert verdict.answer == YES, verdict.reason
        assert verdict.account.mailboxes == [f"/var/mail/example.org/{name}"]
        assert decide(config, f"{name}@example.org", b"wrong").answer == NO
    for odd in ("日本", "žåλ", "😀", ODD["wide quote"].decode(), ODD["another query"].decode()):
        for name in (f"{odd}@example.org", f"ann@{odd}"):
            verdict = decide(config, name)
            assert verdict.answer == NO, (name, verdict.reason)


def test_columns_that_do_not_go_together_are_the_administrators_problem(vmail, tmp_path):
    """That is an illegal mix of collations, too, and nobody is told that a password is wrong."""
    vmail.sql("ALTER TABLE popbox CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci")
    verdict = decide(vmail.config(tmp_path), "ann@example.org")
    assert verdict.answer == CANNOT_SAY
    assert "Illegal mix of collations" in verdict.reason


def test_so_it_is_through_the_network(mail_site, database):
    before = content(database)
    with doors.standalone(mail_site) as door:
        for odd in ODD.values():
            if len(odd) > 200:
                continue  # no line of the protocol is as long
            client = door.connect()
            assert client.line().startswith(b"+OK")
            client.send(b"USER %b@example.org\r\nPASS secret\r\n" % odd)
            replies = [client.line(), client.line()]
            assert replies[-1].startswith(b"-ERR"), odd
            assert not replies[-1].startswith(b"-ERR [SYS/"), odd
            client.close()
        client = door.connect()
        client.login("ann@example.org")
        assert "undecided" not in door.logs.text()
        assert door.logs.text().isascii()
    assert content(database) == before
