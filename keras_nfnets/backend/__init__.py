"""Code that depends on the device or on Keras internals; imports no other package here."""
