"""Training of the energy (VAEBM section 3.1), and the ablation's GAN (section 5.2)."""
