"""How good codecs and streamed features are, on folders of speech."""
