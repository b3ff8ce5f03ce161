"""Models of KerasHub in small configurations, with inputs for them. They need `keras_hub`."""

import keras
import numpy as np
import tensorflow as tf

from keras_lowrank import make_low_rank

_VOCABULARY, _LENGTH, _IMAGE = 400, 12, (32, 32, 3)
_SIZES = {"vocabulary_size": _VOCABULARY, "num_layers": 2, "hidden_dim": 64}
_WIDE = {**_SIZES, "intermediate_dim": 128}
_ENCODER = {**_WIDE, "num_heads": 4, "max_sequence_length": _LENGTH, "dropout": 0.0}
_DECODER = {**_WIDE, "num_query_heads": 4, "num_key_value_heads": 4}
_GEMMA = {**_WIDE, "num_query_heads": 4, "num_key_value_heads": 2, "head_dim": 32}


def _swin(hub):
    return hub.SwinTransformerBackbone(
        image_shape=_IMAGE,
        patch_size=4,
        embed_dim=64,
        depths=(2, 2),
        num_heads=(2, 4),
        window_size=4,
        drop_path=0.0,
    )


def _segformer(hub):
    encoder = hub.MiTBackbone(
        layerwise_depths=[1, 1],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.0,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        image_shape=_IMAGE,
        hidden_dims=[64, 96],
    )
    return hub.SegFormerBackbone(image_encoder=encoder, projection_filters=64)


def _clip(hub):
    sizes = {"hidden_dim": 64, "num_layers": 2, "num_heads": 4, "intermediate_dim": 128}
    vision = hub.CLIPVisionEncoder(patch_size=8, image_shape=_IMAGE, **sizes)
    text = hub.CLIPTextEncoder(
        vocabulary_size=_VOCABULARY, embedding_dim=64, max_sequence_length=_LENGTH, **sizes
    )
    return hub.CLIPBackbone(vision_encoder=vision, text_encoder=text, projection_dim=64)


def _mobilenet(hub):
    return hub.MobileNetBackbone(
        stackwise_expansion=[[128, 192], [192, 256]],
        stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[64, 64], [96, 96]],
        stackwise_kernel_size=[[3, 3], [3, 3]],
        stackwise_num_strides=[[2, 1], [2, 1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1, 1], [1, 1]],
        input_num_filters=32,
        output_num_filters=256,
        depthwise_filters=64,
        depthwise_stride=1,
        depthwise_residual=False,
        last_layer_filter=128,
        squeeze_and_excite=0.5,
        image_shape=_IMAGE,
    )


def _efficientnet(hub):
    return hub.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0] * 4,
        stackwise_depth_coefficients=[1.0] * 4,
        stackwise_kernel_sizes=[3, 3, 3, 3],
        stackwise_num_repeats=[1, 2, 1, 2],
        stackwise_input_filters=[32, 48, 64, 96],
        stackwise_output_filters=[48, 64, 96, 160],
        stackwise_expansion_ratios=[1, 4, 4, 4],
        stackwise_squeeze_and_excite_ratios=[0.0, 0.0, 0.25, 0.25],
        stackwise_strides=[1, 2, 1, 2],
        stackwise_block_types=["fused", "fused", "unfused", "unfused"],
        dropout=0.0,
        input_shape=_IMAGE,
    )


def _resnet(hub):
    return hub.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 96],
        stackwise_num_blocks=[2, 2],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=_IMAGE,
    )


# From the name of an architecture to a callable that makes one, given `keras_hub.models`.
MODELS = {
    "BERT": lambda hub: hub.BertBackbone(**_ENCODER),
    "DistilBERT": lambda hub: hub.DistilBertBackbone(**_ENCODER),
    "RoBERTa": lambda hub: hub.RobertaBackbone(**_ENCODER),
    "ALBERT": lambda hub: hub.AlbertBackbone(**_ENCODER, embedding_dim=48),
    "DeBERTaV3": lambda hub: hub.DebertaV3Backbone(**_ENCODER, bucket_size=8),
    "GPT-2": lambda hub: hub.GPT2Backbone(**_ENCODER),
    "Gemma": lambda hub: hub.GemmaBackbone(**_GEMMA),
    "Gemma3": lambda hub: hub.Gemma3Backbone(**_GEMMA, image_size=16),
    "Llama3": lambda hub: hub.Llama3Backbone(**_DECODER),
    "Mistral": lambda hub: hub.MistralBackbone(**_DECODER),
    "Qwen": lambda hub: hub.QwenBackbone(**_DECODER),
    "Mixtral": lambda hub: hub.MixtralBackbone(**_DECODER, num_experts=2),
    "BART": lambda hub: hub.BartBackbone(**_ENCODER),
    "T5": lambda hub: hub.T5Backbone(**_WIDE, num_heads=4, dropout=0.0),
    "Whisper": lambda hub: hub.WhisperBackbone(
        **_WIDE, num_heads=4, max_encoder_sequence_length=16, max_decoder_sequence_length=_LENGTH
    ),
    "ViT": lambda hub: hub.ViTBackbone(
        image_shape=_IMAGE, patch_size=8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128
    ),
    "Swin": _swin,
    "SegFormer": _segformer,
    "CLIP": _clip,
    "ResNet": _resnet,
    "MobileNet": _mobilenet,
    "EfficientNet": _efficientnet,
}


# From the name of an architecture that generates to the class of its task.
TASKS = {
    "GPT-2": "GPT2CausalLM",
    "Gemma": "GemmaCausalLM",
    "Gemma3": "Gemma3CausalLM",
    "Llama3": "Llama3CausalLM",
    "Mistral": "MistralCausalLM",
    "Qwen": "QwenCausalLM",
    "Mixtral": "MixtralCausalLM",
    "BART": "BartSeq2SeqLM",
    "T5": "T5Seq2SeqLM",
}


def inputs_of(model, batch=2):
    """Random inputs of the shapes and types that a functional model takes."""
    rng = np.random.default_rng(0)

    def draw(tensor):
        shape = [batch, *(extent or _LENGTH for extent in tensor.shape[1:])]
        if "mask" in tensor.name:
            return np.ones(shape, tensor.dtype)
        if "int" in tensor.dtype:  # positions and segments are small, and tokens may be
            return rng.integers(0, 2, shape).astype(tensor.dtype)
        return rng.standard_normal(shape).astype(tensor.dtype)

    return keras.tree.map_structure(draw, model.input)


def prompt_of(task, length=3):
    """Random tokens for a task to go on from, the first few of them given."""
    prompt = inputs_of(task)
    name = "decoder_padding_mask" if "decoder_padding_mask" in prompt else "padding_mask"
    prompt[name][:, length:] = 0
    return prompt


def signature_of(model, inputs):
    """The signature of an export with the shapes of these inputs."""
    spec = lambda tensor, array: tf.TensorSpec(array.shape, tensor.dtype, tensor.name)  # noqa: E731
    return [keras.tree.map_structure(spec, model.input, inputs)]


def at_full_rank(model):
    """Makes a model low-rank in all that can be, and cuts nothing."""
    return make_low_rank(model, tolerance=0.0, only_smaller=False)


def row(name, report):
    """The row of an architecture in the table of the guide, for its `Conversion` at rank 16."""
    generates = "yes" if name in TASKS else "-"
    return (
        f"| {name} | {report.before:,} | {report.share:.1%} | {report.after:,} | yes | yes | yes "
        f"| {generates} | yes | yes | yes |"
    )


if __name__ == "__main__":  # writes the rows of docs/transformers.md
    import keras_hub

    for _name, _make in MODELS.items():
        print(row(_name, make_low_rank(_make(keras_hub.models), rank=16)), flush=True)
