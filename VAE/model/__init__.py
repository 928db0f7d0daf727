from VAE.model.autoencoder import Autoencoder

__all__ = ["Autoencoder"]
