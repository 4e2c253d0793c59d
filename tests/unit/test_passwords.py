"""Stored passwords: every scheme of the original, checked against other programs' hashes.

The password is "open sesame" unless the table names another. Where the hashes are from:

- mkpasswd 5.5.17 (whois): `mkpasswd -s -m METHOD -S SALT`;
- OpenSSL 3.0: `openssl passwd -1 / -6 -salt SALT -stdin`, `openssl dgst -md5 / -sha1 -binary`;
- crypt_blowfish's own tests (Openwall, wrapper.c): the $2a$ and $2y$ ones;
- RFC 1321 appendix A.5 and FIPS 180-1 appendix A: the digests of "abc";
- the MySQL 5.0 Reference Manual, "Password Hashing in MySQL": PASSWORD('mypass').
"""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpop3d.auth import passwords
from tpop3d.auth.driver import Login

SESAME = b"open sesame"
LATIN = b"gr\xfc\xdfe"  # no UTF-8

MD5_CRYPT = b"$1$saltsalt$Yo6tRKYGO/jWyb1etwHDS/"
SHA512_CRYPT = (
    b"$6$saltstring$b4SOQO.YI.BXjgbKQa.97c9EQud0NW8Txr5rCRGsAucjEsL95TW5MDF/7KcC3bcG5NoxZbmB6Lh82"
    b"fxg8soAZ0"
)
SHA512_CRYPT_LATIN = (
    b"$6$saltstring$8Nlxzo2dozbojMN8xu0.v19xxQ6LSbGLIZ.NsPXujnrUyHNyT2gafek7/zDohB6.nEpS09JHZsdGn"
    b"HtglzC0P/"
)
BCRYPT_A = b"$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"
BCRYPT_B = b"$2b$05$CCCCCCCCCCCCCCCCCCCCC.vTdnMkpWk2uFGdD13bbQkt9V3Bbgxl."
BCRYPT_Y_LATIN = b"$2y$05$/OK.fbVrR/bpIqNJ5ianF.Sa7shbm4.OzKpvFnX1pQLmQW96oUlCq"
YESCRYPT = b"$y$j9T$saltsaltsaltsaltsalts.$c.lj4GgH8VxJYpKa6MSe07bdt8zf8oF4JoUtlLXaQkA"
RIGHT = {
    "crypt, DES": (b"{crypt}ab/G8gtZdMwak", SESAME),
    "crypt, MD5": (b"{crypt}" + MD5_CRYPT, SESAME),
    "crypt, SHA-256": (
        b"{crypt}$5$saltstring$sOFRiuqOzKEQCZAIFmMrCbPuMEMUPOi/BmBpBwWMgW3",
        SESAME,
    ),
    "crypt, SHA-512": (b"{crypt}" + SHA512_CRYPT, SESAME),
    "crypt, yescrypt": (b"{crypt}" + YESCRYPT, SESAME),
    "crypt, bcrypt a": (b"{crypt}" + BCRYPT_A, b"U*U"),
    "crypt, bcrypt b": (b"{crypt}" + BCRYPT_B, SESAME),
    "crypt, bcrypt y, 8 bits": (b"{crypt}" + BCRYPT_Y_LATIN, b"\xa3"),
    "crypt, MD5, 8 bits": (b"{crypt}$1$saltsalt$IwgMYwY2KPMcytcbhdPV5/", LATIN),
    "crypt, SHA-512, 8 bits": (b"{crypt}" + SHA512_CRYPT_LATIN, LATIN),
    "crypt without a prefix": (SHA512_CRYPT, SESAME),
    "scheme in capitals": (b"{CRYPT}" + SHA512_CRYPT, SESAME),
    "crypt_md5": (b"{crypt_md5}" + MD5_CRYPT, SESAME),
    "crypt_md5, 8 bits": (b"{crypt_md5}$1$saltsalt$IwgMYwY2KPMcytcbhdPV5/", LATIN),
    "md5, hex": (b"{md5}54ef36ec71201fdf9d1423fd26f97f6b", SESAME),
    "md5, hex, RFC 1321": (b"{md5}900150983cd24fb0d6963f7d28e17f72", b"abc"),
    "md5, hex, capitals": (b"{md5}54EF36EC71201FDF9D1423FD26F97F6B", SESAME),
    "md5, hex, 8 bits": (b"{md5}3fe188b7c2dc43c77b56b25b30203e17", LATIN),
    "md5, hex, NUL": (b"{md5}70350f6027bce3713f6b76473084309b", b"a\0b"),
    "md5, base64": (b"{md5}VO827HEgH9+dFCP9Jvl/aw==", SESAME),
    "sha1": (b"{sha1}5bcaff7f22ff533ca099b3408ead876c0ebba9a7", SESAME),
    "sha1, FIPS 180-1": (b"{sha1}a9993e364706816aba3e25717850c26c9cd0d89d", b"abc"),
    "sha1, capitals": (b"{sha1}A9993E364706816ABA3E25717850C26C9CD0D89D", b"abc"),
    "plaintext": (b"{plaintext}open sesame", SESAME),
    "plaintext, 8 bits": (b"{plaintext}" + LATIN, LATIN),
    "plaintext, braces": (b"{plaintext}{crypt}x", b"{crypt}x"),
    "plaintext, blanks at both ends": (b"{plaintext} a  b ", b" a  b "),
    "mysql, 16 digits": (b"{mysql}6f8c114b58f2ce9e", b"mypass"),
    "mysql, 8 digits": (b"{mysql}6f8c114b", b"mypass"),
    "mysql, capitals": (b"{mysql}6F8C114B58F2CE9E", b"mypass"),
    "mysql, blanks do not count": (b"{mysql}6f8c114b58f2ce9e", b"my pa\tss"),
}


@pytest.mark.parametrize(("stored", "password"), RIGHT.values(), ids=RIGHT)
def test_the_right_password_is_taken(stored, password):
    assert passwords.check(password, stored, "crypt") is True


# The first two changes are the ones that DES, with its 8 characters, sees.
WRONG = {
    "another first letter": lambda right: bytes([right[0] ^ 1]) + right[1:],
    "nothing": lambda right: b"",
    "one letter less": lambda right: right[:7][:-1],
    "one letter more in front": lambda right: b"x" + right,
    "a NUL behind": lambda right: right + b"\0",
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize(("stored", "password"), RIGHT.values(), ids=RIGHT)
def test_a_wrong_password_is_not(stored, password, change):
    assert passwords.check(change(password), stored, "crypt") is False


@given(st.binary(max_size=40))
def test_no_password_is_taken_for_another(password):
    for stored, right in RIGHT.values():
        slow = stored.startswith((b"{crypt}", b"{CRYPT}", b"{crypt_md5}", b"$", b"{mysql}"))
        assert slow or passwords.check(password, stored, "crypt") == (password == right)


@given(st.binary(max_size=40))
def test_digests_are_those_of_any_octets(password):
    digest = hashlib.md5(password, usedforsecurity=False).hexdigest().encode()
    assert passwords.check(password, b"{md5}" + digest, "crypt")
    digest = hashlib.sha1(password, usedforsecurity=False).hexdigest().encode()
    assert passwords.check(password, b"{sha1}" + digest, "crypt")
    assert passwords.check(password, b"{plaintext}" + password, "crypt")


def test_the_default_scheme_is_the_drivers():
    assert passwords.check(SESAME, b"54ef36ec71201fdf9d1423fd26f97f6b", "md5")
    assert not passwords.check(SESAME, b"54ef36ec71201fdf9d1423fd26f97f6b", "crypt")
    assert passwords.check(SESAME, MD5_CRYPT, "crypt")
    assert not passwords.check(SESAME, b"{crypt}54ef36ec71201fdf9d1423fd26f97f6b", "md5")


@pytest.mark.parametrize("stored", [MD5_CRYPT, SHA512_CRYPT, YESCRYPT, BCRYPT_B])
def test_where_md5_is_the_default_a_dollar_is_crypts(stored):
    """No MD5 begins with one, and tables hold both."""
    assert passwords.check(SESAME, stored, "md5")
    assert passwords.check(SESAME, b"{md5}" + stored, "crypt")
    assert not passwords.check(b"wrong", stored, "md5")


MALFORMED = [
    b"{crypt}*", b"{crypt}!", b"{crypt}*0", b"{crypt}*1", b"{crypt}x", b"{crypt}$", b"{crypt}$6",
    b"{crypt}$6$", b"{crypt}$6$saltstring", b"{crypt}$6$saltstring$", b"{crypt}$2y$05$short",
    b"{crypt}$nosuchmethod$salt$hash", b"{crypt}:;", b"{crypt}\xff\xfe", b"{crypt}a\0b",
    b"{crypt}!" + SHA512_CRYPT, SHA512_CRYPT[:-1], SHA512_CRYPT + b"x",
    b"{crypt_md5}", b"{crypt_md5}" + SHA512_CRYPT, b"{crypt_md5}ab/G8gtZdMwak",
    b"{md5}", b"{md5}=", b"{md5}" + b"z" * 32, b"{md5}54ef36ec", b"{md5}\xff" * 8,
    b"{sha1}", b"{sha1}5bca", b"{sha1}" + b"z" * 40, b"{sha1}\xff",
    b"{mysql}", b"{mysql}0", b"{mysql}6f8c114b58f2ce9", b"{mysql}6f8c114b58f2ce9e0", b"{mysql}\xff",
    b"{plaintext}", b"{plaintext}\0", b"{crypt", b"{", b"}",
    b"{plain}", b"{clear}", b"{cleartext}\0", b"{plain.hex}", b"{plain.b64}",
    b"{sha}", b"{sha}=", b"{sha}W8r/fyL/UzygmbNAjq2HbA67qa", b"{sha.hex}", b"{sha.hex}5bca",
    b"{sha256}", b"{sha256}" + b"z" * 64, b"{sha512}" + b"\xff" * 128,
    b"{ssha}", b"{ssha}=", b"{ssha}x", b"{ssha}\xff", b"{ssha}" + b"A" * 26, b"{ssha}" + b"=" * 40,
    b"{smd5}AA==", b"{ssha256}A A=", b"{ssha512}" + b"A" * 200, b"{ssha.hex}", b"{ssha.hex}00ff",
    b"{ldap-md5}", b"{plain-md5}$", b"{md5}$1$", b"{sha256}$6$saltstring$", b"{md5-crypt}$1$",
    b"{blf-crypt}$2y$04$", b"{des-crypt}a", b"{sha512-crypt}$6$rounds=x$salt$hash",
    b"{argon2id}", b"{argon2id}$", b"{argon2id}$argon2id$", b"{argon2id}argon2id$v=19$m=8,t=1,p=1$",
    b"{argon2id}$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAA$", b"{argon2id}$argon2d$v=19$m=8,t=1,p=1$x",
    b"{argon2id}$argon2id$v=19$m=0,t=0,p=0$AAAAAAAAAAA$AAAA", b"{argon2id}$argon2id$\xff\0$",
    b"{argon2i}$argon2i$v=99$m=8,t=1,p=1$AAAAAAAAAAA$AAAAAAAAAAA", b"{argon2i}" + SHA512_CRYPT,
]  # fmt: skip


@pytest.mark.parametrize("stored", MALFORMED)
@pytest.mark.parametrize("password", [SESAME, LATIN, b"*0", b"*1", b"*", b"!", b"x", b"a\0b"])
def test_nobody_knows_the_password_behind_a_malformed_hash(stored, password):
    assert passwords.check(password, stored, "crypt") is False


SALTS = [b"", b"$1$", b"$6$rounds=1000$", b"$2y$04$", b"$argon2id$v=19$m=8,t=1,p=1$", b"ab", b"*"]
ALPHABET = st.sampled_from(b"./=$,+ 09afAFzZ\0\n\xff")


@given(
    st.sampled_from([*passwords.SCHEMES]),
    st.sampled_from(["", ".hex", ".b64", ".base64", ".", ".x", ".hex.hex"]),
    st.sampled_from(SALTS),
    st.lists(ALPHABET, max_size=90).map(bytes) | st.binary(max_size=90),
    st.binary(max_size=20),
)
@settings(deadline=None, max_examples=500)
def test_whatever_is_stored_raises_nothing_else(scheme, encoding, salt, rest, password):
    """Than what it says; and it is no password of anybody's."""
    stored = f"{{{scheme}{encoding}}}".encode() + salt + rest
    try:
        good = passwords.check(password, stored, "crypt")
    except (passwords.UnusableHash, passwords.Missing):
        return
    plain = passwords.SCHEMES[scheme] is passwords.SCHEMES["plain"]
    assert good is False or plain or (password == salt == rest == b"")


@pytest.mark.parametrize("stored", [
    b"{sha.hex}5bc", b"{sha.hex}zz", b"{sha.b64}W8r/fyL/UzygmbNAjq2Hb!", b"{plain.b64}x",
    b"{plain.b64}=", b"{crypt.b64}=", b"{plain.b64}YQ===", b"{sha512.b64}====",
    b"{sha.}x", b"{plain.hex}\xff", b"{plain.rot13}x", b"{crypt.hex.b64}00",
    b"{.hex}00x", b"{plain.hex }00x",
])  # fmt: skip
def test_what_is_not_encoded_as_it_says_is_an_error_that_quotes_nothing(stored):
    with pytest.raises(passwords.UnusableHash) as raised:
        passwords.check(SESAME, stored, "crypt")
    assert stored.partition(b"}")[2].decode("latin-1") not in str(raised.value).replace("x", "?")


@given(st.binary(min_size=1, max_size=20))
def test_the_hash_is_not_the_password(stored):
    for scheme in ("crypt_md5", "md5", "sha1", "mysql"):
        assert not passwords.check(stored, b"{%b}" % scheme.encode() + stored, "crypt")


@pytest.mark.parametrize("stored", [b"{nosuch}x", b"{}x", b"{md4}x", b"{\xff}x", b"{md5 }x"])
def test_an_unknown_scheme_is_an_error_that_quotes_nothing(stored):
    with pytest.raises(passwords.UnusableHash) as raised:
        passwords.check(SESAME, stored, "crypt")
    assert "x" not in str(raised.value)


def test_an_empty_hash_is_an_empty_password():
    assert passwords.check(b"", b"", "crypt")
    assert not passwords.check(b"x", b"", "crypt")


# RFC 1939 section 7, the example.
TIMESTAMP = b"<1896.697170952@dbc.mtview.ca.us>"
DIGEST = b"c4c9334bac560ecc979e58001b3e22fb"


def test_apop_is_that_of_rfc_1939():
    assert passwords.check_apop(TIMESTAMP, DIGEST, b"{plaintext}tanstaaf", "crypt")
    assert passwords.check_apop(TIMESTAMP, DIGEST, b"tanstaaf", "plaintext")


@pytest.mark.parametrize(
    ("timestamp", "digest", "stored"),
    [
        (TIMESTAMP, DIGEST, b"{plaintext}tanstaaf "),
        (TIMESTAMP, DIGEST, b"{plaintext}"),
        (TIMESTAMP, hashlib.md5(TIMESTAMP).hexdigest().encode(), b"{plaintext}"),  # of no secret
        (TIMESTAMP[:-1], DIGEST, b"{plaintext}tanstaaf"),
        (TIMESTAMP, DIGEST[:-1] + b"c", b"{plaintext}tanstaaf"),
        (TIMESTAMP, DIGEST.upper(), b"{plaintext}tanstaaf"),
        (TIMESTAMP, b"", b"{plaintext}tanstaaf"),
        (TIMESTAMP, b"\xff" * 32, b"{plaintext}tanstaaf"),
    ],
)
def test_another_apop_digest_is_not_taken(timestamp, digest, stored):
    assert not passwords.check_apop(timestamp, digest, stored, "crypt")


@pytest.mark.parametrize("stored", [b"tanstaaf", b"{md5}tanstaaf", b"{crypt}" + MD5_CRYPT, b""])
def test_apop_needs_plaintext(stored):
    with pytest.raises(passwords.UnusableHash):
        passwords.check_apop(TIMESTAMP, DIGEST, stored, "crypt")


def test_a_login_checks_by_what_it_has():
    assert Login(b"ann", password=SESAME).matches(MD5_CRYPT, "crypt")
    assert not Login(b"ann", password=b"wrong").matches(MD5_CRYPT, "crypt")
    apop = Login(b"mrose", timestamp=TIMESTAMP, digest=DIGEST)
    assert apop.matches(b"{plaintext}tanstaaf", "crypt")
    assert not apop.matches(b"{plaintext}wrong", "crypt")


def test_every_comparison_takes_the_same_time(monkeypatch):
    """Where both have a digest's length, nothing but the constant-time comparison decides."""
    compared = []
    monkeypatch.setattr(passwords, "same", lambda a, b: compared.append((a, b)) or True)
    for stored, _ in RIGHT.values():
        assert passwords.check(b"certainly wrong", stored, "crypt") is True
    assert passwords.check_apop(TIMESTAMP, b"0" * 32, b"{plaintext}wrong", "crypt") is True
    assert len(compared) == len(RIGHT) + 1
