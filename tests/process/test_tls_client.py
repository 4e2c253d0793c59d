"""The handshake: whoever makes none gets nothing, and the monitor is told why."""

import os
import signal
import ssl

import pytest

import relaykit
import tlskit
from relaykit import relayed
from test_relay import client, secured, server
from tpop3d.tls.client import NO_TLS
from tpop3d.tls.relay_channel import Failed, Ready, Secured


def failed(one):
    """Why there is no handshake; the session hears nothing but the end."""
    messages = [one.told() for _ in range(2)]
    assert [type(message) for message in messages] == [Ready, Failed]
    one.client.reads = False
    assert one.await_end() == 0
    one.run(lambda: one.session.is_over, "the end")
    assert one.session.got == b""
    return messages[1].reason


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("transport", relaykit.TRANSPORTS)
def test_a_handshake_is_told_with_its_version_and_cipher(version, transport):
    wanted = client(maximum_version=ssl.TLSVersion[version.replace(".", "_")])
    with secured(relaykit.TRANSPORTS[transport], client=wanted) as one:
        one.secure()
        assert isinstance(one.told(), Ready)
        message = one.told()
        assert isinstance(message, Secured)
        assert (message.version, message.cipher) == (version, one.client.tls.cipher()[0])


ENDS = {"nothing": b"", "half a hello": b"\x16\x03\x01\x02\x00\x01\x00", "an octet": b"\x16"}


@pytest.mark.parametrize("sent", ENDS)
@pytest.mark.parametrize("transport", [relaykit.tcp, relaykit.pipes])
def test_who_ends_before_it_is_made_is_told_of(sent, transport):
    with relayed(server(), transport) as one:
        one.client.say(ENDS[sent])
        one.run(lambda: not one.client.to_send, "it to be sent")
        one.client.close()
        assert failed(one) == "eof"


def test_who_resets_is_told_of():
    with relayed(server(), relaykit.tcp) as one:
        relaykit.reset(one.client)
        assert failed(one) == "eof"


@pytest.mark.parametrize("sent", ENDS)
def test_who_is_silent_is_given_up(sent):
    """The order says when."""
    with relayed(server(), seconds=0.3) as one:
        one.client.say(ENDS[sent])
        assert failed(one) == "timeout"


def test_who_sends_without_end_is_given_up():
    """Each octet of it puts nothing off."""
    with relayed(server(), seconds=0.5) as one:
        one.client.piece = 1
        # One message of the greatest length, of which there never is enough.
        one.client.say(b"".join(b"\x16\x03\x01\x00\x01" + octet for octet in chunks()))
        assert failed(one) == "timeout"
        assert one.client.sent > 10


def chunks():
    hello = b"\x01\x00\x3f\xff\x03\x03" + bytes(20_000)
    return [hello[n : n + 1] for n in range(len(hello))]


PLAIN = [
    b"USER anna\r\nPASS secret\r\n",
    b"\r\n",
    b"\x00",
    b"GET / HTTP/1.0\r\n\r\n",
    b"\x80\x2e\x01",
]


@pytest.mark.parametrize("sent", PLAIN)
@pytest.mark.parametrize("transport", [relaykit.tcp, relaykit.pipes])
def test_who_speaks_no_tls_is_told_so_in_the_clear(sent, transport):
    with relayed(server(), transport) as one:
        one.client.say(sent)
        one.run(lambda: one.client.got == NO_TLS, "a line")
        one.client.close()
        assert failed(one) == "no tls"


def test_what_only_begins_like_tls_is_the_end():
    with relayed(server(), relaykit.tcp) as one:
        one.client.say(b"\x16USER anna\r\n")
        one.run(lambda: one.client.is_over, "the end")
        one.client.close()
        assert failed(one) == "wrong version number"


@pytest.mark.parametrize("transport", [relaykit.socketpair, relaykit.pipes, relaykit.tcp])
@pytest.mark.parametrize("sent", [b"\x16USER anna\r\n", PLAIN[0]])
def test_a_client_may_be_gone_when_it_is_to_be_told(sent, transport):
    """That it speaks no TLS, or a wrong one, is what is said of it all the same."""
    with relayed(server(), transport) as one:
        assert isinstance(one.told(), Ready)
        with one.stopped():
            one.client.say(sent)
            one.run(lambda: not one.client.to_send, "it to be sent")
            relaykit.leave(one.client)
        reason = "no tls" if sent == PLAIN[0] else "wrong version number"
        assert one.told().reason == reason
        assert one.await_end() == 0
        one.run(lambda: one.session.is_over, "the end")
        assert one.session.got == b""


def strict(**more):
    """A client that trusts nobody's certificates."""
    made = ssl.create_default_context()
    for key, value in more.items():
        setattr(made, key, value)
    return made


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_that_does_not_trust_us_says_so(version):
    with secured(client=strict(maximum_version=version)) as one:
        one.run(lambda: one.client.error, "a client that is not content")
        one.run(lambda: not one.client.has_more(), "it to say so")
        one.client.close()
        assert failed(one) == "tlsv1 alert unknown ca"


def test_a_client_without_a_common_cipher_gets_an_alert():
    wanted = client(maximum_version=ssl.TLSVersion.TLSv1_2)
    wanted.set_ciphers("AES128-SHA")
    with secured(client=wanted) as one:
        one.run(lambda: one.client.error, "an alert")
        assert "ALERT_HANDSHAKE_FAILURE" in one.client.error.reason
        one.client.close()
        assert failed(one) == "no shared cipher"


@pytest.mark.parametrize("transport", [relaykit.socketpair, relaykit.pipes, relaykit.tcp])
def test_a_client_may_be_gone_when_it_is_to_get_an_alert(transport):
    """What is said of it is why, and not that it is gone."""
    wanted = client(maximum_version=ssl.TLSVersion.TLSv1_2)
    wanted.set_ciphers("AES128-SHA")
    with secured(transport, client=wanted) as one:
        with one.stopped():
            one.run(lambda: not one.client.has_more(), "a hello to be sent")
            relaykit.leave(one.client)
        assert failed(one) == "no shared cipher"


@pytest.mark.parametrize("sent", ENDS)
def test_a_signal_ends_it(sent):
    with relayed(server()) as one:
        assert isinstance(one.told(), Ready)
        one.client.say(ENDS[sent])
        one.settle()
        os.kill(one.pid, signal.SIGTERM)
        message = one.told()
        assert message.reason == "signal"
        assert one.await_end() == 0


def test_who_stops_in_the_middle_of_it_is_given_up():
    with secured(seconds=0.3) as one:
        one.client.reads = False
        assert failed(one) == "timeout"


def test_the_name_is_that_of_the_certificate():
    """So a client that looks at it is content: tlskit's does."""
    assert tlskit.context().check_hostname
    with secured() as one:
        assert one.secure().client.tls.getpeercert()["subjectAltName"] == (("DNS", tlskit.NAME),)
