"""Fine-tuning of GANs: class tables by a classifier or by images, and the discriminator beside."""
