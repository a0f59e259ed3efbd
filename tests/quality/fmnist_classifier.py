"""A small classifier of Fashion-MNIST, trained in a minute or so: judge of the bundled model."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module):
    """Three stages of 3x3 convolutions on 32x32 grey images in [-1, 1]; 10 logits."""

    def __init__(self) -> None:
        super().__init__()

        def stage(width_in: int, width: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(width_in, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )

        self.stages = nn.Sequential(
            nn.PixelUnshuffle(2), stage(4, 48), stage(48, 96), nn.Dropout(0.3)
        )
        self.head = nn.Linear(96 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(x).flatten(1))


def train(images: Tensor, labels: Tensor, epochs: int = 8, batch: int = 256) -> Classifier:
    """Train with a one-cycle learning rate and random flips and shifts; ends in eval mode.

    Args:
        images: (N, 1, 32, 32), float in [-1, 1].
        labels: (N,), int64.
        epochs: passes over the data.
        batch: images a step.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Classifier().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=5e-3)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)[: len(images) // batch * batch]
        for chunk in order.split(batch):
            x = images[chunk]
            if torch.rand((), generator=generator) < 0.5:
                x = x.flip(-1)
            dy, dx = torch.randint(0, 3, (2,), generator=generator).tolist()
            x = F.pad(x, (1, 1, 1, 1), value=-1.0)[..., dy : dy + 32, dx : dx + 32]
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(
                    network(x.contiguous(memory_format=torch.channels_last)), labels[chunk]
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def predict(network: Classifier, images: Tensor, batch: int = 500) -> Tensor:
    """Class index of each image, (N,), computed in float32."""
    return torch.cat([network(chunk).argmax(1) for chunk in images.split(batch)])
