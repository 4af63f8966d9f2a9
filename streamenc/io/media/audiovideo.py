"""Sound and images of one container, on its one clock."""

from __future__ import annotations

from fractions import Fraction

from streamenc import options
from streamenc.graph.frames import StreamInfo
from streamenc.io.media.audiosource import AudioTrack
from streamenc.io.media.container import Address
from streamenc.io.media.containersource import ContainerSource
from streamenc.io.media.incoming.intake import Intake
from streamenc.io.media.videosource import MAX_FPS, MIN_FPS, VideoTrack


class AudioVideoSource(ContainerSource):
    """The sound and the images of a file or URL, which is read once: a "mux" of two tracks.

    Track 0 is audio, as MediaSource gives it, track 1 is video, as VideoSource does, in the order
    in which the container holds them. `pts * time_base` of both are seconds on the container's
    clock. Each track counts `seq` by itself, and a hole in one is flagged on that one.

    audio_stream     Which one of the audio streams, from 0; by default the one that belongs to the
                     images.
    video_stream     Which one of the video streams, from 0; by default the best one.
    channel, scale   Of the sound, as of MediaSource.
    fps, square, open_timeout_s, read_timeout_s, reconnect, reconnect_max_s, reconnect_for_s, live,
    rtsp_transport, insecure, ca_file  As of VideoSource.
    """

    def __init__(
        self,
        address: str,
        audio_stream: str | int | None = None,
        video_stream: str | int | None = None,
        channel: str | int | None = None,
        scale: str | float = 1.0,
        fps: str | float | Fraction | None = None,
        square: str | bool = True,
        open_timeout_s: str | float = 10,
        read_timeout_s: str | float = 10,
        reconnect: str | bool | None = None,
        reconnect_max_s: str | float = 10,
        reconnect_for_s: str | float = 60,
        live: str | bool | None = None,
        rtsp_transport: str = "",
        insecure: str | bool = False,
        ca_file: str = "",
    ) -> None:
        self.audio_stream = _number("audio_stream", audio_stream)
        self.video_stream = _number("video_stream", video_stream)
        self.fps = None if fps is None else options.rate("fps", fps, MIN_FPS, MAX_FPS)
        checked = Address.checked(
            address, open_timeout_s, read_timeout_s, reconnect, reconnect_max_s, reconnect_for_s,
            live, rtsp_transport, insecure, ca_file,
        )  # fmt: skip
        audio = AudioTrack(self.audio_stream, Intake(channel, scale), checked.shown)
        video = VideoTrack(self.video_stream, self.fps, square=options.flag("square", square))
        super().__init__(checked, [audio, video], live=checked.live, in_own_thread=checked.remote)

    def _describe(self) -> StreamInfo:
        return StreamInfo.mux([track.info for track in self._tracks])


def _number(option: str, value: str | int | None) -> int | None:
    return None if value is None else options.integer(option, value, 0, 1000)
