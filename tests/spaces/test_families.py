"""Which family a model is of."""

import pytest
import torch
from slimfront.spaces.choices import SpaceChoices
from slimfront.spaces.families import family_of
from slimfront.spaces.presets import PRESETS
from slimfront.workloads.builtin.digits_model import DigitsResNet
from slimfront.workloads.builtin.digits_rnn import DigitsRNN
from slimfront.workloads.builtin.digits_vit import DigitsViT
from torch import Tensor, nn


class Library(nn.Module):
    """A recurrent layer of torch behind a flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(16, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x.squeeze(1))[0][:, -1]


class Attends(nn.Module):
    """An attention of one's own over the rows of an image, by hand or by torch's function."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.query, self.key, self.value, self.fc = (nn.Linear(16, 16) for _ in range(4))
        self.dropout, self.by_hand = nn.Dropout(0.1), by_hand

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(1)
        query, key, value = self.query(x), self.key(x), self.value(x)
        if not self.by_hand:
            return self.fc(nn.functional.scaled_dot_product_attention(query, key, value)).mean(1)
        weights = (query @ key.transpose(-2, -1) / 4).softmax(-1)
        return self.fc(self.dropout(weights) @ value).mean(1)


MODELS = {
    "residual": (lambda: DigitsResNet(8), "cnn"),
    "perceptron": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 4)), "cnn"),
    "vit": (lambda: DigitsViT(16, 1, 2, 16), "transformer"),
    "encoder": (lambda: nn.Sequential(nn.Flatten(1, 2), nn.TransformerEncoderLayer(16, 2, 16)), "transformer"),
    "own attention": (lambda: Attends(by_hand=True), "transformer"),
    "torch's function": (lambda: Attends(by_hand=False), "transformer"),
    "probabilities": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 4), nn.Softmax(dim=-1)), "cnn"),
    "gru": (lambda: DigitsRNN(hidden=8), "recurrent"),
    "library": (Library, "recurrent"),
}


@pytest.mark.parametrize(("build", "family"), MODELS.values(), ids=MODELS)
def test_a_models_family(build, family):
    assert family_of(build(), torch.zeros(1, 1, 16, 16)) == family


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_preset_can_leave_everything_as_it_is(preset):
    choices, neutral = SpaceChoices(**preset.space), SpaceChoices()
    for key in preset.space:
        if key not in ("granularity", "channel_reduction", "channel_multiple"):
            assert neutral[key][0] in choices[key]
