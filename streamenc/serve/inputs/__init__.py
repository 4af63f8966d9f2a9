"""What turns packets of input into what a model takes: sound, images, codes; without I/O or torch.

`making.make_input` makes an Input of what `open` asked for.
"""
