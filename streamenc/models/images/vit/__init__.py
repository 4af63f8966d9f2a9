"""Transformers over the patches of images: ViT, DINOv2, DINOv3, CLIP, SigLIP, Video-LLaVA."""
