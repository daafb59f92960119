"""A stand-in for TensorFlow Serving, whose program no package registry has.

It does what the documentation and the protocol buffers of TensorFlow Serving say of loading and
answering: each version is a session of TensorFlow 1 that restores the variables and runs the
initializers of the tag "serve"; warm-up records are replayed before a version is used; a newer
version is loaded before the older one is unloaded; requests come by gRPC and REST. It takes the
flags that `ke.serving.server_command` gives. It does not batch, and it is no proof of what the real
program does.
"""

import argparse
import base64
import http.server
import json
import threading
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format, text_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

WARM_UP = "assets.extra/tf_serving_warmup_requests"
#: REST's number of each gRPC status that is used here.
HTTP_STATUS = {grpc.StatusCode.NOT_FOUND: 404, grpc.StatusCode.INVALID_ARGUMENT: 400}


class RequestError(Exception):
    """A request that is refused with a gRPC status."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Version:
    """A SavedModel in a session, warmed up.

    Attributes:
        signatures: {name: `SignatureDef`}.
        warmed_up: names of the signatures of the warm-up requests, in their order.
    """

    def __init__(self, path, threads=0):
        config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=threads)
        self.session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        with self.session.graph.as_default():
            loaded = tf.compat.v1.saved_model.load(self.session, ["serve"], str(path))
        self.signatures = {
            name: signature
            for name, signature in loaded.signature_def.items()
            if signature.method_name
            == tf.compat.v1.saved_model.signature_constants.PREDICT_METHOD_NAME
        }
        self.warmed_up = []
        records = path / WARM_UP
        if records.exists():
            for record in tf.compat.v1.io.tf_record_iterator(str(records)):
                request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
                inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
                self.run(request.model_spec.signature_name, inputs)
                self.warmed_up.append(request.model_spec.signature_name)

    def signature(self, name):
        name = name or "serving_default"
        if name not in self.signatures:
            raise RequestError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f'Serving signature name: "{name}" not found in signature def',
            )
        return self.signatures[name]

    def run(self, name, inputs):
        """Return arrays by output, of arrays by input."""
        signature = self.signature(name)
        if inputs.keys() != signature.inputs.keys():
            raise RequestError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"inputs {sorted(inputs)} differ from the signature's {sorted(signature.inputs)}",
            )
        feed = {}
        for key, array in inputs.items():
            info = signature.inputs[key]
            # A session of the C++ interface does not convert.
            wanted = tf.as_dtype(info.dtype).as_numpy_dtype
            if array.dtype != wanted:
                raise RequestError(
                    grpc.StatusCode.INVALID_ARGUMENT, f"{key} is {array.dtype}, not {wanted}"
                )
            feed[info.name] = array
        fetch = {key: info.name for key, info in signature.outputs.items()}
        try:
            return self.session.run(fetch, feed)
        except (tf.errors.OpError, ValueError) as error:
            raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error


class Server:
    """The versions of one model, behind gRPC and REST.

    Args:
        config: `model_server_config_pb2.ModelConfig` with `name`, `base_path`,
            `model_version_policy` and `version_labels`.
        grpc_port: int; 0 is a free one. Default: 0.
        rest_port: int; 0 is a free one. Default: 0.

    Attributes:
        versions: {number: `Version`}.
        events: list of ("load" or "unload", number).
    """

    def __init__(self, config, grpc_port=0, rest_port=0, threads=0):
        self.config, self.threads, self.versions, self.events = config, threads, {}, []
        self.poll()
        self._grpc = grpc.server(futures.ThreadPoolExecutor(2))
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            _PredictionService(self), self._grpc
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_ModelService(self), self._grpc)
        self.grpc_port = self._grpc.add_insecure_port(f"localhost:{grpc_port}")
        self._grpc.start()
        handler = type("Handler", (_Handler,), {"server_of_models": self})
        self._http = http.server.ThreadingHTTPServer(("localhost", rest_port), handler)
        self.rest_port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def poll(self):
        """Load the versions that the policy wants, then unload all others."""
        numbers = sorted(
            int(p.name) for p in Path(self.config.base_path).iterdir() if p.name.isdigit()
        )
        policy = self.config.model_version_policy
        kind = policy.WhichOneof("policy_choice")
        if kind == "specific":
            wanted = [n for n in numbers if n in policy.specific.versions]
        else:
            latest = len(numbers) if kind == "all" else policy.latest.num_versions or 1
            wanted = numbers[-latest:]
        for number in wanted:
            if number not in self.versions:
                version = Version(Path(self.config.base_path) / str(number), self.threads)
                self.versions = {**self.versions, number: version}
                self.events.append(("load", number))
        for number in self.versions.keys() - set(wanted):
            gone = self.versions[number]
            self.versions = {n: v for n, v in self.versions.items() if n != number}
            gone.session.close()
            self.events.append(("unload", number))

    def find(self, name, number=None, label=None):
        """Return (number, `Version`); by default of the newest one."""
        versions = self.versions
        if label:
            number = self.config.version_labels.get(label, -1)
        found = max(versions) if number is None and versions else number
        if name != self.config.name or found not in versions:
            raise RequestError(
                grpc.StatusCode.NOT_FOUND,
                f"Servable not found for request: {name}, version {label or number or 'latest'}",
            )
        return found, versions[found]

    def close(self):
        self._grpc.stop(None).wait()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        for version in self.versions.values():
            version.session.close()

    def wait(self):
        self._grpc.wait_for_termination()


def _of(server, spec):
    version = spec.WhichOneof("version_choice") == "version"
    return server.find(spec.name, spec.version.value if version else None, spec.version_label)


def _status(method):
    def answered(self, request, context):
        try:
            return method(self, request)
        except RequestError as error:
            context.abort(error.status, str(error))

    return answered


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, server):
        self.server = server

    @_status
    def Predict(self, request):
        number, version = _of(self.server, request.model_spec)
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        outputs = version.run(request.model_spec.signature_name, inputs)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = number
        response.model_spec.signature_name = request.model_spec.signature_name or "serving_default"
        for name in request.output_filter or outputs:
            response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name]))
        return response

    @_status
    def GetModelMetadata(self, request):
        number, version = _of(self.server, request.model_spec)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = number
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=version.signatures)
        response.metadata["signature_def"].Pack(signatures)
        return response


class _ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, server):
        self.server = server

    @_status
    def GetModelStatus(self, request):
        return self.server_status()

    def server_status(self):
        response = get_model_status_pb2.GetModelStatusResponse()
        for number in sorted(self.server.versions, reverse=True):
            state = get_model_status_pb2.ModelVersionStatus.AVAILABLE
            response.model_version_status.add(version=number, state=state)
        return response


class _Handler(http.server.BaseHTTPRequestHandler):
    server_of_models: Server

    def do_GET(self):
        server = self.server_of_models
        words = self.path.removesuffix("/metadata").strip("/").split("/")
        if words == ["v1", "models", server.config.name] and not self.path.endswith("/metadata"):
            message = _ModelService(server).server_status()
        else:
            request = get_model_metadata_pb2.GetModelMetadataRequest()
            request.model_spec.name = words[2]
            message = _PredictionService(server).GetModelMetadata(request, None)
        self._answer(200, json_format.MessageToDict(message, preserving_proto_field_name=True))

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            self._answer(200, self._predict(json.loads(body)))
        except RequestError as error:
            self._answer(HTTP_STATUS[error.status], {"error": str(error)})

    def _predict(self, body):
        path, _, method = self.path.partition(":")
        match path.strip("/").split("/"):
            case ["v1", "models", name]:
                number, label = None, None
            case ["v1", "models", name, "versions", text]:
                number, label = int(text), None
            case ["v1", "models", name, "labels", label]:
                number = None
            case _:
                method = ""
        if method != "predict":
            raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, f"Malformed request: {self.path}")
        _, version = self.server_of_models.find(name, number, label)
        signature = version.signature(body.get("signature_name"))
        rows = "instances" in body
        inputs = _by_name(body["instances"], signature) if rows else body["inputs"]
        if not isinstance(inputs, dict):
            (only,) = signature.inputs
            inputs = {only: inputs}
        arrays = {
            key: _array(value, tf.as_dtype(signature.inputs[key].dtype))
            for key, value in inputs.items()
            if key in signature.inputs
        }
        found = version.run(body.get("signature_name"), arrays)
        outputs = {key: _plain(value) for key, value in found.items()}
        if not rows:
            return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))}
        if len(outputs) == 1:
            return {"predictions": next(iter(outputs.values()))}
        columns = zip(*outputs.values(), strict=True)
        return {"predictions": [dict(zip(outputs, row, strict=True)) for row in columns]}

    def _answer(self, code, value):
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def _by_name(rows, signature):
    if not all(isinstance(row, dict) and "b64" not in row for row in rows):
        return rows
    return {key: [row[key] for row in rows] for key in rows[0]}


def _array(value, dtype):
    if dtype == tf.string:
        return np.array(_decoded(value), object)
    return np.array(value, dtype.as_numpy_dtype)


def _decoded(value):
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value.encode()


def _plain(array):
    # Values of float32 are printed with as few digits as read back to them.
    if array.dtype == object:
        return np.vectorize(lambda text: text.decode(), otypes=[object])(array).tolist()
    if array.dtype.kind == "f":
        return np.vectorize(lambda x: float(str(x)), otypes=[object])(array).tolist()
    return array.tolist()


def model_config(arguments):
    """Return the `ModelConfig` of the program's parsed flags."""
    if arguments.model_config_file:
        text = Path(arguments.model_config_file).read_text()
        configs = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
        (config,) = configs.model_config_list.config
        return config
    return model_server_config_pb2.ModelConfig(
        name=arguments.model_name, base_path=arguments.model_base_path
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--rest_api_port", type=int)
    for name in ("model_name", "model_base_path", "model_config_file", "monitoring_config_file"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--tensorflow_intra_op_parallelism", type=int, default=0)
    arguments = parser.parse_args()
    ports = arguments.port, arguments.rest_api_port
    server = Server(model_config(arguments), *ports, arguments.tensorflow_intra_op_parallelism)
    print("Running gRPC and REST", flush=True)
    server.wait()


if __name__ == "__main__":
    main()
