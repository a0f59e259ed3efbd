"""Pipeline objects in the manner of diffusers."""

from genlab.pipelines.pipeline import GenLabPipeline

__all__ = ["GenLabPipeline"]
