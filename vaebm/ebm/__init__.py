"""The training of the energy (VAEBM section 3.1), and the GAN of the ablation (section 5.2)."""
