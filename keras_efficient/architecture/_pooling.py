"""The layers that make one vector per example of its tokens' vectors."""

import re

from keras_efficient.architecture._layer_class import original_class
from keras_efficient.architecture._layer_paths import is_in, layer_paths
from keras_efficient.flavor import Layer, Model


def pooling_layers(model: Model) -> dict[str, Layer]:
    """Return a model's pooling layers by path: global ones, and the poolers of BERT and the like.

    A pooler is a layer with weights that computes with the vector of the first token. Pooling that
    is no layer of the model, such as taking the first token, is not found.
    """
    found: dict[str, Layer] = {}
    for path, layer in layer_paths(model):
        name = original_class(layer).__name__
        pooler = re.search("pool(er|ed)", f"{layer.name} {name}".lower()) and layer.weights
        if (pooler or re.match("Global.*Pool", name)) and not is_in(path, found):
            found[path] = layer
    return found
