"""Workloads of torchvision's models, with random images and with folders of images."""

import struct

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from slimfront.core.errors import WorkloadError
from slimfront.workloads.load import load_workload, workload_fingerprint
from torch.utils.data import DataLoader

SMALL = {"image_size": 32, "data": {"name": "random", "samples": 40, "classes": 10}}


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    """Neither slimfront's cache nor torch's: what is on this machine must not decide a test."""
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def indices(split):
    return set(split.indices)


def splits(workload):
    return [workload.train, workload.calibration, workload.validation, workload.test]


def test_resnet18_on_random_images_agrees_with_itself():
    workload = load_workload("torchvision:resnet18", SMALL)
    assert workload.name == "torchvision:resnet18 (untrained, random images)"
    assert workload.example_input.shape == (1, 3, 32, 32)
    assert [len(split) for split in splits(workload)] == [20, 4, 8, 8]
    assert set.union(*map(indices, splits(workload))) == set(range(40))
    labels = set()
    for split in splits(workload):
        inputs, targets = next(iter(DataLoader(split, batch_size=40)))
        with torch.inference_mode():
            assert torch.equal(workload.model(inputs).argmax(1), targets)
        labels |= set(targets.tolist())
    assert len(labels) > 2  # or agreement would mean nothing


def test_the_seed_decides_weights_images_and_splits():
    torch.manual_seed(1)
    first = load_workload("torchvision:resnet18", SMALL)
    torch.manual_seed(2)
    again, other = (load_workload("torchvision:resnet18", SMALL | {"seed": seed}) for seed in (0, 1))
    assert workload_fingerprint(first) == workload_fingerprint(again) != workload_fingerprint(other)
    assert first.test.indices == again.test.indices != other.test.indices
    assert torch.equal(first.test[0][0], again.test[0][0])
    assert not torch.equal(first.test.dataset[0][0], other.test.dataset[0][0])


def test_a_model_that_tells_no_random_images_apart_says_so(caplog):
    load_workload("torchvision:vit_b_32", {"image_size": 32, "data": {"name": "random", "samples": 20}})
    assert "the model gives all 20 random images the same class" in caplog.text


@pytest.mark.parametrize("name", ["vit_b_32", "googlenet", "inception_v3"])
def test_models_that_need_telling_something(name):
    size = 96 if name == "inception_v3" else 32
    workload = load_workload(f"torchvision:{name}", {"image_size": size, "data": {"name": "random", "samples": 20}})
    assert workload.model.training is False
    assert workload.model.train()(torch.zeros(2, 3, size, size)).shape == (2, 1000)  # no auxiliary outputs


def test_weights_from_a_file(tmp_path):
    model = torchvision.models.resnet18(num_classes=10)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    for file in ("weights.pth", "weights.safetensors"):
        workload = load_workload("torchvision:resnet18", SMALL | {"weights": file}, base=tmp_path)
        assert workload.name == "torchvision:resnet18 (random images)"
        for name, tensor in workload.model.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name


def test_named_weights_that_are_here_need_no_download(tmp_path):
    model = torchvision.models.resnet18()
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(model.state_dict(), checkpoints / "resnet18-f37072fd.pth")
    options = {"weights": "IMAGENET1K_V1", "image_size": 32, "data": {"name": "random", "samples": 20}}
    workload = load_workload("torchvision:resnet18", options)
    assert torch.equal(workload.model.fc.weight, model.fc.weight)


def write_images(folder, per_class, classes=("cat", "dog")):
    generator = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def test_a_folder_of_images_is_split_four_ways(tmp_path):
    write_images(tmp_path / "pets", 20)
    options = {"image_size": 32, "data": {"name": "imagefolder", "root": "pets"}}
    workload = load_workload("torchvision:resnet18", options, base=tmp_path)
    assert workload.name == "torchvision:resnet18 (untrained)"
    assert workload.model.fc.out_features == 2
    assert workload.example_input.shape == (1, 3, 32, 32)
    assert [len(split) for split in splits(workload)] == [20, 4, 8, 8]
    assert set.union(*map(indices, splits(workload))) == set(range(40))
    again = load_workload("torchvision:resnet18", options, base=tmp_path)
    assert [split.indices for split in splits(again)] == [split.indices for split in splits(workload)]


def test_a_folder_with_its_own_test_images_keeps_them_for_the_test_split(tmp_path):
    write_images(tmp_path / "train", 20)
    write_images(tmp_path / "val", 3)
    options = {"image_size": 32, "data": {"name": "imagefolder", "root": str(tmp_path)}}
    workload = load_workload("torchvision:resnet18", options)
    assert [len(split) for split in splits(workload)] == [28, 4, 8, 6]
    (tmp_path / "val" / "cat").rename(tmp_path / "val" / "cow")
    with pytest.raises(WorkloadError, match=r"the classes in .*val must be those in .*train"):
        load_workload("torchvision:resnet18", options)


def write_idx(file, array):
    """MNIST's file format: magic number with type and rank, sizes, bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    file.write_bytes(header + array.astype(np.uint8).tobytes())


def test_mnist_where_the_user_has_it(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    for part, samples in (("train", 100), ("t10k", 30)):
        write_idx(raw / f"{part}-images-idx3-ubyte", np.full((samples, 28, 28), 255))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(samples) % 10)
    workload = load_workload("torchvision:resnet18", {"data": {"name": "mnist", "root": str(tmp_path)}})
    assert [len(split) for split in splits(workload)] == [70, 10, 20, 30]
    assert workload.model.fc.out_features == 10
    assert workload.example_input.shape == (1, 3, 32, 32)
    white = (1 - 0.1307) / 0.3081
    assert torch.allclose(workload.example_input, torch.tensor(white))
    other = {"name": "mnist", "root": str(tmp_path), "mean": [0, 0, 0], "std": [1, 1, 2]}
    inputs = load_workload("torchvision:resnet18", {"data": other, "image_size": 40}).test[0][0]
    assert inputs[:, 0, 0].tolist() == [1, 1, 0.5]
    assert inputs.shape == (3, 40, 40)


MISSING = {
    "mnist": ({}, r"data mnist was looked for in .*cache/data: put it there, or say `download: true` under `data`"),
    "cifar10": ({}, r"data cifar10 was looked for in .*cache/data: put it there, or say `download: true` under `data`"),
    "cifar100": ({"root": "mine"}, r"data cifar100 was looked for in .*/mine: put it there, or say `download: true`"),
    "imagefolder": ({"root": "mine"}, r"data imagefolder was looked for in .*/mine: put it there \("),
    "imagenet": ({"root": "mine"}, r"data imagenet was looked for in .*/mine: put it there \("),
}


@pytest.mark.parametrize(
    ("name", "more", "line"), [(name, *rest) for name, rest in MISSING.items()], ids=MISSING.keys()
)
def test_data_that_are_not_there_are_not_downloaded(tmp_path, name, more, line):
    with pytest.raises(WorkloadError, match=line) as caught:
        load_workload("torchvision:resnet18", {"data": {"name": name, **more}}, base=tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


WRONG_TURNS = {
    "unknown model": ("resnet8", {}, "torchvision has no classification model 'resnet8', but it has resnet"),
    "a segmentation model": ("fcn_resnet50", {}, "torchvision has no classification model 'fcn_resnet50'"),
    "unknown option": (
        "resnet18",
        {"size": 3},
        "unknown option size; known are weights, data, image_size, download, seed",
    ),
    "unknown data option": (
        "resnet18",
        {"data": {"nam": "cifar10"}},
        "unknown option data.nam; known are name, root, download, mean, std, samples, classes",
    ),
    "unknown data": (
        "resnet18",
        {"data": "cifar"},
        "option data.name: Input should be 'random', 'mnist', 'cifar10', 'cifar100', 'imagefolder' or 'imagenet', not 'cifar'",
    ),
    "option that means nothing": (
        "resnet18",
        {"data": {"name": "cifar10", "samples": 20}},
        "option data: samples means nothing for cifar10",
    ),
    "no root": ("resnet18", {"data": "imagenet"}, "option data: imagenet needs root, the folder it is in"),
    "no download": (
        "resnet18",
        {"data": {"name": "imagenet", "root": "mine", "download": True}},
        "data.download: imagenet cannot be downloaded; put it in ",
    ),
    "image size": (
        "resnet18",
        {"image_size": 0},
        "option image_size: Input should be greater than or equal to 8, not 0",
    ),
    "image size of a transformer": (
        "vit_b_32",
        {"image_size": 33},
        "vit_b_32 cannot be built at 33 pixels with weights none: AssertionError: Input shape indivisible by patch size!",
    ),
    "unknown weights": (
        "resnet18",
        {"weights": "IMAGENET"},
        "weights must be none, a .safetensors or .pth file, or one of IMAGENET1K_V1, DEFAULT, not 'IMAGENET'",
    ),
    "missing weights": ("resnet18", {"weights": "w.pth"}, "weights were looked for in "),
    "named weights without download": ("resnet18", {"weights": "DEFAULT"}, "weights DEFAULT were looked for in "),
}


@pytest.mark.parametrize(("model", "options", "line"), WRONG_TURNS.values(), ids=WRONG_TURNS.keys())
def test_each_wrong_turn_is_one_line(tmp_path, model, options, line):
    with pytest.raises(WorkloadError) as caught:
        load_workload(f"torchvision:{model}", options, base=tmp_path)
    assert str(caught.value).startswith(f"workload torchvision:{model}: {line}")
    assert "\n" not in str(caught.value)


def test_files_that_are_no_weights_of_the_model(tmp_path):
    torch.save({"fc.weight": print}, tmp_path / "code.pth")
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing of the kind")
    expected = {
        "code.pth": "code.pth must be a state dict of tensors alone, written by torch.save",
        "other.pth": r"other.pth must be a state dict of the model: RuntimeError: Error\(s\) in loading state_dict",
        "broken.safetensors": "broken.safetensors must be a state dict of the model: SafetensorError",
    }
    for file, line in expected.items():
        with pytest.raises(WorkloadError, match=line) as caught:
            load_workload("torchvision:resnet18", SMALL | {"weights": file}, base=tmp_path)
        assert "\n" not in str(caught.value)


def test_weights_for_another_number_of_classes(tmp_path):
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "resnet18-f37072fd.pth").touch()
    with pytest.raises(WorkloadError, match="weights DEFAULT are for 1000 classes, but data random has 10"):
        load_workload("torchvision:resnet18", SMALL | {"weights": "DEFAULT"})
