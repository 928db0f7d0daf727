from diffusion.model.dit import DiT

__all__ = ["DiT"]
