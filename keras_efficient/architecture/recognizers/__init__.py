"""Recognisers: functions that describe the Transformer blocks of one library.

A recogniser maps a layer to a `Block`, to the reason why a layer of its library cannot be
described, or to None for all other layers. It looks at classes by name, since no library but the
model's own may be imported; and only classes whose `call` is the library's own count. Whatever it
returns is compared with the layer's own results before it is used.
"""

from collections.abc import Callable

from keras_efficient.architecture._description import Block
from keras_efficient.architecture.recognizers import hugging_face, keras_hub, model_garden
from keras_efficient.flavor import Layer

Recognizer = Callable[[str, Layer], Block | str | None]

#: In the order in which they are asked.
RECOGNIZERS: list[Recognizer] = [
    keras_hub.encoder,
    keras_hub.decoder,
    keras_hub.vit,
    model_garden.encoder,
    hugging_face.bert,
    hugging_face.albert,
    hugging_face.distilbert,
    hugging_face.gpt2,
    hugging_face.vit,
    hugging_face.bart_encoder,
    hugging_face.t5_encoder,
]
