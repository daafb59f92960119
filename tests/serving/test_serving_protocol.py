"""Exports behind a stand-in for TensorFlow Serving: sessions of TensorFlow 1, gRPC and REST.

The real program has not been run, because no package registry has it; see `stand_in_server.py`.
"""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import bert_folder
import numpy as np
import pytest
import tensorflow as tf
from in_process_export import serve_here

import keras_efficient as ke

pytest.importorskip("tensorflow_serving.apis", reason="needs tensorflow-serving-api")
grpc = pytest.importorskip("grpc")
import stand_in_server  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2  # noqa: E402

#: The versions of the model, and how far each may be from the model in memory.
FORMATS = {1: (None, 1e-5), 2: ("int8", 5e-2), 3: ("int8-weights", 5e-2), 4: ("bfloat16", 5e-2)}
#: How far an example may be from itself among others: bfloat16 rounds the sums of other kernels.
ALONE = {4: 4e-3}
#: Versions that also take texts, which takes seconds to export.
WITH_TEXT = (1, 2)
TEXTS = bert_folder.TEXTS
LABELS = ["bad", "good"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return (folder of the versions, features, logits in memory by version)."""
    folder = tmp_path_factory.mktemp("serving")
    model, tokenizer = ke.models.load(bert_folder.write(folder / "bert"), num_labels=2)
    x = bert_folder.features(tokenizer)
    expected = {}
    with pytest.MonkeyPatch.context() as patch:
        serve_here(patch)
        for number, (quantize, _) in FORMATS.items():
            if number == 2:
                ke.calibrate(model, x)
            expected[number] = np.asarray(model(x))
            text = {"tokenizer": tokenizer} if number in WITH_TEXT else {}
            ke.export(
                model,
                folder / "reviews",
                sample=x,
                quantize=quantize,
                labels=LABELS,
                latency=False,
                **text,
            )
    return folder / "reviews", x, expected


def config(base, **policy):
    result = model_server_config_pb2.ModelConfig(name="reviews", base_path=str(base))
    for kind, numbers in policy.items():
        chosen = getattr(result.model_version_policy, kind)
        chosen.SetInParent()
        if kind == "specific":
            chosen.versions.extend(numbers)
    return result


@pytest.fixture(scope="module")
def server(base):
    """Return a server of all versions."""
    settings = config(base[0], all=())
    settings.version_labels.update({"stable": 1, "canary": 2})
    running = stand_in_server.Server(settings)
    yield running
    running.close()


def ask(port, request, method="Predict"):
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        service = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        return getattr(service, method)(request, timeout=60.0)


def arrays(response):
    return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}


def http(port, path, body=None):
    data = None if body is None else json.dumps(body, allow_nan=False).encode()
    url = f"http://localhost:{port}/v1/models/{path}"
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as response:
        return json.load(response)


@pytest.mark.parametrize("number", FORMATS, ids=lambda n: FORMATS[n][0] or "float32")
def test_every_format_answers_by_grpc_and_rest(number, base, server):
    _, x, expected = base
    request = ke.serving.grpc_request("reviews", "tokens", x, version=number)
    response = ask(server.grpc_port, request)
    assert response.model_spec.version.value == number
    (logits,) = arrays(response).values()
    np.testing.assert_allclose(logits, expected[number], rtol=0, atol=FORMATS[number][1])
    body = ke.serving.rest_request(x, "tokens")
    # A signature with one output answers with its value.
    found = http(server.rest_port, f"reviews/versions/{number}:predict", body)["outputs"]
    np.testing.assert_array_equal(np.float32(found), logits)
    # An example alone, and with others: the padding of the batch changes nothing.
    alone = {name: value[:1] for name, value in x.items()}
    alone = ask(server.grpc_port, ke.serving.grpc_request("reviews", "tokens", alone, number))
    np.testing.assert_allclose(
        arrays(alone)["logits"], logits[:1], rtol=0, atol=ALONE.get(number, 1e-5)
    )


@pytest.mark.parametrize("number", WITH_TEXT, ids=lambda n: FORMATS[n][0] or "float32")
def test_texts_are_answered_with_labels(number, base, server):
    _, _, expected = base
    request = ke.serving.grpc_request("reviews", "text", TEXTS, version=number)
    found = arrays(ask(server.grpc_port, request))
    np.testing.assert_allclose(found["logits"], expected[number], rtol=0, atol=FORMATS[number][1])
    assert [y.decode() for y in found["label"]] == [LABELS[i] for i in found["logits"].argmax(-1)]
    body = ke.serving.rest_request(TEXTS, "text")
    outputs = http(server.rest_port, f"reviews/versions/{number}:predict", body)["outputs"]
    assert outputs["label"] == [y.decode() for y in found["label"]]
    np.testing.assert_array_equal(np.float32(outputs["probabilities"]), found["probabilities"])
    # In rows, which are called "instances".
    rows = {"signature_name": "text", "instances": [{"text": text} for text in TEXTS]}
    predictions = http(server.rest_port, f"reviews/versions/{number}:predict", rows)["predictions"]
    assert [row["label"] for row in predictions] == outputs["label"]
    # What a batching server needs: each output has a row for each text, whatever the others are.
    assert {len(value) for value in found.values()} == {len(TEXTS)}
    alone = ke.serving.grpc_request("reviews", "text", TEXTS[1:2], version=number)
    alone = arrays(ask(server.grpc_port, alone))["logits"]
    np.testing.assert_allclose(alone, found["logits"][1:2], rtol=0, atol=ALONE.get(number, 1e-5))


def test_signatures_versions_and_labels(base, server):
    _, x, _ = base
    assert server.events == [("load", number) for number in FORMATS]
    for number, version in server.versions.items():
        names = ("serving_default", "tokens", *(["text"] if number in WITH_TEXT else []))
        assert set(version.signatures) == set(names)
        # One example, and the whole sample.
        assert version.warmed_up == [name for name in names for _ in range(2)]
    metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    metadata.model_spec.name = "reviews"
    response = ask(server.grpc_port, metadata, "GetModelMetadata")
    assert response.model_spec.version.value == 4
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    assert set(signatures.signature_def) == {"serving_default", "tokens"}
    assert set(signatures.signature_def["tokens"].inputs) == set(x)
    assert http(server.rest_port, "reviews/metadata")["model_spec"]["version"] == "4"
    states = http(server.rest_port, "reviews")["model_version_status"]
    assert [(s["version"], s["state"]) for s in states] == [(n, "AVAILABLE") for n in "4321"]
    for label, number in (("stable", 1), ("canary", 2), (None, 4)):
        response = ask(server.grpc_port, ke.serving.grpc_request("reviews", "tokens", x, label))
        assert response.model_spec.version.value == number
    body = ke.serving.rest_request(x, "tokens")
    at_label = http(server.rest_port, "reviews/labels/canary:predict", body)
    assert at_label == http(server.rest_port, "reviews/versions/2:predict", body)
    # The default signature.
    assert http(server.rest_port, "reviews:predict", {"inputs": body["inputs"]}) == http(
        server.rest_port, "reviews:predict", body
    )


def test_requests_that_are_refused(base, server):
    _, x, _ = base
    less = dict(list(x.items())[1:])
    wide = {name: value.astype("int64") for name, value in x.items()}
    for request, status in (
        (ke.serving.grpc_request("reviews", "tokens", x, version=9), "NOT_FOUND"),
        (ke.serving.grpc_request("reviews", "tokens", x, version="gone"), "NOT_FOUND"),
        (ke.serving.grpc_request("others", "tokens", x), "NOT_FOUND"),
        (ke.serving.grpc_request("reviews", "nothing", x), "INVALID_ARGUMENT"),
        (ke.serving.grpc_request("reviews", "tokens", less), "INVALID_ARGUMENT"),
        (ke.serving.grpc_request("reviews", "tokens", wide), "INVALID_ARGUMENT"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            ask(server.grpc_port, request)
        assert caught.value.code().name == status
    with pytest.raises(urllib.error.HTTPError, match="404"):
        http(server.rest_port, "reviews/versions/9:predict", ke.serving.rest_request(x, "tokens"))


def test_a_new_version_replaces_the_old_one_without_a_gap(base, tmp_path):
    """The folder of the versions as it grows; `ke.export` renames a version into place."""
    folder, x, expected = base
    (tmp_path / "1").symlink_to(folder / "3")
    server = stand_in_server.Server(config(tmp_path))
    try:
        request = ke.serving.grpc_request("reviews", "tokens", x)
        assert ask(server.grpc_port, request).model_spec.version.value == 1
        # What an export that is still being written looks like.
        (tmp_path / ".2.partial-0").symlink_to(folder / "4")
        server.poll()
        assert ask(server.grpc_port, request).model_spec.version.value == 1
        (tmp_path / ".2.partial-0").rename(tmp_path / "2")
        server.poll()
        response = ask(server.grpc_port, request)
        assert response.model_spec.version.value == 2
        np.testing.assert_allclose(arrays(response)["logits"], expected[4], rtol=0, atol=5e-2)
        # Back to the older one.
        (tmp_path / "2").unlink()
        server.poll()
        assert ask(server.grpc_port, request).model_spec.version.value == 1
    finally:
        server.close()
    changes = [("load", 1), ("load", 2), ("unload", 1), ("load", 1), ("unload", 2)]
    assert server.events == changes


@pytest.mark.full
def test_the_program_that_serve_starts(base, tmp_path):
    """`keras-efficient serve` with the stand-in on PATH in place of the real program."""
    folder, x, expected = base
    number = 3
    program = tmp_path / "tensorflow_model_server"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {stand_in_server.__file__} "$@"\n')
    program.chmod(0o755)
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            ports.append(probe.getsockname()[1])
    command = [sys.executable, "-m", "keras_efficient", "serve", str(folder / str(number))]
    command += ["--name", "pinned", "--rest-port", str(ports[0]), "--grpc-port", str(ports[1])]
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        command,
        env={**os.environ, "PATH": path, "TMPDIR": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert any("Running gRPC" in line for line in process.stdout)
        request = ke.serving.grpc_request("pinned", "tokens", x)
        response = ask(ports[1], request)
        assert response.model_spec.version.value == number
        np.testing.assert_allclose(arrays(response)["logits"], expected[number], atol=5e-2)
        with grpc.insecure_channel(f"localhost:{ports[1]}") as channel:
            status = get_model_status_pb2.GetModelStatusRequest()
            found = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status)
        assert [state.version for state in found.model_version_status] == [number]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
