"""The contract of a backbone, held by every file of pipeline/backbones, and what is special about some."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.backbones import backbones
from pipeline.backbones.text_encoder import has_encoder
from pipeline.network import Network, build_network, network_from_architecture
from pipeline.sample import InputKind, InputSpec
from pipeline.settings import NetworkSettings
from pipeline.state import fingerprint
from pipeline.user_error import UserError

SHAPES: dict[InputKind, list[tuple[int, ...]]] = {
    "image": [(1, 32, 32), (3, 40, 32)],
    "vector": [(7,), (3, 2, 2)],
    "text": [(12,)],
}
SMALL: dict[str, dict[str, Any]] = {"resnet18": {"width": 4}, "text_encoder": {"width": 16, "vocabulary": 300}}
PARTS: dict[InputKind, list[dict[str, Any]]] = {
    "image": [{"backbone": "resnet18", "options": {"width": 4}}, {"backbone": "mlp", "options": {"hidden": [5]}}],
    "vector": [{"backbone": "mlp", "options": {"hidden": [6, 5]}}, {"backbone": "mlp", "options": {"hidden": [4]}}],
    "text": [{"backbone": "text_encoder", "options": SMALL["text_encoder"]}],
}
CASES = [
    (name, InputSpec(kind=kind, shape=shape))
    for name, backbone in sorted(backbones().items())
    for kind in sorted(backbone.kinds)
    for shape in SHAPES[kind]
]


def inputs(spec: InputSpec, rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if spec.kind == "text":
        x = torch.randint(1, 256, (rows, *spec.shape), generator=generator, dtype=torch.int32)
        x[0, 5:] = 0
        return x
    if spec.kind == "image":
        return torch.randint(0, 256, (rows, *spec.shape), generator=generator).to(torch.uint8)
    return torch.randn((rows, *spec.shape), generator=generator)


def build(name: str, spec: InputSpec, seed: int = 0, **options: Any) -> Network:
    chosen = options or ({"parts": PARTS[spec.kind]} if name == "sub_modules" else SMALL.get(name, {}))
    return build_network(NetworkSettings(backbone=name, options=chosen, initial_columns=3), spec, seed)


@pytest.mark.parametrize(("name", "spec"), CASES, ids=[f"{name}-{spec.kind}{spec.shape}" for name, spec in CASES])
def test_contract(name: str, spec: InputSpec) -> None:
    before = torch.get_rng_state()
    network = build(name, spec).train()
    x = inputs(spec, 4)

    # forward and backward in training draw nothing, every parameter takes part, twice the same
    logits_BK, features_BD = network(x)
    logits_BK.square().sum().backward()
    assert torch.equal(before, torch.get_rng_state())
    assert features_BD.shape == (4, network.body.width)
    assert logits_BK.shape == (4, 3)
    assert logits_BK.isfinite().all()
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not unused
    assert torch.equal(network(x)[0], logits_BK)

    # the same seed gives the same network, JSON rebuilds it, evaluation of one row works
    assert fingerprint(build(name, spec).state_dict()) == fingerprint(build(name, spec).state_dict())
    rebuilt = network_from_architecture(json.loads(json.dumps(network.architecture)), seed=1)
    rebuilt.load_state_dict(network.state_dict())
    rebuilt.eval()
    network.eval()
    assert torch.equal(rebuilt(x[:1])[0], network(x[:1])[0])
    assert rebuilt.architecture == network.architecture
    # a single row in training, too
    assert network.train()(x[:1])[0].isfinite().all()


def test_another_seed_gives_another_body() -> None:
    for name, spec in CASES:
        first, second = build(name, spec, 0).body.state_dict(), build(name, spec, 1).body.state_dict()
        assert fingerprint(first) != fingerprint(second), name


def test_mlp_is_the_papers() -> None:
    network = build("mlp", InputSpec(kind="image", shape=(1, 28, 28)))
    assert [tuple(parameter.shape) for parameter in network.parameters()] == [
        (100, 784),
        (100,),
        (100, 100),
        (100,),
        (3, 100),
        (3,),
    ]


def test_resnet18_has_the_papers_size() -> None:
    network = build("resnet18", InputSpec(kind="image", shape=(3, 32, 32)), width=64)
    body = sum(parameter.numel() for parameter in network.body.parameters())
    assert body + 10 * 512 + 10 == 11_173_962  # ResNet-18 for CIFAR-10, as everybody counts it
    assert network.body.width == 512


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 9, 28])
def test_resnet18_takes_small_images(channels: int, side: int) -> None:
    spec = InputSpec(kind="image", shape=(channels, side, side))
    network = build("resnet18", spec, width=2).train()
    network(inputs(spec, 1))[0].sum().backward()


def test_resnet18_refuses_what_is_too_small() -> None:
    with pytest.raises(UserError, match="images of 7x20 are too small for backbone 'resnet18'"):
        build("resnet18", InputSpec(kind="image", shape=(3, 7, 20)))


# -- torchvision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["mobilenet_v3_small", "squeezenet1_1", "regnet_x_400mf", "shufflenet_v2_x0_5"])
def test_torchvision_models_draw_nothing(model: str) -> None:
    spec = InputSpec(kind="image", shape=(1, 32, 32))
    if model == "squeezenet1_1":
        with pytest.raises(UserError, match="ends in no linear layer"):
            build("torchvision", spec, model=model)
        return
    network = build("torchvision", spec, model=model).train()
    before = torch.get_rng_state()
    assert torch.equal(network(inputs(spec, 3))[0], network(inputs(spec, 3))[0])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        ("alexnet", (3, 32, 32), r"cannot take image input of shape \(3, 32, 32\)"),
        ("vit_b_16", (3, 40, 40), r"cannot take image input of shape \(3, 40, 40\)"),
        ("vit_b_16", (3, 32, 48), "'vit_b_16' takes square images only"),
        ("fasterrcnn_resnet50_fpn", (3, 64, 64), "is no classifier of torchvision"),
        ("resnet18", (2, 64, 64), "images of 1 or 3 channels, not 2"),
    ],
)
def test_torchvision_says_what_does_not_fit(model: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("torchvision", InputSpec(kind="image", shape=shape), model=model)


def test_torchvision_weights_come_from_a_local_file(tmp_path: Path) -> None:
    import torchvision

    spec = InputSpec(kind="image", shape=(3, 32, 32))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        reference = torchvision.models.shufflenet_v2_x0_5(weights=None).eval()
    file = tmp_path / "weights.safetensors"
    save_file(reference.state_dict(), file)
    network = build("torchvision", spec, model="shufflenet_v2_x0_5", weights=str(file)).eval()

    x = inputs(spec, 2)
    normalised = torchvision.transforms.functional.normalize(x / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    reference.fc = torch.nn.Identity()
    torch.testing.assert_close(network(x)[1], reference(normalised))

    # the architecture needs no file any more, and still normalises
    file.unlink()
    rebuilt = network_from_architecture(network.architecture)
    rebuilt.load_state_dict(network.state_dict())
    assert torch.equal(rebuilt.eval()(x)[0], network(x)[0])
    with pytest.raises(UserError, match=r"is no \.safetensors file here"):
        build("torchvision", spec, model="shufflenet_v2_x0_5", weights=str(file))


def test_torchvision_weights_of_another_model(tmp_path: Path) -> None:
    spec = InputSpec(kind="image", shape=(3, 32, 32))
    file = tmp_path / "weights.safetensors"
    save_file({"conv1.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(UserError, match="are not those of 'shufflenet_v2_x0_5'"):
        build("torchvision", spec, model="shufflenet_v2_x0_5", weights=str(file))
    file.write_bytes(b"\x80\x04pickle")
    with pytest.raises(UserError, match="is not safetensors"):
        build("torchvision", spec, model="shufflenet_v2_x0_5", weights=str(file))


# -- text encoder ---------------------------------------------------------------------------------------------------

TEXT = InputSpec(kind="text", shape=(12,))


def test_text_features_are_the_mean_over_tokens() -> None:
    """What stands behind the padding, and how much of it there is, changes nothing."""
    network = build("text_encoder", TEXT).eval()
    x = inputs(TEXT, 3)  # row 0 has 5 tokens
    short = x[:1, :5]
    torch.testing.assert_close(network(x)[1][:1], network(short)[1])
    tokens = network.body.encoder(input_ids=short).last_hidden_state  # type: ignore[operator]
    torch.testing.assert_close(network(short)[1], tokens.mean(dim=1))


def test_a_text_of_nothing_but_padding_is_finite() -> None:
    network = build("text_encoder", TEXT)
    x = torch.zeros(2, 12, dtype=torch.int32)
    logits_BK, _ = network(x)
    logits_BK.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.grad is not None)


def test_layers_may_share_their_weights() -> None:
    counts = [
        sum(
            parameter.numel()
            for parameter in build("text_encoder", TEXT, layers=layers, share_layers=True).parameters()
        )
        for layers in (1, 4)
    ]
    assert counts[0] == counts[1]
    assert counts[0] < sum(parameter.numel() for parameter in build("text_encoder", TEXT, layers=2).parameters())


def test_text_encoder_sizes_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="width 30 is no multiple of heads 4"):
        build("text_encoder", TEXT, width=30, heads=4)
    with pytest.raises(UserError, match="text encoder of type 'gpt2'"):
        build("text_encoder", TEXT, encoder={"model_type": "gpt2"})
    with pytest.raises(UserError, match="absurd sizes"):
        build("text_encoder", TEXT, encoder={"model_type": "bert", "num_hidden_layers": 10**9})
    with pytest.raises(UserError, match="is no local folder with a config"):
        build("text_encoder", TEXT, checkpoint="bert-base-uncased")


@pytest.fixture(params=["bert", "distilbert"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
    """A folder as transformers saves it, and the model that is in it."""
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        if request.param == "bert":
            sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
            model: Any = transformers.BertModel(transformers.BertConfig(vocab_size=300, **sizes))  # type: ignore[arg-type]
        else:
            config = transformers.DistilBertConfig(vocab_size=300, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
            model = transformers.DistilBertModel(config)
    model.save_pretrained(tmp_path)
    return tmp_path, model.eval()


def test_a_local_checkpoint(checkpoint: tuple[Path, Any], capfd: pytest.CaptureFixture[str]) -> None:
    folder, reference = checkpoint
    capfd.readouterr()
    network = build("text_encoder", TEXT, checkpoint=str(folder)).train()
    assert capfd.readouterr() == ("", "")
    assert has_encoder(str(folder))

    x = inputs(TEXT, 3)
    mask_BT = (x != 0).long()
    outputs_BTD = reference(input_ids=x, attention_mask=mask_BT).last_hidden_state
    weight_BT1 = mask_BT[..., None]
    torch.testing.assert_close(network(x)[1], (outputs_BTD * weight_BT1).sum(1) / weight_BT1.sum(1))  # so no dropout
    assert network.body.width == math.prod(outputs_BTD.shape[2:])

    (folder / "model.safetensors").unlink()
    rebuilt = network_from_architecture(json.loads(json.dumps(network.architecture)))
    rebuilt.load_state_dict(network.state_dict())
    assert torch.equal(rebuilt(x)[0], network(x)[0])
    with pytest.raises(UserError, match="does not load"):
        build("text_encoder", TEXT, checkpoint=str(folder))


def test_a_checkpoint_that_lacks_weights(checkpoint: tuple[Path, Any]) -> None:
    folder, reference = checkpoint
    weights = {name: tensor.contiguous() for name, tensor in reference.state_dict().items() if "LayerNorm" not in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks weights of its"):
        build("text_encoder", TEXT, checkpoint=str(folder))


def test_a_checkpoint_for_shorter_texts(checkpoint: tuple[Path, Any]) -> None:
    with pytest.raises(UserError, match="texts have 600 tokens, this text encoder takes 512"):
        build("text_encoder", InputSpec(kind="text", shape=(600,)), checkpoint=str(checkpoint[0]))
