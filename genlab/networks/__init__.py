"""Networks as in their papers: plain modules that know nothing of sampling."""

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
