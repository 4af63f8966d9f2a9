"""What FFmpeg opens, read as sound, as images, or as both on one clock."""
