"""Layouts of diffusers' own networks, which GenLab fine-tunes as they are."""

from torch import nn

from genlab.networks.layout import Branch, ClassTable, Layout, ModulatedNorm, Rows, build_layout


def dit_layout(network: nn.Module) -> Layout:
    """The layout of a ``DiTTransformer2DModel``.

    The name ``norm1`` holds more than a normalisation there: the block's modulation, and the
    embedders of noise level and class.
    """
    width: int = network.inner_dim  # type: ignore[assignment]  # an attribute of that class
    depth = len(network.transformer_blocks)  # type: ignore[arg-type]  # a ModuleList
    blocks = [f"transformer_blocks.{index}" for index in range(depth)]

    def rows(layer: str, part: int) -> Rows:
        return Rows(layer=layer, start=part * width, stop=(part + 1) * width)

    branches: list[Branch] = []
    modulated: list[ModulatedNorm] = []
    for block in blocks:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (
            rows(f"{block}.norm1.linear", part) for part in range(6)
        )
        branches += [
            Branch(
                block=block,
                kind="attention",
                layer=f"{block}.attn1.to_out.0",
                width=width,
                gate=gate,
            ),
            Branch(block=block, kind="mlp", layer=f"{block}.ff.net.2", width=width, gate=gate_mlp),
        ]
        modulated += [
            ModulatedNorm(norm=f"{block}.norm1.norm", scale=scale, shift=shift),
            ModulatedNorm(norm=f"{block}.norm3", scale=scale_mlp, shift=shift_mlp),
        ]
    modulated.append(
        ModulatedNorm(norm="norm_out", scale=rows("proj_out_1", 1), shift=rows("proj_out_1", 0))
    )
    tables = [f"{block}.norm1.emb.class_embedder.embedding_table" for block in blocks]
    return build_layout(
        network,
        blocks=blocks,
        branches=branches,
        modulated=modulated,
        tables=[ClassTable(layer=table, null_row=True) for table in tables],
        modules={
            "attention": [f"{block}.attn1" for block in blocks],
            "mlp": [f"{block}.ff" for block in blocks],
            "modulation": [*(f"{block}.norm1.linear" for block in blocks), "proj_out_1"],
            "last": ["norm_out", "proj_out_1", "proj_out_2"],
        },
    )
