"""What a torch model is made of: layers, blocks, channel groups. May import `policies`."""
