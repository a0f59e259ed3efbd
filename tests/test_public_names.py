"""Names that users write are a promise: a change here goes into the changelog."""

import importlib

import pytest

PUBLIC = {
    "genlab": [
        "AutoregressiveGenerator",
        "Batch",
        "DiffusionGenerator",
        "GanGenerator",
        "GenLabPipeline",
        "Generator",
        "__version__",
        "convert",
        "load",
    ],
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module: str) -> None:
    home = importlib.import_module(module)
    assert sorted(home.__all__) == sorted(PUBLIC[module])
    for name in home.__all__:
        assert getattr(home, name) is not None
        assert name in dir(home)


def test_unknown_name_is_an_attribute_error() -> None:
    genlab = importlib.import_module("genlab")
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        genlab.lode  # noqa: B018 - the access is the test
