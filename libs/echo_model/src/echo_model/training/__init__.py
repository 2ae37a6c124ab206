"""Training of Qwen2.5-VL-shaped models for block diffusion: vision tower, autoregressive stage, RAD stage."""
