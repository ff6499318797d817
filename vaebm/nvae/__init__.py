"""The hierarchical VAE: NVAE (Vahdat and Kautz, NeurIPS 2020) with a Gaussian decoder."""
