"""Servers under load, under fire, and on Ray: real processes are killed, files replaced, documents fuzzed."""

import contextlib
import itertools
import os
import pathlib
import resource
import shutil
import signal
import time

import httpx
import keras
import numpy as np
import psutil
import pytest

from tests.processes import wait_until
from tests.serving import Load, binary_answer, client_of, expected, infer, predict, workers_of, write_models
from tests.tflite_models import depthwise_net, normal
from tfopt.serve import process
from tfopt.tflite.export import export_tflite
from tfopt.tflite.run import predict_tflite

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def x(folder):
    return write_models(folder)


def versions(folder, x, count):
    """Files of models that answer differently, and their answers."""
    files, answers = [], []
    for seed in range(count):
        keras.utils.set_random_seed(seed)
        files.append(folder / f"seed{seed}.tflite")
        export_tflite(depthwise_net(), files[-1], batch_size=None)
        answers.append(predict_tflite(files[-1], x))
    return files, answers


@pytest.mark.parametrize("name", ["int8", "int8_open"])
def test_a_killed_worker_costs_what_it_computes_and_comes_back(folder, x, name):
    wanted = [expected(folder, name, x[number : number + 2]) for number in range(8)]
    with client_of(folder / name, name=name, replicas=2) as client:
        pids = workers_of(client.process.pid)
        assert len(pids) == 2
        kills = 3
        with Load(str(client.base_url), lambda c, number: infer(c, name, x[number : number + 2]), clients=8) as load:
            for kill in range(1, kills + 1):
                wait_until(lambda kill=kill: len(load.kept) > 300 * kill)
                os.kill(workers_of(client.process.pid)[0], signal.SIGKILL)
                wait_until(lambda: len(workers_of(client.process.pid)) == 2)
            wait_until(lambda: len(load.kept) > 1500)
        codes = [answer.status_code for _, answer in load.kept]
        assert set(codes) <= {200, 503}
        # Two runs at hand of a worker whose requests run one by one; else one, which eight clients may share.
        assert codes.count(503) <= kills * (2 if name == "int8" else 8)
        for number, answer in load.kept:
            if answer.status_code == 200:
                assert (binary_answer(answer) == wanted[number]).all()
            else:
                assert answer.headers["retry-after"] == "1"
        text = client.get("/metrics").text
        assert f'tfopt_worker_restarts_total{{model="{name}",version="1"}} 3.0' in text
        assert client.get("/v2/health/ready").status_code == 200


def test_a_single_file_is_replaced_without_losing_a_request(tmp_path, x):
    files, answers = versions(tmp_path, x, 3)
    served = tmp_path / "m.tflite"
    shutil.copy(files[0], served)
    with client_of(served, replicas=2, poll_seconds=0.1) as client:
        with Load(str(client.base_url), lambda c, number: infer(c, "model", x), clients=4) as load:
            for file, answer in itertools.islice(zip(itertools.cycle(files), itertools.cycle(answers)), 1, 6):
                # Written over, and not replaced: workers have a copy.
                shutil.copyfile(file, served)
                wait_until(lambda answer=answer: (binary_answer(infer(client, "model", x)) == answer).all())
        assert {answer.status_code for _, answer in load.kept} == {200}
        for _, each in load.kept:
            got = binary_answer(each)
            assert any((got == answer).all() for answer in answers)
        # Half a file: what is loaded goes on.
        served.write_bytes(files[0].read_bytes()[:1000])
        wait_until(lambda: client.get("/v1/models/model").json()["model_version_status"][0]["status"]["error_message"])
        assert (binary_answer(infer(client, "model", x)) == answers[2]).all()
        wait_until(lambda: len(workers_of(client.process.pid)) == 2)


def test_versions_come_and_go_without_losing_a_request(tmp_path, x):
    files, answers = versions(tmp_path, x, 3)
    models = tmp_path / "models"
    (models / "m/1").mkdir(parents=True)
    shutil.copy(files[0], models / "m/1/a.tflite")
    with client_of(models, replicas=1, poll_seconds=0.1) as client:
        with Load(str(client.base_url), lambda c, number: infer(c, "m", x), clients=4) as load:
            for number in (2, 3):
                folder = models / f"m/{number}"
                folder.mkdir()
                time.sleep(0.3)
                shutil.copy(files[number - 1], folder / "a.tflite")
                wait_until(lambda answer=answers[number - 1]: (binary_answer(infer(client, "m", x)) == answer).all())
            pinned = client.post("/v1/models/m/versions/1:predict", json={"instances": x[:2].tolist()})
            assert (np.array(pinned.json()["predictions"], "float32") == answers[0][:2]).all()
            shutil.rmtree(models / "m/3")
            wait_until(lambda: client.get("/v1/models/m/versions/3").status_code == 404)
            assert (binary_answer(infer(client, "m", x)) == answers[1]).all()
        assert {answer.status_code for _, answer in load.kept} == {200}
        # Another model, and one that cannot be loaded.
        shutil.copy(files[0], models / "other.tflite")
        (models / "bad/1").mkdir(parents=True)
        (models / "bad/1/m.tflite").write_bytes(b"no model")
        wait_until(lambda: client.get("/v2/models/other/ready").status_code == 200)
        wait_until(lambda: client.get("/v1/models/bad").status_code == 200)
        (status,) = client.get("/v1/models/bad").json()["model_version_status"]
        assert status["state"] == "END"
        assert "damaged" in status["status"]["error_message"]
        assert predict(client, "bad", [1]).status_code == 404


def test_keras_models_and_saved_models_are_served(tmp_path):
    keras.utils.set_random_seed(0)
    model = depthwise_net()
    x = normal(model, 8)
    (tmp_path / "k/1").mkdir(parents=True)
    model.save(tmp_path / "k/1/m.keras")
    model.export(tmp_path / "s/1", verbose=False)
    wanted = model.predict(x, verbose=0)
    with client_of(tmp_path, replicas=1) as client:
        for name in ("k", "s"):
            answer = predict(client, name, x.tolist())
            np.testing.assert_allclose(answer.json()["predictions"], wanted, rtol=1e-5, atol=1e-6)
            # The same bits whoever else asks.
            alone = [predict(client, name, x[i : i + 1].tolist()).json()["predictions"][0] for i in range(4)]
            with Load(
                str(client.base_url),
                lambda c, i, name=name: predict(c, name, x[i : i + 1].tolist()).json()["predictions"][0],
            ) as load:
                wait_until(lambda: len(load.kept) > 60)
            assert all(got == alone[i] for i, got in load.kept)
            assert predict(client, name, [[1]]).status_code == 400


def test_a_server_that_is_told_to_end_answers_what_it_was_asked(folder, x, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with client_of(folder / "int8", name="int8", replicas=1) as client:
        wanted = expected(folder, "int8", x)
        with Load(str(client.base_url), _asked(x), clients=4) as load:
            wait_until(lambda: len(load.kept) > 50)
            client.process.terminate()
            assert client.process.wait(60) == 0
        codes = [answer for _, answer in load.kept if isinstance(answer, httpx.Response)]
        assert all((binary_answer(answer) == wanted).all() for answer in codes)
    assert list(tmp_path.iterdir()) == []


def _asked(x):
    def ask(client, number):
        try:
            return infer(client, "int8", x)
        except httpx.TransportError as error:
            time.sleep(0.05)
            return error

    return ask


def test_workers_end_with_a_server_that_is_killed(folder, tmp_path, monkeypatch):
    # It leaves its copies of the models behind.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with client_of(folder / "int8", name="int8", replicas=2) as client:
        pids = workers_of(client.process.pid)
        client.process.kill()
        for pid in pids:
            wait_until(lambda pid=pid: not pathlib.Path(f"/proc/{pid}").exists())


def test_workers_come_back_after_nothing_could_be_started_for_a_while(folder, x, tmp_path):
    log = tmp_path / "log"
    server = process.start(folder / "int8", log, name="int8", replicas=1)
    try:
        with httpx.Client(base_url=process.wait_for_url(server, 300), timeout=120) as client:
            assert (binary_answer(infer(client, "int8", x)) == expected(folder, "int8", x)).all()
            limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
            # No file, socket or pipe more.
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
            os.kill(workers_of(server.pid)[0], signal.SIGKILL)
            wait_until(lambda: "cannot be started" in log.read_text())
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
            wait_until(lambda: client.get("/v2/health/ready").status_code == 200)
            assert (binary_answer(infer(client, "int8", x)) == expected(folder, "int8", x)).all()
    finally:
        process.end(server)


def test_memory_does_not_grow_with_requests(folder, x):
    with client_of(folder / "int8", name="int8", replicas=1) as client:

        def memory():
            pids = [client.process.pid, *workers_of(client.process.pid)]
            return sum(int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 for pid in pids)

        def ask(count):
            for number in range(count):
                predict(client, "int8", x[: number % 40 + 1].tolist())
                infer(client, "int8", x)
                client.post("/v1/models/int8:predict", content=b"{")

        ask(150)
        before = memory()
        ask(600)
        assert memory() < before + 5e6


# Fuzzing


def test_fuzzed_against_the_openapi_document(folder, x):
    """Anything but 5xx; what comes back is documented, and the server answers as before."""
    import hypothesis
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        not_a_server_error,
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    ]
    with client_of(folder, replicas=1) as client:
        schema = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
        asked = itertools.count()
        for result in schema.get_all_operations():
            operation = result.ok()

            @hypothesis.settings(
                max_examples=40, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
            )
            @hypothesis.seed(0)
            @hypothesis.given(case=operation.as_strategy())
            def fuzz(case):
                next(asked)
                # Half of the cases ask for a model that is there.
                if "name" in case.path_parameters and len(str(case.body)) % 2:
                    case.path_parameters["name"] = "int8"
                case.call_and_validate(checks=checks)

            fuzz()
        assert next(asked) > 400
        _is_well(client, folder, x)


def test_fuzzed_with_bytes(folder, x):
    """Good requests with a few bytes changed, cut and repeated."""
    rng = np.random.default_rng(0)
    with client_of(folder, replicas=1) as client:
        for number in range(600):
            body = bytearray(_good_body(x, number % 2))
            for _ in range(rng.integers(1, 6)):
                place = int(rng.integers(len(body)))
                match rng.integers(3):
                    case 0:
                        body[place] = int(rng.integers(256))
                    case 1:
                        del body[place : place + int(rng.integers(20))]
                    case _:
                        body[place:place] = body[max(0, place - 20) : place]
            path = "/v1/models/int8:predict" if number % 2 else "/v2/models/float_open/infer"
            answer = client.post(path, content=bytes(body))
            assert answer.status_code in (200, 400), answer.text
        _is_well(client, folder, x)


def _good_body(x, is_v1):
    import json

    if is_v1:
        return json.dumps({"instances": x[:1].round(2).tolist()}).encode()
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 10, 10, 3], "data": x[0].round(2).ravel().tolist()}
    return json.dumps({"inputs": [tensor], "outputs": [{"name": "logits", "parameters": {}}]}).encode()


def _is_well(client, folder, x):
    assert (binary_answer(infer(client, "int8", x)) == expected(folder, "int8", x)).all()
    text = client.get("/metrics").text
    assert 'code="5' not in text
    assert all(line.endswith(" 0.0") for line in text.splitlines() if line.startswith("tfopt_worker_restarts_total{"))


# Ray


def test_ray_replicas_give_the_same_bits(folder, x, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with client_of(folder, engine="ray", replicas=2) as client:
        for name in ("int8", "int8_open", "int8_four", "float", "float_open"):
            for count in (1, 7, 40):
                wanted = expected(folder, name, x[:count])
                assert (binary_answer(infer(client, name, x[:count])) == wanted).all()
                answer = predict(client, name, x[:count].tolist())
                assert (np.array(answer.json()["predictions"], "float32") == wanted).all()
        wanted = [expected(folder, "int8_open", x[i : i + 1]) for i in range(8)]
        with Load(str(client.base_url), lambda c, i: infer(c, "int8_open", x[i : i + 1]), clients=8) as load:
            wait_until(lambda: len(load.kept) > 200)
        assert all((binary_answer(answer) == wanted[i]).all() for i, answer in load.kept)
        assert predict(client, "int8", [[1]]).status_code == 400
        assert predict(client, "other", [[1]]).status_code == 404
        assert client.post("/v1/models/int8:predict", content=b"[" * 100_000).status_code == 400
        assert client.get("/v2/health/ready").json() == {"ready": True}


def test_a_killed_replica_of_ray_costs_what_it_computes_and_comes_back(folder, x, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    wanted, clients = expected(folder, "int8", x[:8]), 8
    with client_of(folder / "int8", engine="ray", replicas=2, name="int8") as client:

        def replicas():
            found = []
            for each in psutil.Process(client.process.pid).children(recursive=True):
                # Ray's processes come and go.
                with contextlib.suppress(psutil.NoSuchProcess):
                    found += [each] * each.name().startswith("ray::ServeRepl")
            return found

        wait_until(lambda: len(replicas()) == 2)
        with Load(str(client.base_url), lambda c, _: infer(c, "int8", x[:8]), clients) as load:
            wait_until(lambda: len(load.kept) > 100)
            killed = replicas()[0]
            killed.kill()
            wait_until(lambda: len([each for each in replicas() if each.pid != killed.pid]) == 2)
            seen = len(load.kept)
            wait_until(lambda: len(load.kept) > seen + 100)
    lost = [answer for _, answer in load.kept if answer.status_code != 200]
    assert {each.status_code for each in lost} <= {503}
    assert len(lost) <= clients
    assert all("ask again" in each.json()["error"] for each in lost)
    assert all((binary_answer(each) == wanted).all() for _, each in load.kept if each.status_code == 200)


def test_ray_with_a_token_and_autoscaling(folder, x, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    (tmp_path / "tokens").write_text("secret\n")
    flags = {"engine": "ray", "replicas": 1, "max_replicas": 2, "token_file": tmp_path / "tokens", "name": "int8"}
    with client_of(folder / "int8", **flags) as client:
        assert predict(client, "int8", x[:1].tolist()).status_code == 401
        client.headers["authorization"] = "Bearer secret"
        assert (binary_answer(infer(client, "int8", x)) == expected(folder, "int8", x)).all()
