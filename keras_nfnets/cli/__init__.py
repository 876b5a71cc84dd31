"""The command `keras-nfnets`."""
