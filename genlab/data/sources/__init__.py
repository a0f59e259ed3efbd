"""Where images are read from: folders, zips, idx files, npz, encoded latents."""
