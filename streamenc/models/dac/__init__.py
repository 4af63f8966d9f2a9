"""The Descript Audio Codec (DAC), and the network that other codecs take from it."""
