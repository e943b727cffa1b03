"""Row gradients against numbers worked out by hand and against one backward pass a row."""

from __future__ import annotations

from typing import TypeVar, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.row_gradients import CapturedRowGradients, RowGradientCapture

INCOMING = 3
Module = TypeVar("Module", bound=nn.Module)


def capture(
    network: nn.Module, x: Tensor, y: Tensor, rows: int = INCOMING, *, fused: bool = True
) -> CapturedRowGradients:
    """The learner's update: incoming cross-entropy and, of the other rows, a loss that must not be seen."""
    captured = RowGradientCapture(network)
    captured.start(rows, scale=rows)
    if fused:
        logits = network(x)
    else:
        logits = torch.cat([network(x[:rows]), network(x[rows:])])
    network.zero_grad()
    backward(F.cross_entropy(logits[:rows], y[:rows]) + 7.0 * logits[rows:].square().sum())
    return captured.finish()


def backward(loss: Tensor) -> None:
    torch.autograd.backward(loss)


def one_backward_a_row(network: nn.Module, x: Tensor, y: Tensor, rows: int = INCOMING) -> list[dict[str, Tensor]]:
    """d log p(y|x) / d theta of each incoming row by itself."""
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    gradients = []
    for row in range(rows):
        log_p = -F.cross_entropy(network(x[row : row + 1]), y[row : row + 1])
        of_row = torch.autograd.grad(log_p, list(parameters.values()), allow_unused=True)
        gradients.append(
            {
                name: torch.zeros_like(p) if g is None else g
                for (name, p), g in zip(parameters.items(), of_row, strict=True)
            }
        )
    return gradients


def assert_equal_to_autograd(network: nn.Module, x: Tensor, y: Tensor, *, fused: bool = True) -> None:
    network.double()  # so that nothing is put down to rounding
    x = x.double() if x.is_floating_point() else x
    got = capture(network, x, y, fused=fused)
    expected = one_backward_a_row(network, x, y)
    mean_of_squares, square_of_mean = got.mean_of_squares(), got.square_of_mean()
    assert set(mean_of_squares) == set(square_of_mean) == set(expected[0])
    assert any(float(value.abs().max()) > 0 for value in mean_of_squares.values())
    for name in expected[0]:
        of_rows = torch.stack([row[name] for row in expected])
        torch.testing.assert_close(mean_of_squares[name], of_rows.square().mean(0), rtol=1e-9, atol=1e-14, msg=name)
        torch.testing.assert_close(square_of_mean[name], of_rows.mean(0).square(), rtol=1e-9, atol=1e-14, msg=name)


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def initialise(network: Module, random: torch.Generator) -> Module:
    """Own randomness, and no scale at 1 or shift at 0, where a mistake might hide."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.5 + 0.1)
    return network


def test_two_rows_by_hand() -> None:
    # Two classes, weights zero: p = (1/2, 1/2). d log p(y) / d logits = onehot(y) - p.
    #   row 0: x = (1, 2), y = 0: (+1/2, -1/2) outer (1, 2) = ((.5, 1), (-.5, -1))
    #   row 1: x = (4, 0), y = 1: (-1/2, +1/2) outer (4, 0) = ((-2, 0), (2, 0))
    network = nn.Linear(2, 2)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    x = torch.tensor([[1.0, 2.0], [4.0, 0.0], [9.0, 9.0]])
    got = capture(network, x, torch.tensor([0, 1, 0]), rows=2)
    # mean of squares: ((.25 + 4) / 2, (1 + 0) / 2); square of mean: ((.5 - 2) / 2)^2, ((1 + 0) / 2)^2
    assert got.mean_of_squares()["weight"].tolist() == [[2.125, 0.5], [2.125, 0.5]]
    assert got.square_of_mean()["weight"].tolist() == [[0.5625, 0.25], [0.5625, 0.25]]
    assert got.mean_of_squares()["bias"].tolist() == [0.25, 0.25]
    assert got.square_of_mean()["bias"].tolist() == [0.0, 0.0]


def test_scale_is_what_the_loss_was_divided_by() -> None:
    network = nn.Linear(2, 2)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    captured = RowGradientCapture(network)
    captured.start(2, scale=8)
    logits = network(torch.tensor([[1.0, 2.0], [4.0, 0.0]]))
    backward(F.cross_entropy(logits, torch.tensor([0, 1]), reduction="sum") / 8)
    assert captured.finish().mean_of_squares()["weight"].tolist() == [[2.125, 0.5], [2.125, 0.5]]


@pytest.mark.parametrize("fused", [True, False])
def test_mlp(random: torch.Generator, fused: bool) -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 4))
    initialise(network, random)
    x, y = torch.randn(8, 6, generator=random), torch.tensor([0, 3, 1, 2, 2, 0, 1, 3])
    assert_equal_to_autograd(network, x, y, fused=fused)


def test_many_rows_go_in_chunks(random: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.layer_row_gradients.NUMBERS_AT_ONCE", 50)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4))
    initialise(network, random)
    assert_equal_to_autograd(network, torch.randn(4, 2, 5, 5, generator=random), torch.tensor([0, 1, 2, 3]))


CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3),
    "stride and padding": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "same, even kernel": nn.Conv2d(4, 6, (2, 4), padding="same"),
    "dilation": nn.Conv2d(4, 6, 3, dilation=2, padding=(2, 1)),
    "groups": nn.Conv2d(4, 6, 3, groups=2, bias=False),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4, padding=1),
    "circular": nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "reflect, same": nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"),
    "1x1": nn.Conv2d(4, 6, 1, stride=2),
    "one position": nn.Conv2d(4, 6, 7),
    "one position, groups": nn.Conv2d(4, 6, 7, groups=2),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(random: torch.Generator, name: str) -> None:
    convolution = CONVOLUTIONS[name]
    width = convolution(torch.zeros(1, 4, 7, 7)).numel()
    network = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(width, 4))
    initialise(network, random)
    assert_equal_to_autograd(network, torch.randn(5, 4, 7, 7, generator=random), torch.tensor([0, 3, 1, 2, 2]))


def residual_network(norm: nn.Module, random: torch.Generator) -> nn.Module:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.norm = norm
            self.head = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            out = self.norm(self.conv(x))
            out += x  # in place, after the layer was watched: as in torchvision's blocks
            return cast(Tensor, self.head(F.relu(out).mean((2, 3))))

    return initialise(Residual(), random)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.Identity()])
def test_residual_block(random: torch.Generator, norm: nn.Module) -> None:
    network = residual_network(norm, random)
    assert_equal_to_autograd(network, torch.randn(6, 3, 5, 5, generator=random), torch.tensor([0, 3, 1, 2, 2, 1]))


def test_batch_norm_with_running_statistics(random: torch.Generator) -> None:
    norm = nn.BatchNorm2d(4)
    network = residual_network(norm, random)
    norm.running_mean = torch.randn(4, generator=random)
    norm.running_var = torch.rand(4, generator=random) + 0.5
    network.eval()
    assert_equal_to_autograd(network, torch.randn(6, 3, 5, 5, generator=random), torch.tensor([0, 3, 1, 2, 2, 1]))


def test_batch_norm_in_training_mixes_rows(random: torch.Generator) -> None:
    """As documented: exact for the norm and what is behind it, another number for the layers before it."""
    network = residual_network(nn.BatchNorm2d(4), random)
    x, y = torch.randn(64, 3, 5, 5, generator=random), torch.arange(64) % 4
    parameters = dict(network.named_parameters())
    logits = network(x)
    # The reference: each row's own log p, differentiated inside the whole batch.
    per_row = [
        torch.autograd.grad(
            -F.cross_entropy(logits[r : r + 1], y[r : r + 1]), list(parameters.values()), retain_graph=True
        )
        for r in range(10)
    ]
    expected = {
        name: torch.stack(of_rows).square().mean(0)
        for name, of_rows in zip(parameters, zip(*per_row, strict=True), strict=True)
    }
    captured = RowGradientCapture(network)
    captured.start(10, scale=10)
    logits = network(x)
    backward(F.cross_entropy(logits[:10], y[:10]) + F.cross_entropy(logits[10:], y[10:]))
    got = captured.finish().mean_of_squares()
    difference = {name: float((got[name] - expected[name]).norm() / expected[name].norm()) for name in got}
    print("relative difference:", {name: round(value, 4) for name, value in difference.items()})
    for name in ("head.weight", "head.bias", "norm.weight", "norm.bias"):
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-9)
    assert 1e-3 < difference["conv.weight"] < 1
    assert 1e-3 < difference["stem.weight"] < 1


def test_batch_norm_1d(random: torch.Generator) -> None:
    network = initialise(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4)), random)
    network.eval()
    assert_equal_to_autograd(network, torch.randn(6, 5, generator=random), torch.tensor([0, 3, 1, 2, 2, 1]))


class TextEncoder(nn.Module):
    """As ALBERT: a table of positions for all rows together, and one layer called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 6, padding_idx=0)
        self.positions = nn.Embedding(9, 6)
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Linear(6, 6)
        self.shared = nn.Linear(6, 6, bias=False)
        self.shared_norm = nn.LayerNorm(6, bias=False)
        self.head = nn.Linear(6, 4)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD = self.tokens(ids_BT)
        x_BTD = x_BTD + self.positions(torch.arange(ids_BT.shape[1]).unsqueeze(0))
        x_BTD = self.norm(x_BTD)
        for _ in range(3):
            attention_BTT = (x_BTD @ self.mix(x_BTD).transpose(1, 2)).softmax(-1)
            x_BTD = self.shared_norm(x_BTD + torch.tanh(self.shared(attention_BTT @ x_BTD)))
        return cast(Tensor, self.head(x_BTD.mean(1)))


@pytest.mark.parametrize("fused", [True, False])
def test_transformer_with_shared_layers(random: torch.Generator, fused: bool) -> None:
    ids = torch.randint(0, 11, (5, 7), generator=random)
    ids[0, :3] = 4  # a token that stands more than once in a row
    assert_equal_to_autograd(initialise(TextEncoder(), random), ids, torch.tensor([0, 3, 1, 2, 2]), fused=fused)


def test_positions_have_the_same_values_and_gradients_when_watched(random: torch.Generator) -> None:
    network = initialise(TextEncoder(), random)
    ids = torch.randint(0, 11, (5, 7), generator=random)
    unwatched = network(ids)
    backward(unwatched.square().sum())
    assert network.positions.weight.grad is not None
    gradient = network.positions.weight.grad.clone()
    network.zero_grad()
    captured = RowGradientCapture(network)
    captured.start(3, scale=3)
    watched = network(ids)
    backward(watched.square().sum())
    captured.finish()
    assert torch.equal(watched, unwatched)
    torch.testing.assert_close(network.positions.weight.grad, gradient)


def test_one_parameter_in_two_layers(random: torch.Generator) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(4, 6)
            self.head = nn.Linear(6, 4)
            self.head.weight = self.tokens.weight

        def forward(self, ids_BT: Tensor) -> Tensor:
            return cast(Tensor, self.head(self.tokens(ids_BT).mean(1)))

    network = initialise(Tied(), random)
    assert_equal_to_autograd(network, torch.randint(0, 4, (5, 3), generator=random), torch.tensor([0, 3, 1, 2, 2]))


def test_frozen_parameters_are_left_out_and_unused_ones_are_zero(random: torch.Generator) -> None:
    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(5, 5)
            self.attention = nn.MultiheadAttention(4, 2)
            self.pooler = nn.Linear(5, 5)
            self.head = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return cast(Tensor, self.head(F.relu(self.body(x))))

    network = initialise(Partial(), random)
    for frozen in (network.body.weight, *network.attention.parameters()):
        frozen.requires_grad_(False)
    x, y = torch.randn(5, 5, generator=random), torch.tensor([0, 3, 1, 2, 2])
    assert_equal_to_autograd(network, x, y)
    x = x.double()
    got = capture(network, x, y).mean_of_squares()
    assert sorted(got) == ["body.bias", "head.bias", "head.weight", "pooler.bias", "pooler.weight"]
    assert not got["pooler.weight"].any()


def test_bfloat16_activations_are_squared_in_float32(random: torch.Generator) -> None:
    network = initialise(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), random)
    x, y = torch.randn(8, 6, generator=random), torch.tensor([0, 3, 1, 2, 2, 0, 1, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = capture(network, x, y).mean_of_squares()
    exact = capture(network, x, y).mean_of_squares()
    for name, value in got.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], rtol=0.1, atol=0.02)


def test_no_hook_stays_behind(random: torch.Generator) -> None:
    network = initialise(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), random)
    captured = RowGradientCapture(network)
    x, y = torch.randn(8, 6, generator=random), torch.tensor([0, 3, 1, 2, 2, 0, 1, 3])

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())

    assert hooks() == 0
    captured.start(3, scale=3)
    assert hooks() == 4  # two layers, the network's entry and its end
    logits = network(x)
    assert hooks() == 0
    backward(F.cross_entropy(logits[:3], y[:3]))
    captured.finish()
    captured.start(3, scale=3)
    captured.start(3, scale=3)  # an update that failed half-way left the first one open
    assert hooks() == 4
    captured.pause()
    assert hooks() == 0


def test_the_head_may_be_replaced_between_updates(random: torch.Generator) -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    captured = RowGradientCapture(network)
    network[2] = nn.Linear(5, 8)
    captured.start(3, scale=3)
    backward(F.cross_entropy(network(torch.randn(3, 6, generator=random)), torch.tensor([7, 3, 1])))
    assert captured.finish().mean_of_squares()["2.weight"].shape == (8, 5)


class Unseen(nn.Module):
    """Beside layers whose row gradients can be seen, one of each kind that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.token = nn.Parameter(torch.zeros(6))  # bare
        self.scaled = Doubled(6, 6)  # another forward
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)  # in_proj is bare, out_proj never called
        self.windows = nn.Linear(3, 3)  # rows are not in front
        self.tied = nn.Linear(6, 6, bias=False)  # called, but its weight is that of `scaled`, too
        self.tied.weight = self.scaled.weight
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.tied(self.scaled(self.stem(x) + self.token)))
        tokens_BTD = x.view(len(x), 2, 3)
        tokens_BTD = tokens_BTD + self.attention(tokens_BTD, tokens_BTD, tokens_BTD, need_weights=False)[0]
        return cast(Tensor, self.head(self.windows(tokens_BTD.reshape(-1, 3)).view(len(x), 6)))


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def test_what_cannot_be_seen_is_zero_and_the_rest_exact(
    random: torch.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    network = initialise(Unseen(), random).double()
    x, y = torch.randn(5, 6, generator=random).double(), torch.tensor([0, 3, 1, 2, 2])
    captured = RowGradientCapture(network)
    for _ in range(2):
        captured.start(INCOMING, scale=INCOMING)
        network.zero_grad()
        backward(F.cross_entropy(network(x)[:INCOMING], y[:INCOMING]))
        got = captured.finish()
    expected = one_backward_a_row(network, x, y)
    seen = {"stem.weight", "stem.bias", "head.weight", "head.bias"}
    assert set(got.mean_of_squares()) == set(expected[0])
    for name in expected[0]:
        of_rows = torch.stack([row[name] for row in expected])
        assert of_rows.any(), name
        if name in seen:
            torch.testing.assert_close(got.mean_of_squares()[name], of_rows.square().mean(0))
            torch.testing.assert_close(got.square_of_mean()[name], of_rows.mean(0).square())
        else:
            assert not got.mean_of_squares()[name].any(), name
            assert not got.square_of_mean()[name].any(), name
    # token 6, scaled 36 + 6, in_proj 27 + 9, out_proj 9 + 3, windows 9 + 3; all but these: stem 42, head 28
    (message,) = [record.getMessage() for record in caplog.records]
    assert "for 108 of the network's weights (60.7%; token of a Unseen is the first)" in message


def test_nothing_is_said_where_all_is_seen(random: torch.Generator, caplog: pytest.LogCaptureFixture) -> None:
    network = initialise(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), random)
    capture(network, torch.randn(4, 6, generator=random), torch.tensor([0, 3, 1, 2]))
    assert not caplog.records
