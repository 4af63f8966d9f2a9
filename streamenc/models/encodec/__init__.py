"""EnCodec: 24 kHz frame by frame, 48 kHz in segments."""
