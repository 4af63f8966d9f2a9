"""The Cosmos tokenizers of video and images."""
