"""Architectures of torchvision, transformers and timm with random weights, small enough for one core: nothing is downloaded.

`ARCHITECTURES` maps a name to a function that makes (model, example input). Networks of several inputs or outputs are
wrapped to take one tensor and give one, and detectors are taken without their post-processing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import transformers
from torch import Tensor, nn
from torchvision.models import detection, get_model, segmentation

Made = tuple[nn.Module, Tensor]

PIXELS = 96
TOKENS = 16
VOCABULARY = 128
CLASSES = 10

TEXT = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
ENCODER = {**TEXT, "intermediate_size": 128, "max_position_embeddings": 64}


class Leaf(nn.Module):
    """A network as a function of one tensor to one tensor: the leaf of its output that `pick` takes."""

    def __init__(self, network: nn.Module, pick: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.network, self.pick = network, pick

    def forward(self, inputs: Tensor) -> Tensor:
        return self.pick(self.network(inputs))


class Decoding(nn.Module):
    """A decoder's next-token scores, without a cache of keys and values."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor) -> Tensor:
        return self.network(ids, use_cache=False).logits


class Detector(nn.Module):
    """A detector's scores and boxes of every anchor, in one tensor, without the choice of the best."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = network.backbone, network.head

    def forward(self, images: Tensor) -> Tensor:
        found = self.head(list(self.backbone(images).values()))
        return torch.cat([found["cls_logits"], found["bbox_regression"]], -1)


class Proposals(nn.Module):
    """The scores that a region proposal network gives every anchor of every level."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.backbone, self.head = network.backbone, network.rpn.head

    def forward(self, images: Tensor) -> Tensor:
        scores, boxes = self.head(list(self.backbone(images).values()))
        return torch.cat([level.flatten(1) for level in (*scores, *boxes)], -1)


def images(pixels: int = PIXELS, channels: int = 3) -> Tensor:
    return torch.randn(1, channels, pixels, pixels)


def tokens() -> Tensor:
    return torch.randint(3, VOCABULARY, (1, TOKENS))


def classifier(name: str) -> Made:
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    pixels = 224 if name.startswith("vit") else PIXELS
    return get_model(name, weights=None, num_classes=CLASSES, **options), images(pixels)


def segmenter(name: str) -> Made:
    make = getattr(segmentation, name)
    return Leaf(make(weights=None, weights_backbone=None, num_classes=CLASSES), lambda out: out["out"]), images(64)


def detector(name: str, kind: Callable[[Any], nn.Module]) -> Made:
    return kind(getattr(detection, name)(weights=None, weights_backbone=None, num_classes=CLASSES)), images(64)


def of_timm(name: str, pixels: int = 0) -> Made:
    model = timm.create_model(name, pretrained=False, num_classes=CLASSES, **({"img_size": pixels} if pixels else {}))
    return model, images(pixels or PIXELS)


def of_config(kind: str, config: Any, pick: Callable[[Any], Tensor], inputs: Callable[[], Tensor] = tokens) -> Made:
    return Leaf(getattr(transformers, kind)(config), pick), inputs()


def logits(out: Any) -> Tensor:
    return out.logits


def states(out: Any) -> Tensor:
    return out.last_hidden_state


def _encoders() -> dict[str, Callable[[], Made]]:
    t, few = transformers, {"num_labels": CLASSES}
    small = {"dim": 64, "n_heads": 4, "n_layers": 2, "hidden_dim": 128, "vocab_size": VOCABULARY}
    swin = t.SwinConfig(image_size=64, embed_dim=32, depths=[1, 1], num_heads=[2, 4], window_size=4, **few)
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    vit = t.ViTConfig(image_size=64, **vision, **few)
    clip_vision = t.CLIPVisionConfig(image_size=64, projection_dim=32, **vision)
    clip_text = t.CLIPTextConfig(projection_dim=32, **ENCODER, eos_token_id=2)
    whisper = t.WhisperConfig(
        d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128, decoder_layers=1,
        decoder_attention_heads=4, decoder_ffn_dim=128, num_mel_bins=16, max_source_positions=32,
        vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    t5 = t.T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=VOCABULARY)
    albert = t.AlbertConfig(embedding_size=32, **ENCODER, **few)
    return {
        "bert": partial(of_config, "BertForSequenceClassification", t.BertConfig(**ENCODER, **few), logits),
        "distilbert": partial(
            of_config, "DistilBertForSequenceClassification", t.DistilBertConfig(**small, **few), logits
        ),
        "roberta": partial(of_config, "RobertaForSequenceClassification", t.RobertaConfig(**ENCODER, **few), logits),
        "albert": partial(of_config, "AlbertForSequenceClassification", albert, logits),
        "minilm": partial(of_config, "BertModel", t.BertConfig(**{**ENCODER, "num_hidden_layers": 3}), states),
        "vit": partial(of_config, "ViTForImageClassification", vit, logits, partial(images, 64)),
        "swin": partial(of_config, "SwinForImageClassification", swin, logits, partial(images, 64)),
        "clip_vision": partial(
            of_config, "CLIPVisionModelWithProjection", clip_vision, lambda out: out.image_embeds, partial(images, 64)
        ),
        "clip_text": partial(of_config, "CLIPTextModelWithProjection", clip_text, lambda out: out.text_embeds),
        "whisper_encoder": lambda: (Leaf(t.WhisperModel(whisper).encoder, states), torch.randn(1, 16, 64)),
        "t5_encoder": partial(of_config, "T5EncoderModel", t5, states),
    }


def _decoders() -> dict[str, Callable[[], Made]]:
    t = transformers
    gpt2 = t.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=64)
    modern = {**ENCODER, "num_key_value_heads": 2, "head_dim": 16}
    made = {
        "gpt2": lambda: t.GPT2LMHeadModel(gpt2),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**modern)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**modern)),
        "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**modern, pad_token_id=0, bos_token_id=1, eos_token_id=2)),
    }
    return {name: lambda make=make: (Decoding(make()), tokens()) for name, make in made.items()}


TORCHVISION = (
    "resnet18", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "shufflenet_v2_x1_0", "squeezenet1_1",
    "regnet_y_400mf", "convnext_tiny", "vit_b_32", "swin_t", "googlenet", "mnasnet0_5",
)  # fmt: skip
SEGMENTATION = ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50")
DETECTION = {
    "ssdlite320_mobilenet_v3_large": Detector,
    "retinanet_resnet50_fpn": Detector,
    "fasterrcnn_mobilenet_v3_large_fpn": Proposals,
}
TIMM = {
    "efficientvit_m0": 224, "mobilenetv4_conv_small": 0, "mixer_s32_224": 224, "resmlp_12_224": 64, "gmlp_ti16_224": 224,
    "poolformer_s12": 0, "convnextv2_atto": 0, "repvgg_a0": 0, "ghostnet_100": 0, "edgenext_xx_small": 0,
    "mobilevit_xxs": 0, "deit_tiny_patch16_224": 64, "eva02_tiny_patch14_224": 56, "swin_tiny_patch4_window7_224": 224,
    "levit_128s": 224, "pvt_v2_b0": 0, "xcit_nano_12_p16_224": 64, "repvit_m0_9": 0, "fastvit_t8": 0, "res2net50_14w_8s": 0,
}  # fmt: skip

ARCHITECTURES: dict[str, Callable[[], Made]] = {
    **{f"torchvision:{name}": partial(classifier, name) for name in TORCHVISION},
    **{f"torchvision:{name}": partial(segmenter, name) for name in SEGMENTATION},
    **{f"torchvision:{name}": partial(detector, name, kind) for name, kind in DETECTION.items()},
    **{f"transformers:{name}": make for name, make in {**_encoders(), **_decoders()}.items()},
    **{f"timm:{name}": partial(of_timm, name, pixels) for name, pixels in TIMM.items()},
}
"""Name -> a function that makes the model and an example input of shape [1, ...]."""
