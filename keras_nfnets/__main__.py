"""`python -m keras_nfnets`."""

from keras_nfnets.cli.main import run

run()
