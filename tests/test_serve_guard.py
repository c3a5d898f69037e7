"""What a server does not let in: by token, size, number and time. Real connections, of slow and rude clients too."""

import contextlib
import gzip
import http.client
import json
import pathlib
import socket
import time
import urllib.parse
import zlib

import httpx
import numpy as np
import pytest

from tests.serving import client_of, predict
from tfopt.serve.guard import OPEN, Inflated, Rate, Stop
from tfopt.serve.settings import Access
from tfopt.tflite.export import export_tflite

LIMIT = 200_000
TOKENS = ("first-token", "second-token")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    import keras

    path = tmp_path_factory.mktemp("guarded") / "m.tflite"
    export_tflite(keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name="y")]), path)
    return path


@pytest.fixture(scope="module")
def client(file):
    tokens = file.with_name("tokens")
    tokens.write_text("\n".join(TOKENS) + "\n")
    flags = {"max_body": LIMIT, "body_seconds": 1.5, "max_concurrency": 8, "max_rate": 200, "token_file": tokens}
    with client_of(file, replicas=1, **flags) as client:
        client.headers["authorization"] = f"Bearer {TOKENS[0]}"
        yield client


def memory(pid):
    """Resident bytes of a process."""
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def connect(client):
    parts = urllib.parse.urlsplit(str(client.base_url))
    return socket.create_connection((parts.hostname, parts.port), timeout=60)


def until_closed(connection):
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            received += piece
    return received


# Tokens


@pytest.mark.parametrize("token", TOKENS)
def test_either_token_is_let_in(client, token):
    answer = client.post(
        "/v1/models/model:predict",
        json={"instances": [[1, 2, 3, 4]]},
        headers={"authorization": f"bearer {token}"},
    )
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer first", "Bearer first-token2", "Basic first-token", "first-token"]
)
def test_missing_and_wrong_tokens_are_answered_401(client, header):
    headers = {} if header is None else {"authorization": header}
    for method, path in (("POST", "/v1/models/model:predict"), ("GET", "/metrics"), ("GET", "/nothing")):
        answer = httpx.request(method, f"{client.base_url}{path}", headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert "token" in answer.json()["error"]


def test_two_authorizations_are_answered_401(client):
    pair = [("authorization", f"Bearer {TOKENS[0]}"), ("authorization", "Bearer other")]
    assert httpx.get(f"{client.base_url}/v2", headers=pair).status_code == 401


@pytest.mark.parametrize("path", OPEN)
def test_health_needs_no_token(client, path):
    assert httpx.get(f"{client.base_url}{path}").status_code == 200


def test_tokens_are_read_from_the_environment_and_a_file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("a\n\n b \n")
    assert Access(token_file=str(path)).tokens({}) == ("a", "b")
    assert Access(token_file=str(path)).tokens({"TFOPT_SERVE_TOKENS": "c d"}) == ("c", "d", "a", "b")
    assert Access().tokens({}) == ()
    # A variable that is set by mistake to nothing would leave the door open.
    with pytest.raises(ValueError, match="TFOPT_SERVE_TOKENS is empty"):
        Access().tokens({"TFOPT_SERVE_TOKENS": " "})
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no token"):
        Access(token_file=str(path)).tokens({})
    path.write_text("two words\n")
    with pytest.raises(ValueError, match="token 1 has other characters"):
        Access(token_file=str(path)).tokens({})


# Bodies


def test_gzip_is_taken(client):
    body = gzip.compress(json.dumps({"instances": [[1, 2, 3, 4]]}).encode())
    post = {"content": body, "headers": {"content-encoding": "gzip"}}
    answer = client.post("/v1/models/model:predict", **post)
    assert answer.json() == predict(client, "model", [[1, 2, 3, 4]]).json()
    # A file of two parts, as `cat a.gz b.gz` makes.
    post["content"] = gzip.compress(b'{"instances": [[1, 2,') + gzip.compress(b" 3, 4]]}")
    assert client.post("/v1/models/model:predict", **post).json() == answer.json()


def bombs():
    """Bodies that become gigabytes."""
    zeros = zlib.compressobj(9, wbits=31)
    large = b"".join([*(zeros.compress(bytes(1 << 20)) for _ in range(150)), zeros.flush()])
    return {"150 megabytes": large, "many parts": gzip.compress(bytes(1 << 16)) * 1000}


@pytest.mark.parametrize(("name", "bomb"), bombs().items(), ids=list(bombs()))
def test_gzip_bombs_are_answered_413_in_little_memory(client, name, bomb):
    assert len(bomb) < LIMIT
    before = memory(client.process.pid)
    answers = [
        client.post("/v1/models/model:predict", content=bomb, headers={"content-encoding": "gzip"}) for _ in range(5)
    ]
    assert {answer.status_code for answer in answers} == {413}
    assert f"{LIMIT:,} bytes" in answers[0].json()["error"]
    assert memory(client.process.pid) < before + 50e6


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", b"no gzip", 400),
        ("gzip", gzip.compress(b"{}" * 1000)[:-9], 400),
        ("gzip", gzip.compress(b"{}") + b"rest", 400),
        ("gzip", b"", 400),
        ("br", b"{}", 415),
        ("gzip, gzip", b"{}", 415),
        ("deflate", zlib.compress(b"{}"), 415),
    ],  # gzip writes the time, and workers that share the tests must find the same names.
    ids=range(7),
)
def test_broken_and_unknown_encodings(client, encoding, body, status):
    answer = client.post("/v1/models/model:predict", content=body, headers={"content-encoding": encoding})
    assert (answer.status_code, list(answer.json())) == (status, ["error"])


def test_large_bodies_are_answered_413_whether_or_not_they_say_so(client):
    answer = client.post("/v1/models/model:predict", content=b" " * (LIMIT + 1))
    assert answer.status_code == 413
    before = memory(client.process.pid)
    # Without a length, in pieces.
    answer = client.post("/v1/models/model:predict", content=(b" " * 10_000 for _ in range(3000)))
    assert answer.status_code == 413
    assert memory(client.process.pid) < before + 20e6
    assert client.post("/v1/models/model:predict", content=b" " * LIMIT).status_code == 400


def test_inflated_bodies_are_whole_or_refused():
    text = bytes(range(256)) * 100
    packed = gzip.compress(text)
    for size in (1, 7, len(packed)):
        body = Inflated(len(text))
        for start in range(0, len(packed), size):
            body.add(packed[start : start + size])
        assert body.end() == text
    body = Inflated(len(text) - 1)
    with pytest.raises(Stop):
        body.add(packed)


# Time


def test_a_body_that_does_not_come_is_answered_408(client):
    with connect(client) as connection:
        head = f"POST /v1/models/model:predict HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKENS[0]}\r\n"
        connection.sendall(head.encode() + b"content-length: 100\r\n\r\n{")
        started = time.monotonic()
        assert until_closed(connection).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - started >= 1.0


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: "])
def test_a_head_that_does_not_come_is_cut_off(client, sent):
    with connect(client) as connection:
        connection.sendall(sent)
        assert until_closed(connection).startswith(b"HTTP/1.1 408 ")


def test_slow_heads_do_not_keep_others_out(client):
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connect(client)).sendall(b"GET / HTTP/1.1\r\nx: ")
        assert predict(client, "model", [[1, 2, 3, 4]]).status_code == 200


def test_endless_heads_are_cut_off(client):
    with connect(client) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 100_000)
            assert until_closed(connection).startswith(b"HTTP/1.1 431 ")


def test_no_http_is_answered_400(client):
    with connect(client) as connection:
        connection.sendall(b"\x16\x03\x01\x00\xff hello \r\n\r\n")
        assert until_closed(connection).startswith(b"HTTP/1.1 400 ")


# Number


def test_more_requests_than_allowed_at_a_time_are_answered_429(client):
    head = f"POST /v1/models/model:predict HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKENS[0]}\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(connect(client)).sendall(head.encode() + b"content-length: 100\r\n\r\n{")
        deadline = time.monotonic() + 60
        while (answer := client.get("/v2")).status_code != 429:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert answer.headers["retry-after"] == "1"
        assert client.get("/healthz").status_code == 200
    while client.get("/v2").status_code == 429:
        time.sleep(0.01)


def test_the_rate_of_a_client_is_limited():
    rate = Rate(2.0)
    taken = sum(rate.wait("a", 0.0) == 0 for _ in range(50))
    assert taken == 20
    assert rate.wait("a", 0.0) == pytest.approx(0.5)
    assert rate.wait("b", 0.0) == 0
    assert rate.wait("a", 0.5) == 0
    for number in range(20_000):
        rate.wait(f"client {number}", 1.0)
    assert len(rate._buckets) == 10_000


def test_a_client_that_asks_too_often_is_answered_429(file):
    with client_of(file, replicas=1, max_rate=0.5) as client:
        codes = [client.get("/v2").status_code for _ in range(8)]
        assert codes == [200] * 5 + [429] * 3
        answer = client.get("/v2")
        assert int(answer.headers["retry-after"]) >= 1
        assert "0.5 requests a second" in answer.json()["error"]


def test_clients_that_go_away_are_forgotten(client):
    body = json.dumps({"instances": [[1, 2, 3, 4]]}).encode()
    head = f"POST /v1/models/model:predict HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKENS[0]}\r\n"
    for cut in (10, len(head) + 20, None):
        for _ in range(5):
            with connect(client) as connection:
                connection.sendall((head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)[:cut])
    assert predict(client, "model", [[1, 2, 3, 4]]).status_code == 200
    deadline = time.monotonic() + 60
    while "tfopt_requests_in_flight 1.0" not in client.get("/metrics").text:
        assert time.monotonic() < deadline
    assert 'code="500"' not in client.get("/metrics").text


def test_connections_are_reused_and_pipelined(client):
    parts = urllib.parse.urlsplit(str(client.base_url))
    connection = http.client.HTTPConnection(parts.hostname, parts.port)
    for _ in range(3):
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b'{"live":true}'
    connection.close()
    with connect(client) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" * 2)
        received = b""
        while received.count(b"live") < 2:
            received += plain.recv(1 << 16)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"port": 70_000}, "--port must be 0 to 65535"),
        ({"certificate": __file__}, "both --certificate and --key"),
        ({"client_ca": __file__}, "give --certificate and --key too"),
    ],
)
def test_bad_access(arguments, message):
    with pytest.raises(ValueError, match=message):
        Access(**arguments)


def test_missing_files():
    with pytest.raises(FileNotFoundError, match="no file /nowhere/tokens, given as --token_file"):
        Access(token_file="/nowhere/tokens")


def test_only_this_machine_unless_told_otherwise(client):
    assert Access().host == "127.0.0.1"
    port = urllib.parse.urlsplit(str(client.base_url)).port
    lines = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
    listening = {line.split()[1] for line in lines if line.split()[3] == "0A"}
    assert f"0100007F:{port:04X}" in listening
    assert f"00000000:{port:04X}" not in listening


def certificates(folder):
    """A certificate authority, and a certificate for 127.0.0.1 and one of a client, in PEM."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def name(text):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    now, keys = datetime.datetime.now(datetime.UTC), {}
    for who in ("authority", "server", "client", "stranger"):
        key = keys[who] = ec.generate_private_key(ec.SECP256R1())
        signer = who if who in ("authority", "stranger") else "authority"
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(who))
            .issuer_name(name(signer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=who == signer, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[signer].public_key()), critical=False
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
        )
        certificate = builder.sign(keys[signer], hashes.SHA256())
        (folder / f"{who}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{who}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    return folder


def trusting(folder, client=None):
    import ssl

    context = ssl.create_default_context(cafile=str(folder / "authority.pem"))
    if client:
        context.load_cert_chain(folder / f"{client}.pem", folder / f"{client}.key")
    return context


def test_https_and_client_certificates(file, tmp_path):
    folder = certificates(tmp_path)
    flags = {"certificate": folder / "server.pem", "key": folder / "server.key", "client_ca": folder / "authority.pem"}
    with client_of(file, replicas=1, **flags) as client:
        url = str(client.base_url)
        assert url.startswith("https://")
        answer = httpx.get(f"{url}/v2", verify=trusting(folder, "client"))
        assert answer.json()["name"] == "tfopt"
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/v2", verify=trusting(folder))
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/v2", verify=trusting(folder, "stranger"))
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http") + "/v2")
        x = np.ones((1, 4)).tolist()
        with httpx.Client(base_url=url, verify=trusting(folder, "client")) as known:
            assert predict(known, "model", x).status_code == 200
