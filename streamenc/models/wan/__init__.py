"""The VAEs of Wan and of Qwen-Image: video to latents and back."""
