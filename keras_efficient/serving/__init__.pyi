from ._check_graph import check_graph as check_graph
from ._predict import predict as predict
from ._requests import grpc_request as grpc_request, rest_request as rest_request
from ._tf_serving import ServerCommand as ServerCommand, server_command as server_command
