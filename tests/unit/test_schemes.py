"""Every scheme of stored passwords, with hashes that other programs make while the test runs."""

import importlib.util
import subprocess
import sys

import pytest

from authkit import login
from mailsite import need
from tpop3d.auth import passwords
from tpop3d.auth.driver import CANNOT_SAY, NO

PASSWORDS = (b"open sesame", b"gr\xfc\xdfe")  # the other is no UTF-8


def run(*command, given=b""):
    done = subprocess.run([need(command[0]), *command[1:]], input=given, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def doveadm(scheme, *options):
    """Dovecot's, with the prefix that it writes. It takes no password from a pipe but twice."""
    command = ["doveadm", "-O", "pw", "-s", scheme, *options]
    return lambda password: run(*command, given=(password + b"\n") * 2)


def mkpasswd(method, *options):
    return lambda password: run("mkpasswd", "-s", "-m", method, *options, given=password)


def openssl(method):
    return lambda password: run("openssl", "passwd", method, "-stdin", given=password)


def digest(name):
    """In hex, by OpenSSL."""
    return lambda password: run("openssl", "dgst", "-r", f"-{name}", given=password).split()[0]


def htpasswd(*options):
    return lambda password: run("htpasswd", "-ni", *options, "u", given=password).partition(b":")[2]


def prefixed(scheme, make):
    return lambda password: b"{%b}%b" % (scheme.encode(), make(password))


# Where the hashes are from, by scheme.
MAKERS = {
    "crypt": {
        "DES": prefixed("crypt", mkpasswd("descrypt")),
        "BSDI": prefixed("crypt", mkpasswd("bsdicrypt")),
        "MD5": prefixed("crypt", openssl("-1")),
        "SHA-256": prefixed("crypt", openssl("-5")),
        "SHA-512": prefixed("crypt", openssl("-6")),
        "bcrypt": prefixed("crypt", mkpasswd("bcrypt", "-R", "4")),
        "bcrypt, htpasswd": prefixed("crypt", htpasswd("-B", "-C", "4")),
        "scrypt": prefixed("crypt", mkpasswd("scrypt", "-R", "6")),
        "yescrypt": prefixed("crypt", mkpasswd("yescrypt", "-R", "1")),
        "gost-yescrypt": prefixed("crypt", mkpasswd("gost-yescrypt", "-R", "1")),
        "Dovecot": doveadm("CRYPT", "-r", "4"),
        "Dovecot, base64": doveadm("CRYPT.b64", "-r", "4"),
    },
    "crypt_md5": {"OpenSSL": prefixed("crypt_md5", openssl("-1"))},
    "md5": {
        "OpenSSL": prefixed("md5", digest("md5")),
        "OpenSSL, capitals": prefixed("MD5", lambda password: digest("md5")(password).upper()),
        "Dovecot's MD5-CRYPT by its old name": doveadm("MD5"),
    },
    "sha1": {
        "OpenSSL": prefixed("sha1", digest("sha1")),
        "Dovecot": doveadm("SHA1"),
    },
    "plaintext": {"nobody": prefixed("plaintext", lambda password: password)},
    "des-crypt": {"Dovecot": doveadm("DES-CRYPT")},
    "md5-crypt": {"Dovecot": doveadm("MD5-CRYPT")},
    "sha256-crypt": {"Dovecot": doveadm("SHA256-CRYPT", "-r", "1000")},
    "sha512-crypt": {
        "Dovecot": doveadm("SHA512-CRYPT", "-r", "1000"),
        "Dovecot, hex": doveadm("SHA512-CRYPT.hex", "-r", "1000"),
    },
    "blf-crypt": {"Dovecot": doveadm("BLF-CRYPT", "-r", "4")},
    "plain-md5": {
        "Dovecot": doveadm("PLAIN-MD5"),
        "Dovecot, base64": doveadm("PLAIN-MD5.b64"),
    },
    "ldap-md5": {
        "Dovecot": doveadm("LDAP-MD5"),
        "Dovecot, hex": doveadm("LDAP-MD5.hex"),
    },
    "sha": {
        "Dovecot": doveadm("SHA"),
        "Dovecot, hex": doveadm("SHA.hex"),
        "htpasswd": htpasswd("-s"),
    },
    "sha256": {
        "Dovecot": doveadm("SHA256"),
        "Dovecot, hex": doveadm("SHA256.hex"),
        "Dovecot, base64": doveadm("SHA256.b64"),
        "OpenSSL": prefixed("sha256", digest("sha256")),
        "without padding": lambda password: doveadm("SHA256")(password).rstrip(b"="),
    },
    "sha512": {"Dovecot": doveadm("SHA512"), "Dovecot, hex": doveadm("SHA512.hex")},
    "smd5": {"Dovecot": doveadm("SMD5"), "Dovecot, hex": doveadm("SMD5.hex")},
    "ssha": {"Dovecot": doveadm("SSHA"), "Dovecot, hex": doveadm("SSHA.hex")},
    "ssha256": {
        "Dovecot": doveadm("SSHA256"),
        "Dovecot, hex": doveadm("SSHA256.hex"),
        "Dovecot, base64": doveadm("SSHA256.base64"),
        "without padding": lambda password: doveadm("SSHA256")(password).rstrip(b"="),
    },
    "ssha512": {"Dovecot": doveadm("SSHA512"), "Dovecot, hex": doveadm("SSHA512.hex")},
    "argon2i": {"Dovecot": doveadm("ARGON2I", "-r", "3")},
    "argon2id": {
        "Dovecot": doveadm("ARGON2ID", "-r", "1"),
        "Dovecot, base64": doveadm("ARGON2ID.b64", "-r", "1"),
    },
    "plain": {
        "Dovecot": doveadm("PLAIN"),
        "Dovecot, hex": doveadm("PLAIN.hex"),
        "Dovecot, base64": doveadm("PLAIN.b64"),
    },
    "clear": {"Dovecot": doveadm("CLEAR")},
    "cleartext": {"Dovecot": doveadm("CLEARTEXT"), "Dovecot, hex": doveadm("CLEARTEXT.hex")},
}
BY_MARIADB = {"mysql": "OLD_PASSWORD", "md5": "MD5", "sha1": "SHA1"}
TABLE = [(scheme, maker) for scheme, makers in MAKERS.items() for maker in makers]


def wrong(right):
    """Not the right one, also to DES, which sees 8 characters of 7 bits."""
    return b"", right[:6][:-1], b"x" + right, bytes([right[0] ^ 1]) + right[1:]


def need_argon2(scheme):
    if scheme.startswith("argon2") and not importlib.util.find_spec("argon2"):
        pytest.skip("argon2-cffi is not installed in this Python")


def test_there_is_another_program_for_every_scheme():
    assert {*MAKERS, *BY_MARIADB} == {*passwords.SCHEMES}
    assert {*passwords.DIGESTS} < {*passwords.SCHEMES}


@pytest.mark.parametrize(("scheme", "maker"), TABLE, ids=map(": ".join, TABLE))
def test_what_another_program_makes_is_checked(scheme, maker):
    need_argon2(scheme)
    for right in PASSWORDS:
        stored = MAKERS[scheme][maker](right)
        assert passwords.split(stored, "nothing")[0] == scheme
        assert passwords.check(right, stored, "nothing") is True, stored
        for password in wrong(right):
            assert passwords.check(password, stored, "nothing") is False, stored


@pytest.mark.parametrize(("scheme", "function"), BY_MARIADB.items())
def test_what_mariadb_makes_is_checked(mariadb, scheme, function):
    for right in (*PASSWORDS, b"mypass", b"\ta  b\n", b"\0", b"x" * 200):
        hashed = mariadb.sql(f"SELECT {function}(x'{right.hex()}')", "")[0].encode()
        assert passwords.check(right, hashed, scheme) is True, hashed
        assert passwords.check(right, b"{%b}%b" % (scheme.encode(), hashed), "crypt") is True
        for password in wrong(right):
            assert passwords.check(password, hashed, scheme) is False, hashed


CRYPTS = {
    b"$1$": openssl("-1"),
    b"$5$": openssl("-5"),
    b"$6$": openssl("-6"),
    b"$y$": mkpasswd("yescrypt", "-R", "1"),
    b"$2b$": mkpasswd("bcrypt", "-R", "4"),
    b"$2y$": htpasswd("-B", "-C", "4"),
}


@pytest.mark.parametrize("method", CRYPTS)
def test_a_bare_hash_of_crypt_where_md5_is_the_default(method):
    for right in PASSWORDS:
        stored = CRYPTS[method](right)
        assert stored.startswith(method)
        for default in ("md5", "crypt"):
            assert passwords.check(right, stored, default) is True, stored
            for password in wrong(right):
                assert passwords.check(password, stored, default) is False, stored


@pytest.mark.parametrize("scheme", ["ARGON2ID", "ARGON2I"])
def test_without_its_package_nobody_can_say_and_the_extra_is_named(monkeypatch, scheme):
    stored = doveadm(scheme)(b"open sesame")
    for module in [name for name in sys.modules if name.partition(".")[0] == "argon2"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "argon2", None)  # so that an import of it fails
    for password in (b"open sesame", b"wrong"):
        refusal = login(b"ann", password=password).refusal(stored, stored, "md5")
        assert refusal.answer == CANNOT_SAY
        assert "argon2-cffi" in refusal.reason
        assert "tpop3d[argon2]" in refusal.reason
    # Others' passwords need nothing of it.
    assert login(b"ann", password=b"x").refusal(b"{PLAIN}x", stored, "md5") is None


@pytest.mark.parametrize(
    "scheme", ["PLAIN-MD4", "HMAC-MD5", "DIGEST-MD5", "SCRAM-SHA-256", "OTP", "PBKDF2", "CRAM-MD5"]
)
def test_what_else_dovecot_makes_is_refused(scheme):
    stored = doveadm(scheme, "-u", "ann")(b"open sesame")
    refusal = login(b"ann", password=b"open sesame").refusal(stored, stored, "md5")
    assert (refusal.answer, refusal.reason) == (NO, "unknown password scheme")


def test_apop_with_a_secret_that_dovecot_has_written():
    timestamp, digest = b"<1896.697170952@dbc.mtview.ca.us>", b"c4c9334bac560ecc979e58001b3e22fb"
    for scheme in ("PLAIN", "CLEAR", "CLEARTEXT", "PLAIN.hex", "PLAIN.b64"):
        stored = doveadm(scheme)(b"tanstaaf")  # RFC 1939 section 7
        assert passwords.check_apop(timestamp, digest, stored, "md5") is True
    with pytest.raises(passwords.UnusableHash):
        passwords.check_apop(timestamp, digest, doveadm("SHA")(b"tanstaaf"), "plain")
