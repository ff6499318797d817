"""Training of the energy on noise, by noise-contrastive estimation."""
