"""What is in a file of a certificate or a private key (RFC 7468, RFC 5280), and what is wrong with
it.

OpenSSL says neither which of two files it means, nor what a file is instead. These files are the
administrator's: nothing here comes from a client.
"""

from __future__ import annotations

from binascii import Error, a2b_base64
from calendar import timegm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

BEGIN, END, DASHES = b"-----BEGIN ", b"-----END ", b"-----"
CERTIFICATES = ("CERTIFICATE", "TRUSTED CERTIFICATE", "X509 CERTIFICATE")  # of openssl-x509(1)
REQUESTS = ("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")
OF_OPENSSH = "OPENSSH PRIVATE KEY"
# Tags of DER (X.690).
INTEGER, OCTETS, OID, SEQUENCE, SET, VERSION, GENERALIZED_TIME = 2, 4, 6, 0x30, 0x31, 0xA0, 0x18
COMMON_NAME, ORGANIZATION = b"\x55\x04\x03", b"\x55\x04\x0a"  # 2.5.4.3, 2.5.4.10
A_CERTIFICATE, A_KEY, A_REQUEST = "a certificate", "a private key", "a request for a certificate"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # how text of some editors begins
PKCS7, PKCS12 = "PKCS#7", "PKCS#12"
# How openssl(1) makes PEM of what is none.
CONVERT = {
    A_CERTIFICATE: "openssl x509 -inform der -in",
    A_KEY: "openssl pkey -inform der -in",
    PKCS7: "openssl pkcs7 -print_certs -in",
    PKCS12: "openssl pkcs12 -nodes -in",
}


class Certificate:
    """What this server has to know of a certificate: subject and issuer in DER form, the kind of
    its key (an OID in DER form), and its end in seconds since 1970."""

    __slots__ = ("end", "issuer", "kind", "subject")

    def __init__(self, der: bytes) -> None:
        """Raises ValueError."""
        ((_, whole), *_) = _elements(der)
        ((_, signed), *_) = _elements(whole)
        fields = list(_elements(signed))
        if fields and fields[0][0] == VERSION:
            del fields[0]
        (_, _, (_, self.issuer), (_, validity), (_, self.subject), (_, key), *_) = fields
        (_, (tag, end), *_) = _elements(validity)
        ((_, algorithm), *_) = _elements(key)
        ((_, self.kind), *_) = _elements(algorithm)
        self.end = _seconds(end, has_century=tag == GENERALIZED_TIME)

    @property
    def is_self_signed(self) -> bool:
        """Is it its own issuer, as far as the names tell?"""
        return self.subject == self.issuer


def name_of(name: bytes) -> str:
    """The name of a subject or issuer, for people: the common name, or the organization."""
    found: dict[bytes, str] = {}
    for _, group in _elements(name):
        for _, pair in _elements(group):
            (_, key), (_, value), *_ = _elements(pair)
            found.setdefault(key, value.decode("utf-8", "replace"))
    shown = found.get(COMMON_NAME) or found.get(ORGANIZATION) or "without a name"
    return "".join(c if c.isprintable() else "?" for c in shown)


def certificates_in(octets: bytes) -> list[Certificate]:
    """The certificates of a file, in order. Raises ValueError where one is damaged."""
    return [Certificate(_decoded(body)) for label, body in _blocks(octets) if label in CERTIFICATES]


def wrong_with_certificate(path: str, octets: bytes) -> str:
    """Say why a file is no certificate, for people; "" if it is one."""
    labels = [label for label, _ in _blocks(octets)]
    if any(label in CERTIFICATES for label in labels):
        try:
            certificates_in(octets)
        except ValueError as error:
            return f"{path}: a certificate in it is {str(error) or 'damaged'}"
        return _off_the_line(path, octets)
    return _instead(path, octets, labels, A_CERTIFICATE)


def wrong_with_key(path: str, octets: bytes, certificate: str) -> str:
    """Say why a file is no private key for the certificate of the other file; "" if it is one."""
    blocks = list(_blocks(octets))
    labels = [label for label, _ in blocks]
    for label, body in blocks:
        if label.endswith("PRIVATE KEY") and label != OF_OPENSSH:
            if body is None:
                return f"{path}: the private key in it is cut off"
            return _off_the_line(path, octets)
    if OF_OPENSSH in labels:
        return f"{path}: is a private key of OpenSSH's; ssh-keygen -p -m pem -f {path} changes that"
    if path == certificate:
        return f"{path}: holds no private key; tls-private-key must name the file of one"
    return _instead(path, octets, labels, A_KEY)


def _off_the_line(path: str, octets: bytes) -> str:
    """Say that something stands before a BEGIN in its line; "" if nothing does. OpenSSL takes no
    PEM that is indented; a byte order mark does not matter."""
    octets = octets.removeprefix(BYTE_ORDER_MARK)
    start = octets.find(BEGIN)
    while start >= 0:
        if start and octets[start - 1] not in b"\r\n":
            return f"{path}: something stands before {BEGIN.decode().strip()} in its line"
        start = octets.find(BEGIN, start + 1)
    return ""


def _instead(path: str, octets: bytes, labels: list[str], wanted: str) -> str:
    """Say what a file is instead."""
    if not octets.strip():
        return f"{path}: is empty"
    if octets.startswith(UTF_16):
        return f"{path}: is text in UTF-16, and must be ASCII"
    found = next((what for label in labels if (what := _of_label(label))), "")
    form = ""
    if not found and (found := _in_der(octets)) == wanted:
        form = " in DER form"
    if found in (PKCS7, PKCS12) or form == " in DER form":
        return f"{path}: is {found}{form}; PEM is what {CONVERT[found]} {path} writes"
    if found:
        return f"{path}: is {found}, and no {wanted.removeprefix('a ')}"
    return f"{path}: is no {wanted.removeprefix('a ')} in PEM form"


def _of_label(label: str) -> str:
    if label in CERTIFICATES:
        return A_CERTIFICATE
    if label in REQUESTS:
        return A_REQUEST
    if label.endswith("PRIVATE KEY"):
        return A_KEY
    return {"PKCS7": PKCS7, "PUBLIC KEY": "a public key"}.get(label, "")


def _in_der(octets: bytes) -> str:
    """Say what a file in DER form is; "" if it is none."""
    try:
        ((tag, whole), *_) = _elements(octets)
        tags = [one for one, _ in _elements(whole)]
    except ValueError:
        return ""
    if tag != SEQUENCE or not tags:
        return ""
    if tags[0] == OID:
        return PKCS7  # RFC 2315 section 7
    if tags[0] == SEQUENCE:
        return A_CERTIFICATE
    if tags[0] != INTEGER:
        return ""
    # PKCS#12 (RFC 7292 section 4) is of version 3; keys are of 0 or 1.
    return PKCS12 if whole[2:3] == b"\x03" and len(tags) in (2, 3) else A_KEY


def _blocks(octets: bytes) -> Iterator[tuple[str, bytes | None]]:
    """Yield each label of a PEM file, with its text; None where it does not end."""
    position = 0
    while (start := octets.find(BEGIN, position)) >= 0:
        position = start + len(BEGIN)
        if (after := octets.find(DASHES, position)) < 0:
            return
        label = octets[position:after]
        position = after + len(DASHES)
        end = octets.find(END + label + DASHES, position)
        following = octets.find(BEGIN, position)
        if end < 0 or 0 <= following < end:
            yield label.decode("ascii", "replace"), None
            continue
        yield label.decode("ascii", "replace"), octets[position:end]
        position = end


def _decoded(text: bytes | None) -> bytes:
    """Decode a PEM block. Raises ValueError."""
    if text is None:
        raise ValueError("cut off")
    try:
        return a2b_base64(text)
    except Error:
        raise ValueError("damaged") from None


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element of DER. Raises ValueError."""
    position = 0
    while position < len(der):
        tag, length, position = der[position], *_length(der, position + 1)
        if position + length > len(der):
            raise ValueError("damaged")
        yield tag, der[position : position + length]
        position += length


def _length(der: bytes, position: int) -> tuple[int, int]:
    """Read a length; returns it, and where it ends."""
    if position >= len(der):
        raise ValueError("damaged")
    first = der[position]
    if first < 0x80:
        return first, position + 1
    end = position + 1 + (first & 0x7F)
    return int.from_bytes(der[position + 1 : end], "big"), end


def _seconds(text: bytes, *, has_century: bool) -> int:
    """Read a moment (RFC 5280 section 4.1.2.5); returns seconds since 1970."""
    digits = text.decode("ascii", "replace").removesuffix("Z")
    if not digits.isdecimal() or len(digits) != (14 if has_century else 12):
        raise ValueError("damaged")
    if not has_century:
        digits = ("19" if digits >= "5" else "20") + digits
    return timegm((int(digits[:4]), *(int(digits[n : n + 2]) for n in range(4, 14, 2))))
