"""Small models of further families, and batches with padding for them."""

import numpy as np
from zoo import CLASSES, VOCABULARY

LENGTHS = (7, 1, 0, 4)


def _built(model):
    model(model.dummy_inputs)
    return model


def gpt2(dropout=0.0, use_cache=False):
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=8,
        n_layer=2,
        n_head=2,
        n_inner=16,
        n_positions=16,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        num_labels=CLASSES,
        pad_token_id=0,
        use_cache=use_cache,
    )
    return _built(transformers.TFGPT2ForSequenceClassification(config))


def hf_vit(family="ViT", dropout=0.0):
    import transformers

    config = getattr(transformers, f"{family}Config")(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_labels=CLASSES,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return _built(getattr(transformers, f"TF{family}ForImageClassification")(config))


def kerashub_vit(dropout=0.0):
    import keras_hub

    backbone = keras_hub.models.ViTBackbone(
        image_shape=(8, 8, 3),
        patch_size=(4, 4),
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=16,
        dropout_rate=dropout,
        attention_dropout=dropout,
    )
    return keras_hub.models.ViTImageClassifier(backbone, num_classes=CLASSES)


def bart(family="Bart", **overrides):
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCABULARY,
        d_model=8,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=16,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=2,
        dropout=0.0,
        use_cache=False,
        **overrides,
    )
    name = "TFMarianMTModel" if family == "Marian" else f"TF{family}ForConditionalGeneration"
    return _built(getattr(transformers, name)(config))


def t5(feed_forward="relu", decoder=False):
    import transformers

    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=8,
        d_kv=4,
        d_ff=16,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        feed_forward_proj=feed_forward,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=10,
        decoder_start_token_id=0,
        use_cache=False,
    )
    name = "TFT5ForConditionalGeneration" if decoder else "TFT5EncoderModel"
    return _built(getattr(transformers, name)(config))


#: Functions that make a model, by name. All but KerasHub's are of tf_keras.
FAMILIES = {
    "gpt2": gpt2,
    "vit": hf_vit,
    "deit": lambda: hf_vit("DeiT"),
    "kerashub-vit": kerashub_vit,
    "bart": bart,
    "marian": lambda: bart("Marian"),
    "mbart": lambda: bart("MBart"),
    "t5-encoder": t5,
    "t5-gated": lambda: t5("gated-gelu"),
    "t5": lambda: t5(decoder=True),
}


def features(name, lengths=LENGTHS):
    """Return features for a model of `FAMILIES`: padded texts, or images."""
    rng = np.random.default_rng(0)
    if name == "kerashub-vit":
        return rng.normal(size=(4, 8, 8, 3)).astype("float32")
    if name in ("vit", "deit"):
        return {"pixel_values": rng.normal(size=(4, 3, 8, 8)).astype("float32")}
    shape = (len(lengths), max(lengths))
    mask = (np.arange(shape[1])[None] < np.asarray(lengths)[:, None]).astype("int32")
    ids = rng.integers(3, VOCABULARY, shape).astype("int32") * mask
    found = {"input_ids": ids, "attention_mask": mask}
    if name in ("bart", "marian", "mbart", "t5"):
        found["decoder_input_ids"] = rng.integers(3, VOCABULARY, (len(lengths), 4)).astype("int32")
    return found
