"""Files from strangers: containers that hold what they play, and never open anything else."""

from __future__ import annotations

# FFmpeg's names. No playlists (hls, dash, concat, imf, sdp), nor what looks for files beside it
# (vobsub, mlv, image2): those would open whatever their text names, also in a network.
FORMATS = (
    "3gp", "aac", "ac3", "ac4", "aiff", "amr", "amrnb", "amrwb", "ape", "apng", "asf", "au", "avi",
    "bmp_pipe", "caf", "dsf", "dts", "dtshd", "dv", "eac3", "flac", "flv", "gif", "gif_pipe", "gsm",
    "h261", "h263", "h264", "hevc", "ivf", "jpeg_pipe", "jpegxl_anim", "jpegxl_pipe", "latm",
    "loas", "m4v", "matroska", "mjpeg", "mov", "mp3", "mpc", "mpc8", "mpeg", "mpegts", "mpegvideo",
    "mxf", "nut", "obu", "ogg", "oma", "pam_pipe", "pbm_pipe", "pgm_pipe", "png_pipe", "ppm_pipe",
    "qoa", "qoi_pipe", "rm", "shn", "sox", "spdif", "tak", "tiff_pipe", "truehd", "tta", "voc",
    "vvc", "w64", "wav", "webp_pipe", "wtv", "wv", "xwma", "yuv4mpegpipe",
)  # fmt: skip


def container_options() -> dict[str, str]:
    """For FFmpeg, which then refuses a file of another format before it reads what is in it, and
    opens nothing over a network whatever a file says."""
    return {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file,subfile"}
