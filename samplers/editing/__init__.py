"""Editing of images with the diffusion samplers: image-to-image, inpainting, inversion."""
