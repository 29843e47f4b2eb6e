"""Models: tokens, backbones, the packed stream, pooling, adapters, projection, and the model
folder.
"""
