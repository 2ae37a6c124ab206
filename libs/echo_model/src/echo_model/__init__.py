"""One-step block-diffusion vision-language model for chest X-ray reports."""
