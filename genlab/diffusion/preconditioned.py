"""A network behind its preconditioning: the denoiser of every model that GenLab trains or reads."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlab import compute
from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, Prediction, rows
from genlab.diffusion.preconditioning import Preconditioning


class PreconditionedDenoiser(Denoiser):
    """``D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)`` around a network ``F``.

    Scalings and the sum are in float32 (float64 where ``x`` is and the preconditioning is exact),
    the network computes in its own dtype (or in autocast's), and the estimate comes back in the
    dtype of ``x``. Gradients flow when the caller has them switched on, so training uses this very
    object.

    Args:
        network: called as ``network(x, c_noise, class_embedding, augment_labels)``, and with
            ``low_res`` where the condition has it; it has a method ``embed_labels(labels)``. It may
            be wrapped for data-parallel training or compiled.
        preconditioning: the scalings, and the noise levels that the network knows.
        num_classes: 0 for an unconditional network.
        has_null_class: whether the network was trained to denoise without a class, too.
    """

    def __init__(
        self,
        network: nn.Module,
        preconditioning: Preconditioning,
        *,
        num_classes: int,
        has_null_class: bool,
    ) -> None:
        self.network = network
        self.preconditioning = preconditioning
        self.num_classes = num_classes
        self.has_null_class = has_null_class
        self.noise_levels = preconditioning
        self.evaluations = 0

    def __call__(
        self,
        x: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, ""] | Float[Tensor, " B"],
        condition: Condition,
    ) -> Float[Tensor, "B C H W"]:
        """Denoise; see `Denoiser.__call__`.

        A noise level on the CPU is best for a batch that shares it: its scalings stay on the CPU
        and multiply the images without a round trip to the device.
        """
        return self._evaluate(x, sigma, condition)[0]

    def predict(
        self,
        x: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, ""] | Float[Tensor, " B"],
        condition: Condition,
    ) -> Prediction:
        """Denoise and give the variance, too; see `Denoiser.predict`."""
        x0, rest = self._evaluate(x, sigma, condition)
        predicted = self.preconditioning.variance.startswith("learned") and rest.shape[1] > 0
        return Prediction(x0=x0, variance=rest.to(x.dtype) if predicted else None)

    def _evaluate(
        self, x: Float[Tensor, "B C H W"], sigma: Float[Tensor, "*s"], condition: Condition
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B D H W"]]:
        """The denoised estimate, and the output channels beyond those of the images."""
        dtype = (
            x.dtype if self.preconditioning.exact and x.dtype == torch.float64 else torch.float32
        )
        c = self.preconditioning.coefficients(sigma.to(dtype))
        # One row where the batch shares its noise level. Other copies would wait for the device.
        c_noise = c.c_noise.to(x.device, non_blocking=True).reshape(-1)
        state = x.to(dtype)
        output = compute.by_rows(
            self.network,
            len(x),
            (rows(c.c_in, x) * state).to(self._dtype),
            c_noise,
            self._class_embedding(condition),
            condition.augment_labels,
            **_images_beside(condition, x),
        )
        self.evaluations += len(x)
        F = output[:, : x.shape[1]].to(dtype)
        x0 = (rows(c.c_skip, x) * state + rows(c.c_out, x) * F).to(x.dtype)
        return x0, output[:, x.shape[1] :]

    @property
    def _dtype(self) -> torch.dtype:
        # Asked anew at each call: `to(dtype)` on the network may come at any time. The first
        # parameter tells.
        return next(self.network.parameters()).dtype

    def _class_embedding(self, condition: Condition) -> Float[Tensor, "rows E"] | None:
        # Data-parallel wrappers hide the methods of what they wrap.
        network: Any = getattr(self.network, "module", self.network)
        embedding = network.embed_labels(condition.labels)
        return None if embedding is None else condition.transform_embedding(embedding)


def _images_beside(condition: Condition, x: Tensor) -> dict[str, Tensor]:
    """The input of super-resolution networks beside the noisy images."""
    return {} if condition.low_res is None else {"low_res": condition.low_res.to(x.device)}
