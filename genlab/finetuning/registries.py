"""The methods of fine-tuning by name; importing it costs nothing, so that Tab may list them."""

from typing import TYPE_CHECKING

from genlab.registry import Registry

if TYPE_CHECKING:
    from genlab.finetuning.methods.base import Method

METHODS: Registry[type["Method"]] = Registry(
    "genlab.finetuning_methods",
    {
        "diffit": "genlab.finetuning.methods.diffit:DiffFit",
        "bitfit": "genlab.finetuning.methods.bitfit:BitFit",
        "norm": "genlab.finetuning.methods.norms:NormTuning",
        "lora": "genlab.finetuning.methods.lora:LoRA",
        "peft": "genlab.finetuning.methods.peft_method:PeftMethod",
        "adapter": "genlab.finetuning.methods.bottleneck:BottleneckAdapter",
        "vpt": "genlab.finetuning.methods.prompts:VisualPrompts",
        "class-table": "genlab.finetuning.methods.class_table:ClassTableTuning",
        "last": "genlab.finetuning.methods.last:LastLayers",
        "full": "genlab.finetuning.methods.full:FullTuning",
    },
    kind="fine-tuning method",
    builds="genlab.finetuning.methods.base:Method",
)
