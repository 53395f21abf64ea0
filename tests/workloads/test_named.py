"""Models of timm by name, and from folders of transformers."""

import numpy as np
import pytest
import torch
from slimfront.core.errors import WorkloadError
from slimfront.spaces.models.channel_groups import find_channel_groups
from slimfront.workloads.contract import held
from slimfront.workloads.load import load_workload

timm, transformers = pytest.importorskip("timm"), pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 90}
FEW = {"name": "random", "samples": 20, "classes": 5}


@pytest.fixture
def folder(tmp_path):
    """A trained classifier of four classes; `decoder` next to it is a configuration alone."""
    config = transformers.BertConfig(**SIZES, num_labels=4, max_position_embeddings=64)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "encoder")
    transformers.LlamaConfig(**SIZES, num_key_value_heads=2, head_dim=8).save_pretrained(tmp_path / "decoder")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "task", "metric", "shape"),
    [
        ("encoder", "sequence-classification", "top1", (1, 4)),
        ("encoder", "token-classification", "token_accuracy", (1, 8, 4)),
        ("encoder", "embeddings", "mse", (1, 8, 32)),
        ("decoder", "causal-lm", "token_accuracy", (1, 8, 90)),
    ],
)
def test_a_folder_is_a_workload_for_each_task(name, task, metric, shape, folder):
    workload = held(load_workload(f"transformers:{name}", {"task": task, "tokens": 8, "samples": 20}, folder))
    assert workload.metric == metric
    with torch.no_grad():
        assert workload.model(workload.example_input).shape == shape
    groups, _ = find_channel_groups(workload.model, workload.example_input)
    assert [group.channels for group in groups if group.unit == "head"] == ([4, 4] if name == "encoder" else [2, 2])


def test_labelled_tokens_are_read_from_a_file(folder):
    labels = np.arange(40) % 4
    np.savez(folder / "tokens.npz", input_ids=np.arange(240).reshape(40, 6) % 90, labels=labels)
    options = {"task": "sequence-classification", "data": "tokens.npz"}
    workload = load_workload("transformers:encoder", options, folder)
    assert [len(data) for data in (workload.train, workload.test)] == [20, 8]
    assert {int(workload.train[i][1]) for i in range(20)} == {0, 1, 2, 3}
    assert workload.example_input["input_ids"].shape == (1, 6)


def test_an_architecture_of_timm_is_a_workload():
    workload = load_workload("timm:deit_tiny_patch16_224", {"image_size": 32, "data": FEW})
    assert workload.example_input.shape == (1, 3, 32, 32)
    assert workload.name == "timm:deit_tiny_patch16_224 (untrained, random images)"


@pytest.mark.parametrize(
    ("reference", "options", "problem"),
    [
        ("timm:resnet81", {}, "timm has no model 'resnet81', but it has resnet18"),
        ("timm:resnet18", {"weights": "pretrained"}, "weights pretrained are fetched from the internet"),
        ("timm:resnet18", {"weights": "none.pth", "data": FEW}, "weights were looked for in .*none.pth"),
        ("transformers:nowhere", {"task": "causal-lm"}, "config.json was looked for, but there is no such file"),
        ("transformers:encoder", {"task": "translation"}, "option task: "),
        ("transformers:encoder", {"task": "embeddings", "data": "x.npz"}, "data were looked for in .*x.npz"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(reference, options, problem, folder):
    with pytest.raises(WorkloadError, match=problem) as caught:
        load_workload(reference, options, folder)
    assert "\n" not in str(caught.value)
