"""The load generator, against a server of known behaviour; and what a load test says of what it saw."""

import asyncio
import dataclasses
import os
import socket
import threading

import pytest

from recipes import load_test
from recipes.benchmarks.load_client import FAILED, Load, memory, percentile, run


class Server:
    """Answers each request with what `answer(number)` says: status, body and seconds; None closes the connection."""

    def __init__(self, answer):
        self.answer, self.count, self.seen = answer, 0, set()
        self.loop = asyncio.new_event_loop()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = self.socket.getsockname()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(asyncio.start_server(self._connected, sock=self.socket))
        self.loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.close()

    async def _connected(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.seen.add(await reader.readexactly(length))
                number, self.count = self.count, self.count + 1
                found = self.answer(number)
                if found is None:
                    return
                status, body, seconds = found
                await asyncio.sleep(seconds)
                if number % 2:
                    writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
                else:
                    chunks = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
                    writer.write(f"HTTP/1.1 {status} X\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()


def load(server, folder, **options):
    (folder / "body").write_bytes(b"tensor")
    return Load(*server.address, "/infer", str(folder / "body"), **options)


def test_requests_are_counted_by_status_and_compared(tmp_path):
    (tmp_path / "right").write_bytes(b"yes")
    answers = {3: (503, b"busy", 0), 5: (200, b"no", 0), 7: None}
    with Server(lambda number: answers.get(number, (200, b"yes", 0.02))) as server:
        found = run(load(server, tmp_path, seconds=3.0, connections=2, expected=str(tmp_path / "right")))
    assert server.seen == {b"tensor"}
    assert found["wrong"] == 1
    counted = {int(status): count for status, count in found["answers"].items()}
    assert (counted[503], counted[FAILED], sum(counted.values())) == (1, 1, server.count)
    assert len(found["latencies"]) == counted[200] == server.count - 2
    # Each of two connections has at most one answer each 20 ms.
    assert counted[200] <= 2 * (found["seconds"] / 0.02 + 1)
    assert percentile(found["latencies"], 0.5) >= 0.02


def test_with_a_rate_what_waits_for_a_slow_server_counts(tmp_path):
    with Server(lambda number: (200, b"yes", 0.1)) as server:
        found = run(load(server, tmp_path, seconds=2.0, rate=20.0, connections=1))
    # Drawn by the seed; on one connection the answers come one after the other, and each latency has the wait in it.
    assert len(found["latencies"]) == server.count > 20
    assert found["begun"] == sorted(found["begun"])
    for number, (due, latency) in enumerate(zip(found["begun"], found["latencies"], strict=True), 1):
        assert due + latency >= 0.1 * number
    again = run(dataclasses.replace(load(server, tmp_path), seconds=0.2, rate=20.0, connections=1, timeout=1.0))
    assert set(again["answers"]) <= {str(FAILED)}


def test_memory_is_that_of_a_process_and_its_children():
    held = bytearray(1) * (64 * 2**20)
    assert memory(os.getpid()) > len(held)
    assert memory(2**30) == 0


@pytest.mark.parametrize(
    ("answers", "memory_mib", "killed", "said"),
    [
        ({"200": 100}, [100] * 20, False, []),
        ({"200": 99, "503": 2}, [100] * 20, True, []),
        ({"200": 99, "503": 5}, [100] * 20, True, ["5 requests with status 503, where 4 may be lost"]),
        ({"200": 99, "503": 1}, [100] * 20, False, ["1 requests with status 503, where 0 may be lost"]),
        ({"200": 99, "500": 1, "0": 2}, [100] * 20, False, ["1 requests with status 500", "2 requests with a broken"]),
        ({"200": 100}, [100] * 10 + [130] * 10, False, ["the memory grew from 100 to 130 MiB"]),
    ],
)
def test_what_a_load_test_calls_a_fault(answers, memory_mib, killed, said):
    measured = {"answers": answers, "wrong": 0}
    sizes = [(float(second), size * 2**20) for second, size in enumerate(memory_mib)]
    found = load_test.Found(10.0, measured, sizes, killed=5 if killed else 0)
    received = load_test.faults(found, 4 if killed else 0)
    assert len(received) == len(said)
    assert all(words in each for words, each in zip(said, received, strict=True))


def test_flags_that_contradict_each_other_are_refused(capsys):
    assert load_test.main(["load_test", "--minutes=1"]) == 2
    assert "give either --model or --url" in capsys.readouterr().err
    assert load_test.main(["load_test", "--url=http://127.0.0.1:1", "--kill_replica"]) == 2
    assert "--kill_replica needs --pid" in capsys.readouterr().err
