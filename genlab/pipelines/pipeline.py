"""`GenLabPipeline`: a generator as a diffusers pipeline object."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from huggingface_hub import snapshot_download
from jaxtyping import Bool, Float
from torch import Tensor

import genlab.checkpoints  # reads the models that a sampler names
import genlab.networks  # diffusers loads only classes of modules that are imported already
from genlab.checkpoints.autoencoders import attach_autoencoder
from genlab.checkpoints.hub.fetch import locate
from genlab.checkpoints.hub.names import named, parse
from genlab.config import fill
from genlab.data.labels import class_index, random_label
from genlab.data.pixels import to_uint8
from genlab.data.writing.writers import to_pil
from genlab.diffusion.noise import MAX_SEED, NoiseStream
from genlab.errors import ConfigError
from genlab.finetuning.adapters.adapter import read_adapter
from genlab.finetuning.adapters.folders import find_adapter
from genlab.finetuning.adapters.loading import folder_of, load_base
from genlab.finetuning.adapters.switching import AdapterSet
from genlab.generators.autoencoder import Autoencoder
from genlab.generators.base import Generator
from genlab.generators.diffusion import DiffusionGenerator
from genlab.generators.editing import Editing, invert
from genlab.generators.families import FAMILIES, family_of
from genlab.generators.latents import size_of
from genlab.pipelines.conventions import PipelineConventions, named_folder, refuse_scheduler
from genlab.samplers.base import SamplerLike, SolverStep, Step
from genlab.samplers.editing.options import Edit
from genlab.samplers.stitching import StitchLike
from genlab.saving.adapted import check_plain
from genlab.saving.folder import PARTS, read_card, read_network, read_parts
from genlab.saving.index import INDEX, NETWORK, read_index

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")
_DTYPE = ("dtype", "torch_dtype")
_AUTOENCODER = ("autoencoder", "vae")
"""How an autoencoder is given: by its name in our folders, or by that of diffusers' pipelines."""
_ENDINGS = ("json", "safetensors")
_METADATA = ("family", "preconditioning", "class_names", "has_null_class", "sampler")

StepCallback = Callable[[Any, int, float, dict[str, Any]], dict[str, Any] | None]
"""``(pipeline, step index, sigma, tensors) -> tensors to replace, or None``.

Where there is no noise level, ``sigma`` is the share of the steps that is still ahead.
"""


class GenLabPipeline(PipelineConventions):
    """A generator of any family in the manner of diffusers, read from its folder.

    Args:
        network: the raw network.
        family: ``diffusion``, ``gan`` or ``autoregressive``.
        preconditioning: what makes a diffusion network a denoiser, as a mapping with its ``name``.
        class_names: one name for each class.
        has_null_class: whether guidance by the null class is possible.
        sampler: the model's own sampler config.
        autoencoder: of a latent diffusion model, from diffusers.

    Example::

        pipe = genlab.GenLabPipeline.from_pretrained("my-model/")
        seeds = [torch.Generator().manual_seed(s) for s in (0, 1)]
        pipe(class_labels=[7, 8], num_inference_steps=18, generator=seeds).images
    """

    model_cpu_offload_seq = "->".join((NETWORK, *PARTS))  # type: ignore[assignment]  # diffusers' own types say None
    _optional_components = list(PARTS)  # noqa: RUF012  # diffusers' hook
    _callback_tensor_inputs = ("latents", "x0")

    def __init__(
        self,
        network: ModelMixin,
        family: str = "diffusion",
        preconditioning: dict[str, Any] | None = None,
        class_names: list[str] | None = None,
        has_null_class: bool = False,
        sampler: dict[str, Any] | None = None,
        autoencoder: ModelMixin | None = None,
    ) -> None:
        super().__init__()
        if family not in FAMILIES:
            raise ConfigError(
                f"there is no family of generators {family!r}; known: {', '.join(FAMILIES)}"
            )
        if family == "diffusion" and preconditioning is None:
            preconditioning = {"name": "edm"}
        self.register_modules(network=network, autoencoder=autoencoder)  # type: ignore[no-untyped-call]  # diffusers tells no types
        self.register_to_config(  # type: ignore[no-untyped-call]  # diffusers tells no types
            family=family,
            preconditioning=preconditioning,
            class_names=class_names,
            has_null_class=has_null_class,
            sampler=sampler,
        )
        self._interrupt = False
        self._adapter_set: AdapterSet | None = None

    @classmethod
    def from_generator(cls, generator: Generator) -> "GenLabPipeline":
        """The pipeline object around a generator; both use the same network."""
        metadata = {key: value for key, value in generator.metadata().items() if key in _METADATA}
        pipeline = cls(cast(ModelMixin, generator.network), **{**metadata, **generator.parts()})
        pipeline._card = generator.card
        return pipeline

    def as_generator(self) -> Generator:
        """The generator behind the pipeline; both use the same network."""
        metadata = {key: self.config[key] for key in _METADATA}
        metadata |= {name: getattr(self, name) for name in PARTS}
        return FAMILIES[metadata["family"]].from_metadata(self.network, metadata, self.card)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> "GenLabPipeline":
        """Load a folder, an adapter or a repository of the hub; arguments as in diffusers.

        A repository's copy is the one that `genlab.load` uses; with ``cache_dir``, ``token``,
        ``force_download`` or ``local_files_only`` it is that of diffusers' own cache.

        A bundled model, or one that ``genlab zoo pull`` has fetched, is loaded by its name. ``vae``
        (or ``autoencoder``) decodes a latent model's latents in place of the model's own: an object
        of diffusers, or a name or folder that `genlab.checkpoints.autoencoders.find_autoencoder`
        takes; None leaves the model without one.

        Raises:
            ConfigError: a scheduler is given, or the autoencoder is of other latents.
            CheckpointError: it is no generator's folder, or weights are missing or damaged.
        """
        autoencoders = {name: kwargs.pop(name) for name in _AUTOENCODER if name in kwargs}
        if autoencoders:
            if len(autoencoders) > 1:
                raise ConfigError("vae and autoencoder are the same; give one of them")
            pipeline = cls.from_pretrained(pretrained_model_name_or_path, **kwargs)
            pipeline._set_autoencoder(*autoencoders.values())
            return pipeline
        source = str(pretrained_model_name_or_path)
        hub = {key: kwargs.pop(key) for key in _HUB if key in kwargs}
        remote = parse(source) is not None and not Path(source).exists()
        if not remote or hub.keys() <= {"revision"}:  # else diffusers' own cache is meant
            if remote:
                source = str(named(source, hub.get("revision")))
            adapter = find_adapter(source)
            if adapter is not None:
                return cls._from_adapter(adapter, **kwargs)
            source = locate(source)
        folder = Path(source)
        if "scheduler" in kwargs:
            refuse_scheduler()
        shipped = named_folder(source)
        if shipped is not None:
            folder = shipped
        elif not folder.is_dir():
            # diffusers' own download refuses networks that are not its own.
            models = [f"{name}/*.{end}" for name in (NETWORK, *PARTS) for end in _ENDINGS]
            patterns = [INDEX, *models, "README.md"]
            folder = Path(snapshot_download(source, allow_patterns=patterns, **hub))
        index = read_index(folder)
        family_of(folder, index).check_metadata(folder, index)
        if not kwargs.keys() <= set(_DTYPE):
            pipeline = super().from_pretrained(folder, **kwargs)
            pipeline._card = read_card(folder)
            return pipeline
        # The plain case takes our own reader, which refuses incomplete weights; diffusers only
        # warns.
        network = read_network(folder, index, kwargs.get("dtype", kwargs.get("torch_dtype")))
        metadata = {key: index[key] for key in _METADATA if key in index}
        parts = read_parts(folder, index)
        pipeline = cls(cast(ModelMixin, network), **{**metadata, **parts})
        name = str(pretrained_model_name_or_path)
        pipeline.register_to_config(_name_or_path=name)  # type: ignore[no-untyped-call]  # diffusers tells no types
        pipeline._card = read_card(folder)
        return pipeline

    @classmethod
    def _from_adapter(cls, folder: Path, **kwargs: Any) -> "GenLabPipeline":
        others = kwargs.keys() - {*_DTYPE, *_HUB}
        if others:
            raise ConfigError(
                f"{folder} is an adapter, for which {min(others)} has no effect; leave it out, or "
                "load its base and call load_adapter"
            )
        read = read_adapter(folder)
        pipeline = cls.from_generator(load_base(read))
        pipeline.load_adapter(folder)
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        return pipeline if dtype is None else pipeline.to(dtype)

    def _set_autoencoder(self, autoencoder: Any) -> None:
        """Use another autoencoder, or none; it goes where the network is."""
        model = self.as_generator()
        if autoencoder is None:
            model = model.changed(autoencoder=None)
        else:
            if isinstance(autoencoder, torch.nn.Module):
                autoencoder = Autoencoder(autoencoder)
            network = self.network
            model = attach_autoencoder(model, autoencoder).to(network.device, network.dtype)
        self.register_modules(autoencoder=model.parts().get("autoencoder"))  # type: ignore[no-untyped-call]  # diffusers tells no types

    def load_adapter(self, adapter: str | os.PathLike[str], adapter_name: str | None = None) -> str:
        """Read an adapter of GenLab or peft onto this model, and use it.

        Several share the model's tensors; `set_adapter` chooses among them. Classes, their names
        and the default sampler become the adapter's.

        Args:
            adapter: its folder, or the name that ``genlab adapter add`` gave it.
            adapter_name: what `set_adapter` calls it; None takes the folder's name.

        Returns:
            The name.

        Raises:
            CheckpointError: it is damaged, or belongs to another model.
            ConfigError: the name is taken.
        """
        read = read_adapter(folder_of(Path(adapter)))
        name = read.name if adapter_name is None else adapter_name
        self._adapters().add(name, read)
        self.set_adapter(name)
        return name

    def set_adapter(self, adapter_name: str | None) -> None:
        """Use one of the adapters that are loaded, or with None the model without any.

        Raises:
            UnknownNameError: none of this name is loaded.
        """
        models = self._adapters()
        models.base.to(self.network.device, self.network.dtype)  # where a pipeline was moved to
        self._show(models.use(adapter_name))

    def unload_adapter(self, adapter_name: str) -> None:
        """Forget an adapter; where it is in use, the model without any is from now on.

        Raises:
            UnknownNameError: none of this name is loaded.
        """
        models = self._adapters()
        active = models.active
        models.remove(adapter_name)
        if models.active != active:
            self.set_adapter(None)

    @property
    def adapter(self) -> str | None:
        """The adapter in use; None is the model without any."""
        return None if self._adapter_set is None else self._adapter_set.active

    def _adapters(self) -> AdapterSet:
        if self._adapter_set is None:
            self._adapter_set = AdapterSet(self.as_generator())
        return self._adapter_set

    def _show(self, generator: Generator) -> None:
        """Take over this generator's network and metadata."""
        metadata = {key: value for key, value in generator.metadata().items() if key in _METADATA}
        self.register_modules(network=generator.network)  # type: ignore[no-untyped-call]  # diffusers tells no types
        self.register_to_config(**metadata)  # type: ignore[no-untyped-call]  # diffusers tells no types

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """Write the folder; arguments as in diffusers.

        Raises:
            ConfigError: an adapter is in use that is no part of the weights.
        """
        check_plain(self.network, "this pipeline")
        super().save_pretrained(save_directory, *args, **kwargs)

    @property
    def interrupt(self) -> bool:
        """Set ``_interrupt`` in a callback to stop and get the denoised estimate as it stands."""
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call."""
        return self._num_timesteps

    @property
    def guidance_scale(self) -> float | None:
        """Classifier-free guidance scale that the last call was given."""
        return self._guidance_scale

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Float[Tensor, "B C H W"] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        batch_size: int | None = None,
        sampler: SamplerLike = None,
        guidance_interval: Sequence[float] | None = None,
        stitch: StitchLike | None = None,
        low_res: Float[Tensor, "B C h w"] | None = None,
        image: Any = None,
        mask_image: Any = None,
        strength: float | None = None,
        edit: Mapping[str, Any] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw images.

        Args:
            class_labels: classes by number or name, one for each image; a single one goes for all.
                Rows of class weights, a float tensor (B, K), mix classes (diffusion models). None
                draws each image's class from a sub-stream of its generator's seed.
            num_inference_steps: solver steps; None is the sampler's own number.
            guidance_scale: guidance by the null class; 1.0 is off, None is the sampler's own.
            generator: one for each image, so that a seed always gives the same image, the one that
                ``genlab sample --seeds`` draws; a single one is drawn from in turn; None draws
                seeds from torch's global generator.
            latents: unit normal start, in place of drawing it: (B, C, H, W) for diffusion.
            output_type: ``pil``; ``np``, (B, H, W, C) in [0, 1]; ``pt``, (B, C, H, W) in [0, 1];
                or, of a latent model, ``latent``: float32 (B, C, H, W), as the network gives them
                and diffusers' pipelines do: not yet divided by the autoencoder's scaling factor.
                A model without an autoencoder gives nothing else.
            return_dict: whether to return an `ImagePipelineOutput` rather than a tuple.
            callback_on_step_end: called after each step with the pipeline, the number of the step,
                the noise level reached, and the tensors asked for; those that it returns replace
                ours.
            callback_on_step_end_tensor_inputs: ``latents`` (the state) and ``x0`` (the
                estimate of a diffusion model).
            batch_size: number of images where nothing else tells.
            sampler: a preset's name, changes to the model's own sampler, or a sampler.
            guidance_interval: (low, high), the noise levels between which guidance by the class
                acts, low < sigma <= high; outside it costs nothing. None is the sampler's own.
            stitch: small models that take the first steps in place of this one:
                ``{"dit-fmnist-s": 0.4}``, or a list of pairs (model, fraction). A name is read at
                each call; a generator, which may stand in its place, is there already.
            low_res: small images, in [-1, 1], for a super-resolution model to enlarge.
            image: what a diffusion model edits, one for each image or one for all: as diffusers'
                image processor takes it (PIL, NumPy or torch, in [0, 1]).
            mask_image: of inpainting, in the same forms: white is drawn, black is kept.
            strength: how much of ``image`` is drawn anew, 0 to 1 (all noise), in the model's own
                time.
            edit: other options of `genlab.samplers.editing.runs.Edit`, such as ``resample``. With
                ``invert`` the images are inverted without a class; the method `invert` takes one.

        Raises:
            ConfigError: arguments contradict each other or do not fit the model.
            LabelError: the model does not know a class.
        """
        if output_type not in OUTPUT_TYPES:
            raise ConfigError(
                f"there is no output_type {output_type!r}; known: {', '.join(OUTPUT_TYPES)}"
            )
        model = self.as_generator()
        _check_output(model, output_type)
        images_in, masks = _images(image, model.image_shape[0]), _masks(mask_image)
        count = _count(class_labels, generator, latents, low_res, batch_size, images_in)
        model = _editing(model, images_in, masks, count, strength, edit)
        generators = _generators(generator, count)
        built = model.build_sampler(
            sampler,
            num_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            stitch=stitch,
        )
        labels = _labels(model, model.sampled_classes(built), class_labels, generators)
        self._interrupt = False
        self._guidance_scale = guidance_scale
        callback = _Callback(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        noise = NoiseStream.from_generators(generators, model.device)
        with self.progress_bar(total=0) as bar:
            beside = {**_beside(model, low_res), **model.inputs(range(count))}
            for step in model.steps(noise, labels, built, latents, **beside, hooks=[callback]):
                self._num_timesteps = bar.total = step.num_steps
                images = step.x
                bar.update()
                if self._interrupt:
                    images = _estimate(step)
                    break
        if output_type == "latent":
            result: Any = images.to(torch.float32)
        else:
            drawn = model.decode(images)
            if isinstance(model, Editing):
                drawn = model.keep(drawn, **model.inputs(range(count)))
            result = _output(drawn, output_type)
        self.maybe_free_model_hooks()  # type: ignore[no-untyped-call]  # diffusers tells no types
        return ImagePipelineOutput(images=result) if return_dict else (result,)

    def invert(
        self,
        image: Any,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        *,
        sampler: SamplerLike = None,
        edit: Mapping[str, Any] | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """Find the ``latents`` from which a deterministic sampler comes back to images, nearly.

        Args:
            image: see `__call__`.
            class_labels: the classes that they have; None is no class.
            num_inference_steps: as it will be called with.
            guidance_scale: as it will be called with. Inversion follows no guidance, unless
                ``edit={"guided": True}``: see `genlab.samplers.editing.runs.Edit`.
            sampler: as it will be called with.
            edit: ``guided`` and ``ask``.

        Raises:
            ConfigError: the images do not fit the model, or the sampler draws noise.
            LabelError: the model does not know a class.
        """
        model = self.as_generator()
        images = _images(image, model.image_shape[0])
        if not isinstance(model, DiffusionGenerator) or images is None:
            raise ConfigError("inversion needs images and a diffusion model")
        built = model.build_sampler(
            sampler, num_steps=num_inference_steps, guidance_scale=guidance_scale
        )
        labels = None
        if class_labels is not None:
            seeds = [torch.Generator().manual_seed(row) for row in range(len(images))]
            labels = _labels(model, model.num_classes, class_labels, seeds)
        return invert(model, images, labels, built, **(edit or {}))


class _Callback:
    """Hands tensors to the user's callback, and the latents that it returns back to the run."""

    def __init__(
        self, pipeline: GenLabPipeline, function: StepCallback | None, names: Sequence[str]
    ) -> None:
        names = getattr(
            function, "tensor_inputs", names
        )  # diffusers' callback objects bring their own
        unknown = [name for name in names if name not in pipeline._callback_tensor_inputs]
        if unknown:
            raise ConfigError(
                f"callback_on_step_end_tensor_inputs has no {unknown[0]!r}; known: "
                f"{', '.join(pipeline._callback_tensor_inputs)}"
            )
        self._pipeline = pipeline
        self._function = function
        self._names = names

    def __call__(self, step: Step) -> Tensor | None:
        if self._function is None:
            return None
        tensors = {"latents": step.x, "x0": _estimate(step)}
        chosen = {name: tensors[name] for name in self._names}
        returned = self._function(self._pipeline, step.index, _level(step), chosen) or {}
        latents = returned.get("latents", step.x)
        return None if latents is step.x else latents.to(step.x)


def _estimate(step: Step) -> Tensor:
    return step.x0 if isinstance(step, SolverStep) else step.x


def _level(step: Step) -> float:
    if isinstance(step, SolverStep):
        return step.sigma_next
    return 1 - (step.index + 1) / step.num_steps


def _count(
    class_labels: Any,
    generator: Any,
    latents: Tensor | None,
    low_res: Tensor | None,
    batch_size: int | None,
    images: Tensor | None = None,
) -> int:
    """The number of images, on which all arguments must agree."""
    lengths = {
        "class_labels": None if _single(class_labels) else len(class_labels),
        "generator": len(generator) if isinstance(generator, list) else None,
        "latents": None if latents is None else len(latents),
        "low_res": None if low_res is None else len(low_res),
        "batch_size": batch_size,
        "image": None if images is None or len(images) == 1 else len(images),
    }
    counts = {name: number for name, number in lengths.items() if number is not None}
    if len(set(counts.values())) > 1:
        numbers = ", ".join(f"{name} {number}" for name, number in counts.items())
        raise ConfigError(f"the arguments are for different numbers of images: {numbers}")
    count = next(iter(counts.values()), 1)
    if count < 1:
        raise ConfigError("there is nothing to draw: the arguments are for 0 images")
    return count


def _single(class_labels: Any) -> bool:
    return (
        class_labels is None
        or isinstance(class_labels, int | str)
        or (isinstance(class_labels, Tensor) and class_labels.ndim == 0)
    )


def _generators(generator: Any, count: int) -> list[torch.Generator]:
    if isinstance(generator, list):
        return generator
    if generator is not None:
        return [generator] * count
    seeds = torch.randint(MAX_SEED, (count,)).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _labels(
    model: Generator, classes: int, class_labels: Any, generators: Sequence[torch.Generator]
) -> Any:
    seeds = [g.initial_seed() % (MAX_SEED + 1) for g in generators]
    if class_labels is None:
        if classes == 0:
            return None
        shared = len({id(g) for g in generators}) < len(generators)
        # Images that share a generator should not share its one class, too.
        own = [(s + i) % MAX_SEED if shared else s for i, s in enumerate(seeds)]
        return tuple(random_label(seed, classes) for seed in own)
    if isinstance(class_labels, Tensor) and class_labels.ndim == 2:
        return _weights(model, classes, class_labels)
    if isinstance(class_labels, Tensor):
        class_labels = class_labels.tolist()
    if isinstance(class_labels, int | str):
        class_labels = [class_labels] * len(seeds)
    class_table = classes, model.class_names
    indices = [class_index(c, *class_table) if isinstance(c, str) else int(c) for c in class_labels]
    return model.choose_labels(seeds, indices, classes)


def _weights(model: Generator, classes: int, rows: Tensor) -> Tensor:
    """Rows of class weights, where a model takes them."""
    if not isinstance(model, DiffusionGenerator) or classes != model.num_classes:
        raise ConfigError(
            "rows of class weights are for conditional diffusion models; give one class for each "
            "image"
        )
    if not rows.is_floating_point() or rows.shape[1] != classes:
        raise ConfigError(
            f"rows of class weights are floats, one for each of {classes} classes, got "
            f"{tuple(rows.shape)} of {rows.dtype}"
        )
    return rows


def _images(image: Any, channels: int) -> Float[Tensor, "N C H W"] | None:
    """Images in any form that diffusers takes, in [-1, 1]; pictures get so many channels."""
    return None if image is None else _processed(image, channels)


def _masks(mask_image: Any) -> Bool[Tensor, "N H W"] | None:
    """Masks in any form that diffusers takes: true where they are nearer to white than to black."""
    if mask_image is None:
        return None
    return _processed(mask_image, 1, do_normalize=False)[:, 0].float() >= 0.5


def _processed(image: Any, channels: int, **options: Any) -> Tensor:
    processor = VaeImageProcessor(
        do_resize=False,
        do_convert_rgb=channels == 3,
        do_convert_grayscale=channels == 1,
        **options,
    )
    try:
        tensor: Tensor = processor.preprocess(image)
    except ValueError as error:
        raise ConfigError(f"image and mask_image: {error}") from error
    return tensor


def _editing(
    model: Generator,
    images: Tensor | None,
    masks: Tensor | None,
    count: int,
    strength: float | None,
    edit: Mapping[str, Any] | None,
) -> Generator:
    """The model that edits images, where there are any; its seeds count them."""
    if images is None:
        options = {"mask_image": masks, "strength": strength, "edit": edit}
        idle = [name for name, value in options.items() if value is not None]
        if idle:
            raise ConfigError(f"{idle[0]} has no effect without image; leave it out or give one")
        return model
    if not isinstance(model, DiffusionGenerator):
        raise ConfigError(
            f"only diffusion models edit images here; this one is of the family {model.family!r}, "
            "so leave image out"
        )
    if masks is not None and len(masks) == 1:
        masks = masks[0]
    rows = images.expand(count, *images.shape[1:])
    layers = [("strength", {"strength": strength}), ("edit", edit or {})]
    return Editing(model, rows, range(count), fill(Edit, layers, "edit"), masks=masks)


def _beside(model: Generator, low_res: Tensor | None) -> dict[str, Tensor]:
    """The arguments that only diffusion models take."""
    if low_res is None:
        return {}
    if not isinstance(model, DiffusionGenerator):
        raise ConfigError(
            f"low_res is for super-resolution diffusion models, and this one is of the family "
            f"{model.family!r}; leave it out"
        )
    return {"low_res": low_res}


def _check_output(model: Generator, output_type: str) -> None:
    """Refuse images of a model that draws latents, and latents of one that draws images."""
    has_autoencoder = getattr(model, "autoencoder", None) is not None
    if output_type == "latent" and not (model.draws_latents or has_autoencoder):
        raise ConfigError(
            "output_type latent is for latent diffusion models, and this one draws images "
            "themselves; take pt, np or pil"
        )
    if output_type != "latent" and model.draws_latents:
        raise ConfigError(
            f"these are latents: the model draws {size_of(model)} and has no autoencoder to make "
            "images of them; take output_type latent, or give one: from_pretrained(..., vae=FOLDER)"
        )


def _output(images: Float[Tensor, "B C H W"], output_type: str) -> Any:
    if output_type == "pil":
        return [to_pil(p) for p in to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()]
    images = (images / 2 + 0.5).clamp(0, 1)
    return images if output_type == "pt" else images.permute(0, 2, 3, 1).cpu().numpy()


assert genlab.checkpoints, genlab.networks  # imported for their side effects, see above
