"""Networks as in their papers: plain modules that know nothing of sampling."""

from typing import TYPE_CHECKING

from genlab.lazy import attach

if TYPE_CHECKING:
    from genlab.networks.adm_unet import ADMUNet
    from genlab.networks.autoregressive import AutoregressiveNetwork
    from genlab.networks.base import DiffusionNetwork
    from genlab.networks.biggan import BigGANDiscriminator, BigGANGenerator
    from genlab.networks.biggan_deep import BigGANDeepDiscriminator, BigGANDeepGenerator
    from genlab.networks.biggan_deep_hf import BigGANDeepHF
    from genlab.networks.classifier_cnn import ClassifierCNN
    from genlab.networks.dhariwal_unet import DhariwalUNet
    from genlab.networks.dit import DiT
    from genlab.networks.gated_pixelcnn import GatedPixelCNN
    from genlab.networks.noisy_classifier import ADMClassifier
    from genlab.networks.pixelcnnpp import PixelCNNPP
    from genlab.networks.song_unet import SongUNet

__all__ = [
    "ADMClassifier",
    "ADMUNet",
    "AutoregressiveNetwork",
    "BigGANDeepDiscriminator",
    "BigGANDeepGenerator",
    "BigGANDeepHF",
    "BigGANDiscriminator",
    "BigGANGenerator",
    "ClassifierCNN",
    "DhariwalUNet",
    "DiT",
    "DiffusionNetwork",
    "GatedPixelCNN",
    "PixelCNNPP",
    "SongUNet",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "ADMClassifier": "genlab.networks.noisy_classifier",
        "ADMUNet": "genlab.networks.adm_unet",
        "AutoregressiveNetwork": "genlab.networks.autoregressive",
        "BigGANDeepDiscriminator": "genlab.networks.biggan_deep",
        "BigGANDeepGenerator": "genlab.networks.biggan_deep",
        "BigGANDeepHF": "genlab.networks.biggan_deep_hf",
        "BigGANDiscriminator": "genlab.networks.biggan",
        "BigGANGenerator": "genlab.networks.biggan",
        "ClassifierCNN": "genlab.networks.classifier_cnn",
        "DhariwalUNet": "genlab.networks.dhariwal_unet",
        "DiT": "genlab.networks.dit",
        "DiffusionNetwork": "genlab.networks.base",
        "GatedPixelCNN": "genlab.networks.gated_pixelcnn",
        "PixelCNNPP": "genlab.networks.pixelcnnpp",
        "SongUNet": "genlab.networks.song_unet",
    },
)
