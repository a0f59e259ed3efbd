"""Official constructor arguments: defaults, both ways of writing them, and refusals."""

import math
from typing import Any

import pytest

from genlab.checkpoints.readers.edm_config import EDM_CLASSES, parse
from genlab.errors import ConfigError

IMAGES = {"img_resolution": 32, "img_channels": 3}


@pytest.mark.parametrize(
    ("cls", "network", "preconditioning"),
    [
        ("EDMPrecond", "DhariwalUNet", {"sigma_data": 0.5, "sigma_min": 0, "sigma_max": math.inf}),
        ("VPPrecond", "SongUNet", {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5}),
        ("VEPrecond", "SongUNet", {"sigma_min": 0.02, "sigma_max": 100}),
        ("iDDPMPrecond", "DhariwalUNet", {"C_1": 0.001, "C_2": 0.008, "M": 1000}),
    ],
)
def test_official_defaults(cls: str, network: str, preconditioning: dict[str, float]) -> None:
    model = parse({"cls": cls, **IMAGES})
    assert model.network_class == network
    assert model.preconditioning.pop("name") == cls.removesuffix("Precond").lower()
    assert model.preconditioning == preconditioning
    assert model.network["label_dim"] == model.network["augment_dim"] == 0
    assert model.network["model_channels"] == {"SongUNet": 128, "DhariwalUNet": 192}[network]
    assert model.network["dropout"] == 0.1
    assert model.network["in_channels"] == 3
    assert model.network["out_channels"] == (6 if cls == "iDDPMPrecond" else 3)
    assert (model.use_fp16, model.label_dropout, model.has_null_class) == (False, 0, False)


def test_every_class_is_covered() -> None:
    assert set(EDM_CLASSES) == {"EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond"}


def test_flat_and_nested_say_the_same() -> None:
    kwargs = {**IMAGES, "model_type": "SongUNet", "channel_mult": (2, 2), "beta_d": 20}
    nested = parse({"cls": "VPPrecond", "kwargs": kwargs})
    assert nested == parse({"cls": "VPPrecond", **kwargs})
    assert nested.network["channel_mult"] == [2, 2]
    assert parse(IMAGES) == parse({"cls": "EDMPrecond", **IMAGES})


def test_null_class_is_what_label_dropout_trains() -> None:
    assert parse({**IMAGES, "label_dim": 10, "label_dropout": 0.1}).has_null_class
    assert not parse({**IMAGES, "label_dim": 10}).has_null_class
    assert not parse({**IMAGES, "label_dropout": 0.1}).has_null_class


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "EDMPrecond needs img_resolution"),
        ({"cls": "EDMPrecnd", **IMAGES}, "did you mean 'EDMPrecond'"),
        ({"cls": 3, **IMAGES}, "EDM has no class 3"),
        ({**IMAGES, "modl_channels": 3}, "no argument 'modl_channels'; did you mean 'model_ch"),
        ({**IMAGES, "embedding_type": "fourier"}, "DhariwalUNet has no argument 'embedding_type'"),
        ({**IMAGES, "beta_d": 19.9}, "no argument 'beta_d'"),
        ({**IMAGES, "model_type": "SongNet"}, "did you mean 'SongUNet'"),
        ({**IMAGES, "img_resolution": "32"}, "a whole number in 1 ... 8192, got '32'"),
        ({**IMAGES, "img_resolution": True}, "a whole number"),
        ({**IMAGES, "label_dim": -1}, "a whole number in 0"),
        ({**IMAGES, "dropout": 1.5}, "dropout of EDMPrecond must be a number in 0 ... 1"),
        ({**IMAGES, "dropout": math.nan}, "a number in 0 ... 1, got nan"),
        ({**IMAGES, "use_fp16": 1}, "true or false"),
        ({**IMAGES, "channel_mult": []}, "a list of 1 ... 12 values"),
        ({**IMAGES, "channel_mult": "1,2"}, "a list"),
        ({**IMAGES, "channel_mult": [1] * 13}, "a list of 1 ... 12 values"),
        (
            {**IMAGES, "model_type": "SongUNet", "encoder_type": "skp"},
            "encoder_type of EDMPrecond must be one of standard, skip, residual, got 'skp'",
        ),
        ({"cls": "VPPrecond", "kwargs": IMAGES, "label_dim": 3}, "nothing else, got label_dim"),
        ({"kwargs": [1]}, "nothing else, got list"),
    ],
)
def test_refusals(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(config)
